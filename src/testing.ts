export type { TestRunner } from './testing/store-contract.js'
export { storeContract } from './testing/store-contract.js'

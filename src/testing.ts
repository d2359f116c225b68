export type { TestRunner } from './testing/store-contract.js'
export { storeContract } from './testing/store-contract.js'
export type { TurnedClock } from './testing/turned-clock.js'
export { turnedClock } from './testing/turned-clock.js'

import { fileURLToPath } from 'node:url'

const testing: string = fileURLToPath(new URL('../../../src/testing.ts', import.meta.url))
const config: object = {
  test: { include: ['runners/vitest.ts'] },
  resolve: { alias: { 'express-api-keys/testing': testing } },
}

export default config

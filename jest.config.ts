/** @jest-config-loader esbuild-register */
import type { Config } from 'jest'
import tsconfig from './tsconfig.json' with { type: 'json' }

/** Tests that take long: topologies of Redis, databases as people set them up, outages, processes killed in mid-recall, floods, compilers. `npm run test:wide` runs them. */
const LONG = [
  'cache/redis/channel',
  'cache/redis/topologies',
  'chaos/chaos',
  'cli/doctor',
  'cli/import',
  'cli/keys',
  'cli/migrate',
  'cli/terminal',
  'crash/commit',
  'crash/recall',
  'documents',
  'example-app',
  'exports',
  'getting-started',
  'hostile/flood',
  'hostile/fuzz',
  'hostile/injection',
  'hostile/kept-results',
  'hostile/left-open',
  'hostile/small-pool',
  'hostile/sockets',
  'hostile/unclosed',
  'package',
  'store/sql/databases',
  'store/sql/outages',
  'store/sql/tables-page',
  'timing/rotation-secret',
]
const asked = process.argv.some((argument) => argument.startsWith('test/'))

const config: Config = {
  testEnvironment: 'node',
  testMatch: process.env.LONG_TESTS === undefined ? ['<rootDir>/test/**/*.test.ts'] : LONG.map((name) => `<rootDir>/test/${name}.test.ts`),
  // Those in wide/ need packages of their own. The long ones run only when named.
  testPathIgnorePatterns: [
    '/node_modules/',
    '<rootDir>/test/wide/',
    ...(asked || process.env.LONG_TESTS !== undefined ? [] : LONG.map((name) => `<rootDir>/test/${name}.test.ts`)),
  ],
  // jose is published as modules only, which Jest does not load as they are.
  transformIgnorePatterns: ['/node_modules/(?!jose/)'],
  // swc checks no types; `npm run typecheck` does.
  transform: {
    '^.+\\.ts$|/jose/.+\\.js$': [
      '@swc/jest',
      { jsc: { target: 'es2023', parser: { syntax: 'typescript' } }, module: { type: 'commonjs' } },
    ],
  },
  moduleNameMapper: {
    ...Object.fromEntries(Object.entries(tsconfig.compilerOptions.paths).map(([name, [file]]) => [`^${name}$`, `<rootDir>/${file}`])),
    '^(\\.{1,2}/.*)\\.js$': '$1',
  },
  modulePathIgnorePatterns: ['<rootDir>/dist/'],
  globalSetup: '<rootDir>/test/support/global-setup.ts',
  globalTeardown: '<rootDir>/test/support/global-teardown.ts',
  testTimeout: 60_000,
  // More workers than two cores: most tests wait, for leases, processes and servers.
  maxWorkers: 3,
  // A worker that has grown this large is replaced before its next file: what one file leaves behind is not to crash another.
  workerIdleMemoryLimit: '1GB',
}

export default config

/** The tests of one group, which need no database: a mutant costs a second or two. */
export default {
  rootDir: '..',
  // Every one of them takes less than a second; what hangs is caught.
  testTimeout: 3_000,
  testMatch: process.env.MUTANTS_TESTS.split(',').map((file) => `<rootDir>/${file}`),
  transform: { '^.+\\.ts$': ['@swc/jest', { jsc: { target: 'es2023', parser: { syntax: 'typescript' } }, module: { type: 'commonjs' } }] },
  moduleNameMapper: {
    '^express-api-keys$': '<rootDir>/src/index.ts',
    '^express-api-keys/(.*)$': '<rootDir>/src/$1.ts',
    '^(\\.{1,2}/.*)\\.js$': '$1',
  },
}

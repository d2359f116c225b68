import { readFileSync } from 'node:fs'

const { compilerOptions } = JSON.parse(readFileSync(new URL('../tsconfig.json', import.meta.url), 'utf8'))
/** @type {[name: string, files: string[]][]} */
const paths = Object.entries(compilerOptions.paths)
const { MUTANTS_TESTS = '' } = process.env

/** The tests of one group, which need no database: a mutant costs a second or two. */
export default {
  rootDir: '..',
  // Every one of them takes less than a second; what hangs is caught.
  testTimeout: 3_000,
  testMatch: MUTANTS_TESTS.split(',').map((file) => `<rootDir>/${file}`),
  transform: { '^.+\\.ts$': ['@swc/jest', { jsc: { target: 'es2023', parser: { syntax: 'typescript' } }, module: { type: 'commonjs' } }] },
  moduleNameMapper: {
    ...Object.fromEntries(paths.map(([name, [file]]) => [`^${name}$`, `<rootDir>/${file}`])),
    '^(\\.{1,2}/.*)\\.js$': '$1',
  },
}

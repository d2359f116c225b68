/** @jest-config-loader esbuild-register */
import type { Config } from 'jest'
import usual from '../../jest.config.ts'

/** The tests behind libraries of others. */
const { testPathIgnorePatterns: _ignored, ...rest } = usual
const config: Config = { ...rest, rootDir: '../..', testMatch: ['<rootDir>/test/wide/*.test.ts'] }

export default config

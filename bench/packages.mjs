// The package as applications see it, out of any folder, so that two builds of it can be measured side by side in one process.
import { readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { SERVER_SECRET } from './keys.mjs'
import { releaseBefore } from './release.mjs'

/** @typedef {{ readonly name: 'before' | 'now', readonly title: string, readonly folder: string }} Build */

/**
 * The build that is measured: this code, or with `--old` the release before.
 *
 * @returns {Build}
 */
export function thisBuild() {
  const { BENCH_PACKAGE } = process.env
  if (BENCH_PACKAGE !== undefined) return { name: 'now', title: 'the release before, again', folder: resolve(BENCH_PACKAGE) }
  return { name: 'now', title: 'this code', folder: fileURLToPath(new URL('..', import.meta.url)) }
}

/**
 * The two builds that are compared, the earlier one first. With `--old` both are the release before: how far apart they are is what this machine makes of
 * two that are the same.
 *
 * @returns {[before: Build, now: Build]}
 */
export function builds() {
  return [{ name: 'before', title: 'the release before', folder: releaseBefore() }, thisBuild()]
}

/** @typedef {Awaited<ReturnType<typeof packageIn>>} Package */

/**
 * Loads what applications import.
 *
 * @param {string} folder
 */
export async function packageIn(folder) {
  const { exports } = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8'))
  const part = (/** @type {string} */ name) => import(pathToFileURL(join(folder, exports[name]['module-sync'].default)).href)
  /** @type {Pick<typeof import('../src/index.js'), 'bearerAuth' | 'createApiKeys' | 'keyRouter' | 'memoryStore'>} */
  const { bearerAuth, createApiKeys, keyRouter, memoryStore } = await part('.')
  /** @type {typeof import('../src/store/sql/postgres.js')} */
  const { postgresStore } = await part('./postgres')
  /** @type {typeof import('../src/store/sql/sqlite.js')} */
  const { sqliteStore } = await part('./sqlite')
  /** @type {typeof import('../src/cache/redis/redis-cache.js')} */
  const { redisCache } = await part('./redis')
  return { bearerAuth, createApiKeys, keyRouter, memoryStore, postgresStore, sqliteStore, redisCache }
}

/**
 * The options of these that a build knows: names have changed, and come.
 *
 * @template {object} Options
 * @param {Pick<Package, 'createApiKeys' | 'memoryStore'>} build
 * @param {Options} options
 * @returns {Partial<Options>}
 */
export function known({ createApiKeys, memoryStore }, options) {
  const isKnown = (/** @type {string} */ name, /** @type {unknown} */ value) => {
    try {
      void createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET, [name]: value }).close()
      return true
    } catch {
      return false
    }
  }
  return /** @type {Partial<Options>} */ (Object.fromEntries(Object.entries(options).filter(([name, value]) => isKnown(name, value))))
}

/**
 * The option that says how many secrets a process knows at most, under the name that it has in a build.
 *
 * @param {Pick<Package, 'createApiKeys' | 'memoryStore'>} build
 * @param {number} most
 * @returns {object}
 */
export function knowing(build, most) {
  return known(build, { maxKnownSecrets: most, maxLeases: most })
}

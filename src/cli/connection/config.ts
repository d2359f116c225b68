import { existsSync } from 'node:fs'
import { resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import type { ApiKeys } from '../../core/api-keys.js'
import { INTERNALS } from '../../core/internals.js'
import { ApiKeyError } from '../../errors.js'
import { CliError } from '../exit.js'

type Exports = { readonly [name: string]: unknown }

/** The keys that an application's own module exports, so that the prefix, the tables and all else are the application's. */
export async function keysOfConfig(file: string): Promise<{ readonly keys: ApiKeys; exported(name: string): unknown }> {
  const path = resolve(file)
  if (!existsSync(path)) throw new CliError(`--config names ${file}, which is not there.`)
  const module = (await loaded(path, file)) as Exports
  const exported = (name: string): unknown => module[name] ?? (module.default as Exports | undefined)?.[name]
  const found = candidates(module)
  for (const one of found) {
    // A function makes them when they are asked for.
    const keys = typeof one === 'function' ? await (one as () => unknown)() : one
    if (isKeys(keys)) return { keys, exported }
  }
  throw new CliError(`${file} exports no keys: write "export const keys = createApiKeys(…)" in it, or "export default".`)
}

async function loaded(path: string, file: string): Promise<unknown> {
  try {
    return await import(pathToFileURL(path).href)
  } catch (error) {
    // What createApiKeys refuses says itself what to write.
    if (error instanceof ApiKeyError || error instanceof CliError) throw error
    const { code, message } = (error ?? {}) as { code?: unknown; message?: unknown }
    if (code === 'ERR_UNKNOWN_FILE_EXTENSION' || /\.[cm]?ts$/.test(path)) {
      throw new CliError(`${file} could not be loaded as TypeScript: install tsx, and run the command with NODE_OPTIONS="--import tsx".`)
    }
    throw new CliError(`${file} could not be loaded: ${typeof message === 'string' ? message.split('\n', 1)[0] : 'it threw'}`)
  }
}

/** The default export first, then `keys` and `apiKeys`, then whatever else is exported that API keys can be. Functions only under these names: others are not ours to call. */
function candidates(exported: Exports): readonly unknown[] {
  // A module of CommonJS has its exports behind the default one.
  const inner = (isKeys(exported.default) ? {} : (exported.default ?? {})) as Exports
  const named = [exported.default, inner.default, exported.keys, exported.apiKeys, inner.keys, inner.apiKeys]
  return [...named, ...Object.values(exported).filter(isKeys), ...Object.values(inner).filter(isKeys)].filter((one) => one !== undefined)
}

function isKeys(one: unknown): one is ApiKeys {
  return typeof one === 'object' && one !== null && INTERNALS in one
}

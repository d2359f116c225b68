import { ApiKeyError } from '../errors.js'
import type { Store, StoreTransaction } from '../store/store.js'

/** Any failure of a command as one of our errors. What does not come from the store (see `guardedStore`) is a bug: `internal_error`. */
export function failureOf(error: unknown): ApiKeyError {
  return error instanceof ApiKeyError ? error : unforeseen(error)
}

/**
 * The same store, where every method answers with a promise, and whatever it throws or rejects with is an `ApiKeyError`. This tells a failure of the store from one of
 * our own: what the work of a transaction throws comes out as it is.
 */
export function guardedStore(store: Store): Store {
  const guarded = guard(store)
  const transaction: Store['transaction'] = async (work) => {
    let thrown: { readonly error: unknown } | undefined
    try {
      return await store.transaction(async (tx) => {
        try {
          return await work(guard<StoreTransaction>(tx))
        } catch (error) {
          thrown = { error }
          throw error
        }
      })
    } catch (error) {
      throw thrown !== undefined && thrown.error === error ? error : storeFault(error)
    }
  }
  return new Proxy(guarded, { get: (target, name) => (name === 'transaction' ? transaction : Reflect.get(target, name)) })
}

function guard<T extends object>(part: T): T {
  const methods = new Map<string | symbol, { readonly value: unknown; readonly method: unknown }>()
  return new Proxy(part, {
    get(target, name) {
      const value: unknown = Reflect.get(target, name, target)
      if (typeof value !== 'function') return value
      if (name === 'onFault' || name === 'channel') return value.bind(target)
      const known = methods.get(name)
      // Read each time: a method may have been replaced since.
      if (known !== undefined && known.value === value) return known.method
      const ask = value as (...args: unknown[]) => unknown
      const method = name === 'currentPosition' ? silently(() => ask.call(target)) : orStoreFault((...args) => ask.apply(target, args))
      methods.set(name, { value, method })
      return method
    },
  })
}

function orStoreFault(ask: (...args: unknown[]) => unknown): (...args: unknown[]) => Promise<unknown> {
  return async (...args) => {
    try {
      return await ask(...args)
    } catch (error) {
      throw storeFault(error)
    }
  }
}

/** What is asked before each request is accepted: no answer is one that relies on nothing. */
function silently(ask: () => unknown): () => unknown {
  return () => {
    try {
      return ask()
    } catch {
      return undefined
    }
  }
}

/** What a store threw, as one of our errors: its own, or `store_unavailable` with the cause. For a mistake in its program, trying again would not help. */
function storeFault(error: unknown): ApiKeyError {
  if (error instanceof ApiKeyError) return error
  const name = nameOf(error)
  if (name === 'TypeError' || name === 'RangeError' || name === 'ReferenceError') return unforeseen(error)
  return new ApiKeyError('store_unavailable', 'The store could not be asked.', { cause: error })
}

function nameOf(error: unknown): unknown {
  try {
    return (error as { name?: unknown } | null | undefined)?.name
  } catch {
    return undefined
  }
}

function unforeseen(cause: unknown): ApiKeyError {
  return new ApiKeyError('internal_error', 'Something unforeseen went wrong.', { cause })
}

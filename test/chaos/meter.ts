import type { Request, Response } from 'express'
import type { Recalled } from '../../src/index.js'
import type { Store, StoreTransaction } from '../../src/store/store.js'
import type { Took } from './check.js'

/** Where an answer says what took it so long; only here. */
export const TOOK = 'chaos-took'

/** Measures how long answers take, and how much of that is the store's doing. */
export interface Meter {
  /** The same store, whose calls are counted. */
  store(store: Store): Store
  /** Takes note of how a change was answered. */
  recalled(recalled: Recalled): void
  /** Has every answer say how long it took. */
  time(req: Request, res: Response, next: () => void): void
}

/** How often the process looks at whether it stands still, and what it takes for that. */
const TICK_MS = 10
const STILL_MS = 30
/** What the store said of leases is remembered for longer than any request takes. */
const MEMORY_MS = 60_000

export function meter(leaseMs: number): Meter {
  const now = (): number => performance.now()
  /** For how long the store was waited for so far, whoever did it: requests share what they ask. */
  let waitedMs = 0
  let pending = 0
  let since = 0
  let ticked = { at: now(), waited: 0 }
  const leases: { readonly at: number; readonly ms: number }[] = []

  const recalls: { readonly at: number; readonly members: number }[] = []

  const inStore = (): number => waitedMs + (pending > 0 ? now() - since : 0)
  /** For how long the process has stood still, beside what the store was waited for in that time, since it was last looked at. */
  const stood = (): number => {
    const stoodMs = now() - ticked.at - TICK_MS
    return stoodMs > STILL_MS ? Math.max(0, stoodMs - (inStore() - ticked.waited)) : 0
  }
  const waited = (): number => inStore() + stood()
  const begin = (): void => {
    if (pending++ === 0) since = now()
  }
  const end = (): void => {
    if (--pending === 0) waitedMs += now() - since
  }
  const told = (ms: number | undefined): void => {
    if (ms !== undefined && ms > 0) leases.push({ at: now(), ms })
    while ((leases[0]?.at ?? Number.POSITIVE_INFINITY) < now() - MEMORY_MS) leases.shift()
  }

  setInterval(() => {
    waitedMs += stood()
    ticked = { at: now(), waited: inStore() }
  }, TICK_MS).unref()

  return {
    recalled({ members, answered, early }) {
      recalls.push({ at: now(), members: early && answered === members ? members : 0 })
      if (recalls.length > 100) recalls.shift()
    },
    store: (store) => {
      const transaction: Store['transaction'] = (work) => store.transaction((tx) => work(tellingSteps(tx)))
      return new Proxy(Object.assign(Object.create(store) as Store, { transaction }), { get: (target, name) => metered(target, name) })
    },
    time(_req, res, next) {
      const [began, before] = [now(), waited()]
      const head = res.writeHead.bind(res) as (...args: unknown[]) => Response
      res.writeHead = ((...args: unknown[]) => {
        const took: Took = {
          ms: now() - began,
          storeMs: waited() - before,
          leaseMs: leases.reduce((longest, { at, ms }) => (at >= began ? Math.max(longest, ms) : longest), leaseMs),
        }
        // Of several changes at once any may be meant: this is for counting.
        const last = recalls.at(-1)
        if (last !== undefined && last.at >= began) Object.assign(took, { recalled: last.members })
        res.setHeader(TOOK, JSON.stringify(took))
        return head(...args)
      }) as typeof res.writeHead
      next()
    },
  }

  function metered(store: Store, name: string | symbol): unknown {
    const value: unknown = Reflect.get(store, name, store)
    if (typeof value !== 'function') return value
    return (...args: unknown[]) => {
      const answer: unknown = value.apply(store, args)
      if (!(answer instanceof Promise)) return answer
      begin()
      answer.then((found?: { readonly waitMs?: number }) => told(found?.waitMs)).catch(() => {})
      return answer.finally(end)
    }
  }

  function tellingSteps(tx: StoreTransaction): StoreTransaction {
    const waitMs = async (): Promise<number> => {
      const ms = await tx.waitMs()
      told(ms)
      return ms
    }
    return { ...tx, waitMs }
  }
}

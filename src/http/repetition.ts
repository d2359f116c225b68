import type { Request } from 'express'
import type { Clock } from '../core/clock.js'
import { digestOf } from '../core/secret.js'
import type { Caller } from './caller.js'
import type { Route } from './contract.js'
import { network } from './limits/route-limits.js'
import { addressIsDoubtful } from './origin.js'
import { headerValues } from './source.js'

/** A request that can be repeated: it may be asking for an answer that was lost. */
export interface Repetition {
  /** The same for the same request only. */
  readonly name: string
  /** The network that it may be repeated from, where it has no Idempotency-Key. */
  readonly retryFrom: string | undefined
}

/** Whether a request can be repeated: by its Idempotency-Key or, where they may stand for one, by its secret and its network. */
export function repetitionOf(
  route: Route,
  req: Request,
  caller: Caller,
  body: object,
  retryWithoutKey: boolean | undefined,
): Repetition | undefined {
  if (route.method === 'get') return undefined
  const [idempotencyKey] = headerValues(req, 'idempotency-key')
  const retryFrom = idempotencyKey === undefined ? retryNetwork(route, req, body, retryWithoutKey) : undefined
  if (idempotencyKey === undefined && retryFrom === undefined) return undefined
  const parts = [req.method, req.originalUrl, caller, idempotencyKey, retryFrom, body]
  return { name: digestOf(JSON.stringify(parts)), retryFrom }
}

/** The network that a rotation may be repeated from without an Idempotency-Key; undefined where it may not. */
function retryNetwork(route: Route, req: Request, body: object, retryWithoutKey: boolean | undefined): string | undefined {
  const { emergency, rotationSecret } = body as { emergency?: unknown; rotationSecret?: unknown }
  const allowed = retryWithoutKey ?? typeof rotationSecret === 'string'
  if (!allowed || route.action !== 'rotate' || emergency === true || addressIsDoubtful(req)) return undefined
  const from = network(req)
  return from === 'unknown' ? undefined : from
}

/** A request that is over a limit may be the twin of one that another process is about to commit. It looks for that answer again after this long. */
const TWIN_ELSEWHERE_MS = 1_000
/** More requests than this do not wait. */
const MAX_WAITING = 100

/** Requests that are the same, and under way at the same time. */
export interface Twins {
  /** Works once no twin is under way in this process: its answer is then there to be found. */
  afterTwins(name: string, work: () => Promise<void>): Promise<void>
  /** Waits for a twin that another process may be working on; false where too many requests wait already. */
  waitForTwinElsewhere(): Promise<boolean>
}

export function twins(clock: Clock): Twins {
  const underWay = new Map<string, Promise<void>>()
  let waiting = 0
  return {
    async afterTwins(name, work) {
      for (let twin = underWay.get(name); twin !== undefined; twin = underWay.get(name)) await twin
      const working = work()
      const ended = working.then(
        () => {},
        () => {},
      )
      underWay.set(name, ended)
      try {
        await working
      } finally {
        if (underWay.get(name) === ended) underWay.delete(name)
      }
    },
    async waitForTwinElsewhere() {
      if (waiting >= MAX_WAITING) return false
      waiting++
      await clock.sleep(TWIN_ELSEWHERE_MS)
      waiting--
      return true
    },
  }
}

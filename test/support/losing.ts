import express from 'express'
import {
  type ApiKeys,
  type ApiKeysOptions,
  bearerAuth,
  createApiKeys,
  type KeyRouterOptions,
  keyRouter,
  type Store,
} from 'express-api-keys'
import type { Contract } from 'express-api-keys/contract'
import { atEnd } from './cleanup.js'
import { type Checked, exchange, type Sent } from './contract.js'
import { listen } from './listen.js'
import { SERVER_SECRET } from './process.js'
import { SOURCE } from './source.js'

export interface Losing {
  readonly keys: ApiKeys
  readonly url: string
  /** How the next answers get lost: the connection is cut when the answer is ready (`answer`), or as soon as the request is here (`request`). */
  lose(count: number, when?: 'answer' | 'request'): void
  /** The answer, or undefined where it was lost. */
  send(sent: Sent): Promise<Checked | undefined>
  accepted(secret: string): Promise<number>
}

/** Serves a contract over real HTTP, on a line that loses answers when told to. */
export async function serveLosing(
  contract: Contract,
  store: Store,
  {
    router,
    trustProxy = 1,
    ...options
  }: Partial<ApiKeysOptions> & { router?: Partial<KeyRouterOptions>; trustProxy?: number | boolean } = {},
): Promise<Losing> {
  const keys = createApiKeys({ store, serverSecret: SERVER_SECRET, leaseMs: 100, onError: () => {}, ...options })
  await keys.migrate()
  let losses = 0
  let how: 'answer' | 'request' = 'answer'
  const app = express()
  app.set('trust proxy', trustProxy)
  app.use(contract.path, (_req, res, next) => {
    if (losses > 0) {
      losses--
      if (how === 'request') res.socket?.destroy()
      else res.end = (() => res.destroy()) as typeof res.end
    }
    next()
  })
  app.use(contract.path, keyRouter(keys, { contract, from: SOURCE.source, ...router }))
  app.get('/data', bearerAuth(keys, { from: SOURCE.source }), (req, res) => {
    res.json({ id: req.apiKey?.id })
  })
  atEnd(() => keys.close())
  const url = await listen(app)
  return {
    keys,
    url,
    lose(count, when = 'answer') {
      losses = count
      how = when
    },
    send: (sent) => exchange(url + contract.path, carried(sent)).catch(() => undefined),
    async accepted(secret) {
      for (;;) {
        const { status } = await exchange(url, carried({ method: 'GET', path: '/data', secret }))
        // On a busy machine a lease this short is over before the store's answer is here.
        if (status !== 503) return status
      }
    },
  }
}

/** The request with its key where the clients of this run have it. */
function carried({ secret, headers = [], ...rest }: Sent): Sent {
  return secret === undefined ? { ...rest, headers } : { ...rest, headers: [...headers, ...Object.entries(SOURCE.sent(secret)).flat()] }
}

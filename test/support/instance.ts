import type { Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import express from 'express'
import { type ApiKeys, type ApiKeysOptions, bearerAuth, contracts, createApiKeys, keyRouter, type Store } from 'express-api-keys'
import { atEnd } from './cleanup.js'
import { SERVER_SECRET } from './process.js'
import { SOURCE } from './source.js'

export interface Instance {
  readonly keys: ApiKeys
  readonly url: string
  readonly server: Server
}

/** Serves keys over real HTTP from this process: the router at `/keys`, the one that gives keys a successor at `/successors`, a protected route at `/data`. */
export async function serve(
  store: Store,
  options: Partial<ApiKeysOptions> = {},
  framework: () => express.Express = express,
): Promise<Instance> {
  const keys = createApiKeys({ store, serverSecret: SERVER_SECRET, leaseMs: 250, onError: () => {}, ...options })
  await keys.migrate()
  const app = framework()
  app.use('/keys', keyRouter(keys, { from: SOURCE.source }))
  app.use('/successors', keyRouter(keys, { contract: contracts.blendFi, from: SOURCE.source }))
  app.get('/data', bearerAuth(keys, { from: SOURCE.source }), (req, res) => {
    res.json({ id: req.apiKey?.id })
  })
  app.get('/scoped', bearerAuth(keys, { from: SOURCE.source, scope: 'reports:read' }), (_req, res) => {
    res.json({ ok: true })
  })
  const server: Server = await new Promise((resolve) => {
    const listening = app.listen(0, '127.0.0.1', () => resolve(listening))
  })
  atEnd(async () => {
    server.closeAllConnections()
    await new Promise((resolve) => server.close(resolve))
    await keys.close()
  })
  return { keys, server, url: `http://127.0.0.1:${(server.address() as AddressInfo).port}` }
}

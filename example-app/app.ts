import express, { type ErrorRequestHandler, type Express } from 'express'
import { type ApiKeys, bearer, bearerAuth, contracts, header, keyLimit, keyRouter } from 'express-api-keys'
import { account } from './account.js'
import { jsonApi } from './json-api.js'

interface Parcel {
  readonly number: string
  readonly to: string
  readonly status: string
}

/**
 * A parcel service: whoever has a key may look up parcels, and with the right scope hand one in. Its keys can be rotated through our own contract, through
 * five published ones at their published paths, and through one written for it. `suwappuKeys` are the keys of the one whose secrets look different.
 */
export function parcelApp(keys: ApiKeys, suwappuKeys: ApiKeys, sessionSecret: string): Express {
  const parcels = new Map<string, Parcel>([
    ['PX1001', { number: 'PX1001', to: 'Ada, London', status: 'out for delivery' }],
    ['PX1002', { number: 'PX1002', to: 'Grace, New York', status: 'in customs' }],
  ])
  const app = express()
  app.get('/', (_req, res) => {
    res.type('html').send(PAGE)
  })
  app.use('/account', account(keys, sessionSecret))
  app.use('/api-keys', keyRouter(keys))
  for (const contract of [contracts.redditFind, contracts.agents, contracts.rixl, contracts.blendFi, jsonApi]) {
    app.use(contract.path, keyRouter(keys, { contract }))
  }
  app.use(contracts.suwappu.path, keyRouter(suwappuKeys, { contract: contracts.suwappu }))
  // Where clients have their key, what a plan allows, and how this API tells of failures.
  const from = [bearer(), header('X-API-Key')]
  const plan = keyLimit(keys, { windowMs: 60_000, limit: ({ metadata }) => (metadata.plan === 'business' ? 600 : 60) })
  app.get('/v1/parcels', bearerAuth(keys, { from, scope: 'parcels:read', onFailure: 'next' }), plan, (_req, res) => {
    res.json({ parcels: [...parcels.values()] })
  })
  app.post('/v1/parcels', bearerAuth(keys, { from, scope: 'parcels:write', onFailure: 'next' }), plan, express.json(), (req, res) => {
    const to: unknown = req.body?.to
    if (typeof to !== 'string' || to === '') {
      res.status(400).json({ error: { code: 'no_address', text: 'Say where the parcel goes: { "to": "…" }' } })
      return
    }
    const parcel = { number: `PX${1001 + parcels.size}`, to, status: `handed in by ${req.apiKey?.name}` }
    parcels.set(parcel.number, parcel)
    res.status(201).json(parcel)
  })
  app.use('/v1', failed)
  return app
}

/** Failures in the words of this API. The headers say when to come back, and how to authenticate. */
const failed: ErrorRequestHandler = (error, _req, res, _next) => {
  const { status = 500, headers = {}, code = 'failed', expose = false, message } = error
  res
    .status(status)
    .set(headers)
    .json({ error: { code, text: expose ? message : 'Something went wrong.' } })
}

const PAGE = `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Parcels</title>
<style>body{font:16px/1.5 system-ui;max-width:44rem;margin:3rem auto;padding:0 1rem}td{padding:.2rem 1rem .2rem 0;vertical-align:top}</style></head>
<body><h1>Parcels</h1>
<p>A small API behind keys that can be rotated without locking anyone out. The first key is printed in the terminal, once, on the first start.</p>
<table>
<tr><td><code>GET /v1/parcels</code><td>all parcels; needs <code>parcels:read</code>, in <code>Authorization: Bearer</code> or <code>X-API-Key</code></tr>
<tr><td><code>POST /v1/parcels</code><td><code>{ "to": "…" }</code> hands one in; needs <code>parcels:write</code></tr>
<tr><td><code>POST /api-keys/self/rotate</code><td>a new secret for the key that asks</tr>
<tr><td><code>POST /api-keys</code><td><code>{ "name": "…", "scopes": ["…"] }</code> makes a key; needs <code>api_keys:write</code></tr>
<tr><td><code>GET /api-keys</code><td>the keys of your owner; needs <code>api_keys:read</code></tr>
<tr><td><code>GET /api-keys/:id/events</code><td>what happened to a key</tr>
</table>
<p><a href="/account/">My keys</a>: sign in, make keys, rotate and revoke them.</p>
<p>OpenAPI: <a href="/api-keys/openapi.json">our own contract</a>, and the published ones:
<a href="/api/open/v1/keys/openapi.json">redditFind</a>, <a href="/v1/agents/openapi.json">agents</a>,
<a href="/platform/api-keys/openapi.json">rixl</a>, <a href="/v1/agent/openapi.json">suwappu</a>,
<a href="/v1/api-keys/openapi.json">blendFi</a>; and <a href="/partners/v1/credentials/openapi.json">one of the app's own</a>.</p></body></html>
`

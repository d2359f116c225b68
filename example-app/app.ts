import express, { type Express } from 'express'
import { type ApiKeys, bearerAuth, contracts, keyRouter } from 'express-api-keys'
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
export function parcelApp(keys: ApiKeys, suwappuKeys: ApiKeys): Express {
  const parcels = new Map<string, Parcel>([
    ['PX1001', { number: 'PX1001', to: 'Ada, London', status: 'out for delivery' }],
    ['PX1002', { number: 'PX1002', to: 'Grace, New York', status: 'in customs' }],
  ])
  const app = express()
  app.get('/', (_req, res) => {
    res.type('html').send(PAGE)
  })
  app.use('/api-keys', keyRouter(keys))
  for (const contract of [contracts.redditFind, contracts.agents, contracts.rixl, contracts.blendFi, jsonApi]) {
    app.use(contract.path, keyRouter(keys, { contract }))
  }
  app.use(contracts.suwappu.path, keyRouter(suwappuKeys, { contract: contracts.suwappu }))
  app.get('/v1/parcels', bearerAuth(keys, { scope: 'parcels:read' }), (_req, res) => {
    res.json({ parcels: [...parcels.values()] })
  })
  app.post('/v1/parcels', bearerAuth(keys, { scope: 'parcels:write' }), express.json(), (req, res) => {
    const to: unknown = req.body?.to
    if (typeof to !== 'string' || to === '') {
      res.status(400).json({ error: 'Say where the parcel goes: { "to": "…" }' })
      return
    }
    const parcel = { number: `PX${1001 + parcels.size}`, to, status: `handed in by ${req.apiKey?.name}` }
    parcels.set(parcel.number, parcel)
    res.status(201).json(parcel)
  })
  return app
}

const PAGE = `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Parcels</title>
<style>body{font:16px/1.5 system-ui;max-width:44rem;margin:3rem auto;padding:0 1rem}td{padding:.2rem 1rem .2rem 0;vertical-align:top}</style></head>
<body><h1>Parcels</h1>
<p>A small API behind keys that can be rotated without locking anyone out. The first key is printed in the terminal, once, on the first start.</p>
<table>
<tr><td><code>GET /v1/parcels</code><td>all parcels; needs <code>parcels:read</code></tr>
<tr><td><code>POST /v1/parcels</code><td><code>{ "to": "…" }</code> hands one in; needs <code>parcels:write</code></tr>
<tr><td><code>POST /api-keys/self/rotate</code><td>a new secret for the key that asks</tr>
<tr><td><code>POST /api-keys</code><td><code>{ "name": "…", "scopes": ["…"] }</code> makes a key; needs <code>api_keys:write</code></tr>
<tr><td><code>GET /api-keys</code><td>the keys of your owner; needs <code>api_keys:read</code></tr>
<tr><td><code>GET /api-keys/:id/events</code><td>what happened to a key</tr>
</table>
<p>OpenAPI: <a href="/api-keys/openapi.json">our own contract</a>, and the published ones:
<a href="/api/open/v1/keys/openapi.json">redditFind</a>, <a href="/v1/agents/openapi.json">agents</a>,
<a href="/platform/api-keys/openapi.json">rixl</a>, <a href="/v1/agent/openapi.json">suwappu</a>,
<a href="/v1/api-keys/openapi.json">blendFi</a>; and <a href="/partners/v1/credentials/openapi.json">one of the app's own</a>.</p></body></html>
`

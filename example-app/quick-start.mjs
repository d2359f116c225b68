import { randomBytes, randomUUID } from 'node:crypto'
import express from 'express'
import { bearerAuth, createApiKeys, keyRouter, memoryStore } from 'express-api-keys'

// The server: keys, a router that rotates them, and a route that needs one.
const keys = createApiKeys({ store: memoryStore(), serverSecret: randomBytes(32) })
const app = express()
app.use('/api-keys', keyRouter(keys))
app.get('/reports', bearerAuth(keys, { scope: 'reports:read' }), (req, res) => res.json({ for: req.apiKey.ownerId }))
const server = app.listen(0)

// A client with a key.
const { secret: old } = await keys.create({ as: 'application', ownerId: 'acme', name: 'ci', scopes: ['reports:read'] })
const idempotencyKey = randomUUID()
const read = (secret) => send('GET /reports', secret)
const rotate = (secret) => send('POST /api-keys/self/rotate', secret, { 'Idempotency-Key': idempotencyKey })

await read(old)
await rotate(old) // Pretend this response never arrives.
const fresh = await rotate(old) // The same request again, with the old key, which no longer works.
await read(old)
await read(fresh)

async function send(request, secret, headers = {}) {
  const [method, path] = request.split(' ')
  const url = `http://localhost:${server.address().port}${path}`
  const response = await fetch(url, { method, headers: { Authorization: `Bearer ${secret}`, ...headers } })
  const body = await response.json()
  const shown = body.secret ? { secret: short(body.secret) } : { for: body.for, code: body.code }
  console.log(`${request.padEnd(26)} with ${short(secret)}  ${response.status} ${JSON.stringify(shown)}`)
  return body.secret
}

function short(secret) {
  return `${secret.slice(0, 12)}…`
}

server.close()
await keys.close()

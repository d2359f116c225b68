// Has the package itself make keys, and prints them with their rows.
import { apiKey } from '@better-auth/api-key'
import { betterAuth } from 'better-auth'
import { memoryAdapter } from 'better-auth/adapters/memory'

const database = { user: [], session: [], account: [], verification: [], apikey: [] }
const auth = betterAuth({
  database: memoryAdapter(database),
  secret: 'the-secret-of-better-auth-in-these-tests-0123456789',
  baseURL: 'http://localhost',
  plugins: [apiKey({ defaultPrefix: 'acme_', enableMetadata: true })],
  emailAndPassword: { enabled: true },
  logger: { disabled: true },
})
const { user } = await auth.api.signUpEmail({ body: { email: 'a@example.com', password: 'password of alice', name: 'Alice' } })
const secrets = []
for (let n = 0; n < 1_000; n++) {
  const expires = n % 2 === 0 ? { expiresIn: 30 * 86_400 } : {}
  const { key } = await auth.api.createApiKey({
    body: { name: `key ${n}`, userId: user.id, permissions: { reports: ['read'] }, metadata: { n }, ...expires },
  })
  secrets.push(key)
}
// One is disabled, one was used.
await auth.api.updateApiKey({ body: { keyId: database.apikey[1].id, userId: user.id, enabled: false } })
const { valid } = await auth.api.verifyApiKey({ body: { key: secrets[0] } })
console.log(JSON.stringify({ secrets, rows: database.apikey, owner: user.id, valid }))

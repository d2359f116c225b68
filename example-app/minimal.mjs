import express from 'express'
import { bearerAuth, createApiKeys, keyRouter } from 'express-api-keys'
import { postgresStore } from 'express-api-keys/postgres'
import { redisCache } from 'express-api-keys/redis'
import { Redis } from 'ioredis'
import { Pool } from 'pg'

const { DATABASE_URL, REDIS_URL, API_KEYS_SECRET, PORT = 3000 } = process.env
const store = postgresStore(new Pool({ connectionString: DATABASE_URL }))
const redis = new Redis(REDIS_URL).on('error', () => {}) // redisCache reports when Redis is down.
const keys = createApiKeys({ store, cache: redisCache(redis), serverSecret: API_KEYS_SECRET })
await keys.migrate()
const app = express()
app.use('/v1/api-keys', keyRouter(keys))
app.get('/v1/reports', bearerAuth(keys, { scope: 'reports:read' }), (req, res) => res.json({ for: req.apiKey.ownerId }))
app.listen(PORT, () => console.log(`Listening on http://localhost:${PORT}`))

import { type ApiKeys, createApiKeys } from 'express-api-keys'
import { mysqlStore } from 'express-api-keys/mysql'
import { createPool } from 'mysql2'

const { DATABASE_URL = '', API_KEYS_SECRET = '' } = process.env
const pool = createPool({ uri: DATABASE_URL, connectionLimit: 10 })
export const keys: ApiKeys = createApiKeys({ store: mysqlStore(pool), serverSecret: API_KEYS_SECRET })

export async function close(): Promise<void> {
  await keys.close()
  await pool.promise().end()
}

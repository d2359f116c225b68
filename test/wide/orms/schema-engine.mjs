#!/usr/bin/env node
// Stands in for the binary that Prisma's CLI downloads and talks to: the same engine, built for WebAssembly, out of its npm package.
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { createInterface } from 'node:readline'
import { PrismaPg } from '@prisma/adapter-pg'
import { bindMigrationAwareSqlAdapterFactory, ColumnTypeEnum } from '@prisma/driver-adapter-utils'
import * as bindings from '@prisma/schema-engine-wasm/schema_engine_bg'
import pg from 'pg'

const url = process.env.DATABASE_URL ?? ''

// Before a command, the CLI looks whether the database is there.
if (process.argv.includes('cli')) {
  const client = new pg.Client({ connectionString: url })
  await client.connect()
  await client.end()
  process.exit(0)
}

const engine = await loaded()
for await (const line of createInterface({ input: process.stdin })) {
  const { id, method, params } = JSON.parse(line)
  if (method === undefined) continue
  const answer = await engine[method](params).then((result) => ({ result: result ?? null }), failure)
  // The binary has the CLI print; this build hands the text back.
  const content = answer.result?.stdout
  if (content) send({ id: `${id} prints`, method: 'print', params: { content } })
  send({ id, ...answer })
}
process.exit(0)

async function loaded() {
  globalThis.PRISMA_WASM_PANIC_REGISTRY = { set_message: (message) => process.stderr.write(`${message}\n`) }
  const file = createRequire(import.meta.url)
    .resolve('@prisma/schema-engine-wasm')
    .replace(/schema_engine\.js$/, 'schema_engine_bg.wasm')
  const { exports } = new WebAssembly.Instance(new WebAssembly.Module(readFileSync(file)), { './schema_engine_bg.js': bindings })
  bindings.__wbg_set_wasm(exports)
  exports.__wbindgen_start()
  return bindings.SchemaEngine.new({ datamodels: undefined }, () => {}, bindMigrationAwareSqlAdapterFactory(adapters()))
}

/** PrismaPg, which cannot read the one-byte "char" of the catalogs (18): it is handed over as text (25), and told to be a character again. */
function adapters() {
  const pool = new pg.Pool({ connectionString: url })
  const query = pool.query.bind(pool)
  let characters = []
  pool.query = async (...args) => {
    const result = await query(...args)
    characters = result.fields.flatMap(({ dataTypeID }, index) => (dataTypeID === 18 ? [index] : []))
    for (const index of characters) result.fields[index].dataTypeID = 25
    return result
  }
  return {
    provider: 'postgres',
    adapterName: '@prisma/adapter-pg',
    async connect() {
      const adapter = await new PrismaPg(pool).connect()
      const queryRaw = adapter.queryRaw.bind(adapter)
      adapter.queryRaw = async (statement) => {
        const answer = await queryRaw(statement)
        for (const index of characters) answer.columnTypes[index] = ColumnTypeEnum.Character
        return answer
      }
      return adapter
    },
    connectToShadowDb: async () => Promise.reject(new Error('There is no shadow database.')),
  }
}

function failure({ message, code }) {
  return { error: { code: 4466, message, data: { is_panic: false, message, error_code: code } } }
}

function send(message) {
  process.stdout.write(`${JSON.stringify({ jsonrpc: '2.0', ...message })}\n`)
}

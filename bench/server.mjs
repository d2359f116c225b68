// Serves one row, as a process of its own. ROW says which; the services' URLs are in the environment too.
import { createServer } from 'node:http'
import { Redis } from 'ioredis'
import { rows } from './rows.mjs'
import { answer } from './services.mjs'

/** @type {() => import('./rows.mjs').Counts} */
let counts = () => ({})
let requests = 0
let commands = 0

// Counted here, when ioredis is given them, and not by Redis, which cannot tell whose they are. A script is one, whatever it runs inside.
const { sendCommand } = Redis.prototype
Redis.prototype.sendCommand = function (...args) {
  commands++
  return sendCommand.apply(this, args)
}

const functions = {
  async start() {
    const row = rows.find(({ name }) => name === process.env.ROW)
    if (row === undefined) throw new Error(`There is no row ${process.env.ROW}.`)
    const { POSTGRES_URL = '', REDIS_URL = '', LEASE_MS, CONFIG } = process.env
    const { listener, tokens, counts: own } = await row.start({ POSTGRES_URL, REDIS_URL, LEASE_MS, CONFIG })
    counts = own ?? counts
    // Counted here, so that requests and CPU time are read at one instant.
    const server = createServer((req, res) => {
      requests++
      listener(req, res)
    })
    // Connections stay open while other rows have their turn.
    server.keepAliveTimeout = 600_000
    await new Promise((resolve) => server.listen({ port: 0, host: '127.0.0.1', backlog: 8_192 }, () => resolve(undefined)))
    const { port } = /** @type {import('node:net').AddressInfo} */ (server.address())
    return { origin: `http://127.0.0.1:${port}`, tokens }
  },
  usage() {
    const { userCPUTime, systemCPUTime } = process.resourceUsage()
    const { reads = 0, digests = 0, misses = 0, relays = 0 } = counts()
    return { atMs: performance.now(), cpuMicros: userCPUTime + systemCPUTime, requests, commands, reads, digests, misses, relays }
  },
}

/** @typedef {typeof functions} Server */
/** @typedef {ReturnType<typeof functions.usage>} Usage */

answer(functions)

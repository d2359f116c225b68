// Serves one row, as a process of its own. ROW says which; the services' URLs are in the environment too.
import { createServer } from 'node:http'
import { Redis } from 'ioredis'
import { rows } from './rows.mjs'
import { answer } from './services.mjs'

const row = rows.find(({ name }) => name === process.env.ROW)
let requests = 0
let commands = 0
let counts = () => ({})

// Counted here, when ioredis is given them, and not by Redis, which cannot tell whose they are. A script is one, whatever it runs inside.
const { sendCommand } = Redis.prototype
Redis.prototype.sendCommand = function (...args) {
  commands++
  return sendCommand.apply(this, args)
}

answer({
  async start(options) {
    const { listener, counts: own, ...rest } = await row.start({ ...process.env, ...options })
    counts = own ?? counts
    // Counted here, so that requests and CPU time are read at one instant.
    const server = createServer((req, res) => {
      requests++
      listener(req, res)
    })
    // Connections stay open while other rows have their turn.
    server.keepAliveTimeout = 600_000
    await new Promise((resolve) => server.listen({ port: 0, host: '127.0.0.1', backlog: 8_192 }, resolve))
    return { origin: `http://127.0.0.1:${server.address().port}`, ...rest }
  },
  usage() {
    const { userCPUTime, systemCPUTime } = process.resourceUsage()
    return {
      atMs: performance.now(),
      cpuMicros: userCPUTime + systemCPUTime,
      requests,
      commands,
      ...counts(),
    }
  },
})

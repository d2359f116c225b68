// A process that presents unknown, well-formed secrets, FLOOD_RATE of them a second. It prints how often it got each status.
import { randomBytes } from 'node:crypto'
import { Agent, request } from 'node:http'
import { secretFormat } from '../../src/core/secret.js'

const { FLOOD_URL = '', FLOOD_RATE = '2000', FLOOD_ADDRESSES } = process.env
const TICK_MS = 5
/** Connections. Requests that they cannot take in time are skipped, and never made up for in one burst. */
const AT_ONCE = 100

const { port } = new URL(FLOOD_URL)
const agent = new Agent({ keepAlive: true, maxSockets: AT_ONCE })
const format = secretFormat('sk', true)
const statuses: { [status: string]: number } = {}
let turn = 0
let underWay = 0
let due = 0
let last = performance.now()

setInterval(() => {
  const now = performance.now()
  due = Math.min(due + ((now - last) / 1_000) * Number(FLOOD_RATE), AT_ONCE)
  last = now
  for (; due >= 1 && underWay < AT_ONCE; due--) present()
}, TICK_MS)
setInterval(() => console.log(JSON.stringify(statuses)), 100)

/** One in ten asks for a rotation. */
function present(): void {
  const [method, path] = turn++ % 10 === 0 ? ['POST', '/keys/self/rotate'] : ['GET', '/data']
  const headers = {
    authorization: `Bearer ${format.mint('sk_live_').secret}`,
    ...(FLOOD_ADDRESSES === 'many' ? { 'x-forwarded-for': [...randomBytes(4)].join('.') } : {}),
    ...(method === 'POST' ? { 'content-length': '0' } : {}),
  }
  underWay++
  const count = (what: string | number): void => {
    underWay--
    statuses[what] = (statuses[what] ?? 0) + 1
  }
  request({ port, method, path, agent, headers }, (answer) => {
    count(answer.statusCode ?? 0)
    answer.resume()
  })
    .on('error', () => count('failed'))
    .end()
}

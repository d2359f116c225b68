// The load generator, a process of its own: each connection sends its next request when the last is answered.
import { Client } from 'undici'
import { answer } from './services.mjs'
import { quantile } from './stats.mjs'

/** More answers than this in one slice are counted, but their latency is not kept. */
const MAX_LATENCIES = 500_000

/**
 * A server under load. `order` says which header each request carries; without it they take turns.
 *
 * @typedef {object} Target
 * @property {readonly Client[]} clients
 * @property {readonly { authorization: string }[]} headers
 * @property {Uint32Array | undefined} order
 * @property {number} status
 * @property {string} path
 * @property {number} sent
 */

/**
 * @typedef {object} Run
 * @property {string} name
 * @property {boolean} stopped
 * @property {boolean} recording
 * @property {Float64Array} latencies
 * @property {number} count
 * @property {number} failures
 * @property {string} lastFailure
 */

/** @type {Map<string, Target>} */
const targets = new Map()
/** @type {{ run: Run, done: Promise<unknown> } | undefined} */
let running

const functions = {
  /**
   * Opens the connections to a server (or several, in turn).
   *
   * @param {{ name: string, origins: string[], connections: number, tokens: string[], order?: Uint32Array, status: number, path?: string }} target
   */
  prepare({ name, origins, connections, tokens, order, status, path = '/data' }) {
    const clients = Array.from({ length: connections }, (_, i) => new Client(origins[i % origins.length] ?? '', { pipelining: 1 }))
    const headers = tokens.map((token) => ({ authorization: `Bearer ${token}` }))
    targets.set(name, { clients, headers, order, status, path, sent: 0 })
  },
  /**
   * Without `perSecond` each connection sends its next request when the last is answered; with it, requests are sent when they are due.
   *
   * @param {{ name: string, perSecond?: number }} how
   */
  start({ name, perSecond }) {
    const target = targetOf(name)
    const run = runOf(name, MAX_LATENCIES)
    const done =
      perSecond === undefined ? Promise.all(target.clients.map((client) => connection(client, target, run))) : paced(target, run, perSecond)
    running = { run, done }
  },
  record() {
    current().run.recording = true
  },
  /** Stops asking, waits for what is under way, and says how it went. */
  async stop() {
    const { run, done } = current()
    run.stopped = true
    const { latencies, count } = run
    await done
    refuseFailures(run)
    const kept = latencies.subarray(0, Math.min(count, MAX_LATENCIES))
    return { p50: quantile(kept, 0.5), p99: quantile(kept, 0.99) }
  },
  /**
   * As many requests at once as there are connections, one each.
   *
   * @param {{ name: string }} which
   */
  async once({ name }) {
    const target = targetOf(name)
    const run = { ...runOf(name, target.clients.length), stopped: true, recording: true }
    await Promise.all(target.clients.map((client) => connection(client, target, run)))
    refuseFailures(run)
    return { count: run.count, slowest: quantile(run.latencies, 1) }
  },
  /** @param {{ name: string }} which */
  async forget({ name }) {
    await Promise.all(targetOf(name).clients.map((client) => client.destroy()))
    targets.delete(name)
  },
}

/** @typedef {typeof functions} Load */

answer(functions)

/**
 * @param {string} name
 * @returns {Target}
 */
function targetOf(name) {
  const target = targets.get(name)
  if (target === undefined) throw new Error(`${name} was not prepared.`)
  return target
}

function current() {
  if (running === undefined) throw new Error('Nothing was started.')
  return running
}

/**
 * @param {string} name
 * @param {number} most
 * @returns {Run}
 */
function runOf(name, most) {
  return { name, stopped: false, recording: false, latencies: new Float64Array(most), count: 0, failures: 0, lastFailure: '' }
}

/**
 * A figure over requests of which some failed would be the figure of something else.
 *
 * @param {Run} run
 */
function refuseFailures({ name, failures, lastFailure }) {
  if (failures > 0) throw new Error(`${name}: ${failures} requests failed, the last one because the server ${lastFailure}.`)
}

/**
 * Latency counts from when a request was due, so that a server that stalls cannot make its load wait politely.
 *
 * @param {Target} target
 * @param {Run} run
 * @param {number} perSecond
 */
async function paced(target, run, perSecond) {
  const idle = [...target.clients]
  /** @type {number[]} */
  const due = []
  /** @type {Set<Promise<void>>} */
  const under = new Set()
  const began = performance.now()
  let planned = 0
  while (!run.stopped) {
    const now = performance.now()
    for (; began + (planned * 1_000) / perSecond <= now; planned++) due.push(began + (planned * 1_000) / perSecond)
    pump()
    await new Promise((resolve) => setTimeout(resolve, 1))
  }
  await Promise.all(under)

  function pump() {
    while (due.length > 0) {
      const client = idle.pop()
      if (client === undefined) return
      /** @type {Promise<void>} */
      const one = connection(client, target, run, due.shift()).then(() => {
        under.delete(one)
        idle.push(client)
        if (!run.stopped) pump()
      })
      under.add(one)
    }
  }
}

/**
 * With `dueAt`, one request that was due then; else request after request until the run is stopped.
 *
 * @param {Client} client
 * @param {Target} target
 * @param {Run} run
 * @param {number} [dueAt]
 * @returns {Promise<void>}
 */
function connection(client, target, run, dueAt) {
  const { headers, order, path } = target
  const turns = order === undefined ? headers.length : order.length
  return new Promise((resolve) => {
    let status = 0
    let since = 0
    const handler = {
      onConnect() {},
      onHeaders(/** @type {number} */ code) {
        status = code
        return true
      },
      onData() {
        return true
      },
      onComplete() {
        if (status !== target.status) fail(`answered ${status}`)
        if (run.recording) {
          if (run.count < run.latencies.length) run.latencies[run.count] = performance.now() - since
          run.count++
        }
        if (run.stopped || dueAt !== undefined) resolve()
        else send()
      },
      onError(/** @type {Error} */ error) {
        fail(String(error))
        if (run.stopped || dueAt !== undefined) resolve()
        else setTimeout(send, 10)
      },
    }
    const fail = (/** @type {string} */ why) => {
      run.failures++
      run.lastFailure = why
    }
    const send = () => {
      const place = target.sent++ % turns
      since = dueAt ?? performance.now()
      client.dispatch({ path, method: 'GET', headers: headers[order === undefined ? place : (order[place] ?? 0)] }, handler)
    }
    send()
  })
}

// The load generator, a process of its own: each connection sends its next request when the last is answered.
import { Client } from 'undici'
import { answer } from './services.mjs'
import { quantile } from './stats.mjs'

/** More answers than this in one slice are counted, but their latency is not kept. */
const MAX_LATENCIES = 500_000

const targets = new Map()
let running

answer({
  /** Opens the connections to a server (or several, in turn). `order` says which token each request carries; without it they take turns. */
  prepare({ name, origins, connections, tokens, order, status }) {
    const clients = Array.from({ length: connections }, (_, i) => new Client(origins[i % origins.length], { pipelining: 1 }))
    const headers = tokens.map((token) => ({ authorization: `Bearer ${token}` }))
    const next = order === undefined ? tokens.length : order.length
    targets.set(name, { clients, headers, order, next, status, at: 0 })
  },
  /** Without `perSecond` each connection sends its next request when the last is answered; with it, requests are sent when they are due. */
  start({ name, perSecond }) {
    const target = targets.get(name)
    running = { name, stopped: false, recording: false, latencies: new Float64Array(MAX_LATENCIES), count: 0, failures: 0, last: undefined }
    running.done =
      perSecond === undefined
        ? Promise.all(target.clients.map((client) => connection(client, target, running)))
        : paced(target, running, perSecond)
  },
  record() {
    running.recording = true
  },
  /** Stops asking, waits for what is under way, and says how it went. */
  async stop() {
    running.stopped = true
    const { latencies, count } = running
    await running.done
    refuseFailures(running)
    const kept = latencies.subarray(0, Math.min(count, MAX_LATENCIES))
    return { p50: quantile(kept, 0.5), p99: quantile(kept, 0.99) }
  },
  /** As many requests at once as there are connections, one each. */
  async once({ name }) {
    const target = targets.get(name)
    const run = { name, stopped: true, recording: true, latencies: new Float64Array(target.clients.length), count: 0, failures: 0 }
    await Promise.all(target.clients.map((client) => connection(client, target, run)))
    refuseFailures(run)
    return { count: run.count, slowest: quantile(run.latencies, 1) }
  },
  async forget({ name }) {
    await Promise.all(targets.get(name).clients.map((client) => client.destroy()))
    targets.delete(name)
  },
})

/** A figure over requests of which some failed would be the figure of something else. */
function refuseFailures({ name, failures, last }) {
  if (failures > 0) throw new Error(`${name}: ${failures} requests failed, the last one because the server ${last}.`)
}

/** Latency counts from when a request was due, so that a server that stalls cannot make its load wait politely. */
async function paced({ clients, ...target }, run, perSecond) {
  const idle = [...clients]
  const due = []
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
    while (due.length > 0 && idle.length > 0) {
      const client = idle.pop()
      const one = connection(client, target, run, due.shift()).then(() => {
        under.delete(one)
        idle.push(client)
        if (!run.stopped) pump()
      })
      under.add(one)
    }
  }
}

/** With `dueAt`, one request that was due then; else request after request until the run is stopped. */
function connection(client, target, run, dueAt) {
  return new Promise((resolve) => {
    let status = 0
    let since = 0
    const handler = {
      onConnect() {},
      onHeaders(code) {
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
      onError(error) {
        fail(String(error))
        if (run.stopped || dueAt !== undefined) resolve()
        else setTimeout(send, 10)
      },
    }
    const fail = (why) => {
      run.failures++
      run.last = why
    }
    const send = () => {
      const place = target.at++ % target.next
      since = dueAt ?? performance.now()
      client.dispatch(
        { path: '/data', method: 'GET', headers: target.headers[target.order === undefined ? place : target.order[place]] },
        handler,
      )
    }
    send()
  })
}

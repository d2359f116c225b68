import { hash } from 'node:crypto'
import { IncomingMessage } from 'node:http'
import express from 'express'
import { Bench } from 'tinybench'
import { bearerAuth, createApiKeys, digestOf, memoryStore, replaySeals, secretFormat } from './built.mjs'
import { mistyped, SERVER_SECRET } from './keys.mjs'
import { markdown, number } from './stats.mjs'

export const SHA256 = 'SHA-256 of a secret by node:crypto'
export const MIDDLEWARE = 'the whole middleware on a local lease, without Express'

/** The parts that a request passes, and what a rotation adds: each alone, in this process. */
export async function micro() {
  const result = await measured()
  const text = markdown(
    ['', 'median µs', 'mean µs', 'p99 µs'],
    result.map(({ name, medianNs, meanNs, p99Ns }) => [name, number(medianNs / 1e3), number(meanNs / 1e3), number(p99Ns / 1e3)]),
  )
  return { result, text }
}

/**
 * Measures the parts of these names, or all of them.
 *
 * @param {readonly string[]} [only]
 */
export async function measured(only) {
  const keys = createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET, leaseMs: 60_000 })
  await keys.migrate()
  const issued = await keys.create({ as: 'application', ownerId: 'acme', name: 'bench', scopes: ['reports:read'] })
  const retired = issued.secret
  const { secret: good } = await keys.rotate({ as: { secret: retired } })
  await keys.verify(good)
  await keys.verify(retired)
  const typo = mistyped(good)
  const format = secretFormat('sk', true)

  /** @type {{ [name: string]: () => unknown }} */
  const parts = {
    'shape and checksum of a good secret (wellFormed)': () => keys.wellFormed(good),
    'shape and checksum of a mistyped one': () => keys.wellFormed(typo),
    [SHA256]: () => hash('sha256', good, 'base64url'),
    'digest (SHA-256)': () => digestOf(good),
    'local lease (peek: shape, checksum, digest, look-up)': () => keys.peek(good),
    'local lease (verify: the same, and a promise)': () => keys.verify(good),
    'remembered as rotated (peek)': () => keys.peek(retired),
    [MIDDLEWARE]: middlewareOn(keys, good),
    'making a secret (mint)': () => format.mint('sk_live_'),
    ...sealing(retired, good),
  }
  const bench = new Bench({ time: 500, warmupTime: 200 })
  for (const [name, run] of Object.entries(parts)) if (only === undefined || only.includes(name)) bench.add(name, run)
  await bench.run()
  await keys.close()
  return bench.tasks.map(({ name, result }) => {
    if (result.state !== 'completed') throw new Error(`${name}: ${result.state}`, { cause: result.error })
    const { p50, mean, p99, samplesCount } = result.latency
    return { name, medianNs: p50 * 1e6, meanNs: mean * 1e6, p99Ns: p99 * 1e6, samples: samplesCount }
  })
}

/**
 * Requests as Express makes them, each with a prototype that was given to it later. They come round again: what V8 does at first sight is not in the
 * figure.
 *
 * @param {ReturnType<typeof createApiKeys>} keys
 * @param {string} secret
 */
function middlewareOn(keys, secret) {
  const app = express()
  // All that is asked of a connection here.
  const socket = /** @type {import('node:net').Socket} */ (/** @type {unknown} */ ({ remoteAddress: '127.0.0.1' }))
  const requests = Array.from({ length: 1_000 }, () => {
    const headers = { host: '127.0.0.1:3000', connection: 'keep-alive', authorization: `Bearer ${secret}` }
    const message = Object.assign(new IncomingMessage(socket), { rawHeaders: Object.entries(headers).flat(), headers })
    return /** @type {import('express').Request} */ (Object.setPrototypeOf(message, app.request))
  })
  const response = /** @type {import('express').Response} */ ({})
  const guard = bearerAuth(keys, { scope: 'reports:read' })
  const next = () => {}
  let served = 0
  return () => guard(/** @type {import('express').Request} */ (requests[served++ % requests.length]), response, next)
}

/**
 * @param {string} retired
 * @param {string} good
 */
function sealing(retired, good) {
  const seals = replaySeals([Buffer.from(SERVER_SECRET)])
  const context = {
    id: 'r'.repeat(43),
    callerId: 'key:1',
    keyId: '1',
    generation: 2,
    fingerprint: 'f'.repeat(43),
    createdAt: 1_800_000_000_000,
    windowMs: 600_000,
  }
  const credentials = { secret: retired, idempotencyKey: '7f0c9b1e-8f1d-4b57-9a55-0d1b1f4c2a11' }
  const answer = JSON.stringify({ secret: good })
  const sealed = seals.seal(context, credentials, answer)
  return {
    'sealing an answer (seal)': () => seals.seal(context, credentials, answer),
    'opening it (open)': () => seals.open(0, context, credentials, sealed),
  }
}

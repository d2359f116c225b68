import { IncomingMessage } from 'node:http'
import express from 'express'
import { Bench } from 'tinybench'
import { replaySeals } from '../dist/esm/core/replay.js'
import { digestOf, secretFormat } from '../dist/esm/core/secret.js'
import { bearerAuth, createApiKeys, memoryStore } from '../dist/esm/index.js'
import { mistyped, SERVER_SECRET } from './keys.mjs'
import { markdown, number } from './stats.mjs'

/** The parts that a request passes, and what a rotation adds: each alone, in this process. */
export async function micro() {
  const keys = createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET, leaseMs: 60_000 })
  await keys.migrate()
  const issued = await keys.create({ as: 'application', ownerId: 'acme', name: 'bench', scopes: ['reports:read'] })
  const retired = issued.secret
  const { secret: good } = await keys.rotate({ as: { secret: retired } })
  await keys.verify(good)
  await keys.verify(retired)
  const typo = mistyped(good)
  const format = secretFormat('sk', true)

  // Requests as Express makes them, each with a prototype that was given to it later. They come round again: what V8 does at first sight is not in the figure.
  const { request } = express()
  const requests = Array.from({ length: 1_000 }, () => {
    const headers = { host: '127.0.0.1:3000', connection: 'keep-alive', authorization: `Bearer ${good}` }
    const rawHeaders = Object.entries(headers).flat()
    return Object.assign(Object.setPrototypeOf(new IncomingMessage({ remoteAddress: '127.0.0.1' }), request), { rawHeaders, headers })
  })
  let served = 0
  const guard = bearerAuth(keys, { scope: 'reports:read' })
  const next = () => {}

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

  const bench = new Bench({ time: 500, warmupTime: 200 })
  bench
    .add('shape and checksum of a good secret (wellFormed)', () => keys.wellFormed(good))
    .add('shape and checksum of a mistyped one', () => keys.wellFormed(typo))
    .add('digest (SHA-256)', () => digestOf(good))
    .add('local lease (peek: shape, checksum, digest, look-up)', () => keys.peek(good))
    .add('local lease (verify: the same, and a promise)', () => keys.verify(good))
    .add('remembered as rotated (peek)', () => keys.peek(retired))
    .add('the whole middleware on a local lease, without Express', () => guard(requests[served++ % requests.length], {}, next))
    .add('making a secret (mint)', () => format.mint('sk_live_'))
    .add('sealing an answer (seal)', () => seals.seal(context, credentials, answer))
    .add('opening it (open)', () => seals.open(0, context, credentials, sealed))
  await bench.run()
  await keys.close()
  const result = bench.tasks.map(({ name, result }) => {
    if (result.state !== 'completed') throw new Error(`${name}: ${result.state}`, { cause: result.error })
    return {
      name,
      medianNs: result.latency.p50 * 1e6,
      meanNs: result.latency.mean * 1e6,
      p99Ns: result.latency.p99 * 1e6,
      samples: result.latency.samplesCount,
    }
  })
  const text = markdown(
    ['', 'median µs', 'mean µs', 'p99 µs'],
    result.map(({ name, medianNs, meanNs, p99Ns }) => [name, number(medianNs / 1e3), number(meanNs / 1e3), number(p99Ns / 1e3)]),
  )
  return { result, text }
}

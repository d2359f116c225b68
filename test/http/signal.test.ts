import { once } from 'node:events'
import express5, { type RequestHandler } from 'express'
import { type ApiKey, apiKeySignalOf, bearerAuth, memoryStore, type Store } from 'express-api-keys'
import express4 from 'express4'
import { postgresStore } from '../../src/store/sql/postgres.js'
import { type Instance, serve } from '../support/instance.js'
import { listen } from '../support/listen.js'
import { freshDatabase } from '../support/postgres.js'

const FRAMEWORKS = [
  ['Express 5', express5],
  ['Express 4', express4],
] as const

describe.each(FRAMEWORKS)('on %s', (_name, framework) => {
  test('P3: a stream that was let in ends when another instance revokes its key', async () => {
    const { pool } = await freshDatabase()
    const store = (): Store => postgresStore(pool)
    const [here, there] = [await serve(store(), { leaseMs: 500 }, framework), await serve(store(), { leaseMs: 500 }, framework)]
    const { id, url, secret } = await streaming(here, framework)
    const response = await fetch(url, { headers: { authorization: `Bearer ${secret}` } })
    const text = response.text()
    await there.keys.revoke({ as: 'application', id })
    expect(await text).toBe('data: hello\n\nevent: end\ndata: revoked\n\n')
    expect((await fetch(url, { headers: { authorization: `Bearer ${secret}` } })).status).toBe(401)
  })

  test('a stream that its client leaves is listened for no more', async () => {
    const here = await serve(memoryStore(), {}, framework)
    const { url, secret, signals } = await streaming(here, framework)
    const leave = new AbortController()
    await fetch(url, { headers: { authorization: `Bearer ${secret}` }, signal: leave.signal })
    const left = once(signals, 'left')
    leave.abort()
    await left
    expect(signals.open).toBe(0)
  })

  test('a request that no key let in has no signal', async () => {
    const here = await serve(memoryStore(), {}, framework)
    const app = framework()
    const tried: RequestHandler = (req, res) => {
      expect(() => apiKeySignalOf(req)).toThrow(expect.objectContaining({ code: 'internal_error' }))
      res.json(true)
    }
    app.get('/open', tried)
    app.get('/optional', bearerAuth(here.keys, { optional: true }), tried)
    const put: RequestHandler = (req, _res, next) => {
      req.apiKey = { ...(req.apiKey as ApiKey), ownerId: 'another' }
      next()
    }
    app.get('/another', bearerAuth(here.keys), put, tried)
    const { secret } = await here.keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
    const url = await listen(app)
    for (const path of ['open', 'optional']) expect(await (await fetch(`${url}/${path}`)).json()).toBe(true)
    expect(await (await fetch(`${url}/another`, { headers: { authorization: `Bearer ${secret}` } })).json()).toBe(true)
  })

  test('behind another prototype of the request the signal is there as well', async () => {
    const here = await serve(memoryStore(), {}, framework)
    const app = framework()
    const own: RequestHandler = (req, _res, next) => {
      Object.defineProperty(req, 'apiKey', { value: undefined, writable: true, configurable: true })
      next()
    }
    app.get('/', own, bearerAuth(here.keys), (req, res) => void res.json(apiKeySignalOf(req).aborted))
    const { secret } = await here.keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
    const url = await listen(app)
    expect(await (await fetch(url, { headers: { authorization: `Bearer ${secret}` } })).json()).toBe(false)
  })
})

class Signals extends EventTarget {
  open = 0
}

/** A route that sends events until the key of its client ends. */
async function streaming(here: Instance, framework: typeof express5 | typeof express4) {
  const signals = new Signals()
  const app = framework()
  app.get('/events', bearerAuth(here.keys), (req, res) => {
    const signal = apiKeySignalOf(req)
    const end = (): void => void res.end(`event: end\ndata: ${signal.reason.reason}\n\n`)
    signal.addEventListener('abort', end)
    signals.open++
    res.on('close', () => {
      signal.removeEventListener('abort', end)
      signals.open--
      signals.dispatchEvent(new Event('left'))
    })
    res.type('text/event-stream').write('data: hello\n\n')
  })
  const { key, secret } = await here.keys.create({ as: 'application', ownerId: 'acme', name: 'listener' })
  const url = await listen(app)
  return { id: key.id, secret, url: `${url}/events`, signals }
}

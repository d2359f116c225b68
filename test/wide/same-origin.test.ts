import { spawnSync } from 'node:child_process'
import { EventEmitter, once } from 'node:events'
import express, { type Request } from 'express'
import { type ApiKeys, createApiKeys, keyRouter, memoryStore, type Operator } from 'express-api-keys'
import { type Browser, chromium, type Page } from 'playwright-core'
import { atEnd } from '../support/cleanup.js'
import { listen } from '../support/listen.js'
import { SERVER_SECRET } from '../support/process.js'

const CHROMIUM =
  spawnSync('sh', ['-c', 'command -v chromium chromium-browser google-chrome'], { encoding: 'utf8' }).stdout.split('\n')[0] ?? ''
// Without a browser there is nothing to try; the run says so.
const inBrowser = CHROMIUM === '' ? test.skip : test

const ADA: Operator = {
  ...{ issuer: 'the login', subject: 'ada', scopes: ['api_keys:read', 'api_keys:write'], owners: ['acme'] },
  grants: { scopes: ['*'], environments: ['live'] },
}

interface Asked {
  readonly cookie: string | undefined
  readonly site: string | undefined
  readonly origin: string | undefined
  readonly status: number
}

let keys: ApiKeys
let browser: Browser
let port: string
let strangerPort: string
/** Each change that was asked for, as the server saw it. */
const changes = new EventEmitter()
let id: string

beforeAll(async () => {
  if (CHROMIUM === '') return
  keys = createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET, onError: () => {} })
  id = (await keys.create({ as: 'application', ownerId: 'acme', name: 'the key' })).key.id
  const app = express()
  app.get('/', (_req, res) => {
    // Sent along from everywhere: nothing but the rule stands between a stranger's page and the key.
    res.append('Set-Cookie', 'sid=ada; Path=/; SameSite=None; Secure').append('Set-Cookie', 'plain=ada; Path=/')
    res.send('<!doctype html><title>the application</title>')
  })
  app.use('/keys', (req, res, next) => {
    res.on('finish', () => {
      const { cookie, origin, 'sec-fetch-site': site } = req.headers
      const asked: Asked = { cookie, origin, site: site as string | undefined, status: res.statusCode }
      if (req.method === 'POST') changes.emit('asked', asked)
    })
    next()
  })
  const operators = (req: Request): Operator | undefined => (/=ada/.test(req.headers.cookie ?? '') ? ADA : undefined)
  app.use('/keys', keyRouter(keys, { operators }))
  const stranger = express().get('/', (_req, res) => void res.send('<!doctype html><title>a stranger</title><body></body>'))
  port = new URL(await listen(app)).port
  strangerPort = new URL(await listen(stranger)).port
  browser = await chromium.launch({
    executablePath: CHROMIUM,
    args: ['--no-sandbox', '--host-resolver-rules=MAP *.example 127.0.0.1'],
  })
  atEnd(async () => {
    await browser.close()
    await keys.close()
  })
}, 60_000)

/** A stranger's page in the browser of somebody who is signed in at the application. */
async function open(application: string, stranger: string): Promise<Page> {
  const page = await (await browser.newContext()).newPage()
  await page.goto(`http://${application}:${port}/`)
  await page.goto(`http://${stranger}:${strangerPort}/`)
  return page
}

/** Has a page do something, and resolves with the change that the server was asked for. */
async function asked(act: () => Promise<unknown>): Promise<Asked> {
  const next = once(changes, 'asked') as Promise<[Asked]>
  // A page that is left while it works says so.
  await act().catch(() => {})
  return (await next)[0]
}

const form = (target: string): string => `<form method="post" action="${target}"></form><script>document.forms[0].submit()</script>`

/** What a page may try: each asks for the end of the key, which needs no body. */
const ATTEMPTS: readonly (readonly [string, (page: Page, target: string) => Promise<unknown>])[] = [
  ['a form', (page, target) => page.setContent(form(target))],
  [
    'a fetch with cookies',
    (page, target) => page.evaluate((to) => fetch(to, { method: 'POST', mode: 'no-cors', credentials: 'include' }), target),
  ],
  ['a beacon', (page, target) => page.evaluate(`navigator.sendBeacon(${JSON.stringify(target)})`)],
  [
    'a form in a sandboxed frame',
    (page, target) => page.setContent(`<iframe sandbox="allow-forms allow-scripts" srcdoc='${form(target)}'></iframe>`),
  ],
]
/** Where the application is, and where the stranger: browsers tell more to `localhost` and 127.0.0.1, which count as secure, than over plain HTTP. */
const PLACES = [
  ['another site', '127.0.0.1', 'localhost'],
  ['another port of the same host', 'localhost', 'localhost'],
  ['another site, over plain HTTP', 'app.example', 'stranger.example'],
  ['another port, over plain HTTP', 'app.example', 'app.example'],
] as const

inBrowser.each(
  PLACES.flatMap(([where, application, stranger]) => ATTEMPTS.map(([how, act]) => [how, where, application, stranger, act] as const)),
)(
  'a page cannot ride the cookies of somebody who is signed in: %s from %s',
  async (_how, _where, application, stranger, act) => {
    const page = await open(application, stranger)
    const target = `http://${application}:${port}/keys/${id}/revoke`
    const { status } = await asked(() => act(page, target))
    expect([400, 401, 403]).toContain(status)
    expect((await keys.get(id))?.status).toBe('active')
    await page.context().close()
  },
  30_000,
)

inBrowser('the cookies did come along, and what browsers say of the page is what the rule goes by', async () => {
  const page = await open('127.0.0.1', 'localhost')
  const cross = await asked(() => ATTEMPTS[0]?.[1](page, `http://127.0.0.1:${port}/keys/${id}/revoke`) ?? Promise.resolve())
  expect(cross).toMatchObject({ cookie: expect.stringContaining('sid=ada'), site: 'cross-site', status: 403 })
  await page.context().close()
  const near = await open('localhost', 'localhost')
  const same = await asked(() => ATTEMPTS[1]?.[1](near, `http://localhost:${port}/keys/${id}/revoke`) ?? Promise.resolve())
  expect(same).toMatchObject({ cookie: expect.stringContaining('sid=ada'), site: 'same-site', status: 403 })
  await near.context().close()
  const sandboxed = await open('app.example', 'app.example')
  const none = await asked(() => ATTEMPTS[3]?.[1](sandboxed, `http://app.example:${port}/keys/${id}/revoke`) ?? Promise.resolve())
  expect(none).toMatchObject({ origin: 'null', site: undefined, status: expect.any(Number) })
  await sandboxed.context().close()
})

inBrowser.each(['127.0.0.1', 'localhost', 'app.example'])('a page of the application itself manages keys, on %s', async (host) => {
  const page = await (await browser.newContext()).newPage()
  await page.goto(`http://${host}:${port}/`)
  const made = await page.evaluate(async () => {
    const headers = { 'content-type': 'application/json' }
    const body = JSON.stringify({ ownerId: 'acme', name: 'made in a browser' })
    const response = await fetch('/keys', { method: 'POST', headers, body })
    return { status: response.status, body: (await response.json()) as { key: { id: string } } }
  })
  expect(made.status).toBe(201)
  const status = await page.evaluate(async (key) => (await fetch(`/keys/${key}/revoke`, { method: 'POST' })).status, made.body.key.id)
  expect([status, (await keys.get(made.body.key.id))?.status]).toEqual([200, 'revoked'])
  await page.context().close()
})

import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { atEnd } from './support/cleanup.js'
import { call } from './support/traffic.js'

test('the example prints a key for each contract and lines that work as they are, and prints no key on its second start', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'example-'))
  atEnd(async () => rmSync(folder, { recursive: true }))
  const first = await start(folder)
  const said = await first.until('/renewals')
  const url = /listens on (\S+)/.exec(said)?.[1] ?? ''
  const page = await fetch(url)
  expect([page.status, await page.text()]).toEqual([200, expect.stringContaining('/v1/parcels')])

  const lines = said.split('\n').filter((line) => line.trim().startsWith('curl '))
  expect(lines).toHaveLength(10)
  const [parcels, sameParcels, rotated, replayed, reddit, agent, rixl, suwappu, blend, json] = lines.map((line) =>
    JSON.parse(execFileSync('sh', ['-c', line], { encoding: 'utf8' })),
  )
  expect(parcels).toMatchObject({ parcels: [{ number: 'PX1001' }, { number: 'PX1002' }] })
  expect(sameParcels).toEqual(parcels)
  expect(rotated).toMatchObject({ key: { generation: 2 }, secret: expect.stringMatching(/^sk_live_/) })
  expect(replayed).toEqual(rotated)
  for (const secret of [reddit.token, rixl.api_key.secret, blend.api_key, json.data.attributes.secret]) {
    expect((await call(`${url}/api-keys/self/rotate`, { method: 'POST', secret })).status).toBe(200)
  }
  // This one has a rotation secret, and needs it.
  expect((await call(`${url}/api-keys/self/rotate`, { method: 'POST', secret: agent.apiKey })).status).toBe(403)
  expect([suwappu.success, suwappu.api_key]).toEqual([true, expect.stringMatching(/^suwappu_sk_/)])
  expect(json.data).toMatchObject({ type: 'credentials', attributes: { revision: 2 } })
  const refused = await call(`${url}/partners/v1/credentials/x/renewals`, { method: 'POST', secret: rotated.secret, idempotencyKey: 'i' })
  expect([refused.status, refused.headers.get('content-type')]).toEqual([400, 'application/vnd.api+json'])
  expect(refused.body).toMatchObject({ errors: [{ status: '400', code: 'key_id_invalid' }] })
  const dead = /Bearer (sk_live_\w+)/.exec(said)?.[1] ?? ''
  const refusedInItsWords = await call(`${url}/v1/parcels`, { secret: dead })
  expect([refusedInItsWords.status, refusedInItsWords.body]).toEqual([
    401,
    { error: { code: 'invalid_key', text: 'The API key is not valid.' } },
  ])
  expect(refusedInItsWords.headers.get('www-authenticate')).toContain('ApiKey realm="api", header="X-API-Key"')
  const handedIn = await call(`${url}/v1/parcels`, { method: 'POST', secret: rotated.secret, body: { to: 'Alan, Bletchley' } })
  expect([handedIn.status, handedIn.body]).toMatchObject([201, { number: 'PX1003', status: 'handed in by first key' }])
  // The plan of this key allows 60 requests a minute.
  let limited = handedIn
  for (let n = 0; n < 60 && limited.status !== 429; n++) limited = await call(`${url}/v1/parcels`, { secret: rotated.secret })
  expect([limited.status, limited.body, Number(limited.headers.get('retry-after')) > 0]).toMatchObject([
    429,
    { error: { code: 'rate_limited' } },
    true,
  ])
  await first.end()

  const second = await start(folder)
  expect(await second.until('listens on')).not.toContain('sk_live_')
  await second.end()
})

test('the example says what it takes, and what to do when its port is taken', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'example-'))
  atEnd(async () => rmSync(folder, { recursive: true }))
  const help = await start(folder, { args: ['--help'] })
  expect(await help.until('DATABASE_URL')).toContain('PORT')
  const first = await start(folder)
  const port = /localhost:(\d+)/.exec(await first.until('Lost the answer?'))?.[1] ?? ''
  const second = await start(folder, { port })
  expect(await second.until('choose another')).toContain(`Port ${port} is taken`)
  await first.end()
})

test("the example's own contract is short, and all seven are served with their documents", async () => {
  expect(readFileSync(join(__dirname, '../example-app/json-api.ts'), 'utf8').trim().split('\n').length).toBeLessThanOrEqual(40)
  const folder = mkdtempSync(join(tmpdir(), 'example-'))
  atEnd(async () => rmSync(folder, { recursive: true }))
  const running = await start(folder)
  const url = /listens on (\S+)/.exec(await running.until('/renewals'))?.[1] ?? ''
  const page = await (await fetch(url)).text()
  const links = [...page.matchAll(/href="(\/[^"]*openapi\.json)"/g)].map(([, path]) => path)
  expect(links).toHaveLength(7)
  for (const path of links) {
    const { status, body } = await call(url + path)
    expect([status, body]).toMatchObject([200, { openapi: '3.1.1' }])
  }
  await running.end()
})

interface Running {
  /** Resolves with everything said so far, once it holds `text` to the end of its line. */
  until(text: string): Promise<string>
  end(): Promise<void>
}

async function start(folder: string, { args = [], port = '0' }: { args?: string[]; port?: string } = {}): Promise<Running> {
  const { DATABASE_URL: _, REDIS_URL: __, ...env } = process.env
  const child = spawn(process.execPath, ['--import', 'tsx', join(__dirname, '../example-app/server.ts'), ...args], {
    env: { ...env, PORT: port, DATA_DIR: folder },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  atEnd(async () => {
    child.kill('SIGKILL')
  })
  let said = ''
  let hear = (): void => {}
  const listen = (chunk: Buffer): void => {
    said += String(chunk)
    hear()
  }
  child.stdout.on('data', listen)
  child.stderr.on('data', listen)
  const gone = once(child, 'exit')
  return {
    until: (text) =>
      new Promise((resolve, reject) => {
        hear = () => {
          // The greeting is one write; its end is the blank line after the last command.
          if (said.includes(text) && said.endsWith('\n')) resolve(said)
        }
        hear()
        gone.then(() => (said.includes(text) ? resolve(said) : reject(new Error(`It ended and said only: ${said}`))), reject)
      }),
    async end() {
      child.kill('SIGTERM')
      expect(await gone).toEqual([0, null])
    },
  }
}

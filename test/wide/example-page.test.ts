import { spawn, spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type Browser, chromium, type Page } from 'playwright-core'
import { atEnd } from '../support/cleanup.js'

const CHROMIUM =
  spawnSync('sh', ['-c', 'command -v chromium chromium-browser google-chrome'], { encoding: 'utf8' }).stdout.split('\n')[0] ?? ''
// Without a browser there is nothing to try; the run says so.
const inBrowser = CHROMIUM === '' ? test.skip : test

let browser: Browser
let url: string
/** What pages complain of. */
let troubles: string[] = []

afterEach(() => {
  expect(troubles).toEqual([])
  troubles = []
})

beforeAll(async () => {
  if (CHROMIUM === '') return
  const folder = mkdtempSync(join(tmpdir(), 'example-'))
  const { DATABASE_URL: _, REDIS_URL: __, ...env } = process.env
  const child = spawn(process.execPath, ['--import', 'tsx', join(__dirname, '../../example-app/server.ts')], {
    env: { ...env, PORT: '0', DATA_DIR: folder },
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  url = await new Promise<string>((resolve, reject) => {
    let said = ''
    child.stdout.on('data', (chunk) => {
      said += String(chunk)
      const found = /listens on (\S+)\n/.exec(said)?.[1]
      if (found !== undefined) resolve(found)
    })
    child.on('exit', () => reject(new Error(`It ended and said only: ${said}`)))
  })
  browser = await chromium.launch({ executablePath: CHROMIUM, args: ['--no-sandbox'] })
  atEnd(async () => {
    await browser.close()
    child.kill('SIGKILL')
    rmSync(folder, { recursive: true, force: true })
  })
}, 60_000)

/** The page of somebody who has just signed in. */
async function signedIn(name: string): Promise<Page> {
  const page = await (await browser.newContext()).newPage()
  page.on('console', (message) => {
    if (message.type() === 'error' && !message.text().startsWith('Failed to load')) troubles.push(message.text())
  })
  page.on('pageerror', (error) => troubles.push(String(error)))
  page.on('dialog', (dialog) => troubles.push(dialog.message()))
  await page.goto(`${url}/account/`)
  await page.fill('input[name=name]', name)
  await page.click('text=Sign in')
  await page.waitForSelector('#make')
  return page
}

const parcels = async (secret: string, header = 'x-api-key'): Promise<number> =>
  (await fetch(`${url}/v1/parcels`, { headers: { [header]: header === 'authorization' ? `Bearer ${secret}` : secret } })).status

/** What the page shows once, after a button. */
async function secretAfter(page: Page, act: () => Promise<unknown>): Promise<string> {
  const before = await page.textContent('#said')
  await act()
  await page.locator('#said', { hasText: 'sk_live_', ...(before ? { hasNotText: before } : {}) }).waitFor()
  return /sk_live_\w+/.exec((await page.textContent('#said')) ?? '')?.[0] ?? ''
}

async function make(page: Page, name: string): Promise<string> {
  await page.fill('#make input[name=name]', name)
  const secret = await secretAfter(page, () => page.click('text=Make'))
  // The list is read anew after the secret is shown.
  await page.locator('#keys td', { hasText: name }).waitFor()
  return secret
}

inBrowser('who has signed in makes a key, uses it, rotates it and revokes it', async () => {
  const page = await signedIn('ada')
  const first = await make(page, 'my <b>first</b> key')
  expect(await page.textContent('#keys tr td')).toBe('my <b>first</b> key')
  expect([await parcels(first), await parcels(first, 'authorization')]).toEqual([200, 200])
  const second = await secretAfter(page, () => page.click('text=Rotate'))
  expect([second === first, await parcels(first), await parcels(second)]).toEqual([false, 401, 200])
  await page.click('text=Revoke')
  await page.waitForSelector('text=revoked')
  expect(await parcels(second)).toBe(401)
  await page.close()
})

inBrowser('nobody sees the keys of somebody else, and a name is never markup', async () => {
  const page = await signedIn('grace')
  await make(page, '<img src=x onerror=alert(1)>')
  expect(await page.locator('#keys img').count()).toBe(0)
  const other = await signedIn('alan')
  await make(other, 'of alan')
  expect(await other.locator('#keys tr').count()).toBe(1)
  const foreign = await other.evaluate(async () => (await fetch('keys?ownerId=grace')).status)
  expect(foreign).toBe(403)
  await page.click('text=Sign out')
  await page.waitForSelector('text=Sign in')
  expect(await page.evaluate(async () => (await fetch('keys?ownerId=grace')).status)).toBe(401)
  for (const one of [page, other]) await one.close()
})

inBrowser('the answer of a rotation that gets lost is asked for again, and its secret is shown', async () => {
  const page = await signedIn('linus')
  const first = await make(page, 'unlucky')
  let lost = 0
  await page.route('**/rotate', async (route) => {
    if (lost++ > 0) return route.continue()
    await route.fetch()
    await route.abort()
  })
  const second = await secretAfter(page, () => page.click('text=Rotate'))
  expect([lost, await parcels(first), await parcels(second)]).toEqual([2, 401, 200])
  await page.context().close()
})

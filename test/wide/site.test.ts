import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { createRequire } from 'node:module'
import type { AddressInfo } from 'node:net'
import { extname, join } from 'node:path'
import { ApiKeyError, type ApiKeyErrorCode } from 'express-api-keys'
import { atEnd } from '../support/cleanup.js'

const ROOT = join(__dirname, '../..')
const DIST = join(ROOT, 'site/dist')
const CHROMIUM =
  spawnSync('sh', ['-c', 'command -v chromium chromium-browser google-chrome'], { encoding: 'utf8' }).stdout.split('\n')[0] ?? ''
// Without a browser it is only built; the run says so.
const inBrowser = CHROMIUM === '' ? test.skip : test

/** What is used of playwright-core, which is installed with the site. */
interface Page {
  goto(url: string, options: { waitUntil: 'networkidle' }): Promise<unknown>
  evaluate<T>(code: string): Promise<T>
  on(event: string, listener: (what: never) => void): void
  setViewportSize(size: { width: number; height: number }): Promise<void>
  click(selector: string): Promise<void>
  fill(selector: string, text: string): Promise<void>
  waitForSelector(selector: string): Promise<unknown>
  waitForURL(url: RegExp): Promise<void>
}
interface Playwright {
  readonly chromium: { launch(options: object): Promise<{ newPage(): Promise<Page>; close(): Promise<void> }> }
}

/** What a page has, as a reader's browser sees it. */
interface Seen {
  readonly links: readonly string[]
  readonly ids: readonly string[]
  readonly width: number
}

const SEEN = `({
  links: [...document.querySelectorAll('a[href]')].map((a) => a.getAttribute('href')),
  ids: [...document.querySelectorAll('[id]')].map((element) => element.id),
  width: document.documentElement.scrollWidth,
})`

let url: string

beforeAll(async () => {
  const { status, stdout, stderr } = spawnSync(process.execPath, ['scripts/docs.mjs'], { cwd: ROOT, encoding: 'utf8' })
  if (status !== 0) throw new Error(`npm run docs failed: ${stdout}${stderr}`)
  url = await serve()
}, 300_000)

test('the site has a page for each in its menu, and says what its options are', () => {
  const menu = [...readFileSync(join(ROOT, 'site/pages.mjs'), 'utf8').matchAll(/\.md'\],$/gm)]
  expect(routes()).toHaveLength(menu.length)
  const help = spawnSync(process.execPath, ['scripts/docs.mjs', '--help'], { cwd: ROOT, encoding: 'utf8' })
  expect([help.status, help.stdout]).toEqual([0, expect.stringContaining('site/dist')])
  expect(spawnSync(process.execPath, ['scripts/docs.mjs', '--hlep'], { cwd: ROOT }).status).toBe(2)
})

inBrowser(
  'every page fits a desk and a phone, asks no other host, complains of nothing, and its links lead somewhere',
  async () => {
    const page = await open()
    const troubles: string[] = []
    let at = ''
    page.on('request', ((request: { url(): string }) => {
      if (!request.url().startsWith(url) && !request.url().startsWith('data:')) troubles.push(`${at} asks ${request.url()}`)
    }) as never)
    page.on('console', ((message: { type(): string; text(): string }) => {
      if (message.type() === 'error') troubles.push(`${at} complains: ${message.text()}`)
    }) as never)
    page.on('pageerror', ((error: Error) => troubles.push(`${at} throws: ${error.message}`)) as never)

    const seen = new Map<string, Seen>()
    for (const width of [390, 1280]) {
      await page.setViewportSize({ width, height: 800 })
      for (const route of routes()) {
        at = `${route} at ${width}`
        await page.goto(url + route, { waitUntil: 'networkidle' })
        const found = await page.evaluate<Seen>(SEEN)
        if (found.width > width) troubles.push(`${at} is ${found.width} wide`)
        seen.set(route, found)
      }
    }
    for (const [route, { links }] of seen) {
      for (const link of links) {
        const target = new URL(link, url + route)
        if (!target.href.startsWith(url)) continue
        const there = seen.get(target.pathname)
        const anchor = decodeURIComponent(target.hash.slice(1))
        if (there === undefined || (anchor !== '' && !there.ids.includes(anchor))) troubles.push(`${route} links to ${link}`)
      }
    }
    expect(troubles).toEqual([])
  },
  300_000,
)

inBrowser('the address of each problem leads to the heading of its code', async () => {
  const page = await open()
  const codes = [...readFileSync(join(ROOT, 'src/errors.ts'), 'utf8').matchAll(/^ {2}\| '(\w+)'/gm)].map(
    ([, code]) => code as ApiKeyErrorCode,
  )
  await page.goto(`${url}/reference/errors`, { waitUntil: 'networkidle' })
  const { ids } = await page.evaluate<Seen>(SEEN)
  for (const code of codes) expect(ids).toContain(new ApiKeyError(code, '').code)
})

inBrowser('the search finds "retire", and leads to the page about it', async () => {
  const page = await open()
  await page.setViewportSize({ width: 1280, height: 800 })
  await page.goto(`${url}/`, { waitUntil: 'networkidle' })
  await page.click('.VPNavBarSearch button')
  await page.fill('.VPLocalSearchBox input', 'retire')
  const result = '.VPLocalSearchBox .result[href*="/guides/grace-periods"]'
  await page.waitForSelector(result)
  await page.click(result)
  await page.waitForURL(/\/guides\/grace-periods/)
})

async function open(): Promise<Page> {
  const { chromium } = createRequire(join(ROOT, 'site/package.json'))('playwright-core') as Playwright
  const args = ['--no-sandbox', '--disable-gpu', '--disable-background-networking']
  const browser = await chromium.launch({ executablePath: CHROMIUM, headless: true, args })
  atEnd(() => browser.close())
  return browser.newPage()
}

/** The addresses of the pages, as readers see them. */
function routes(): string[] {
  return readdirSync(DIST, { recursive: true, encoding: 'utf8' })
    .filter((file) => file.endsWith('.html') && file !== '404.html')
    .map((file) => (file === 'index.html' ? '/' : `/${file.replace(/\.html$/, '')}`))
}

const TYPES: { readonly [extension: string]: string } = {
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript',
  '.css': 'text/css',
  '.woff2': 'font/woff2',
  '.svg': 'image/svg+xml',
  '.json': 'application/json',
}

/** Serves the files as any static host with clean URLs does. */
async function serve(): Promise<string> {
  const server = createServer((req, res) => {
    const path = decodeURIComponent(new URL(req.url ?? '/', 'http://localhost').pathname)
    const file = [path === '/' ? '/index.html' : path, `${path}.html`]
      .map((name) => join(DIST, name))
      .find((name) => extname(name) !== '' && existsSync(name))
    res.writeHead(file === undefined ? 404 : 200, { 'Content-Type': TYPES[extname(file ?? '')] ?? 'text/plain' })
    res.end(file === undefined ? 'Not found' : readFileSync(file))
  }).listen(0, '127.0.0.1')
  atEnd(async () => {
    server.close()
    server.closeAllConnections()
  })
  await new Promise((resolve) => server.once('listening', resolve))
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`
}

import { spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'

const run =
  (settings) =>
  async (url, headers, { retries, timeoutMs }) => {
    const folder = mkdtempSync(join(tmpdir(), 'curl-'))
    const file = join(folder, 'answer.json')
    const child = spawn('sh', [fileURLToPath(new URL(`curl.${settings}.sh`, import.meta.url))], {
      env: {
        PATH: process.env.PATH,
        URL: url,
        KEY: headers.authorization.split(' ')[1],
        IDEMPOTENCY_KEY: headers['idempotency-key'],
        RETRIES: String(retries),
        SECONDS_EACH: String(timeoutMs / 1_000),
        FILE: file,
      },
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    const ended = new Promise((resolve, reject) => child.on('error', reject).on('close', resolve))
    try {
      const said = await text(child.stdout)
      const code = await ended
      if (code !== 0) throw new Error(`curl ended with ${code}`)
      return { status: 200, body: settings === 'recovers' ? readFileSync(file, 'utf8') : said }
    } finally {
      rmSync(folder, { recursive: true })
    }
  }

export const defaults = run('defaults')
export const recovers = run('recovers')

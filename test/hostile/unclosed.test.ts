import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { bundle } from '../support/bundle.js'
import { atEnd } from '../support/cleanup.js'
import { freshDatabase } from '../support/postgres.js'

test.each([
  ['without a word', {}],
  ['with the end of its pool', { ENDS_POOL: '1' }],
])('a process that listens for changes and ends %s is not held by that', async (_how, env) => {
  const folder = join(__dirname, '../../.tmp')
  mkdirSync(folder, { recursive: true })
  const program = await bundle(join(__dirname, 'unclosed.ts'), join(folder, 'unclosed.mjs'))
  const { url } = await freshDatabase()
  const child = spawn(process.execPath, [program], {
    env: { ...process.env, STORE_URL: url, ...env },
    timeout: 20_000,
    killSignal: 'SIGKILL',
  })
  atEnd(async () => void child.kill('SIGKILL'))
  let said = ''
  for (const stream of [child.stdout, child.stderr])
    stream.on('data', (chunk) => {
      said += String(chunk)
    })
  expect([...(await once(child, 'exit')), said]).toEqual([0, null, 'end of the script\n'])
})

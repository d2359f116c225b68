import { spawnSync } from 'node:child_process'
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { createApiKeys } from 'express-api-keys'
import { sqliteStore } from 'express-api-keys/sqlite'
import Database from 'libsql'
import { EXIT } from '../../src/cli/exit.js'
import { atEnd } from '../support/cleanup.js'
import { cli, cliOn, cliProgram, ownFolder } from '../support/cli.js'
import { blocksOf, pageText, ROOT } from '../support/documents.js'
import { SERVER_SECRET } from '../support/process.js'

const PAGE = 'docs/reference/cli.md'

test('the page has every command, with its help as it is (npm run docs:cli writes it)', async () => {
  const { stdout: help } = await cli(['--help'])
  const commands = [...(help.split('\nCommands:\n')[1]?.split('\n\n')[0] ?? '').matchAll(/^ {2}([\w-]+) /gm)].map(([, name = '']) => name)
  expect(commands).toEqual(expect.arrayContaining(['migrate', 'create', 'rotate', 'doctor']))
  const shown = [...pageText(PAGE).matchAll(/^### `([\w-]+)`\n\n```\n(.*?)\n```$/gms)].map(([, name = '', text = '']) => [name, text])
  const real = await Promise.all(commands.map(async (name) => [name, (await cli([name, '--help'])).stdout.trimEnd()]))
  expect(Object.fromEntries(shown)).toEqual({ 'express-api-keys': help.trimEnd(), ...Object.fromEntries(real) })
})

test('every command has examples, and each is one that the command takes', async () => {
  for (const block of blocksOf(PAGE).filter(({ code }) => code.startsWith('Usage: express-api-keys '))) {
    const examples = block.code.split('\nExamples:\n')[1]?.trim().split('\n') ?? []
    expect(examples.length).toBeGreaterThan(0)
    for (const example of examples) expect(example).toMatch(/npx express-api-keys [a-z]/)
  }
})

test('the page has every exit code and every finding of doctor', () => {
  const page = pageText(PAGE)
  for (const code of Object.values(EXIT)) expect(page).toMatch(new RegExp(`^\\| ${code}[, ]`, 'm'))
  const folder = join(ROOT, 'src/cli/doctor')
  const sources = readdirSync(folder).map((file) => readFileSync(join(folder, file), 'utf8'))
  const command = readFileSync(join(ROOT, 'src/cli/commands/doctor.ts'), 'utf8')
  const ids = [...sources, command].flatMap((text) => [...text.matchAll(/\b(?:ok|warning|problem)\)?\(\s*'(\w+)'/g)].map(([, id]) => id))
  expect(new Set(ids).size).toBeGreaterThan(20)
  for (const id of ids) expect(page).toMatch(new RegExp(`^\\| .*\`${id}\`.* \\|`, 'm'))
})

describe('the scripts of docs/guides/deploy-script.md', () => {
  const scripts = blocksOf('docs/guides/deploy-script.md').filter(({ language }) => language === 'sh')
  const scriptWith = (text: string): string => scripts.find(({ code }) => code.includes(text))?.code ?? ''

  /** A shell in a folder of its own, where npx runs the command line, and `deliver` keeps what it is given, from its second call on. */
  async function shell() {
    const [folder, bin] = [ownFolder(), join(ownFolder(), 'bin')]
    mkdirSync(bin)
    const programs = {
      npx: `shift; exec '${process.execPath}' '${await cliProgram()}' "$@"`,
      deliver: '[ -e tried ] || { touch tried; exit 7; }; cat > delivered',
    }
    for (const [name, text] of Object.entries(programs)) {
      writeFileSync(join(bin, name), `#!/bin/sh\n${text}\n`)
      chmodSync(join(bin, name), 0o755)
    }
    const file = join(folder, 'keys.db')
    const url = `sqlite:${file}`
    const env = { PATH: `${bin}:${process.env.PATH}`, DATABASE_URL: url, API_KEYS_SECRET: SERVER_SECRET }
    return {
      url,
      file,
      has: (name: string) => existsSync(join(folder, name)),
      text: (name: string) => readFileSync(join(folder, name), 'utf8'),
      run: (script: string, more: Record<string, string> = {}) =>
        spawnSync('sh', ['-c', script], { cwd: folder, env: { ...env, ...more }, encoding: 'utf8' }),
    }
  }

  test('the tables are made, checked, and printed for another tool', async () => {
    const { run, text } = await shell()
    expect(run(scriptWith('migrate --check')).status).toBe(1)
    const [make = ''] = scripts.map(({ code }) => code)
    expect(run(make)).toMatchObject({ status: 0, stdout: expect.stringMatching(/^The tables are at version \d+ now\.\n$/) })
    expect(run(scriptWith('migrate --check')).status).toBe(0)
    expect(run(`mkdir migrations\n${scriptWith('--sql')}`).status).toBe(0)
    expect(text('migrations/0001_api_keys.sql')).toMatch(/^-- express-api-keys: tables for SQLite/)
  })

  test('P1, P2: a rotation that could not be delivered is delivered by the next run, with the old secret good until then', async () => {
    const { run, url, file, has, text } = await shell()
    const on = cliOn(url)
    await on('migrate')
    const { key, secret } = JSON.parse((await on('create', '--owner', 'acme', '--name', 'ci', '--json')).stdout)
    const script = scriptWith('--retire 10m')
    expect(run(script, { KEY_ID: key.id }).status).toBe(7)
    expect([has('.rotation'), has('delivered')]).toEqual([true, false])
    expect(run(script, { KEY_ID: key.id }).status).toBe(0)
    expect([has('.rotation'), has('.secret')]).toEqual([false, false])
    const database = new Database(file)
    const keys = createApiKeys({ store: sqliteStore(database), serverSecret: SERVER_SECRET })
    atEnd(async () => {
      await keys.close()
      database.close()
    })
    const [old, fresh] = [await keys.verify(secret), await keys.verify(text('delivered').trim())]
    expect([old.ok, fresh.ok]).toEqual([true, true])
    const events = await keys.events({ id: key.id })
    expect(events?.items.filter(({ type }) => type === 'key.rotated').length).toBe(1)
  })

  test('a key is made once, and what is due is found', async () => {
    const { run, url, text } = await shell()
    await cliOn(url)('migrate')
    const script = scriptWith('create --owner')
    expect([run(script).status, run(script).status]).toEqual([7, 0])
    expect(text('delivered')).toMatch(/^sk_live_\w{49}\n$/)
    const { items } = JSON.parse((await cliOn(url)('list', '--json')).stdout)
    expect(items.length).toBe(1)
    const due = run(scriptWith('--unused-since'))
    expect(due.status).toBe(0)
    expect(due.stdout.match(/"items": \[\]/g)?.length).toBe(2)
    const found = run(`cp delivered leaked.txt\n${scriptWith('--secret-from')}`)
    expect([found.status, found.stdout]).toEqual([0, expect.stringContaining(items[0].id)])
  })
})

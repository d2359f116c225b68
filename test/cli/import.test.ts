import { createHash } from 'node:crypto'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import { records } from '../../src/cli/rows.js'
import { cli, cliOn, configModule, ownFolder } from '../support/cli.js'
import { freshDatabase } from '../support/postgres.js'
import { SERVER_SECRET } from '../support/process.js'

const secretOf = (index: number): string => `acme_${index.toString(16).padStart(32, '0')}`
const hashOf = (index: number): string => createHash('sha256').update(secretOf(index)).digest('hex')

async function scene(formats = 'old') {
  const { url } = await freshDatabase()
  const config = await configModule(`
    import { createApiKeys, legacyFormat } from 'express-api-keys'
    import { postgresStore } from 'express-api-keys/postgres'
    import { Pool } from 'pg'
    export const old = legacyFormat({ match: /acme_[0-9a-f]{32}/ })
    export const older = legacyFormat({ match: /ancient_[0-9a-f]{32}/ })
    export const keys = createApiKeys({ store: postgresStore(new Pool({ connectionString: '${url}' })), serverSecret: '${SERVER_SECRET}', legacyFormats: [${formats}] })`)
  const folder = ownFolder()
  const run = (...args: string[]) => cli([...args, '--config', config])
  expect((await run('migrate')).code).toBe(0)
  return {
    run,
    config,
    list: async (...args: string[]) => JSON.parse((await run('list', '--json', ...args)).stdout).items,
    show: (secret: string) => cli(['show', '--secret-from', '-', '--json', '--config', config], { input: secret }),
    file(name: string, content: string): string {
      writeFileSync(join(folder, name), content)
      return join(folder, name)
    },
  }
}

test('a CSV comes in, a bad row is named by its number and changes nothing, and running it again neither', async () => {
  const { run, file, show, list } = await scene()
  const csv = file(
    'keys.csv',
    `\uFEFFhash,ownerId,name,scopes,metadata,expiresAt,last4\r
${hashOf(1)},acme,"ci, nightly and ""weekly""",reports:read reports:write,"{""plan"":\n""gold""}",2099-01-01T00:00:00Z,0001\r
not-a-hash,acme,broken,,,,\r
${hashOf(3)},acme,three\r
${hashOf(4)},globex,four,,,,0004`,
  )
  const expected = (did: string, imported: number, existing: number) => ({
    code: 1,
    stdout: expect.stringMatching(
      new RegExp(
        `^${did} ${imported} of 4 rows; ${existing} were there already; 2 could not be read\\.\nrow 2: .*hash.*\nrow 3: A row is an object\\.\n$`,
      ),
    ),
    stderr: '',
  })
  expect(await run('import', csv, '--dry-run')).toEqual(expected('Would import', 2, 0))
  expect(await list()).toEqual([])
  expect(await run('import', csv)).toEqual(expected('Imported', 2, 0))
  expect(await run('import', csv)).toEqual(expected('Imported', 0, 2))
  const { stdout } = await show(secretOf(1))
  expect(JSON.parse(stdout).key).toMatchObject({
    ...{ ownerId: 'acme', name: 'ci, nightly and "weekly"', scopes: ['reports:read', 'reports:write'], metadata: { plan: 'gold' } },
    ...{ expiresAt: '2099-01-01T00:00:00.000Z', secretLast4: '0001' },
  })
})

test('JSON lines come in from a file or stdin, many of them, and progress is told beside the output', async () => {
  const { config, run, file, show } = await scene()
  const lines = Array.from({ length: 20_500 }, (_, index) => JSON.stringify({ hash: hashOf(index), ownerId: 'acme', name: `key ${index}` }))
  const { code, stdout, stderr } = await run('import', file('keys.jsonl', lines.join('\n')))
  expect([code, stdout, stderr]).toEqual([
    0,
    'Imported 20500 of 20500 rows; 0 were there already; 0 could not be read.\n',
    '10000 rows\n20000 rows\n',
  ])
  expect(JSON.parse((await show(secretOf(20_499))).stdout).key.name).toBe('key 20499')
  const again = await cli(['import', '-', '--as', 'jsonl', '--json', '--config', config], { input: `${lines[0]}\n\nno JSON\n` })
  expect([again.code, JSON.parse(again.stdout), again.stderr]).toEqual([
    1,
    { dryRun: false, rows: 2, imported: 0, existing: 1, failed: 1, failures: [{ row: 2, message: 'A row is an object.' }] },
    '',
  ])
})

test('what cannot be an import is refused before anything is read', async () => {
  const { run, file } = await scene('old, older')
  const refused = async (...args: string[]) => {
    const { code, stdout, stderr } = await run('import', ...args)
    expect([code, stdout]).toEqual([2, ''])
    return stderr
  }
  const lines = file('keys.jsonl', JSON.stringify({ hash: hashOf(1), ownerId: 'acme', name: 'ci' }))
  expect(await refused(lines)).toMatch(/There are several legacyFormats/)
  expect(await refused(lines, '--format', 'none')).toBe('express-api-keys: The module of --config has no export none.\n')
  expect((await run('import', lines, '--format', 'old')).code).toBe(0)
  expect(await refused(file('keys.txt', ''))).toMatch(/Say what the file holds/)
  expect(await refused('none.csv', '--format', 'old')).toBe('express-api-keys: The file cannot be read (ENOENT).\n')
  // A file without a head begins with a secret, which must not be repeated.
  const headless = await refused(file('keys.csv', `${secretOf(1)},acme,ci\n`), '--format', 'old')
  expect(headless).toMatch(/names a column that is not known/)
  expect(headless).not.toContain(secretOf(1))
  expect((await cliOn('sqlite:none.db')('import', lines)).stderr).toMatch(/^express-api-keys: import needs --config/)
})

test('any CSV is read as it was written, wherever its chunks end', async () => {
  const quoted = (cell: string): string => `"${cell.replaceAll('"', '""')}"`
  const cell = fc.string({ unit: fc.constantFrom('a', ',', '"', '\n', '\r', ' ', 'é') })
  await fc.assert(
    fc.asyncProperty(fc.array(fc.array(cell, { minLength: 1, maxLength: 4 }), { minLength: 1 }), fc.nat(), async (rows, at) => {
      const text = rows.map((cells) => cells.map(quoted).join(',')).join('\r\n')
      const end = at % (text.length + 1)
      async function* chunks() {
        yield text.slice(0, end)
        yield text.slice(end)
      }
      const read: (readonly string[])[] = []
      for await (const cells of records(chunks())) read.push(cells)
      // A last line of one empty cell in quotes is a line that is empty.
      expect(read).toEqual(rows.at(-1)?.length === 1 && rows.at(-1)?.[0] === '' ? rows.slice(0, read.length) : rows)
    }),
  )
})

import { execFile, execFileSync, spawnSync } from 'node:child_process'
import { copyFileSync, existsSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { atEnd } from './support/cleanup.js'
import { outputWithNumberedSecrets, quickStart } from './support/quick-start.js'

const ROOT = join(__dirname, '..')
const OURS = 'node_modules/typescript'
const ENTRIES = ['', '/postgres', '/sqlite', '/sql', '/redis', '/jwt', '/testing', '/contract'].map((name) => `express-api-keys${name}`)

let folder: string
let packed: { files: { path: string }[] }

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'package-'))
  atEnd(async () => rmSync(folder, { recursive: true }))
  const said = run('npm', ['pack', '--json', '--pack-destination', folder], ROOT)
  // The build speaks first.
  const report: unknown = JSON.parse(said.slice(said.search(/^[[{]/m)))
  packed = (Array.isArray(report) ? report : Object.values(report as object))[0]
  writeFileSync(join(folder, 'package.json'), '{"private":true}')
  const own = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as { devDependencies: Record<string, string> }
  const peers = ['express', '@types/express', '@types/node'].map((name) => `${name}@${own.devDependencies[name]}`)
  const tarball = join(folder, 'express-api-keys-0.1.0.tgz')
  run('npm', ['install', '--no-audit', '--no-fund', '--prefer-offline', tarball, ...peers], folder)
}, 120_000)

test('the package holds the two builds and what npm always adds, and nothing else', () => {
  const strangers = packed.files.filter(({ path }) => !/^(dist\/(esm|cjs)\/|package\.json$|README\.md$|LICENSE$)/.test(path))
  expect(strangers).toEqual([])
  expect(packed.files.some(({ path }) => path === 'dist/cjs/package.json')).toBe(true)
})

test('every entry loads from CommonJS, without the peers that only other entries need', () => {
  const script = `for (const entry of ${JSON.stringify(ENTRIES)}) console.log(entry, Object.keys(require(entry)).length > 0)`
  expect(run(process.execPath, ['-e', script], folder)).toBe(ENTRIES.map((entry) => `${entry} true\n`).join(''))
})

test('every entry loads from ESM, and its error class is the one that CommonJS gets', () => {
  writeFileSync(
    join(folder, 'both.mjs'),
    `import { createRequire } from 'node:module'
    import * as index from 'express-api-keys'
    const require = createRequire(import.meta.url)
    for (const entry of ${JSON.stringify(ENTRIES)}) console.log(entry, Object.keys(await import(entry)).length > 0)
    console.log(require('express-api-keys').ApiKeyError === index.ApiKeyError)
    try { (await import('express-api-keys/sqlite')).sqliteStore(1) } catch (error) { console.log(error instanceof index.ApiKeyError) }`,
  )
  expect(run(process.execPath, ['both.mjs'], folder)).toBe(`${ENTRIES.map((entry) => `${entry} true\n`).join('')}true\ntrue\n`)
})

test('its command line runs, loads no driver before it needs one, and says what to install', () => {
  const command = join(folder, 'node_modules/.bin/express-api-keys')
  const ran = (url: string): string => {
    const { status, stdout, stderr } = spawnSync(command, ['list'], {
      cwd: folder,
      encoding: 'utf8',
      env: { ...process.env, DATABASE_URL: url },
    })
    return `${status} ${stdout}${stderr}`
  }
  expect(run(command, ['--version'], folder)).toBe('0.1.0\n')
  expect(ran('postgres://localhost/keys')).toBe(
    '2 express-api-keys: For PostgreSQL this needs pg, which is not installed here: npm install pg\n',
  )
  writeFileSync(join(folder, 'empty.db'), '')
  expect(ran('sqlite:empty.db')).toBe(
    '2 express-api-keys: For SQLite this needs better-sqlite3 or libsql, which is not installed here: npm install better-sqlite3\n',
  )
})

test('it brings along six libraries, and at most forty packages in all', () => {
  const { dependencies } = JSON.parse(run('npm', ['ls', '--all', '--json'], folder)) as {
    dependencies: Record<string, { dependencies?: Record<string, { version?: string }> }>
  }
  // Peers that are optional and absent are listed without a version.
  const installed = Object.entries(dependencies['express-api-keys']?.dependencies ?? {}).filter(([, { version }]) => version !== undefined)
  const own = installed.map(([name]) => name).filter((name) => name !== 'express')
  expect(own).toEqual(['bcrypt', 'commander', 'express-rate-limit', 'jose', 'jsonwebtoken', 'kysely'])
  const count = (...names: string[]): number => {
    const alone = mkdtempSync(join(tmpdir(), 'package-'))
    atEnd(async () => rmSync(alone, { recursive: true }))
    writeFileSync(join(alone, 'package.json'), '{"private":true}')
    run('npm', ['install', '--no-audit', '--no-fund', '--prefer-offline', '--ignore-scripts', ...names], alone)
    return run('npm', ['ls', '--all', '--parseable'], alone).trim().split('\n').length
  }
  const added = count('express', join(folder, 'express-api-keys-0.1.0.tgz')) - count('express')
  expect(added).toBeGreaterThan(5)
  expect(added).toBeLessThanOrEqual(40)
}, 120_000)

test('the first application of the README runs with the package and Express and nothing else, and prints what the README says', () => {
  const alone = mkdtempSync(join(tmpdir(), 'package-'))
  atEnd(async () => rmSync(alone, { recursive: true }))
  const { code, output } = quickStart(readFileSync(join(ROOT, 'README.md'), 'utf8'))
  writeFileSync(join(alone, 'app.mjs'), code)
  const tarball = join(folder, 'express-api-keys-0.1.0.tgz')
  run('npm', ['install', '--no-audit', '--no-fund', '--prefer-offline', tarball, 'express'], alone)
  const printed = run(process.execPath, ['app.mjs'], alone)
  expect(outputWithNumberedSecrets(printed)).toBe(outputWithNumberedSecrets(output))
}, 120_000)

/** Which of a user's files a compiler is given, and how it finds modules. */
const RESOLUTIONS: { readonly [name: string]: { readonly flags: readonly string[]; readonly files: readonly string[] } } = {
  node10: { flags: ['--module', 'commonjs', '--moduleResolution', 'node10', '--esModuleInterop'], files: ['user.ts'] },
  node16: { flags: ['--module', 'node16', '--moduleResolution', 'node16'], files: ['user.mts', 'user.cts'] },
  nodenext: { flags: ['--module', 'nodenext', '--moduleResolution', 'nodenext'], files: ['user.mts', 'user.cts'] },
  bundler: { flags: ['--module', 'esnext', '--moduleResolution', 'bundler'], files: ['user.ts'] },
}

test.each([
  // The oldest that the types are for.
  ['TypeScript 5.4', 'test/compilers/5.4/node_modules/typescript', ['node10', 'node16', 'bundler']],
  ['TypeScript 5.8', 'test/compilers/5.8/node_modules/typescript', ['node10', 'node16', 'nodenext', 'bundler']],
  // Knows no node10 any more.
  ['TypeScript 7', OURS, ['node16', 'nodenext', 'bundler']],
])(
  'its types serve an application that %s compiles, however it finds modules',
  async (_name, compiler, resolutions) => {
    // A peer that the tests before these must not find.
    const peer = join(folder, 'node_modules/ioredis')
    if (!existsSync(peer)) symlinkSync(join(ROOT, 'node_modules/ioredis'), peer, 'dir')
    for (const extension of ['ts', 'mts', 'cts']) copyFileSync(join(__dirname, 'types/user.ts'), join(folder, `user.${extension}`))
    const complaints = await Promise.all(
      resolutions.map((resolution) => {
        // Looking at every declaration of every library takes the longest, and is done once.
        const skip = compiler === OURS && resolution === 'bundler' ? [] : ['--skipLibCheck']
        const { flags, files } = RESOLUTIONS[resolution] ?? { flags: [], files: [] }
        const strict = ['--noEmit', '--strict', '--exactOptionalPropertyTypes', '--target', 'es2022', '--types', 'node']
        return compiled([join(ROOT, compiler, 'bin/tsc'), ...strict, ...skip, ...flags, ...files])
      }),
    )
    expect(complaints).toEqual(resolutions.map(() => ''))
  },
  120_000,
)

/** Runs a compiler; resolves with what it says. */
function compiled(args: string[]): Promise<string> {
  return new Promise((resolve) => {
    execFile(process.execPath, args, { cwd: folder, encoding: 'utf8' }, (error, stdout, stderr) =>
      resolve(error === null ? stdout + stderr : `${error.message}\n${stdout}`),
    )
  })
}

function run(command: string, args: string[], cwd: string): string {
  try {
    return execFileSync(command, args, { cwd, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] })
  } catch (error) {
    const { stdout, stderr } = error as { stdout?: string; stderr?: string }
    throw new Error(`${command} ${args.join(' ')}: ${stdout}${stderr}`)
  }
}

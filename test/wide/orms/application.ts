import { execFileSync } from 'node:child_process'
import { mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { SERVER_SECRET } from '../../support/process.js'

const ROOT = join(__dirname, '../../..')
const PACKAGES = join(__dirname, '../node_modules')
const PAGE = readFileSync(join(ROOT, 'docs/guides/orms.md'), 'utf8')
const IN_EVERY_APPLICATION = 'In every application'

/** An application made of the blocks of a section of the page. */
export interface Application {
  readonly folder: string
  readonly env: NodeJS.ProcessEnv
  /** The commands that the section shows. */
  readonly commands: readonly string[]
  /** Runs all of them. */
  deploy(): void
  /** Runs a command and returns what it printed. */
  run(command: string): string
  /** Runs a program of this text in the application's folder. */
  program(text: string): string
  write(file: string, text: string): void
  edit(file: string, find: string, replace: string): void
  read(file: string): string
}

/** What applications are compiled with; decorators are TypeORM's. */
const AS_USUAL = {
  allowJs: true,
  experimentalDecorators: true,
  useDefineForClassFields: false,
  verbatimModuleSyntax: false,
  erasableSyntaxOnly: false,
  isolatedDeclarations: false,
  declaration: false,
  noUnusedLocals: false,
  types: ['node'],
}

/** Writes the blocks of a section into a folder, where they find the packages of the tests and the sources of this one. */
export function application(section: string, url: string, more: NodeJS.ProcessEnv = {}): Application {
  const folder = join(ROOT, '.tmp/orms', section.replaceAll(' ', '-').toLowerCase())
  rmSync(folder, { recursive: true, force: true })
  mkdirSync(folder, { recursive: true })
  symlinkSync(PACKAGES, join(folder, 'node_modules'))
  const env = {
    ...process.env,
    ...more,
    DATABASE_URL: url,
    API_KEYS_SECRET: SERVER_SECRET,
    PATH: [join(ROOT, 'node_modules/.bin'), join(PACKAGES, '.bin'), process.env.PATH].join(':'),
    TSX_TSCONFIG_PATH: join(folder, 'tsconfig.json'),
    PRISMA_SCHEMA_ENGINE_BINARY: join(__dirname, 'schema-engine.mjs'),
    PRISMA_HIDE_UPDATE_MESSAGE: 'true',
    CHECKPOINT_DISABLE: 'true',
  }
  const run = (file: string, args: string[]): string => {
    try {
      return execFileSync(file, args, { cwd: folder, env, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] })
    } catch (error) {
      const { stdout, stderr } = error as { stdout?: string; stderr?: string }
      throw new Error(`${args.join(' ')}: ${stdout}${stderr}`)
    }
  }
  const app: Application = {
    folder,
    env,
    commands: blocksOf(section).flatMap(({ language, code }) => (language === 'sh' ? code.trim().replaceAll('npx ', '').split('\n') : [])),
    run: (command) => run('sh', ['-c', command]),
    program(text) {
      app.write('program.ts', text)
      return app.run('tsx program.ts')
    },
    deploy() {
      for (const command of app.commands) app.run(command)
    },
    write(file, text) {
      mkdirSync(dirname(join(folder, file)), { recursive: true })
      writeFileSync(join(folder, file), text)
    },
    edit(file, find, replace) {
      const text = app.read(file)
      expect(text).toContain(find)
      app.write(file, text.replace(find, replace))
    },
    read: (file) => readFileSync(join(folder, file), 'utf8'),
  }
  app.write('package.json', '{ "type": "module" }')
  app.write('tsconfig.json', JSON.stringify({ extends: '../../../tsconfig.json', compilerOptions: AS_USUAL, include: ['*.ts'] }))
  for (const { language, code } of [...blocksOf(IN_EVERY_APPLICATION), ...blocksOf(section)]) {
    if (language === 'sh') continue
    const [, file] = /^\/\/ (\S+)\n/.exec(code) ?? []
    if (file === undefined) throw new Error(`A block has no name of a file: ${code}`)
    app.write(file, code)
  }
  return app
}

function blocksOf(section: string): { language: string; code: string }[] {
  const [, text = ''] = new RegExp(`^## ${section}\\n(.*?)(?=^## |$(?![^]))`, 'ms').exec(PAGE) ?? []
  const blocks = [...text.matchAll(/^```(\w+)\n(.*?)^```$/gms)].map(([, language = '', code = '']) => ({ language, code }))
  expect(blocks.length).toBeGreaterThan(0)
  return blocks
}

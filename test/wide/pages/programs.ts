import { execFileSync } from 'node:child_process'
import { mkdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { blocksOf, ROOT } from '../../support/documents.js'

export const PAGES: readonly string[] = [
  ...['docs/guides/key-or-session.md', 'docs/guides/users-manage-their-keys.md'],
  ...['docs/guides/websocket.md', 'docs/guides/graphql.md', 'docs/guides/nest.md', 'docs/guides/pglite.md'],
]
const FOLDER = join(ROOT, '.tmp/pages')

/** What the blocks of the pages take for granted: three logins and who can use them, a key, and a source of events. */
const SCENE = `
import { generateKeyPairSync } from 'node:crypto'
import { EventEmitter, once } from 'node:events'
import type { Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import express, { type Express } from 'express'
import { anyOf, type ApiKey, apiKeyOf, type ApiKeys, apiKeySignalOf, bearer, bearerAuth, createApiKeys, hasScope, keyRouter, type Login, memoryStore, requireScope } from 'express-api-keys'
import jwt from 'jsonwebtoken'
import passport from 'passport'
import { Strategy as BearerStrategy } from 'passport-http-bearer'
import { Strategy as LocalStrategy } from 'passport-local'
export { anyOf, apiKeyOf, apiKeySignalOf, bearer, bearerAuth, hasScope, keyRouter, once, requireScope }
export type { Login }
export const keys: ApiKeys = createApiKeys({ store: memoryStore(), serverSecret: 'the-secret-of-the-documents-0123456789' })
const issued = await keys.create({ as: 'application', ownerId: 'acme', name: 'ci', scopes: ['reports:read'] })
export const key: ApiKey = issued.key
export const secret: string = issued.secret
export const news: EventEmitter = new EventEmitter()
export const app: Express = express()
export const serverSecret: string = 'the-secret-of-the-documents-0123456789'
export const sessionSecret: string = 'the-secret-of-the-sessions'
const pair = generateKeyPairSync('rsa', { modulusLength: 2048 })
export const publicKeyPem: string = pair.publicKey.export({ type: 'spki', format: 'pem' }).toString()
export const token: string = jwt.sign({}, pair.privateKey, { algorithm: 'RS256', audience: 'reports', subject: 'bob', expiresIn: '5m' })
passport.serializeUser((user, done) => done(null, user))
passport.deserializeUser((user: string, done) => done(null, user))
passport.use(new LocalStrategy((name, _password, done) => done(null, name)))
passport.use(new BearerStrategy((token, done) => done(null, token === 'token-of-carol' && 'carol')))
/** Listens, and says where. */
export async function listening(): Promise<{ url: string; close(): void }> {
  const server = app.use(express.json()).listen(0)
  await once(server, 'listening')
  return { url: \`http://127.0.0.1:\${(server.address() as AddressInfo).port}\`, close: () => server.close() }
}
export function urlOf(server: Server): string {
  return \`http://127.0.0.1:\${(server.address() as AddressInfo).port}\`
}
/** The cookie of alice. */
export async function signIn(url: string): Promise<string> {
  const { headers } = await fetch(\`\${url}/login?username=alice&password=x\`, { method: 'POST' })
  return headers.getSetCookie().map((cookie) => cookie.split(';')[0]).join('; ')
}
`
const NAMES = [...SCENE.matchAll(/^export (?:const|(?:async )?function) (\w+)/gm)]
  .map(([, name = '']) => name)
  .concat((/^export \{ (.*) \}$/m.exec(SCENE)?.[1] ?? '').split(', '))

/** What is done with a block, where running it is not enough; it goes behind the block that has this text. */
const TRIALS: { readonly [text: string]: string } = {
  'function refuse(socket': `
import { connect } from 'node:net'
const accepted = once(server, 'connection')
const lingering = connect({ port: (server.address() as import('node:net').AddressInfo).port, allowHalfOpen: true }).resume()
lingering.write('GET / HTTP/1.1\\r\\nHost: here\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\n\\r\\n')
const [held] = await accepted
await once(held, 'close', { signal: AbortSignal.timeout(10_000) })
console.log('closed, though its client never ends') // closed, though its client never ends
`,
}

/** As in an application: what is declared need not be used. Nest has decorators of the older kind. */
const RELAXED = {
  noUnusedLocals: false,
  noUnusedParameters: false,
  noImplicitReturns: false,
  experimentalDecorators: true,
  isolatedDeclarations: false,
  declaration: false,
  types: ['node'],
}

/** What the programs of the pages print, and what they say that they print. */
export function ranPrograms(): { readonly page: string; readonly prints: string; readonly says: string }[] {
  rmSync(FOLDER, { recursive: true, force: true })
  mkdirSync(FOLDER, { recursive: true })
  symlinkSync(join(ROOT, 'test/wide/node_modules'), join(FOLDER, 'node_modules'))
  writeFileSync(join(FOLDER, 'package.json'), '{ "type": "module" }')
  writeFileSync(join(FOLDER, 'scene.ts'), SCENE)
  const blocks = (page: string) =>
    blocksOf(page).map((block) => {
      const [, trial = ''] = Object.entries(TRIALS).find(([text]) => block.code.includes(text)) ?? []
      return { ...block, page, code: block.code + trial }
    })
  const programs = PAGES.flatMap(blocks).filter(({ language }) => language === 'ts')
  programs.forEach(({ code }, index) => {
    const given = NAMES.filter((name) => new RegExp(`\\b${name}\\b`).test(code))
    writeFileSync(
      join(FOLDER, `${index}.ts`),
      `import { ${given.join(', ')}, type Login } from './scene.js'\n${code}\nprocess.exit()\nexport {}\n`,
    )
  })
  writeFileSync(
    join(FOLDER, 'tsconfig.json'),
    JSON.stringify({ extends: '../../tsconfig.json', compilerOptions: RELAXED, include: ['*.ts'] }),
  )
  node([join(ROOT, 'node_modules/typescript/bin/tsc'), '-p', FOLDER])
  return programs.map(({ code, page }, index) => ({
    page,
    prints: node(['--import', 'tsx', `${index}.ts`]).trimEnd(),
    says: [...code.matchAll(/^.*console\.log\(.*\) \/\/ (.+)$/gm)].map(([, text]) => text).join('\n'),
  }))
}

function node(args: string[]): string {
  try {
    const env = { ...process.env, TSX_TSCONFIG_PATH: join(FOLDER, 'tsconfig.json') }
    return execFileSync(process.execPath, args, { cwd: FOLDER, encoding: 'utf8', env, stdio: ['ignore', 'pipe', 'pipe'] })
  } catch (error) {
    const { stdout, stderr } = error as { stdout?: string; stderr?: string }
    throw new Error(`${args.join(' ')}: ${stdout}${stderr}`)
  }
}

import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { ApiKeyError, type ApiKeyErrorCode } from 'express-api-keys'
import { httpApiPage } from '../scripts/http-api.js'
import { problemType } from '../src/errors.js'
import { anchorsOf, pageText } from './support/documents.js'

const ROOT = join(__dirname, '..')

const SOURCES = readdirSync(join(ROOT, 'src'), { recursive: true, encoding: 'utf8' })
  .filter((file) => file.endsWith('.ts'))
  .map((file) => source(join('src', file)))
  .join('\n')

/** Codes that no response has, and what the page of errors says instead of a status. */
const NEVER_SENT: { readonly [code: string]: string } = { invalid_option: 'thrown', retried_without_key: 'reported' }

test('the page of errors has a heading for every code, with its title and status, and for no other', () => {
  const page = pageText('docs/reference/errors.md')
  const codes = [...union('ApiKeyErrorCode').matchAll(/'(\w+)'/g)].map(([, code]) => code as ApiKeyErrorCode)
  expect(codes.length).toBeGreaterThan(15)
  const headings = [...page.matchAll(/^### `(\w+)`$/gm)].map(([, code]) => code)
  expect(headings.sort()).toEqual([...codes].sort())
  for (const code of codes) {
    expect(anchorsOf('docs/reference/errors.md')).toContain(code)
    expect(page).toContain(`### \`${code}\`\n\n*${problemType(code).title}.* `)
    const status = NEVER_SENT[code] ?? new ApiKeyError(code, '').status
    expect(page).toMatch(new RegExp(`^\\| ${status}\\b.*\\[\`${code}\`\\]\\(#${code}\\)`, 'm'))
  }
})

test('the page of the HTTP API is made from the OpenAPI documents as they are', () => {
  expect(pageText('docs/reference/http-api.md')).toBe(httpApiPage())
})

test('the page of options names every option', () => {
  const page = pageText('docs/reference/options.md')
  const names = optionNames('ApiKeysOptions')
  expect(names.length).toBeGreaterThan(10)
  for (const name of names) expect(page).toContain(`| \`${name}\` |`)
  for (const [called, type] of OPTIONS_OF_FUNCTIONS) {
    const own = optionNames(type)
    expect([called, own.length]).not.toEqual([called, 0])
    for (const name of own) expect(page).toMatch(new RegExp(`^\\| .*\`${called}\\([^|]*\\b${name}\\b`, 'm'))
  }
})

const OPTIONS_OF_FUNCTIONS = [
  ['bearerAuth', 'BearerAuthOptions'],
  ['keyRouter', 'KeyRouterOptions'],
  ['anyOf', 'Login'],
  ['operatorJwt', 'OperatorJwtOptions'],
  ['idempotencyKey', 'IdempotencyKeyOptions'],
  ['redisCache', 'RedisCacheOptions'],
  ['memoryStore', 'MemoryStoreOptions'],
  ['sqlStore', 'SqlStoreOptions'],
  ['sqlStore', 'TimeoutOptions'],
  ['postgresStore', 'TimeoutOptions'],
  ['sqliteStore', 'TimeoutOptions'],
] as const

test('the page of methods names every method, every property of a key, every type of event and every export', () => {
  const page = pageText('docs/reference/api.md')
  const methods = [...body('ApiKeys<Metadata extends object = JsonObject>').matchAll(/^ {2}(\w+)[<(]/gm)].map(([, name]) => name)
  expect(methods).toEqual(expect.arrayContaining(['create', 'verify', 'close']))
  for (const name of methods) expect(page).toMatch(new RegExp(`^\\| \`${name}[\`(]`, 'm'))
  const properties = [...body('ApiKey<Metadata extends object = JsonObject>').matchAll(/^ {2}readonly (\w+)/gm)]
  const types = [...union('EventType').matchAll(/'(key\.\w+)'/g)]
  const exported = ['src/index.ts', 'src/testing.ts'].flatMap((file) => [...source(file).matchAll(/^export \{ (\w+) \}/gm)])
  for (const found of [properties, types, exported]) {
    expect(found.length).toBeGreaterThan(3)
    for (const [, name] of found) expect(page).toContain(`\`${name}\``)
  }
})

test('the page of headers names every header that the OpenAPI documents do', () => {
  const page = pageText('docs/reference/headers.md')
  const names = new Set(
    [...source('docs/openapi/agents.json').matchAll(/"((?:[A-Z][A-Za-z]*-)+[A-Za-z]+|RateLimit)": \{/g)].map(([, name]) => name),
  )
  expect(names.size).toBeGreaterThan(4)
  for (const name of names) expect(page).toMatch(new RegExp(`^\\| .*\`${name}\``, 'm'))
})

function source(file: string): string {
  return readFileSync(join(ROOT, file), 'utf8')
}

/** What an interface has between its braces, wherever it is. */
function body(type: string): string {
  const start = SOURCES.split(new RegExp(`export interface ${type}(?: extends \\w+)? \\{`))[1] ?? ''
  return start.slice(0, start.indexOf('\n}'))
}

/** The members of a type that is one of several strings. */
function union(type: string): string {
  const start = SOURCES.split(`export type ${type} =`)[1] ?? ''
  return start.slice(0, start.indexOf('\n\n'))
}

function optionNames(type: string): string[] {
  return [...body(type).matchAll(/^ {2}(\w+)\??:/gm)].map(([, name = '']) => name)
}

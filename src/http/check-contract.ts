import { invalidOption, refuseUnknown } from '../options.js'
import type { Action, Contract, Field, Limit, Route, RouteOf } from './contract.js'
import { LONGEST_WINDOW_MS } from './limits/window.js'
import { sourcesOption } from './source.js'

const CONTRACT: readonly (keyof Contract)[] = [
  'name',
  'path',
  'routes',
  'failure',
  'failureSchema',
  'from',
  'operators',
  'requestId',
  'delegation',
]
const ROUTE: readonly (keyof RouteOf<Action>)[] = [
  'method',
  'path',
  'action',
  'status',
  'success',
  'fields',
  'requires',
  'caller',
  'identity',
  'rotatesRotationSecret',
  'limit',
  'summary',
  'schema',
]
const LIMIT: readonly (keyof Limit)[] = ['max', 'windowMs', 'by']
/** The method of each action, or the methods. */
const METHODS: { readonly [action in Action]: readonly Route['method'][] } = {
  create: ['post'],
  rotate: ['post', 'patch'],
  revoke: ['post', 'patch'],
  disable: ['post', 'patch'],
  enable: ['post', 'patch'],
  update: ['post', 'patch'],
  get: ['get'],
  list: ['get'],
  events: ['get'],
}
const FIELDS: { readonly [field in Field]: true } = {
  name: true,
  environment: true,
  scopes: true,
  metadata: true,
  allowedIps: true,
  expiresAt: true,
  ownerId: true,
  rotationSecret: true,
  retire: true,
  emergency: true,
  reason: true,
}

/** Checks a contract that may come from JavaScript. Throws `invalid_option`, naming the route and what to write. */
export function checkContract(contract: Contract): void {
  if (!Array.isArray(contract?.routes)) throw invalidOption('contract must be a contract, such as contracts.standard.')
  refuseUnknown(contract, CONTRACT, 'A contract')
  const { name, path, routes, failure } = contract
  expect(typeof name === 'string' && /^[\w-]+$/.test(name), 'name must be one word, such as "acme".')
  expect(isPath(path), 'path must begin with "/".')
  expect(routes.length > 0, 'routes must hold a route.')
  expect(typeof failure === 'function', 'failure must be a function that returns { body }.')
  for (const flag of ['operators', 'requestId'] as const) expect(isFlag(contract[flag]), `${flag} must be true or false.`)
  if (contract.from !== undefined) sourcesOption(contract.from)
  expect([undefined, 'bounded', 'open'].includes(contract.delegation), 'delegation must be "bounded" or "open".')
  for (const route of routes) checkRoute(route, name)

  function expect(good: boolean, rule: string): void {
    if (!good) throw invalidOption(`The contract${typeof name === 'string' ? ` "${name.slice(0, 32)}"` : ''}: ${rule}`)
  }
}

function checkRoute(route: RouteOf<Action>, contract: string): void {
  const where = `The route ${shown(route?.method)} ${shown(route?.path)} of the contract "${contract}"`
  refuseUnknown(route, ROUTE, where)
  const { method, path, action, status, success, fields = [], requires = [], caller, identity, limit } = route
  const methods = Object.hasOwn(METHODS, action) ? METHODS[action] : undefined
  expect(methods !== undefined, `action must be one of ${Object.keys(METHODS).join(', ')}.`)
  expect(methods?.includes(method) === true, `method must be ${methods?.join(' or ')} for the action ${action}.`)
  expect(isPath(path), 'path must begin with "/".')
  expect(Number.isInteger(status) && status >= 200 && status <= 299, 'status must be that of a success, such as 200.')
  expect(typeof success === 'function', 'success must be a function that returns the body.')
  expect(isListOf(fields, Object.keys(FIELDS)), `fields must be a list of ${Object.keys(FIELDS).join(', ')}.`)
  expect(isListOf(requires, ['idempotencyKey', 'rotationSecret']), 'requires must be a list of "idempotencyKey" and "rotationSecret".')
  expect([undefined, 'writer', 'writer or self'].includes(caller), 'caller must be "writer" or "writer or self".')
  expect([undefined, 'same', 'successor'].includes(identity), 'identity must be "same" or "successor".')
  expect(isFlag(route.rotatesRotationSecret), 'rotatesRotationSecret must be true or false.')
  if (limit !== undefined) {
    refuseUnknown(limit, LIMIT, `The limit of ${where[0]?.toLowerCase()}${where.slice(1)}`)
    expect(isWhole(limit.max, 1, 1_000_000), 'limit.max must be a whole number from 1 to 1000000.')
    expect(isWhole(limit.windowMs, 1, LONGEST_WINDOW_MS), `limit.windowMs must be a whole number from 1 to ${LONGEST_WINDOW_MS}.`)
    expect(limit.by === 'ip' || limit.by === 'credential', 'limit.by must be "ip" or "credential".')
  }

  function expect(good: boolean, rule: string): void {
    if (!good) throw invalidOption(`${where}: ${rule}`)
  }
}

function isPath(path: unknown): boolean {
  return typeof path === 'string' && path.startsWith('/')
}

function isFlag(value: unknown): boolean {
  return value === undefined || typeof value === 'boolean'
}

function isListOf(list: unknown, known: readonly string[]): boolean {
  return Array.isArray(list) && list.every((one) => known.includes(one as string))
}

function isWhole(value: unknown, min: number, max: number): boolean {
  return Number.isInteger(value) && (value as number) >= min && (value as number) <= max
}

function shown(value: unknown): string {
  return typeof value === 'string' ? value.slice(0, 100) : typeof value
}

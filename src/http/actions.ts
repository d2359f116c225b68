import type { Request, Response } from 'express'
import type { AnyApiKeys, Command, RotateOptions } from '../core/api-keys.js'
import type { RequestShape } from '../core/change/replay-seal.js'
import type { Internals } from '../core/internals.js'
import type { ApiKey, CreateInput, KeyChanges } from '../core/key.js'
import { keyNotFound } from '../core/refusals.js'
import { hasScope, READ_SCOPE } from '../core/scope.js'
import { ApiKeyError } from '../errors.js'
import { type Caller, mayActFor, ownerOf } from './caller.js'
import type { Action, Answers, Route } from './contract.js'
import { announceEnd } from './grace-headers.js'
import { ClientAddress } from './origin.js'
import { listingOf, pageOf } from './query.js'
import { accepted, verdictTooLate } from './verdict.js'

/** A request that nothing speaks against, but for what only the store can tell. */
export interface Asked {
  readonly req: Request
  readonly res: Response
  readonly route: Route
  readonly caller: Caller
  /** The id in the path. */
  readonly id: string | undefined
  readonly body: object
  /** Whether the query may name an owner. */
  readonly takesOwner: boolean
  /** What is common to all commands. */
  readonly command: Command & { readonly request: RequestShape }
  /** As in `RotateCommand`. */
  readonly retryFrom: string | undefined
}

/** Has the keys do what a route is for. */
export function carryOut(keys: AnyApiKeys, internals: Internals, asked: Asked): Promise<Answers[Action]> {
  return ACTIONS[asked.route.action]({ keys, internals, ...asked })
}

type Call = Asked & { readonly keys: AnyApiKeys; readonly internals: Internals }

const ACTIONS: { readonly [A in Action]: (call: Call) => Promise<Answers[A]> } = {
  async create({ keys, caller, body, command }) {
    const { ownerId: named, ...fields } = body as Omit<CreateInput, 'ownerId'> & { ownerId?: string }
    const ownerId = ownerOf(caller, named)
    // The owner that a token names is part of the request, even where the body leaves it to the token.
    const request = { ...command.request, body: { ...body, ownerId } }
    return keys.create({ ...fields, ...(ownerId === undefined ? {} : { ownerId }), ...command, request })
  },

  async rotate({ keys, route, body, command, retryFrom, ...call }) {
    const { identity = 'same', caller: allowed, rotatesRotationSecret = false } = route
    const how = { identity, scopeRequired: allowed === 'writer', keepRotationSecret: !rotatesRotationSecret }
    const retry = retryFrom === undefined ? {} : { retryFrom }
    return keys.rotate({ ...(body as RotateOptions), ...command, ...targetOf(call), ...how, ...retry })
  },

  async revoke({ keys, body, command, ...call }) {
    return keys.revoke({ ...command, ...targetOf(call), ...(body as { reason?: string }) })
  },

  async disable({ keys, body, command, ...call }) {
    return keys.disable({ ...command, ...targetOf(call), ...(body as { reason?: string }) })
  },

  async enable({ keys, body, command, ...call }) {
    return keys.enable({ ...command, ...targetOf(call), ...(body as { reason?: string }) })
  },

  async update({ keys, body, command, ...call }) {
    return keys.update({ ...command, ...targetOf(call), changes: body as KeyChanges })
  },

  get: (call) => (call.id === undefined ? ownKey(call) : visibleKey(call)),

  async list(call) {
    const { ownerId, ...page } = listingOf(call.req, call.takesOwner)
    const reader = await readerOf(call)
    const named = ownerOf(call.caller, ownerId)
    return call.keys.list({ ownerId: reader ?? named ?? '', ...page })
  },

  async events(call) {
    const page = pageOf(call.req)
    const { id } = await visibleKey(call)
    return existing(await call.keys.events({ id, ...page }))
  },
}

function targetOf({ id }: { readonly id: string | undefined }): { id?: string } {
  return id === undefined ? {} : { id }
}

/** The key of the path, where the caller may read it. A foreign key is as unknown as one that does not exist. */
async function visibleKey(call: Call): Promise<ApiKey> {
  const { keys, caller, id = '' } = call
  const ownerId = await readerOf(call)
  const key = existing(await keys.get(id, ownerId === undefined ? {} : { ownerId }))
  return existing(mayActFor(caller, key.ownerId) ? key : undefined)
}

/** The key that is calling, as the store has it. Each may know what it is, whatever its scopes, also in its grace period. */
async function ownKey(call: Call): Promise<ApiKey> {
  const { keys, caller } = call
  if (!('secret' in caller))
    throw new ApiKeyError('invalid_request', 'This is about the key that calls. An operator names a key by its id.')
  const { id } = await readingKey(call, caller.secret)
  return existing(await keys.get(id))
}

/** The owner whose keys a caller may read; undefined for an operator, who may have several. Throws `insufficient_scope`. */
async function readerOf(call: Call): Promise<string | undefined> {
  const { caller } = call
  const scopes = 'operator' in caller ? caller.operator.scopes : undefined
  const key = 'secret' in caller ? await readingKey(call, caller.secret) : undefined
  if (!hasScope(scopes ?? key?.scopes ?? [], READ_SCOPE)) {
    throw new ApiKeyError('insufficient_scope', `This needs the scope ${READ_SCOPE}.`)
  }
  return key?.ownerId
}

/** The caller's own key, by its lease. */
async function readingKey({ keys, internals, req, res }: Call, secret: string): Promise<ApiKey> {
  const verdict = accepted(internals, req, secret, await keys.verify(secret, new ClientAddress(req)))
  if (verdict.grace !== undefined) announceEnd(res, verdict.grace, false)
  if (!verdict.live()) throw verdictTooLate()
  return verdict.key
}

function existing<T>(found: T | undefined): T {
  if (found === undefined) throw keyNotFound()
  return found
}

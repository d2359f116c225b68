import type { ApiKey, KeyEvent } from '../core/key.js'
import { plain, table } from './output.js'

/** Keys and events as people read them. */

export function keyLines(key: ApiKey): readonly string[] {
  const lines: readonly (readonly [string, string | null])[] = [
    ['id', key.id],
    ['owner', key.ownerId],
    ['name', key.name],
    ['status', key.status],
    ['environment', key.environment],
    ['scopes', key.scopes.join(' ') || 'none'],
    ['secret', `${key.secretStart}…${key.secretLast4}`],
    ['generation', String(key.generation)],
    ['secret made', key.secretCreatedAt],
    ['created', key.createdAt],
    ['changed', key.updatedAt],
    ['expires', key.expiresAt ?? 'never'],
    ['last used', used(key)],
    ['addresses', key.allowedIps?.join(' ') ?? 'any'],
    ['metadata', JSON.stringify(key.metadata)],
    ['disabled', key.disabledAt],
    ['revoked', key.revokedAt],
    ['reason', key.revokedReason],
    ['succeeded by', key.rotatedTo],
  ]
  return lines.flatMap(([label, value]) => (value === null ? [] : [`${label.padEnd(13)} ${plain(value)}`]))
}

function used({ lastUsedAt, lastUsedIp }: ApiKey): string {
  if (lastUsedAt === null) return 'never'
  return lastUsedIp === null ? lastUsedAt : `${lastUsedAt} from ${lastUsedIp}`
}

export function keyTable(keys: readonly ApiKey[]): readonly string[] {
  const rows = keys.map((key) => [
    key.id,
    key.ownerId,
    key.name,
    key.environment,
    key.status,
    `…${key.secretLast4}`,
    key.lastUsedAt ?? 'never',
    key.expiresAt ?? 'never',
  ])
  return table(['ID', 'OWNER', 'NAME', 'ENV', 'STATUS', 'SECRET', 'LAST USED', 'EXPIRES'], rows)
}

export function eventTable(events: readonly KeyEvent[]): readonly string[] {
  const rows = events.map((event) => [
    event.at,
    event.type,
    event.actor,
    event.ip ?? '-',
    event.userAgent ?? '-',
    JSON.stringify(event.details),
  ])
  return table(['AT', 'EVENT', 'ACTOR', 'ADDRESS', 'USER AGENT', 'DETAILS'], rows)
}

/** How a message names a key. */
export function named({ id, name, ownerId }: ApiKey): string {
  return `${id} ("${plain(name)}" of ${plain(ownerId)})`
}

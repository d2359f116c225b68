import type { Create, Final, Op, Read, Revoke, Rotate } from './check.js'

export function healed(held: string, dead: string): Op[] {
  return [read(held, 1_900, 1_901), read(dead, 1_902, 1_903, { status: 401 })]
}

export function clock(start: number, end: number, byMs: number): Op {
  return { f: 'clock', byMs, start, end }
}

export function created(key: string, digest: string, idempotencyKey?: string): Create {
  const http = idempotencyKey === undefined ? {} : { idempotencyKey, server: 0 }
  return { f: 'create', type: 'ok', status: 201, key, digest, start: 0, end: 1, ...http }
}

export function final(end: Partial<Final>): Final {
  return { f: 'final', key: 'a', held: 's1', generations: 1, active: ['s1'], revoked: false, start: 2_000, end: 2_001, ...end }
}

export function read(digest: string, start: number, end: number, more: Partial<Read> = {}): Read {
  const status = more.status ?? 200
  const seen = { key: 'a', generation: Number(digest.slice(1)) }
  return { f: 'read', route: 'whoami', key: 'a', digest, server: 0, start, end, status, type: ending(status), seen, ...more }
}

export function rotate(idempotencyKey: string, digest: string, start: number, end: number, more: Partial<Rotate> = {}): Rotate {
  const status = more.status ?? 200
  const how = { retire: 'now', emergency: false } as const
  return {
    f: 'rotate',
    key: 'a',
    idempotencyKey,
    digest,
    retires: digest,
    ...how,
    server: 0,
    start,
    end,
    status,
    type: ending(status),
    ...more,
  }
}

export function revoke(idempotencyKey: string, start: number, end: number, status = 200): Revoke {
  return { f: 'revoke', key: 'a', digest: 's1', idempotencyKey, server: 0, start, end, status, type: ending(status) }
}

export function ending(status: number): Read['type'] {
  if (status === 0 || status >= 500) return 'info'
  return status < 300 ? 'ok' : 'fail'
}

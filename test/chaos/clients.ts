import { createHash, randomUUID } from 'node:crypto'
import { Agent, request } from 'node:http'
import { setTimeout as pause } from 'node:timers/promises'
import type { Ending, Op, Read, Rotate } from './check.js'
import type { Random } from './random.js'

/** A key and what its client knows of it. */
export interface ClientKey {
  readonly id: string
  /** The secret that the client holds. */
  secret: string
  /** Those it held before, the last one first. */
  readonly dead: string[]
  /** The secret that rotates it; its own where there is none. */
  readonly rotatedWith?: string
}

export interface TrafficParts {
  readonly keys: readonly ClientKey[]
  readonly servers: readonly { readonly port: number }[]
  readonly random: Random
  /** Milliseconds on the clock of the history. */
  readonly now: () => number
  readonly record: (op: Op) => void
}

/** Requests of many kinds, at once and all the time. */
export interface Traffic {
  /** Lets every client finish the rotation that it is at, and resolves when all have, or at the deadline. */
  stopRotating(withinMs: number): Promise<void>
  /** Stops everything. */
  stop(): Promise<void>
  /** Asks every server about the secret that the client holds, and about one that is dead, until it has an answer. */
  askOnceMore(key: ClientKey, withinMs: number): Promise<void>
}

/** Longer than the server's own limits taken together, so that most answers arrive; a server may be stopped for good, though. */
const PATIENCE_MS = 8_000
const READ_PATIENCE_MS = 3_000
/** How often the client of one rotation loses its patience early, at most: the server repeats a finished answer only five times. */
const EARLY_LOSSES = 3
const REMEMBERED = 3

export function digestOf(secret: string): string {
  return createHash('sha256').update(secret).digest('base64url')
}

/** Starts one rotating client for each key, and one reader for each key and server. */
export function startTraffic({ keys, servers, random, now, record }: TrafficParts): Traffic {
  const agents = servers.map(() => new Agent({ keepAlive: true, noDelay: true }))
  const loose = new Set<Promise<unknown>>()
  let rotating = true
  let reading = true
  let giveUpAt = Infinity
  const clients = keys.map((key) => rotateForEver(key))
  const readers = keys.flatMap((key) => servers.map((_, server) => readForEver(key, server)))

  return {
    async stopRotating(withinMs) {
      rotating = false
      giveUpAt = now() + withinMs
      await Promise.all(clients)
    },
    async stop() {
      rotating = false
      reading = false
      giveUpAt = 0
      await Promise.all([...clients, ...readers])
      while (loose.size > 0) await Promise.all(loose)
      for (const agent of agents) agent.destroy()
    },
    async askOnceMore(key, withinMs) {
      const until = now() + withinMs
      const last = key.dead[0]
      await Promise.all(
        servers.flatMap((_, server) =>
          [key.secret, ...(last === undefined ? [] : [last])].map(async (secret) => {
            while ((await read(key, secret, server)).type === 'info' && now() < until) await pause(50)
          }),
        ),
      )
    },
  }

  /** Rotates a key again and again; each time the same request, with the same secret, until there is a 200. */
  async function rotateForEver(key: ClientKey): Promise<void> {
    while (rotating) {
      const { secret } = key
      const idempotencyKey = randomUUID()
      let fresh: string | undefined
      for (let losses = 0; fresh === undefined && now() < giveUpAt; ) {
        const early = losses < EARLY_LOSSES && random.chance(0.2)
        if (early) losses++
        const send = (): Promise<Rotated> => rotate(key, secret, idempotencyKey, early ? random.between(5, 600) : PATIENCE_MS)
        // Some clients ask twice at once.
        const twin = !early && random.chance(0.3) ? send() : undefined
        if (twin !== undefined) inBackground(twin)
        const answers = [await send()]
        if (answers[0]?.secret === undefined && twin !== undefined) answers.push(await twin)
        fresh = answers.find((answer) => answer.secret !== undefined)?.secret
        // Refused: a client deletes its key on this.
        if (fresh === undefined && answers.some(({ op }) => op.type === 'fail')) return
        if (fresh === undefined) await pause(random.between(10, 150))
      }
      if (fresh === undefined) return
      key.secret = fresh
      key.dead.unshift(secret)
      key.dead.length = Math.min(key.dead.length, REMEMBERED)
      // At once, everywhere: this is when a lease that is still held would show.
      for (const server of servers.keys()) inBackground(read(key, secret, server))
      if (random.chance(0.2)) inBackground(rotateWithTheDead(key, secret))
      if (random.chance(0.3)) inBackground(rotate(key, secret, idempotencyKey, PATIENCE_MS))
      await pause(random.between(0, 400))
    }
  }

  async function readForEver(key: ClientKey, server: number): Promise<void> {
    while (reading) {
      const secret = key.dead.length > 0 && random.chance(0.3) ? random.pick(key.dead) : key.secret
      await read(key, secret, server)
      await pause(random.between(10, 40))
    }
  }

  interface Rotated {
    readonly op: Rotate
    readonly secret?: string
  }

  async function rotate(key: ClientKey, secret: string, idempotencyKey: string, patienceMs: number): Promise<Rotated> {
    const server = random.pick([...servers.keys()])
    const start = now()
    const credential = key.rotatedWith ?? secret
    const path = key.rotatedWith === undefined ? '/keys/self/rotate' : `/keys/${key.id}/rotate`
    const { status, body, replayed } = await send(server, 'POST', path, credential, patienceMs, idempotencyKey)
    const end = now()
    const issued = body as { secret?: string; key?: { generation?: number }; code?: string } | undefined
    const made = status === 200 && issued?.secret !== undefined ? issued.secret : undefined
    const op: Rotate = {
      f: 'rotate',
      ...{ key: key.id, digest: digestOf(credential), retires: digestOf(secret), idempotencyKey },
      ...{ server, start, end, status, type: ending(status), replayed },
      ...(issued?.code === undefined ? {} : { code: issued.code }),
      ...(made === undefined ? {} : { made: digestOf(made) }),
      ...(issued?.key?.generation === undefined ? {} : { generation: issued.key.generation }),
    }
    record(op)
    return made === undefined ? { op } : { op, secret: made }
  }

  function read(key: ClientKey, secret: string, server: number): Promise<Read> {
    return readAt('whoami', key, secret, server)
  }

  function rotateWithTheDead(key: ClientKey, secret: string): Promise<Read> {
    return readAt('rotate', key, secret, random.pick([...servers.keys()]))
  }

  async function readAt(route: Read['route'], key: ClientKey, secret: string, server: number): Promise<Read> {
    const start = now()
    const { status, body } =
      route === 'whoami'
        ? await send(server, 'GET', '/whoami', secret, READ_PATIENCE_MS)
        : await send(server, 'POST', '/keys/self/rotate', secret, READ_PATIENCE_MS, randomUUID())
    const end = now()
    const said = body as (Read['seen'] & { code?: string }) | undefined
    const op: Read = {
      f: 'read',
      ...{ route, key: key.id, digest: digestOf(secret), server, start, end, status, type: ending(status) },
      ...(said?.code === undefined ? {} : { code: said.code }),
      ...(route === 'whoami' && status === 200 && said !== undefined ? { seen: { key: said.key, generation: said.generation } } : {}),
    }
    record(op)
    return op
  }

  function inBackground(work: Promise<unknown>): void {
    loose.add(work)
    void work.finally(() => loose.delete(work))
  }

  /** One request; status 0 where no whole answer came in time. Never rejects. */
  function send(
    server: number,
    method: string,
    path: string,
    secret: string,
    patienceMs: number,
    idempotencyKey?: string,
  ): Promise<{ status: number; body?: unknown; replayed: boolean }> {
    return new Promise((resolve) => {
      const none = (): void => resolve({ status: 0, replayed: false })
      const headers = { authorization: `Bearer ${secret}`, ...(idempotencyKey === undefined ? {} : { 'idempotency-key': idempotencyKey }) }
      const port = servers[server]?.port
      const asked = request({ host: '127.0.0.1', port, method, path, headers, agent: agents[server] }, (answer) => {
        const parts: Buffer[] = []
        answer.on('data', (part: Buffer) => parts.push(part))
        answer.on('error', none)
        answer.on('end', () => {
          try {
            const body: unknown = JSON.parse(Buffer.concat(parts).toString())
            resolve({ status: answer.statusCode ?? 0, body, replayed: answer.headers['idempotent-replayed'] === 'true' })
          } catch {
            resolve({ status: answer.complete ? (answer.statusCode ?? 0) : 0, replayed: false })
          }
        })
      })
      const timer = setTimeout(() => asked.destroy(), patienceMs)
      asked.on('close', () => {
        clearTimeout(timer)
        none()
      })
      asked.on('error', none)
      asked.end()
    })
  }
}

function ending(status: number): Ending {
  if (status === 0 || status >= 500) return 'info'
  return status >= 200 && status < 300 ? 'ok' : 'fail'
}

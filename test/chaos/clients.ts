import { createHash, randomUUID } from 'node:crypto'
import { setTimeout as pause } from 'node:timers/promises'
import {
  type Create,
  type Ending,
  LONGEST_LEASE_MS,
  marginMs,
  type Op,
  type Read,
  type Retire,
  type Revoke,
  ROUNDING_MS,
  type Rotate,
  type Took,
} from './check.js'
import type { Random } from './random.js'
import { type Answer, type Ports, type Question, requests, type Way, ways } from './requests.js'

/** A key and what its client knows of it. */
export interface ClientKey {
  readonly id: string
  /** The secret that the client holds. */
  secret: string
  /** Those it held before, the last one first. */
  readonly dead: string[]
  /** All that it ever held, the last one first, and since when it holds the one that it holds. */
  readonly held?: string[]
  since?: number
  /** The secret of the administrator who rotates it; its own where there is none. */
  readonly rotatedWith?: string
}

export interface TrafficParts {
  readonly keys: readonly ClientKey[]
  /** The secret of an administrator, who makes keys and ends them. */
  readonly admin: string
  readonly servers: readonly Ports[]
  readonly random: Random
  /** Milliseconds on the clock of the history. */
  readonly now: () => number
  readonly record: (op: Op) => void
  /** When data were lost for the last time; minus infinity where they never were. */
  readonly lostAt: () => number
}

/** Requests of many kinds, at once and all the time. */
export interface Traffic {
  /** Lets every client finish what it is at, and resolves when all have, or at the deadline. */
  stopRotating(withinMs: number): Promise<void>
  /** Stops everything. */
  stop(): Promise<void>
  /**
   * Lets every other request end, and asks every server about the secret that each client holds, and about the last one that is dead,
   * until it has said what is so.
   */
  askOnceMore(withinMs: number): Promise<void>
}

/** Longer than the server's own limits taken together, so that most answers arrive; a server may be stopped for good, though. */
const PATIENCE_MS = 8_000
const READ_PATIENCE_MS = 3_000
/** How often the client of one rotation loses its patience early, at most. */
const EARLY_LOSSES = 2
/** Some clients lose so many answers in a row. */
const [FEWEST_LOSSES, MOST_LOSSES] = [6, 15]
/** A client waits twice as long after each failure, up to this. */
const LONGEST_BACKOFF_MS = 1_600
const REMEMBERED = 3
/** More than it is given between a snapshot and the loss of what came after. */
const HELD = 200
const LONGEST_GRACE_MS = 2_000
/** How many clients have keys made, and end them. */
const COME_AND_GO = 2

/** How one rotation is asked for. */
interface How {
  readonly retire: Retire
  readonly emergency: boolean
}

const AT_ONCE: How = { retire: 'now', emergency: false }

interface Rotated {
  readonly op: Rotate
  readonly secret?: string
}

export function digestOf(secret: string): string {
  return createHash('sha256').update(secret).digest('base64url')
}

/** Starts one rotating client for each key, one reader for each key and server, and some whose keys come and go. */
export function startTraffic({ keys, admin, servers, random, now, record, lostAt }: TrafficParts): Traffic {
  const http = requests(servers)
  const loose = new Set<Promise<unknown>>()
  /** Rotations that clients have asked for besides the one whose answer they have taken, until they are answered. */
  const twins = new Map<ClientKey, Set<Promise<void>>>()
  let rotating = true
  let reading = true
  let giveUpAt = Number.POSITIVE_INFINITY
  const clients = [...keys.map((key) => rotateForEver(key)), ...Array.from({ length: COME_AND_GO }, () => comeAndGo())]
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
      http.close()
    },
    async askOnceMore(withinMs) {
      reading = false
      await Promise.all(readers)
      while (loose.size > 0) await Promise.all(loose)
      const until = now() + withinMs
      const graceIsOver = now() + LONGEST_GRACE_MS + ROUNDING_MS
      const answered = ({ type }: Read): boolean => type !== 'info'
      const refused = ({ type, start }: Read): boolean => type === 'fail' || (type === 'ok' && start > graceIsOver)
      const ask = async (key: ClientKey, secret: string, server: number, enough: (op: Read) => boolean): Promise<void> => {
        while (!enough(await read(key, secret, server)) && now() < until) await pause(50)
      }
      const each = (key: ClientKey, server: number): Promise<void>[] => [
        ask(key, key.secret, server, answered),
        ...key.dead.slice(0, 1).map((last) => ask(key, last, server, refused)),
      ]
      await Promise.all(keys.flatMap((key) => servers.flatMap((_, server) => each(key, server))))
    },
  }

  async function rotateForEver(key: ClientKey): Promise<void> {
    let how = nextWay(key)
    while (rotating || (isAdrift(key) && now() < giveUpAt)) {
      if (isAdrift(key)) await findPlace(key)
      const { secret } = key
      const rotated = await rotateUntilAnswered(key, how)
      if (rotated?.secret === undefined) {
        if ((isAdrift(key) || key.secret !== secret) && now() < giveUpAt) continue
        return
      }
      const fresh = rotated.secret
      // Before the new secret is used for the first time, the old one has to go on.
      if (how.retire === 'on-first-use') {
        everywhere(key, secret)
        await pause(random.between(0, 400))
        const use = (): Promise<Read> => read(key, fresh, anyServer())
        for (let used = await use(); used.type === 'info' && now() < giveUpAt; used = await use()) await pause(random.between(10, 150))
      }
      hold(key, fresh, rotated.op.start)
      key.dead.unshift(secret)
      key.dead.length = Math.min(key.dead.length, REMEMBERED)
      // What an emergency or a first use has ended; what died at once has been asked about as each 200 came.
      for (const old of how.emergency ? key.dead : how.retire === 'on-first-use' ? [secret] : []) everywhere(key, old)
      const { graceEndsAt } = rotated.op
      const inGrace = typeof how.retire === 'object' && graceEndsAt !== undefined
      how = nextWay(key)
      if (inGrace) await outlast(key, secret, graceEndsAt, how)
      else if (random.chance(0.2)) besides(key, rotateWithTheDead(key, secret))
      await pause(random.between(0, 200))
    }
  }

  function hold(key: ClientKey, secret: string, since: number): void {
    const before = key.held ?? [key.secret]
    Object.assign(key, { secret, since, held: [secret, ...before.filter((other) => other !== secret)].slice(0, HELD) })
  }

  /** Whether data were lost since this client had its secret: that may be nobody's by now. */
  function isAdrift({ since = 0 }: ClientKey): boolean {
    return since <= lostAt()
  }

  /** Tries all that it ever held, the last one first, as soon as no server is without the news that data were lost. */
  async function findPlace(key: ClientKey): Promise<void> {
    const began = now()
    await pause(Math.max(0, lostAt() + LONGEST_LEASE_MS + marginMs(LONGEST_LEASE_MS) + ROUNDING_MS - began))
    // One that was on its way may still be carried out on what is left of the data, and then its answer has the secret.
    await Promise.all(twins.get(key) ?? [])
    const held = key.held ?? [key.secret]
    for (const [index, secret] of held.entries()) {
      let tried = await read(key, secret, anyServer())
      for (; tried.type === 'info' && now() < giveUpAt; tried = await read(key, secret, anyServer())) await pause(random.between(10, 150))
      if (tried.type !== 'ok') continue
      const lost = held.slice(0, index)
      hold(key, secret, began)
      // What is lost is dead too.
      key.dead.splice(0, key.dead.length, ...held.slice(index + 1, index + REMEMBERED), ...lost.slice(-1))
      return
    }
    // The one that it has never heard of is in the answer that it asks for next.
    key.since = began
  }

  /** Uses an old secret right before and right after its grace period ends, unless an emergency is to end it sooner. */
  async function outlast(key: ClientKey, secret: string, graceEndsAt: number, { emergency }: How): Promise<void> {
    // Nor where the clock of the store was set, and it may last for a minute.
    if (emergency || graceEndsAt - now() > LONGEST_GRACE_MS) return
    await pause(Math.max(0, graceEndsAt - 60 - now()))
    everywhere(key, secret)
    await pause(Math.max(0, graceEndsAt + ROUNDING_MS + 1 - now()))
    everywhere(key, secret)
  }

  /** Mostly at once. An emergency is not for a client that may lose its answer: it is never given again. */
  function nextWay({ rotatedWith }: ClientKey): How {
    if (rotatedWith !== undefined && random.chance(0.3)) return { retire: 'now', emergency: true }
    if (random.chance(0.3)) return { retire: { afterMs: Math.round(random.between(400, LONGEST_GRACE_MS)) }, emergency: false }
    return random.chance(0.25) ? { retire: 'on-first-use', emergency: false } : AT_ONCE
  }

  /** The same request, with the same secret, until there is a 200. */
  async function rotateUntilAnswered(key: ClientKey, how: How): Promise<Rotated | undefined> {
    const { secret } = key
    let idempotencyKey = randomUUID()
    if (!how.emergency && random.chance(0.25)) await loseAnswers(key, idempotencyKey, how)
    for (let tries = 0, losses = 0; now() < giveUpAt; tries++) {
      const early = losses < EARLY_LOSSES && random.chance(0.2)
      if (early) losses++
      const send = (): Promise<Rotated> => rotate(key, secret, idempotencyKey, how, early ? random.between(5, 600) : PATIENCE_MS)
      // Some clients ask twice at once.
      const twin = tries === 0 && !how.emergency && !early && random.chance(0.3) ? send() : undefined
      if (twin !== undefined) besides(key, twin)
      const answers = [await send()]
      if (answers[0]?.secret === undefined && twin !== undefined) answers.push(await twin)
      const good = answers.find((answer) => answer.secret !== undefined)
      if (good !== undefined) {
        if (random.chance(0.3)) besides(key, send())
        return good
      }
      // It was carried out and its answer is lost for good: there has to be another.
      if (how.emergency && answers.some(({ op }) => op.code === 'idempotency_key_spent')) idempotencyKey = randomUUID()
      // The grace period before it goes on, on the clock of the store.
      else if (answers.some(({ op }) => op.code === 'rotation_in_grace') && rotating) tries = Math.min(tries, 3)
      // Refused: a client deletes its key on this.
      else if (answers.some(({ op }) => op.type === 'fail')) return undefined
      await backOff(tries)
    }
    return undefined
  }

  /** Lets a rotation go on whose answer is not waited for. Where data were lost, it may be the one that was carried out. */
  function besides(key: ClientKey, rotation: Promise<Rotated | undefined>): void {
    const its = twins.get(key) ?? new Set<Promise<void>>()
    const taken = rotation
      .then((late) => {
        if (late?.secret !== undefined && isAdrift(key)) hold(key, late.secret, late.op.start)
      })
      .finally(() => its.delete(taken))
    twins.set(key, its.add(taken))
    inBackground(taken)
  }

  /** Loses every answer for a while, whether it asks again at once or not. */
  async function loseAnswers(key: ClientKey, idempotencyKey: string, how: How): Promise<void> {
    const losses = Math.floor(random.between(FEWEST_LOSSES, MOST_LOSSES + 1))
    const hurries = random.chance(0.5)
    for (let tries = 0; tries < losses && rotating; tries++) {
      await rotate(key, key.secret, idempotencyKey, how, PATIENCE_MS, true)
      if (!hurries) await pause(random.between(10, 150))
    }
  }

  async function readForEver(key: ClientKey, server: number): Promise<void> {
    while (reading) {
      const secret = key.dead.length > 0 && random.chance(0.3) ? random.pick(key.dead) : key.secret
      await read(key, secret, server)
      await pause(random.between(10, 40))
    }
  }

  /** Has a key made, rotates it or not, and has it ended or ends it; again and again. */
  async function comeAndGo(): Promise<void> {
    while (rotating) {
      const key = await createUntilAnswered()
      if (key === undefined) return
      everywhere(key, key.secret)
      await pause(random.between(0, 400))
      if (random.chance(0.5)) {
        const { secret } = key
        const rotated = await rotateUntilAnswered(key, AT_ONCE)
        if (rotated?.secret === undefined && isAdrift(key) && rotating) continue
        if (rotated?.secret === undefined) return
        Object.assign(key, { secret: rotated.secret, dead: [secret] })
      }
      everywhere(key, key.secret)
      await pause(random.between(0, 200))
      if (!(await revokeUntilAnswered(key, random.chance(0.5) ? key.secret : admin))) {
        if (isAdrift(key) && rotating) continue
        return
      }
      for (const secret of [key.secret, ...key.dead]) everywhere(key, secret)
      await pause(random.between(0, 400))
    }
  }

  async function createUntilAnswered(): Promise<ClientKey | undefined> {
    const idempotencyKey = randomUUID()
    for (let tries = 0; now() < giveUpAt; tries++) {
      const server = anyServer()
      const start = now()
      const body = { name: 'comes and goes' }
      const answer = await send(server, { method: 'POST', path: '/keys', secret: admin, patienceMs: PATIENCE_MS, idempotencyKey, body })
      const { key, secret } = (answer.body ?? {}) as { key?: { id: string }; secret?: string }
      const made = answer.status === 201 && key !== undefined && secret !== undefined ? { id: key.id, secret } : undefined
      const op: Create = {
        f: 'create',
        ...{ idempotencyKey, server, start, end: now(), status: answer.status, type: ending(answer.status) },
        ...codeOf(answer.body),
        ...(made === undefined ? {} : { key: made.id, digest: digestOf(made.secret) }),
      }
      record(op)
      if (op.type !== 'info') return made && { ...made, dead: [], since: start }
      await backOff(tries)
    }
    return undefined
  }

  /** Whether it was answered 200 in the end. */
  async function revokeUntilAnswered(key: ClientKey, credential: string): Promise<boolean> {
    const idempotencyKey = randomUUID()
    for (let tries = 0; now() < giveUpAt; tries++) {
      const server = anyServer()
      const start = now()
      const path = `/keys/${key.id}/revoke`
      const answer = await send(server, { method: 'POST', path, secret: credential, patienceMs: PATIENCE_MS, idempotencyKey })
      const { status, body } = answer
      const op: Revoke = {
        f: 'revoke',
        ...{ key: key.id, digest: digestOf(credential), idempotencyKey },
        ...{ server, start, end: now(), status, type: ending(status) },
        ...codeOf(body),
        ...tookOf(answer),
      }
      record(op)
      if (op.type !== 'info') return op.type === 'ok'
      await backOff(tries)
    }
    return false
  }

  async function rotate(
    key: ClientKey,
    secret: string,
    idempotencyKey: string,
    how: How,
    patienceMs: number,
    lost = false,
  ): Promise<Rotated> {
    const server = anyServer()
    const credential = key.rotatedWith ?? secret
    const path = key.rotatedWith === undefined ? '/keys/self/rotate' : `/keys/${key.id}/rotate`
    const { retire, emergency } = how
    const asked = emergency ? { emergency } : retire === 'now' ? undefined : { retire }
    const start = now()
    const question: Question = { method: 'POST', path, secret: credential, patienceMs, idempotencyKey, body: asked, lost }
    const answer = await send(server, question)
    const { status, body, replayed } = answer
    const end = now()
    const issued = body as { secret?: string; key?: { generation?: number }; acceptedUntil?: string } | undefined
    const made = status === 200 && issued?.secret !== undefined ? issued.secret : undefined
    const op: Rotate = {
      f: 'rotate',
      ...{ key: key.id, digest: digestOf(credential), retires: digestOf(secret), idempotencyKey, ...how },
      ...{ server, start, end, status, type: ending(status), replayed },
      ...codeOf(body),
      ...tookOf(answer),
      ...(made === undefined ? {} : { made: digestOf(made) }),
      ...(issued?.key?.generation === undefined ? {} : { generation: issued.key.generation }),
      ...(issued?.acceptedUntil === undefined ? {} : { graceEndsAt: end + Date.parse(issued.acceptedUntil) - Date.now() }),
    }
    record(op)
    if (made === undefined) return { op }
    // At once, everywhere, also where a twin was answered first: this is when a lease that is still held would show.
    if (how.retire === 'now') everywhere(key, secret)
    return { op, secret: made }
  }

  function everywhere(key: ClientKey, secret: string): void {
    for (const server of servers.keys()) inBackground(read(key, secret, server))
  }

  function read(key: ClientKey, secret: string, server: number): Promise<Read> {
    return readAt('whoami', key, secret, server)
  }

  async function rotateWithTheDead(key: ClientKey, secret: string): Promise<Rotated | undefined> {
    const idempotencyKey = randomUUID()
    const { type } = await readAt('rotate', key, secret, anyServer(), idempotencyKey)
    // It is alive again where its end was lost, and then this was a rotation like any other.
    for (let tries = 0; type !== 'fail' && isAdrift(key) && now() < giveUpAt; tries++) {
      const rotated = await rotate(key, secret, idempotencyKey, AT_ONCE, PATIENCE_MS)
      if (rotated.op.type !== 'info') return rotated
      await backOff(tries)
    }
    return undefined
  }

  async function readAt(route: Read['route'], key: ClientKey, secret: string, server: number, idempotencyKey = ''): Promise<Read> {
    const start = now()
    const question: Question =
      route === 'whoami'
        ? { method: 'GET', path: '/whoami', secret, patienceMs: READ_PATIENCE_MS }
        : { method: 'POST', path: '/keys/self/rotate', secret, patienceMs: READ_PATIENCE_MS, idempotencyKey }
    const { status, body } = await send(server, question)
    const end = now()
    const seen = body as NonNullable<Read['seen']> | undefined
    const op: Read = {
      f: 'read',
      ...{ route, key: key.id, digest: digestOf(secret), server, start, end, status, type: ending(status) },
      ...codeOf(body),
      ...(route === 'whoami' && status === 200 && seen !== undefined ? { seen: { key: seen.key, generation: seen.generation } } : {}),
    }
    record(op)
    return op
  }

  function send(server: number, question: Question): Promise<Answer> {
    return http.ask(random.pick<Way>(ways), server, question)
  }

  function anyServer(): number {
    return random.pick([...servers.keys()])
  }

  async function backOff(tries: number): Promise<void> {
    await pause(Math.min(LONGEST_BACKOFF_MS, random.between(30, 100) * 2 ** tries))
  }

  function inBackground(work: Promise<unknown>): void {
    loose.add(work)
    void work.finally(() => loose.delete(work))
  }
}

function codeOf(body: unknown): { code?: string } {
  const { code } = (body ?? {}) as { code?: string }
  return code === undefined ? {} : { code }
}

function tookOf({ took }: Answer): { took?: Took } {
  return took === undefined ? {} : { took }
}

function ending(status: number): Ending {
  if (status === 0 || status >= 500) return 'info'
  return status >= 200 && status < 300 ? 'ok' : 'fail'
}

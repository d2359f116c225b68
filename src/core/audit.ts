import type { EventRow, EventType, JsonObject, KeyRow, Store, StoreTransaction } from '../store/store.js'
import { operatorOf } from './actor.js'
import type { Actor, Origin } from './api-keys.js'
import type { Background } from './background.js'
import type { Clock } from './clock.js'
import { timeOrderedId } from './id.js'
import { onceIn } from './once-in.js'
import { redactSecrets } from './secret.js'
import { semaphore } from './semaphore.js'
import { endedBecause } from './verify/verdict.js'

/** A line of the audit trail, but for its instant. */
export interface AuditLine {
  readonly type: EventType
  /** The key that it is about. */
  readonly key: KeyRow
  readonly actor: string
  readonly origin: Origin | undefined
  readonly details: JsonObject
}

type WriteLine = (at: number, line: AuditLine) => Promise<void>

export interface AuditTrail {
  /** Runs one transaction. Listeners hear of the lines that it writes once they are committed. */
  transaction<T>(work: (tx: StoreTransaction, write: WriteLine) => Promise<T>): Promise<T>
  /** Writes a line in the background, since it must not show in the time of an answer; with a `subject`, at most one a minute for each type and subject. */
  writeLater(line: AuditLine, subject?: string): void
  /** Writes that a retired secret was refused, at most once a minute for each secret. */
  writeRefusedSecret(digest: string, origin: Origin): Promise<void>
  /** The same in the background. */
  writeRefusedSecretLater(digest: string, origin: Origin): void
}

export interface AuditParts {
  readonly store: Store
  readonly clock: Clock
  /** Hears of every line once it is committed. */
  readonly tell: (event: EventRow, key: KeyRow) => void
  readonly background: Background
}

/** Each refusal and each replay is written at most this often, so that nobody can fill the trail by asking again. */
const ONCE_IN_MS = 60_000
const MAX_SUBJECTS = 1_000
/** More lines than this waiting for the store would wait for minutes. */
const MAX_QUEUED = 1_000

export function auditTrail({ store, clock, tell, background }: AuditParts): AuditTrail {
  // What is written in the background takes one connection, however much there is of it.
  const inTurn = semaphore(1, MAX_QUEUED, 'More lines are waiting for the audit trail than it can take.')
  const isDue = onceIn(ONCE_IN_MS, MAX_SUBJECTS, () => clock.monotonicMs())

  return {
    transaction,
    writeLater(line, subject) {
      if (subject !== undefined && !isDue(`${line.type} ${subject}`)) return
      background.add(inTurn(() => writeOfKey(line)))
    },
    writeRefusedSecret,
    writeRefusedSecretLater(digest, origin) {
      background.add(inTurn(() => writeRefusedSecret(digest, origin)))
    },
  }

  async function transaction<T>(work: (tx: StoreTransaction, write: WriteLine) => Promise<T>): Promise<T> {
    const written: [EventRow, KeyRow][] = []
    const result = await store.transaction((tx) =>
      work(tx, async (at, line) => {
        const event = eventRow(at, line)
        await tx.appendEvent(event)
        written.push([event, line.key])
      }),
    )
    for (const [event, key] of written) tell(event, key)
    return result
  }

  /** Its key may have been erased since: then nothing is written about it any more. */
  function writeOfKey(line: AuditLine): Promise<void> {
    return transaction(async (tx, write) => {
      if ((await tx.lockKeys([line.key.id])).length > 0) await write(await tx.now(), line)
    })
  }

  async function writeRefusedSecret(digest: string, origin: Origin): Promise<void> {
    if (!isDue(digest)) return
    await transaction(async (tx, write) => {
      const generation = await tx.generation(digest)
      const [key] = generation === undefined ? [] : await tx.lockKeys([generation.keyId])
      if (generation === undefined || key === undefined) return
      const now = await tx.now()
      const reason = endedBecause(key, generation, now)
      if (reason === undefined) return
      const details = { generation: generation.generation, reason }
      await write(now, { type: 'key.retired_secret_refused', key, actor: `key:${key.id}`, origin, details })
    })
  }
}

/** Who asks, as the audit trail names it: `key:<id>`, `operator:<subject>@<issuer>` or `system`. */
export function actorName(as: Actor, caller: KeyRow | undefined): string {
  const operator = operatorOf(as)
  if (operator !== undefined) return `operator:${operator.subject}@${operator.issuer}`
  return as === 'application' || caller === undefined ? 'system' : `key:${caller.id}`
}

/** What a stranger wrote, cut to what a column holds and without the NUL that PostgreSQL refuses. */
export function originText(text: string | undefined): string | null {
  return text === undefined ? null : redactSecrets(text.slice(0, 1_024)).slice(0, 255).toWellFormed().replaceAll('\0', '')
}

function eventRow(at: number, { type, key, actor, origin: { ip, userAgent } = {}, details }: AuditLine): EventRow {
  return {
    id: timeOrderedId(at),
    keyId: key.id,
    ownerId: key.ownerId,
    type,
    at,
    actor,
    ip: originText(ip),
    userAgent: originText(userAgent),
    details,
  }
}

import { randomBytes } from 'node:crypto'
import type { EarParts, OpenEar } from '../../channel-over.js'
import { inTime } from '../../in-time.js'
import { nextTurn } from '../../real-time.js'
import type { Client, Ear, EarListeners } from './clients.js'
import type { Connection } from './connection.js'

/** Until the connection is there: a TLS handshake after a Sentinel was asked takes a few round trips more than a command. */
export const CONNECT_MS = 1_000

export interface RedisParts {
  readonly client: Client
  readonly connection: Connection
  readonly timeoutMs: number
}

const PREFIX = 'express-api-keys:'

/** One connection, from its opening to its loss; undefined where none can be opened now. */
export function openEar(parts: RedisParts, { wanted, heard, lost }: EarParts): OpenEar | undefined {
  const { client, connection, timeoutMs } = parts
  const own = `self:${randomBytes(12).toString('base64url')}`
  const subscribed = new Set<string>()
  let expected: { readonly word: string; readonly arrive: () => void } | undefined
  const ear = tryOpening(connection, {
    heard(place, message) {
      const address = place.slice(PREFIX.length)
      if (address !== own) heard(address, message)
      else if (message === expected?.word) expected.arrive()
    },
    close: () => lost(opened),
  })
  if (ear === undefined) return undefined
  const late = (): Error => new Error('Redis gave no answer in time.')
  const opened: OpenEar = {
    async test() {
      try {
        await inTime(CONNECT_MS, ear.ready, late)
        const missing = [own, ...wanted()].filter((address) => !subscribed.has(address))
        for (const address of missing) subscribed.add(address)
        if (missing.length > 0) await inTime(timeoutMs, ear.subscribe(missing.map(placeOf)), late)
      } catch (cause) {
        return client.isRefusal(cause) ? 'refused' : 'lost'
      }
      const word = randomBytes(12).toString('base64url')
      let isThere = false
      const arrival = new Promise<void>((arrive) => {
        expected = { word, arrive }
      }).then(() => {
        isThere = true
      })
      const sent = await publish(parts, own, word)
      if (sent !== 'sent') return sent
      // A process that was held up reads what has come, before it says that nothing has.
      await inTime(timeoutMs, arrival, late).catch(nextTurn)
      return isThere ? 'heard' : 'deaf'
    },
    narrow() {
      const kept = new Set([own, ...wanted()])
      const left = [...subscribed].filter((address) => !kept.has(address))
      if (left.length === 0) return
      for (const address of left) subscribed.delete(address)
      ear.unsubscribe(left.map(placeOf)).catch(() => {})
    },
    close: ear.close,
  }
  return opened
}

function tryOpening(connection: Connection, listeners: EarListeners): Ear | undefined {
  try {
    return connection.openEar(listeners)
  } catch {
    // The application's client cannot be duplicated just now.
    return undefined
  }
}

/** A refusal is an answer: it must not count against a Redis that does all else. */
export async function publish(
  { client, connection }: Pick<RedisParts, 'client' | 'connection'>,
  address: string,
  message: string,
): Promise<'sent' | 'refused' | 'unsent'> {
  const refusedOr = (reply: Promise<unknown>): Promise<unknown> =>
    reply.catch((cause) => (client.isRefusal(cause) ? 'refused' : Promise.reject(cause)))
  const answer = await connection.run(
    (link) => refusedOr(link.publish(placeOf(address), message)),
    (reply) => (reply === 'refused' ? 'refused' : /^\d{1,16}$/.test(String(reply)) ? 'sent' : undefined),
  )
  return answer ?? 'unsent'
}

function placeOf(address: string): string {
  return PREFIX + address
}

import { ApiKeyError } from '../../errors.js'
import { nextTurn } from '../../real-time.js'

/** One read of the authority answers for this many names. */
const BATCH = 100
/** Where more than this wait in one lane, the authority cannot keep up, and no answer would come in time. */
const MAX_WAITING = 20_000
/** This many answers of a read are handed out in one turn of the event loop: a hundred refusals in a row would hold up everything else by some 20 ms. */
const ANSWERS_A_TURN = 10

interface Waiting<Answer> {
  resolve(answer: Answer): void
  reject(error: unknown): void
}

/** Who waits for which name, in the order of asking. Requests for the same name are answered together. */
interface Lane<Answer> {
  readonly names: Map<string, Waiting<Answer>[]>
  waiting: number
}

/**
 * Puts names that are asked for at about the same time into one read, those that go `first` before the others: however many strangers are waiting, a client
 * goes with the next read. A read is sent after every request in it has come in.
 */
export function batchedRead<Answer>(
  read: (names: readonly string[]) => Promise<Answer>,
  { first, atOnce }: { readonly first: (name: string) => boolean; readonly atOnce: number },
): (name: string) => Promise<Answer> {
  const clients: Lane<Answer> = { names: new Map(), waiting: 0 }
  const strangers: Lane<Answer> = { names: new Map(), waiting: 0 }
  let reads = 0
  let due = false

  return (name) =>
    new Promise((resolve, reject) => {
      const lane = first(name) ? clients : strangers
      if (lane.waiting >= MAX_WAITING) {
        reject(new ApiKeyError('store_unavailable', 'More requests are waiting for the store than it can answer.'))
        return
      }
      lane.waiting++
      const together = lane.names.get(name)
      if (together === undefined) lane.names.set(name, [{ resolve, reject }])
      else together.push({ resolve, reject })
      if (reads >= atOnce || due) return
      due = true
      // Not queueMicrotask, which a test may have taken away for a while.
      void Promise.resolve().then(() => {
        due = false
        next()
      })
    })

  function next(): void {
    if (reads >= atOnce || clients.waiting + strangers.waiting === 0) return
    const batch = new Map<string, Waiting<Answer>[]>()
    for (const lane of [clients, strangers]) {
      for (const [name, together] of lane.names) {
        if (batch.size === BATCH) break
        batch.set(name, [...(batch.get(name) ?? []), ...together])
        lane.names.delete(name)
        lane.waiting -= together.length
      }
    }
    reads++
    void send(batch).then(() => {
      reads--
      next()
    })
    next()
  }

  async function send(batch: ReadonlyMap<string, readonly Waiting<Answer>[]>): Promise<void> {
    let tell: (one: Waiting<Answer>) => void
    try {
      const answer = await read([...batch.keys()])
      tell = ({ resolve }) => resolve(answer)
    } catch (error) {
      tell = ({ reject }) => reject(error)
    }
    for (const [index, one] of [...batch.values()].flat().entries()) {
      if (index > 0 && index % ANSWERS_A_TURN === 0) await nextTurn()
      tell(one)
    }
  }
}

import { randomBytes } from 'node:crypto'

let lastStamp = 0
let sequence = 0

/**
 * A UUID whose order is the order of making, within one process even inside a millisecond.
 *
 * @see RFC 9562 §5.7 and §6.2 (UUIDv7 with a counter)
 */
export function timeOrderedId(now: number): string {
  sequence = now > lastStamp ? 0 : sequence + 1
  lastStamp = Math.max(now, lastStamp)
  if (sequence > 0xfff) {
    lastStamp++
    sequence = 0
  }
  const time = lastStamp.toString(16).padStart(12, '0')
  const random = randomBytes(8)
  random[0] = ((random[0] ?? 0) & 0x3f) | 0x80
  const tail = random.toString('hex')
  return `${time.slice(0, 8)}-${time.slice(8)}-7${sequence.toString(16).padStart(3, '0')}-${tail.slice(0, 4)}-${tail.slice(4)}`
}

import type { Hit } from '../cache.js'

/** A script, under the name that it is loaded by. Its keys are all of one kind; on a cluster it is given one at a time. */
export interface Script {
  readonly name: 'apiKeysGet' | 'apiKeysFill' | 'apiKeysForget' | 'apiKeysCount'
  readonly lua: string
}

/** Our entries are some 1,000 characters; with 8 KiB of metadata some 12,000, with the longest list of scopes besides some 30,000. */
export const MAX_ENTRY_LENGTH = 32_768

/** What a window is divided into, where more hits than this fit in. A hit counts for at most one slot longer than the window. */
const SLOTS = 20

/**
 * Guarantees that the entries and the time are of one node and one moment. For a value that is not one of our entries, by its type or its length,
 * it answers 0 and does not send the value. (Some clusters want to see KEYS itself in each call.)
 */
export const GET: Script = {
  name: 'apiKeysGet',
  lua: `
local entries = {}
for i = 1, #KEYS do
  local length = redis.pcall('STRLEN', KEYS[i])
  if type(length) == 'table' then
    if not string.find(length.err, 'WRONGTYPE', 1, true) then return length end
    entries[i] = 0
  elseif length == 0 then
    entries[i] = false
  elseif length > ${MAX_ENTRY_LENGTH} then
    entries[i] = 0
  else
    entries[i] = redis.call('GET', KEYS[i])
  end
end
return { entries, redis.call('TIME') }`,
}

/**
 * Guarantees that a tombstone stays and that a write that lands late stores nothing: the second of each key's two arguments is an instant on
 * this server's clock. The rest of a life is counted here, at the moment of writing, since SET knows PXAT only from 6.2 on.
 */
export const FILL: Script = {
  name: 'apiKeysFill',
  lua: `
local time = redis.call('TIME')
local now = time[1] * 1000 + math.ceil(time[2] / 1000)
local filled = {}
for i = 1, #KEYS do
  local left = tonumber(ARGV[2 * i]) - now
  local there = redis.pcall('GET', KEYS[i])
  local foreign = type(there) == 'table'
  if foreign and not string.find(there.err, 'WRONGTYPE', 1, true) then return there end
  local kept = foreign or there and (string.sub(there, 1, 1) == 'r' or redis.call('PTTL', KEYS[i]) >= left)
  filled[i] = 0
  if left > 0 and not kept then
    redis.call('SET', KEYS[i], ARGV[2 * i - 1], 'PX', left)
    filled[i] = 1
  end
end
return filled`,
}

/** Guarantees that a tombstone is not dug up. What is not one of our entries, by its type, stays. */
export const FORGET: Script = {
  name: 'apiKeysForget',
  lua: `
local there = redis.pcall('GET', KEYS[1])
if type(there) == 'table' then
  if not string.find(there.err, 'WRONGTYPE', 1, true) then return there end
  return 0
end
if there and string.sub(there, 1, 1) ~= 'r' then return redis.call('DEL', KEYS[1]) end
return 0`,
}

/**
 * Guarantees that no stretch of time as long as the window has more than the limit, and that a hit is counted or refused in one step.
 * The arguments are the limit, the window and, to take a hit back instead, its instant; that takes none where the hit has slid out.
 *
 * A window is a text of slots, `last:hits`, oldest first; each is dated by its last hit and slides out a window later. Up to 20 hits each
 * millisecond has a slot of its own; beyond, a slot is a 20th of the window. A hit dated later than now was counted before the clock was
 * set back, and counts as of now.
 * @see https://www.figma.com/blog/an-alternative-approach-to-rate-limiting/
 */
export const COUNT: Script = {
  name: 'apiKeysCount',
  lua: `
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local max, window, back = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local function slot(at)
  return max > ${SLOTS} and math.floor(at * ${SLOTS} / window) or at
end

local there = redis.pcall('GET', KEYS[1])
if type(there) == 'table' then
  if not string.find(there.err, 'WRONGTYPE', 1, true) then return there end
  there = ''
end
local slots, hits, taken = {}, 0, false
for last, count in string.gmatch(there or '', '(%d+):(%d+)') do
  last, count = math.min(tonumber(last), now), tonumber(count)
  if back and not taken and slot(last) == slot(back) then
    count, taken = count - 1, true
  end
  if count > 0 and last + window > now then
    slots[#slots + 1] = { last, count }
    hits = hits + count
  end
end

local counted = not back and hits + 1 <= max
if counted then
  local newest = slots[#slots]
  if newest and slot(newest[1]) == slot(now) then
    newest[1], newest[2] = now, newest[2] + 1
  else
    slots[#slots + 1] = { now, 1 }
  end
  hits = hits + 1
end

local text, left, wait = {}, hits, nil
for i = 1, #slots do
  text[i] = string.format('%.0f:%.0f', slots[i][1], slots[i][2])
  left = left - slots[i][2]
  if not wait and left < max then wait = slots[i][1] + window - now end
end
if #slots > 0 then
  redis.call('SET', KEYS[1], table.concat(text, ' '), 'PX', math.ceil(slots[#slots][1] + window - now))
else
  redis.call('DEL', KEYS[1])
end
return { counted and 1 or 0, math.min(hits, max), math.ceil(wait or window), now }`,
}

/** Takes nothing on trust, like its neighbors: a reply of another shape is not an answer. */
export function readEntries(reply: unknown, count: number): ({ value: string | null; timeMs: number } | undefined)[] | undefined {
  if (!Array.isArray(reply) || reply.length !== 2) return undefined
  const [values, time] = reply as unknown[]
  if (!Array.isArray(values) || values.length !== count) return undefined
  if (!Array.isArray(time) || time.length !== 2) return undefined
  const [seconds, micros] = time as unknown[]
  if (typeof seconds !== 'string' || typeof micros !== 'string') return undefined
  if (!/^\d{1,12}$/.test(seconds) || !/^\d{1,6}$/.test(micros)) return undefined
  const timeMs = Number(seconds) * 1_000 + Math.floor(Number(micros) / 1_000)
  return (values as unknown[]).map((value) =>
    value === null || (typeof value === 'string' && value.length <= MAX_ENTRY_LENGTH) ? { value, timeMs } : undefined,
  )
}

export function readCounts(reply: unknown, count: number): (0 | 1)[] | undefined {
  if (!Array.isArray(reply) || reply.length !== count) return undefined
  const counts = (reply as unknown[]).map(readCount)
  return counts.every((each) => each !== undefined) ? counts : undefined
}

/** An integer; a string where the application's client has `stringNumbers`. */
export function readCount(reply: unknown): 0 | 1 | undefined {
  return reply === 0 || reply === '0' ? 0 : reply === 1 || reply === '1' ? 1 : undefined
}

export function readHit(reply: unknown, max: number, windowMs: number): Hit | undefined {
  if (!Array.isArray(reply) || reply.length !== 4) return undefined
  // Strings where the application's client has `stringNumbers`.
  if (!reply.every((each) => typeof each === 'number' || (typeof each === 'string' && /^\d{1,16}$/.test(each)))) return undefined
  const [counted, hits, waitMs, at] = reply.map(Number) as [number, number, number, number]
  if (![hits, waitMs, at].every((each) => Number.isSafeInteger(each) && each >= 0)) return undefined
  if ((counted !== 0 && counted !== 1) || hits < counted || hits > max || waitMs > Math.ceil(windowMs)) return undefined
  return { counted: counted === 1, hits, waitMs: Math.min(waitMs, windowMs), at }
}

export function readOk(reply: unknown): true | undefined {
  return reply === 'OK' ? true : undefined
}

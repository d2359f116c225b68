import type { RetirePolicy } from '../core/key.js'
import { CliError } from './exit.js'

/** What options say, as the commands of `ApiKeys` take it. Pure, but for the clock that is given. */

const UNITS: { readonly [unit: string]: number } = { s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 }

/** Milliseconds of `90d`, `12h`, `10m` or `30s`; undefined for anything else. */
function durationMs(text: string): number | undefined {
  const [, count, unit = ''] = /^(\d{1,6})([smhd])$/.exec(text) ?? []
  return count === undefined ? undefined : Number(count) * (UNITS[unit] ?? 0)
}

/** `90d` from now, an RFC 3339 instant, or null for `never`. */
export function expiry(text: string, nowMs: number = Date.now()): string | null {
  if (text === 'never') return null
  const ms = durationMs(text)
  return ms === undefined ? text : new Date(nowMs + ms).toISOString()
}

/** `30d` ago, or an RFC 3339 instant. */
export function past(text: string, nowMs: number = Date.now()): string {
  const ms = durationMs(text)
  return ms === undefined ? text : new Date(nowMs - ms).toISOString()
}

export function retirement(text: string): RetirePolicy {
  if (text === 'now' || text === 'on-first-use') return text
  const afterMs = durationMs(text)
  if (afterMs === undefined) throw new CliError('--retire takes now, on-first-use, or a time such as 10m.')
  return { afterMs }
}

export function metadata(text: string): object {
  try {
    const value: unknown = JSON.parse(text)
    if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value
  } catch {
    // Said below; the error of JSON.parse would repeat what it was given.
  }
  throw new CliError(`--metadata takes a JSON object, such as '{"plan":"gold"}'.`)
}

export function whole(name: string, min: number, max: number): (text: string) => number {
  return (text) => {
    const value = Number(text)
    if (/^\d+$/.test(text) && value >= min && value <= max) return value
    throw new CliError(`${name} takes a whole number from ${min} to ${max}.`)
  }
}

/** Gathers an option that may be given several times. */
export function several(text: string, before: readonly string[] = []): readonly string[] {
  return [...before, text]
}

import { ApiKeyError } from './errors.js'

/** Throws `code` for the first name in `options` that is not in `known`, and says which one was probably meant. */
export function refuseUnknown(
  options: object,
  known: readonly string[],
  where: string,
  code: 'invalid_option' | 'invalid_request' = 'invalid_option',
): void {
  if (typeof options !== 'object' || options === null || Array.isArray(options)) {
    throw new ApiKeyError(code, `${where} takes an object with ${known.join(', ')}.`)
  }
  for (const name of Object.keys(options)) {
    if (known.includes(name)) continue
    const meant = known.find((other) => distance(name.toLowerCase(), other.toLowerCase()) <= 2)
    const hint = meant === undefined ? `It takes ${known.join(', ')}.` : `Write "${meant}" instead.`
    throw new ApiKeyError(code, `${where} has no option${quoted(name)}. ${hint}`)
  }
}

/** Resolves a whole number in a range, or throws `invalid_option`. */
export function integerOption(name: string, value: number | undefined, fallback: number, min: number, max: number): number {
  if (value === undefined) return fallback
  if (Number.isInteger(value) && value >= min && value <= max) return value
  throw invalidOption(`${name} must be a whole number from ${min} to ${max}${shown(value)}.`)
}

export function invalidOption(message: string): ApiKeyError {
  return new ApiKeyError('invalid_option', message)
}

function shown(value: unknown): string {
  const text = typeof value === 'string' ? `"${value}"` : String(value)
  return text.length <= 16 ? `, not ${text}` : ''
}

/** What may be quoted: too short for a secret that ended up in the wrong place. */
function quoted(name: string): string {
  return name.length <= 32 ? ` "${name}"` : ''
}

/** How many single-letter edits lie between two words (Levenshtein). */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      const swap = (row[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1)
      next.push(Math.min(swap, (row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1))
    }
    row = next
  }
  return row[b.length] ?? 0
}

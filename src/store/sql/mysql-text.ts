/**
 * Writes parameters into a statement. The driver's own way to do that trusts backslashes, which mean nothing where the session has `NO_BACKSLASH_ESCAPES`: a name could
 * then end its quotes. What is written here means the same in every mode and in every encoding of a connection.
 */
export function withParameters(statement: string, parameters: readonly unknown[]): string {
  let next = 0
  // Identifiers, texts and comments are passed over, so that a question mark in one is none.
  return statement.replaceAll(/`(?:[^`]|``)*`|'(?:[^']|'')*'|\/\*[\s\S]*?\*\/|\?/g, (part) =>
    part === '?' ? literal(parameters[next++]) : part,
  )
}

function literal(value: unknown): string {
  if (value === null || value === undefined) return 'null'
  if (typeof value === 'number' && Number.isFinite(value)) return String(value)
  if (typeof value === 'bigint') return String(value)
  if (typeof value === 'boolean') return value ? '1' : '0'
  if (typeof value !== 'string') throw new TypeError(`A parameter of a statement is of another type: ${typeof value}.`)
  if (/^[\w .:;,@/+=-]*$/.test(value)) return `'${value}'`
  return `_utf8mb4 x'${Buffer.from(value).toString('hex')}'`
}

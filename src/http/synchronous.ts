/** Hands back what a function of the application returned, unless it is a promise, whose own failure must not end the process. */
export function synchronous<T>(made: T, what: string): T {
  if (typeof (made as { then?: unknown } | null | undefined)?.then !== 'function') return made
  ;(made as PromiseLike<unknown>).then(undefined, () => {})
  throw new TypeError(`${what} must not be asynchronous.`)
}

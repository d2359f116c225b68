/**
 * What a request shares with a proxy around it and with an object derived from it, but with no other request: the state of its stream. Its
 * headers will not do: an adapter may give all its requests the same empty object. Undefined for what is no stream.
 */
export function identityOf(req: object): object | undefined {
  const state: unknown = (req as { readonly _readableState?: unknown })._readableState
  return typeof state === 'object' && state !== null ? state : undefined
}

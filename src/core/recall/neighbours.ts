/** An instance of this process, as the others in it see it. */
export interface Neighbour {
  /** Names the data that it works on; undefined before it knows. */
  storeId(): string | undefined
  sessions(): readonly string[]
  /** Drops what is known of these digests from before `seq`, or catches up with it where there are none; whether that is done. */
  hear(digests: readonly string[] | null, seq: number): boolean | Promise<boolean>
}

/** One table for all installed copies of the package, which may well share a store. Its number names the shape of `Neighbour`. */
const NEIGHBOURS = Symbol.for('express-api-keys.neighbours.1')
const shelf = globalThis as { [NEIGHBOURS]?: Set<Neighbour> }
shelf[NEIGHBOURS] ??= new Set()

/** The instances of this process: they reach each other without a message. */
export const neighbours: Set<Neighbour> = shelf[NEIGHBOURS]

/**
 * Whether an instance may be waited for over some data. One that has started over and does not know its data yet still is, under the sessions that it had; it has dropped
 * everything, and what it is told of other data does no harm.
 */
export function concerns(one: Neighbour, storeId: string): boolean {
  const own = one.storeId()
  return one.sessions().length > 0 && (own === undefined || own === storeId)
}

/**
 * The protocol of the feed and the recall, in every interleaving that a small world allows, nearest first, so that what breaks a promise
 * comes out as its shortest story. It says whether the *design* holds; whether the code is this design is for the other tests.
 *
 * The rules. Each step in reading.ts and changing.ts names those that it follows, and `Design` has a value to break each with.
 *
 * - R1. Every change adds one row to the feed as the last thing before COMMIT, under a lock: numbers are dense, in the order of becoming
 *   visible, each with a tag.
 * - R2. Whoever may hold a lease has a row under a random session, from before its first lease until after its last.
 * - R3. After the lease was lowered, changes go on waiting for the longer one, until as long as that and a margin after the lowering was
 *   visible.
 * - R4. A read is answered by the primary as of one moment. The answer shows the tip of the feed, the tag at the position that the read was
 *   sent with, the changes after it, and the reader's row.
 * - R5. An answer grants the lease on the feed, counted from before the read was sent, where the row is active and the changes reach the
 *   tip. The reply to the registration grants nothing. An answer that comes in after the deadline that it would set is no answer.
 * - R6. The changes of an answer are handled first, then the position moves, only forward. An answer is compared with the position that its
 *   read was sent with. And every number and tag in it is held against what was seen of the feed since the first answer, down to `floor`:
 *   what differs starts over, what cannot be told says nothing.
 * - R7. An instance starts over (forgets all, joins anew) where its row is gone, where the number went back, where the tag at its position
 *   is another, or where the feed was pruned past it. Answers to reads from before say nothing to it.
 * - R8. A poll is a read about no digest. When one is sent is free here.
 * - R9. The highest number of a change is remembered for each digest. Where memory is dropped, `floor` rises to the highest that is
 *   dropped.
 * - R10. An answer about a digest, from the store or from a cache, is taken only at or above `floor`, where no change of that digest above
 *   it is known, and where its number was seen with its tag. `floor` starts at the first answer, and never falls.
 * - R11. A request is accepted, or goes on after a pause, only while the same fact is in the table and the lease is live.
 * - R12. A request without a lease is served by a read that was sent after it came in.
 * - R13. A change waits for the longest lease and a margin, counted from the answer to COMMIT.
 * - R14. The members and the server are read after COMMIT.
 * - R15. An early answer needs that no longer lease is in force, and that the server is the one that is known for two leases and margins: in
 *   the first one answers of the server before can come in, and in the second one a lease can be live that was asked for before they did.
 * - R16. It needs an ack of everybody who was read, by a message or by a row that is as far as the tip was. Those who only read the feed
 *   are always waited for. A replay of a change that is not settled does the same, from its own first sight.
 * - R17. Who does not answer is marked as revoked. A row that is known to carry this very mark for a lease and a margin is waited for no
 *   more, and is deleted. Who finds itself revoked joins anew and keeps what it knows.
 * - R18. An ack fits one recall and one session.
 * - R19. A recall drops the facts about its digest that are older, is remembered like a change, and is acked after that. It moves no
 *   position.
 * - R20. Who shares a member hears everything that its member hears.
 * - R22. An instance that closes stops accepting, then deletes its row.
 * - R24. An instance that does not know the protocol serves nothing.
 *
 * The world
 * - Time is whole ticks, and goes on whatever anybody does. Who makes no move is paused, or its message is late, for any time. A verifier's
 *   clock is slow by `drift` in each lease; other rates only help.
 * - Messages are a set that grows: what was sent arrives at any time, in any order, many times, or never.
 * - A cache holds any answer that the store ever gave, of any history. So it needs no state: what a read of it finds is any of them, or
 *   nothing.
 * - A place in the feed stands for its whole history: a change after a fail-over is another place than the one of its number that was lost.
 * - What an answer says about a secret is left out. An answer is as old as its place, and nobody may rely on one that has not seen a change
 *   which has been answered.
 *
 * P3 is broken in a state where a request that begins now would be accepted on the word of before a change that has been answered, and that
 * the store still has. `P3 to the instant` is more: the request may have begun at any time.
 *
 * What it rests on: a store has one primary at a time; a restore from a dump takes longer than two leases and margins, or shows as another
 * server; a standby has all that the primary had up to some moment, members like changes. Not modelled: expiry, forged messages (the MAC
 * sees to them), the end of a fact by itself, and stores that can be asked before each request (there is no lease to model).
 */

import { rotatorSteps, storeSteps, tick } from './changing.ts'
import { type Design, designed, type World } from './design.ts'
import type { Machine } from './explore.ts'
import { brokenBy, verifierSteps } from './reading.ts'
import { Bytes, carry, initialState, inOrder, type Model, type State } from './state.ts'

/** The design in this world, as a machine whose states can be explored. */
export function feedMachine(faults: Partial<Design>, world: World): Machine & { readonly read: (state: Uint8Array) => State } {
  const model: Model = { design: { ...designed, ...faults }, world }
  const sizing = new Bytes(new Uint8Array(4096))
  carry(sizing, initialState(model), world)
  const initial = sizing.data.slice(0, Math.ceil(sizing.at / 4) * 4)
  const here = initialState(model)
  const next = initialState(model)
  const written = new Uint8Array(initial.length)
  return { initial, moves, broken, read }

  function moves(bytes: Uint8Array, found: (next: Uint8Array, label: () => string | undefined) => void): void {
    const from = bytes.slice()
    load(from, here)
    const step = (label: () => string | undefined, change: (next: State) => void): void => {
      load(from, next)
      change(next)
      inOrder(next)
      carry(new Bytes(written), next, world)
      found(written, label)
    }
    storeSteps(model, here, step)
    rotatorSteps(model, here, step)
    verifierSteps(model, here, step)
    step(
      () => undefined,
      (state) => tick(model, state),
    )
  }

  function broken(bytes: Uint8Array): string | undefined {
    return brokenBy(model, load(bytes, here))
  }

  function read(bytes: Uint8Array): State {
    return load(bytes, initialState(model))
  }

  function load(bytes: Uint8Array, state: State): State {
    const reader = new Bytes(bytes)
    reader.reading = true
    carry(reader, state, world)
    return state
  }
}

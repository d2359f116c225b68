/** A machine whose states are a fixed number of bytes, a multiple of four. Two states with the same bytes have the same future. */
export interface Machine {
  readonly initial: Uint8Array
  /** Calls `found` for each step that can be made; the bytes are only good during the call. `label` is undefined where time passes. */
  moves(state: Uint8Array, found: (next: Uint8Array, label: () => string | undefined) => void): void
  /** What a state breaks, if it does. */
  broken(state: Uint8Array): string | undefined
}

interface Story {
  readonly promise: string
  /** Each step with the tick at which it is made. */
  readonly trace: readonly string[]
}

export interface Search {
  /** How many states were looked at: all there are, unless a promise is broken. */
  readonly states: number
  readonly broken: Story | undefined
}

export interface Options {
  /** Only these are looked for; all by default. */
  readonly promises?: readonly string[]
  readonly maxStates?: number
  readonly progress?: (states: number, looked: number) => void
}

const CHUNK = 1 << 16

/** Every state that was found, in the order of finding, each once. They lie side by side in large blocks: objects would take ten times the room. */
class States {
  size = 0
  private readonly words: number
  private readonly state: Uint8Array
  /** The state that is looked for, as words: a quarter of the steps. */
  private readonly wanted: Uint32Array
  private readonly blocks: Uint32Array[] = []
  private readonly parents: Int32Array[] = []
  private slots = new Int32Array(1 << 12)

  constructor(width: number) {
    this.words = width / 4
    this.wanted = new Uint32Array(this.words)
    this.state = new Uint8Array(this.wanted.buffer)
  }

  /** Takes a state in, unless it is known; says whether it was new. */
  add(state: Uint8Array, parent: number): boolean {
    this.state.set(state)
    const slot = this.slotOfWanted()
    if (this.slots[slot] !== 0) return false
    const block = this.size >> 16
    if (block === this.blocks.length) {
      this.blocks.push(new Uint32Array(CHUNK * this.words))
      this.parents.push(new Int32Array(CHUNK))
    }
    this.blocks[block]?.set(this.wanted, (this.size % CHUNK) * this.words)
    const parentsOfBlock = this.parents[block] as Int32Array
    parentsOfBlock[this.size % CHUNK] = parent
    this.slots[slot] = ++this.size
    if (this.size * 2 > this.slots.length) this.widen()
    return true
  }

  /** The number of a state that is known. */
  numberOf(state: Uint8Array): number {
    this.state.set(state)
    return (this.slots[this.slotOfWanted()] as number) - 1
  }

  at(index: number): Uint8Array {
    const block = this.blocks[index >> 16] as Uint32Array
    return new Uint8Array(block.buffer, (index % CHUNK) * this.words * 4, this.words * 4)
  }

  parentOf(index: number): number {
    return this.parents[index >> 16]?.[index % CHUNK] as number
  }

  private slotOfWanted(): number {
    const mask = this.slots.length - 1
    let slot = hash(this.wanted, 0, this.words) & mask
    for (;;) {
      const known = this.slots[slot] as number
      if (known === 0 || this.isWanted(known - 1)) return slot
      slot = (slot + 1) & mask
    }
  }

  private isWanted(index: number): boolean {
    const block = this.blocks[index >> 16] as Uint32Array
    const start = (index % CHUNK) * this.words
    for (let at = 0; at < this.words; at++) if (this.wanted[at] !== block[start + at]) return false
    return true
  }

  private widen(): void {
    this.slots = new Int32Array(this.slots.length * 2)
    const mask = this.slots.length - 1
    for (let index = 0; index < this.size; index++) {
      let slot = hash(this.blocks[index >> 16] as Uint32Array, (index % CHUNK) * this.words, this.words) & mask
      while (this.slots[slot] !== 0) slot = (slot + 1) & mask
      this.slots[slot] = index + 1
    }
  }
}

function hash(words: Uint32Array, from: number, count: number): number {
  let sum = 0x811c9dc5
  for (let at = from; at < from + count; at++) {
    sum = Math.imul(sum ^ (words[at] as number), 0x9e3779b1)
    sum ^= sum >>> 15
  }
  return sum >>> 0
}

/** Looks at every state that a machine can get into, nearest first, until a promise is broken. So what breaks comes out as its shortest story. */
export function explore(machine: Machine, { promises, maxStates = 50_000_000, progress }: Options = {}): Search {
  const { states, broken } = search(machine, { promises, maxStates, progress })
  return { states: states.size, broken: broken && { promise: broken.promise, trace: story(machine, states, broken.at) } }
}

function search(
  machine: Machine,
  { promises, maxStates, progress }: { [name in keyof Options]: Options[name] | undefined } & { maxStates: number },
): { states: States; broken: { promise: string; at: number } | undefined } {
  const states = new States(machine.initial.length)
  states.add(machine.initial, -1)
  for (let index = 0; index < states.size; index++) {
    if (progress !== undefined && index % CHUNK === 0) progress(states.size, index)
    const state = states.at(index)
    const promise = machine.broken(state)
    if (promise !== undefined) {
      if (promises === undefined || promises.includes(promise)) return { states, broken: { promise, at: index } }
      continue
    }
    machine.moves(state, (next) => states.add(next, index))
    if (states.size > maxStates) throw new Error(`More than ${maxStates} states.`)
  }
  return { states, broken: undefined }
}

function story(machine: Machine, states: States, last: number): string[] {
  const path: number[] = []
  for (let index = last; index !== -1; index = states.parentOf(index)) path.unshift(index)
  const lines: string[] = []
  let now = 0
  for (const [step, index] of path.slice(1).entries()) {
    const label = labelOf(machine, states.at(path[step] as number), states.at(index))
    if (label === undefined) now++
    else lines.push(`${now}  ${label}`)
  }
  return lines
}

function labelOf(machine: Machine, from: Uint8Array, to: Uint8Array): string | undefined {
  const labels: (string | undefined)[] = []
  machine.moves(from, (next, label) => {
    if (labels.length === 0 && next.every((byte, at) => byte === to[at])) labels.push(label())
  })
  if (labels.length === 0) throw new Error('No step leads there: moves() does not always find the same.')
  return labels[0]
}

/**
 * Looks for states from which no state with `goal` can be reached, over steps that `allowed` lets pass. Resolves with the story of the nearest such
 * state among those that `from` picks, and with how many it picked.
 */
export function stuck(
  machine: Machine,
  question: {
    readonly from: (state: Uint8Array) => boolean
    readonly goal: (state: Uint8Array) => boolean
    readonly allowed: (label: string | undefined) => boolean
  },
): { readonly asked: number; readonly states: number; readonly trace: readonly string[] | undefined } {
  const { states } = search(machine, { promises: undefined, maxStates: 5_000_000, progress: undefined })
  const backwards: number[][] = Array.from({ length: states.size }, () => [])
  const good = new Uint8Array(states.size)
  const open: number[] = []
  for (let index = 0; index < states.size; index++) {
    if (question.goal(states.at(index))) {
      good[index] = 1
      open.push(index)
    }
    machine.moves(states.at(index), (next, label) => {
      if (question.allowed(label())) backwards[states.numberOf(next)]?.push(index)
    })
  }
  for (let index = open.pop(); index !== undefined; index = open.pop()) {
    for (const before of backwards[index] as number[]) {
      if (good[before] === 1) continue
      good[before] = 1
      open.push(before)
    }
  }
  let asked = 0
  for (let index = 0; index < states.size; index++) {
    if (!question.from(states.at(index))) continue
    asked++
    if (good[index] === 0) return { asked, states: states.size, trace: story(machine, states, index) }
  }
  return { asked, states: states.size, trace: undefined }
}

/** Who has yet to say that a change is known: the other members, and this instance itself. */
export class Answers {
  readonly #silent: Set<string>
  readonly #complete: () => void
  #itself = false
  /** Resolves when nobody is waited for any more. */
  readonly completed: Promise<void>

  constructor(sessions: readonly string[]) {
    this.#silent = new Set(sessions)
    const { promise, resolve } = withResolver()
    this.completed = promise
    this.#complete = resolve
  }

  /** The sessions that have not said so. */
  get silent(): readonly string[] {
    return [...this.#silent]
  }

  get isComplete(): boolean {
    return this.#itself && this.#silent.size === 0
  }

  isSilent(session: string): boolean {
    return this.#silent.has(session)
  }

  /** These members know. */
  of(sessions: Iterable<string>): void {
    for (const session of sessions) this.#silent.delete(session)
    if (this.isComplete) this.#complete()
  }

  /** This instance knows itself. */
  ofItself(): void {
    this.#itself = true
    this.of([])
  }
}

function withResolver(): { readonly promise: Promise<void>; readonly resolve: () => void } {
  let resolve = (): void => {}
  const promise = new Promise<void>((resolved) => {
    resolve = resolved
  })
  return { promise, resolve }
}

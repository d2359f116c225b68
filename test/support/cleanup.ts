const closers: (() => Promise<unknown>)[] = []

/** Closes something after the tests of this file, even when they fail. What was opened last is closed first. */
export function atEnd(close: () => Promise<unknown>): void {
  closers.push(close)
}

// A file with a hundred databases needs a while on a busy machine.
afterAll(async () => {
  for (const close of closers.splice(0).reverse()) await close()
}, 240_000)

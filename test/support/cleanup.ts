const closers: (() => Promise<unknown>)[] = []

/** Closes something when the tests of this file have ended, also when they failed; the last opened goes first. */
export function atEnd(close: () => Promise<unknown>): void {
  closers.push(close)
}

afterAll(async () => {
  for (const close of closers.splice(0).reverse()) await close()
})

/** Work that no answer waits for. */
export interface Background {
  /** What it rejects with is reported. */
  add(work: Promise<void>): void
  /** Resolves when all of it has ended. */
  idle(): Promise<void>
}

export function background(report: (error: unknown) => void): Background {
  const underWay = new Set<Promise<void>>()
  return {
    add(work) {
      const tracked = work.catch(report).finally(() => underWay.delete(tracked))
      underWay.add(tracked)
    },
    async idle() {
      while (underWay.size > 0) await Promise.all(underWay)
    },
  }
}

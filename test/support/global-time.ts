/** What `src/real-time.ts` exports, but as the globals are at each call: for tests that fake these. Give it to `jest.mock`. */
export const setTimeout = (...args: Parameters<typeof globalThis.setTimeout>): NodeJS.Timeout => globalThis.setTimeout(...args)
export const clearTimeout = (timer: NodeJS.Timeout | undefined): void => globalThis.clearTimeout(timer)
export const setInterval = (...args: Parameters<typeof globalThis.setInterval>): NodeJS.Timeout => globalThis.setInterval(...args)
export const clearInterval = (timer: NodeJS.Timeout | undefined): void => globalThis.clearInterval(timer)
export const setImmediate = (run: () => void): NodeJS.Immediate => globalThis.setImmediate(run)
export const monotonicMs = (): number => performance.now()
export const wallMs = (): number => Date.now()
export const nextTurn = (): Promise<void> => new Promise((resolve) => globalThis.setImmediate(resolve))

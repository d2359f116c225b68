import { SOURCE } from './source.js'

/** What an endpoint answered, with its body read. */
export interface Answer {
  readonly status: number
  readonly body: unknown
  readonly headers: Headers
}

export interface Sent {
  readonly method?: string
  readonly secret?: string
  readonly idempotencyKey?: string
  readonly body?: unknown
  /** The client's address, as a proxy tells it. */
  readonly from?: string
  /** The step at which `server.ts` is killed. */
  readonly crash?: string
}

/** One request over real HTTP. */
export async function call(url: string, { method = 'GET', secret, idempotencyKey, body, from, crash }: Sent = {}): Promise<Answer> {
  const response = await fetch(url, {
    method,
    headers: {
      ...(secret === undefined ? {} : SOURCE.sent(secret)),
      ...(idempotencyKey === undefined ? {} : { 'idempotency-key': idempotencyKey }),
      ...(body === undefined ? {} : { 'content-type': 'application/json' }),
      ...(from === undefined ? {} : { 'x-forwarded-for': from }),
      ...(crash === undefined ? {} : { crash }),
    },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  })
  const text = await response.text()
  return { status: response.status, body: text === '' ? undefined : JSON.parse(text), headers: response.headers }
}

/** The status of a protected route for a secret. A 503 tells nothing: on a busy machine an answer can come after its lease. */
export async function verdict(url: string, secret: string): Promise<number> {
  for (;;) {
    const { status } = await call(`${url}/data`, { secret })
    if (status !== 503) return status
  }
}

/** Sends the same request over and over, one after the other, until told to stop; resolves with how often each status came. */
export function steady(send: () => Promise<Answer>): { stop(): Promise<Map<number, number>>; seen(count: number): Promise<void> } {
  const statuses = new Map<number, number>()
  let total = 0
  let running = true
  const waiting: { count: number; wake: () => void }[] = []
  const loop = (async () => {
    while (running) {
      const { status } = await send()
      statuses.set(status, (statuses.get(status) ?? 0) + 1)
      total++
      for (const { count, wake } of waiting) if (total >= count) wake()
    }
    return statuses
  })()
  return {
    stop() {
      running = false
      return loop
    },
    /** Resolves when `count` more answers have come in. Rejects where a request failed. */
    async seen(count) {
      await Promise.race([new Promise<void>((wake) => waiting.push({ count: total + count, wake })), loop])
    },
  }
}

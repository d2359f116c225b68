import type { Request } from 'express'
import { ApiKeyError } from '../errors.js'
import { clearInterval, setImmediate, setInterval } from '../real-time.js'

/** The limit for a body as it comes, and again once it is decoded. */
export const MAX_BODY_BYTES: number = 16 * 1024

export const READ_BEFORE =
  'The body was read before keyRouter could read it. Mount keyRouter first, or have what reads it put it into req.body.'
export const CLOSED = 'The connection was closed before the body was read.'

/**
 * All bytes of a stream that nobody has read yet. The listeners stay: a body that is too large is read to its end and thrown away, or the
 * connection could not be used again. Somebody may remove them, so the stream is also looked at from time to time.
 *
 * @throws ApiKeyError `body_too_large`, or `invalid_request` where some of it is lost; by rejecting.
 */
export function collect(req: Request, length: number | undefined): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    let chunks: Buffer[] = []
    let size = 0
    let settled = false
    const settle = (): void => {
      settled = true
      clearInterval(looking)
    }
    const fail = (error: ApiKeyError): void => {
      settle()
      chunks = []
      reject(error)
    }
    const take = (chunk: string | Uint8Array): void => {
      if (settled) return
      // A string if somebody has called setEncoding.
      const bytes = typeof chunk === 'string' ? Buffer.from(chunk, req.readableEncoding ?? 'utf8') : Buffer.from(chunk)
      size += bytes.length
      if (size > MAX_BODY_BYTES) fail(bodyTooLarge())
      else chunks.push(bytes)
    }
    const end = (): void => {
      // There were bytes, or they were announced, and none got here.
      if (size === 0 && (length !== undefined || req.readableDidRead)) fail(bodyLost(READ_BEFORE))
      settle()
      resolve(Buffer.concat(chunks))
    }
    const look = (): void => {
      if (req.readableEnded) end()
      else if (req.destroyed) fail(bodyLost(CLOSED))
      else if (!req.listeners('data').includes(take)) fail(bodyLost(READ_BEFORE))
      else if (req.readableFlowing === false) req.resume()
    }
    const looking = setInterval(look, LOOK_MS)
    looking.unref()
    req.on('data', take)
    req.on('end', end)
    for (const event of ['error', 'aborted', 'close']) req.on(event, () => (req.readableEnded ? end() : fail(bodyLost(CLOSED))))
    keepFlowing(req, () => settled)
  })
}

/** Others may have paused the stream, pipe it somewhere slow, or read it in portions: the request does not wait for them. */
function keepFlowing(req: Request, done: () => boolean): void {
  if (req.listenerCount('readable') > 0) {
    // Such a stream does not flow. What others read also comes as data; what they leave is read after them.
    const drain = (): void => {
      while (!done() && req.read() !== null);
    }
    req.on('readable', () => setImmediate(drain))
    setImmediate(drain)
    return
  }
  const resume = (): void => {
    if (!done()) req.resume()
  }
  // After the one that paused it has finished, and without a timer, which a test may have faked.
  req.on('pause', () => void Promise.resolve().then(resume))
  if (req.readableFlowing === false) resume()
}

/** How long a request may wait after somebody has removed the listeners. */
const LOOK_MS = 250

export function bodyLost(why: typeof READ_BEFORE | typeof CLOSED): ApiKeyError {
  return new ApiKeyError('invalid_request', why)
}

export function bodyTooLarge(): ApiKeyError {
  return new ApiKeyError('body_too_large', `The body must be at most ${MAX_BODY_BYTES} bytes.`)
}

import { randomUUID } from 'node:crypto'
import type { Request, Response } from 'express'
import { headerValues } from './source.js'

/** Without anything that could hold a secret: it would come back with the answer, and end up in every log that the id is for. */
const SANE = /^(?!.*\w{49})[A-Za-z0-9._-]+$/
const MAX_LENGTH = 128

/** The id of a request: the one that it brings, where that is sane, or a new one. Sets `X-Request-Id`. */
export function nameRequest(req: Request, res: Response): string {
  const [given = '', ...more] = headerValues(req, 'x-request-id')
  // The length first: the pattern takes milliseconds for a header of 15 KB.
  const sane = more.length === 0 && given.length <= MAX_LENGTH && SANE.test(given)
  const id = sane ? given : randomUUID()
  res.setHeader('X-Request-Id', id)
  return id
}

import { ApiKeyError } from '../../errors.js'
import { integerOption, refuseUnknown } from '../../options.js'
import { setTimeout } from '../../real-time.js'

/** The options that every store over SQL takes. */
export interface TimeoutOptions {
  /** How long one read may take, in milliseconds: 10 to 600,000. Default 2,000. */
  readTimeoutMs?: number | undefined
  /** How long one transaction may take from asking for a connection to the answer of COMMIT, in milliseconds: 10 to 600,000. Default 5,000. */
  transactionTimeoutMs?: number | undefined
}

export interface Timeouts {
  readonly readTimeoutMs: number
  readonly transactionTimeoutMs: number
}

/** @throws ApiKeyError `invalid_option` for other options than these and `more`, and for values out of range. */
export function timeouts(options: TimeoutOptions, more: readonly string[] = []): Timeouts {
  if (typeof options !== 'object' || options === null || Array.isArray(options)) {
    throw new ApiKeyError('invalid_option', 'The options of a store are an object, such as { readTimeoutMs: 2000 }.')
  }
  refuseUnknown(options, [...more, 'readTimeoutMs', 'transactionTimeoutMs'], 'The store')
  return {
    readTimeoutMs: integerOption('readTimeoutMs', options.readTimeoutMs, 2_000, 10, 600_000),
    transactionTimeoutMs: integerOption('transactionTimeoutMs', options.transactionTimeoutMs, 5_000, 10, 600_000),
  }
}

/** The pause between two tries to get a lock. Random, so that the waiting do not all try again at once. */
export function moment(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 2 + Math.random() * 8))
}

export function tooLate(): ApiKeyError {
  return new ApiKeyError('store_unavailable', 'The store did not answer in time.')
}

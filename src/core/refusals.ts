import { ApiKeyError, type RejectionReason } from '../errors.js'

/** One refusal for every credential that is not good: a stranger learns nothing from it. */
export function invalidKey(reason?: RejectionReason | 'rotation_secret', keyId?: string): ApiKeyError {
  return new ApiKeyError('invalid_key', 'The API key is not valid.', { reason, keyId })
}

export function invalidRequest(message: string): ApiKeyError {
  return new ApiKeyError('invalid_request', message)
}

export function keyNotFound(): ApiKeyError {
  return new ApiKeyError('key_not_found', 'There is no such key.')
}

export function keyRevoked(): ApiKeyError {
  return new ApiKeyError('key_revoked', 'The key is revoked; a revoked key cannot be rotated.')
}

export function operatorsUnavailable(cause: unknown): ApiKeyError {
  return new ApiKeyError('operators_unavailable', 'At the moment it cannot be found out who is asking.', { cause })
}

/** Not a 401, on which clients delete their key: this one may be enabled again. */
export function keyDisabled(keyId?: string): ApiKeyError {
  return new ApiKeyError('key_disabled', 'The key is disabled.', { reason: 'disabled', keyId })
}

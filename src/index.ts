export type { Cache } from './cache/cache.js'
export type {
  ApiKeys,
  ApiKeysOptions,
  CommandContext,
  IssuedKey,
  MutationResult,
  Rejected,
  RejectionReason,
  RevokeCommand,
  RotateCommand,
  UpdateCommand,
  Verified,
  VerifyResult,
} from './core/api-keys.js'
export type { Clock } from './core/clock.js'
export { createApiKeys } from './core/create-api-keys.js'
export type { ApiKey, CreateInput, KeyChanges, KeyEvent, Page } from './core/key.js'
export type { ApiKeyErrorCode } from './errors.js'
export { ApiKeyError } from './errors.js'
export type { BearerAuthOptions } from './http/bearer-auth.js'
export { bearerAuth } from './http/bearer-auth.js'
export type { Contract } from './http/contract.js'
export { contracts } from './http/contracts.js'
export { idempotencyKey } from './http/idempotency-key.js'
export { keyRouter } from './http/key-router.js'
export { memoryStore } from './store/memory.js'
export type { Store, StoreTransaction } from './store/store.js'

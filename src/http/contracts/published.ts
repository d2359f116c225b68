import { type ApiKeyErrorCode, statusOf } from '../../errors.js'

/**
 * The status of a failure on a published page. No page tells a malformed credential from a bad one, or has a status for a body that is too
 * large or of another type.
 */
export function publishedStatus(code: ApiKeyErrorCode): number {
  if (code === 'credential_malformed') return 401
  return code === 'body_too_large' || code === 'unsupported_media_type' ? 400 : statusOf(code)
}

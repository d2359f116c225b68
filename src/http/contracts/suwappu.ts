import { type Contract, object, text } from '../contract.js'
import { failureStatus } from '../problem.js'

/** The rotate API of Suwappu: a key rotates itself, with nothing but itself. Give its keys `prefix: 'suwappu_sk'` and `environmentInSecret: false`. */
export const suwappu: Contract = {
  name: 'suwappu',
  path: '/v1/agent',
  routes: [
    {
      method: 'post',
      path: '/keys/rotate',
      action: 'rotate',
      status: 200,
      success: ({ secret }) => ({
        success: true,
        api_key: secret,
        message: 'API key rotated. Save the new key: it is not shown again, and the old one is no longer valid.',
      }),
      summary: 'Rotate the key that is calling',
      schema: object({ success: { const: true }, api_key: text, message: text }),
    },
  ],
  failure({ code, message }) {
    // What its page has no status for.
    const status = code === 'body_too_large' || code === 'unsupported_media_type' ? 400 : failureStatus(code)
    const error = status === 401 ? 'Unauthorized' : status === 500 ? 'Key rotation failed' : message
    return { status, body: { success: false, error } }
  },
  failureSchema: object({ success: { const: false }, error: text }),
}

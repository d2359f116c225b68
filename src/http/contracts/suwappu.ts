import { type Contract, object, text } from '../contract.js'
import { publishedStatus } from './published.js'

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
        message: 'API key rotated. Old key is now invalid.',
      }),
      summary: 'Rotate the key that is calling',
      schema: object({ success: { const: true }, api_key: text, message: text }),
    },
  ],
  failure({ code, message }) {
    const status = publishedStatus(code)
    const error = status === 401 ? 'Unauthorized' : status === 500 ? 'Key rotation failed' : message
    return { status, body: { success: false, error } }
  },
  failureSchema: object({ success: { const: false }, error: text }),
}

import type { ApiKey } from '../../core/key.js'
import type { ApiKeyErrorCode } from '../../errors.js'
import { type Contract, object, text } from '../contract.js'
import { publishedStatus } from './published.js'

/** One answer for everything that is wrong with either credential: nobody learns which one it was. */
const UNAUTHORIZED = { code: 'invalid_key', message: 'Invalid API key or invalid rotation secret' }

/** Only the holder of the exact key gets these. */
const FORBIDDEN: { readonly [code in ApiKeyErrorCode]?: { readonly code: string; readonly message: string } } = {
  key_revoked: { code: 'agent_revoked', message: 'The agent is revoked.' },
  rotation_secret_not_configured: {
    code: 'rotation_secret_not_configured',
    message: 'The agent has no rotation secret; an operator can rotate its key.',
  },
}

/** The rotate API of an agent registry: an agent rotates its own key, with a second secret that is rotated together with it. */
export const agents: Contract = {
  name: 'agents',
  path: '/v1/agents',
  routes: [
    {
      method: 'post',
      path: '/self/rotate-key',
      action: 'rotate',
      rotatesRotationSecret: true,
      requires: ['rotationSecret'],
      fields: ['rotationSecret'],
      // Guessing the second secret ends after three attempts, whichever key they come with.
      limit: { max: 3, windowMs: 15 * 60_000, by: 'ip' },
      status: 200,
      success: ({ key, secret, rotationSecret }) => ({
        message: 'API key and rotation secret rotated successfully. Save both — they will not be shown again.',
        apiKey: secret,
        rotationSecret,
        agentId: agentIdOf(key),
        agentName: key.name,
      }),
      summary: "Rotate the agent's own key",
      schema: object({ message: text, apiKey: text, rotationSecret: text, agentId: text, agentName: text }),
    },
  ],
  failure({ code, message }) {
    const forbidden = FORBIDDEN[code]
    const status = forbidden === undefined ? publishedStatus(code) : 403
    return { status, body: { error: status === 401 ? UNAUTHORIZED : (forbidden ?? { code, message }) } }
  },
  failureSchema: object({ error: object({ code: text, message: text }) }),
}

/** The one in the metadata, since an owner may have several agents. */
function agentIdOf({ metadata, ownerId }: ApiKey): string {
  return typeof metadata.agentId === 'string' ? metadata.agentId : ownerId
}

import { type Contract, object, text } from '../contract.js'

/** The rotate API of an agent registry: an agent rotates its own key, and proves itself with a second secret that is rotated together with it. */
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
      // Whoever guesses at the second secret is told no after the third attempt, wherever the first one comes from.
      limit: { max: 3, windowMs: 15 * 60_000, by: 'ip' },
      status: 200,
      success: ({ key, secret, rotationSecret }) => ({
        message: 'The API key and the rotation secret have been rotated. Save both: they are not shown again.',
        apiKey: secret,
        rotationSecret,
        agentId: key.ownerId,
        agentName: key.name,
      }),
      summary: "Rotate the agent's own key",
      schema: object({ message: text, apiKey: text, rotationSecret: text, agentId: text, agentName: text }),
    },
  ],
  failure({ code, message }) {
    // A revoked agent is told so, since only the holder of both its credentials gets to hear it.
    if (code === 'key_revoked') return { status: 403, body: { error: { code: 'agent_revoked', message } } }
    return { body: { error: { code, message } } }
  },
  failureSchema: object({ error: object({ code: text, message: text }) }),
}

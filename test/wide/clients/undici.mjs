import { Agent, RetryAgent, request } from 'undici'

export async function defaults(url, headers, { timeoutMs }) {
  const dispatcher = new RetryAgent(new Agent({ headersTimeout: timeoutMs, bodyTimeout: timeoutMs }))
  const { statusCode, body } = await request(url, { dispatcher, method: 'POST', headers })
  return { status: statusCode, body: await body.text() }
}

export async function recovers(url, headers, { retries, timeoutMs }) {
  // #region recovers
  const dispatcher = new RetryAgent(new Agent({ headersTimeout: timeoutMs, bodyTimeout: timeoutMs }), {
    maxRetries: retries,
    methods: ['POST'],
    statusCodes: [502, 503, 504],
    errorCodes: ['ECONNREFUSED', 'ECONNRESET', 'EPIPE', 'UND_ERR_SOCKET', 'UND_ERR_HEADERS_TIMEOUT', 'UND_ERR_BODY_TIMEOUT'],
    maxTimeout: 2_000,
  })
  const { statusCode, body } = await request(url, { dispatcher, method: 'POST', headers })
  // #endregion
  return { status: statusCode, body: await body.text() }
}

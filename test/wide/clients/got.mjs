import got from 'got'

export async function defaults(url, headers, { timeoutMs }) {
  const { statusCode, body } = await got.post(url, { headers, timeout: { request: timeoutMs } })
  return { status: statusCode, body }
}

export async function recovers(url, headers, { retries, timeoutMs }) {
  // #region recovers
  const { statusCode, body } = await got.post(url, {
    headers,
    timeout: { request: timeoutMs },
    retry: { limit: retries, methods: ['POST'], statusCodes: [502, 503, 504], backoffLimit: 2_000, maxRetryAfter: 2_000 },
  })
  // #endregion
  return { status: statusCode, body }
}

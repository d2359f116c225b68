import ky from 'ky'

export async function defaults(url, headers, { timeoutMs }) {
  const response = await ky.post(url, { headers, timeout: timeoutMs })
  return { status: response.status, body: await response.text() }
}

export async function recovers(url, headers, { retries, timeoutMs }) {
  // #region recovers
  const response = await ky.post(url, {
    headers,
    timeout: timeoutMs,
    retry: {
      limit: retries,
      methods: ['post'],
      statusCodes: [502, 503, 504],
      afterStatusCodes: [503],
      retryOnTimeout: true,
      backoffLimit: 2_000,
      maxRetryAfter: 2_000,
    },
  })
  // #endregion
  return { status: response.status, body: await response.text() }
}

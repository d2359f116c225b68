import axios from 'axios'
import axiosRetry, { exponentialDelay } from 'axios-retry'

export async function defaults(url, headers, { timeoutMs }) {
  const client = axios.create({ timeout: timeoutMs })
  axiosRetry(client)
  const { status, data } = await client.post(url, undefined, { headers })
  return { status, body: data }
}

export async function recovers(url, headers, { retries, timeoutMs }) {
  // #region recovers
  const client = axios.create({ timeout: timeoutMs })
  axiosRetry(client, {
    retries,
    shouldResetTimeout: true,
    retryDelay: (count, error) => Math.min(exponentialDelay(count, error), 2_000),
    // An answer that was cut off has a response too, of status 200.
    retryCondition: ({ response }) => response === undefined || response.status < 300 || response.status >= 502,
  })
  const { status, data } = await client.post(url, undefined, { headers })
  // #endregion
  return { status, body: data }
}

/** Without a delay, as axios-retry is by default. */
export async function hasty(url, headers, { retries, timeoutMs }) {
  const client = axios.create({ timeout: timeoutMs })
  axiosRetry(client, { retries, shouldResetTimeout: true, retryCondition: () => true })
  const { status, data } = await client.post(url, undefined, { headers })
  return { status, body: data }
}

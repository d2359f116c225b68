import fetch from 'node-fetch'
import pRetry, { AbortError } from 'p-retry'

export async function defaults(url, headers, { timeoutMs }) {
  return pRetry(async () => {
    const response = await fetch(url, { method: 'POST', headers, signal: AbortSignal.timeout(timeoutMs) })
    return { status: response.status, body: await response.text() }
  })
}

export async function recovers(url, headers, { retries, timeoutMs }) {
  // #region recovers
  const rotate = async () => {
    const response = await fetch(url, { method: 'POST', headers, signal: AbortSignal.timeout(timeoutMs) })
    // Read in here, so that a body that was cut off is asked for again.
    const body = await response.text()
    if (response.status >= 500) throw new Error(`answered ${response.status}`)
    if (!response.ok) throw new AbortError(`answered ${response.status}: ${body}`)
    return { status: response.status, body: JSON.parse(body) }
  }
  const answer = await pRetry(rotate, { retries, minTimeout: 100, maxTimeout: 2_000 })
  // #endregion
  return answer
}

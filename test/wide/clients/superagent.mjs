import superagent from 'superagent'

export async function defaults(url, headers, { timeoutMs }) {
  const { status, text } = await superagent.post(url).set(headers).timeout(timeoutMs).retry()
  return { status, body: text }
}

export async function recovers(url, headers, { retries, timeoutMs }) {
  // #region recovers
  const { status, text } = await superagent.post(url).set(headers).timeout(timeoutMs).retry(retries)
  // #endregion
  return { status, body: text }
}

/** It never waits between two attempts. */
export async function hasty(url, headers, options) {
  return recovers(url, headers, options)
}

import type { FetchImplementation, JWTVerifyGetKey } from 'jose'

/** The issuer has this long to answer with its keys: less than `operators` may take. */
const TIMEOUT_MS = 4_000
/** After a failure the issuer is left alone for this long, however many tokens come: strangers can send as many as they like. */
const PAUSE_MS = 5_000
/** No issuer publishes so much. */
const MOST_BYTES = 1_048_576

/** The keys that an issuer publishes, read when they are needed. jose is loaded with the first. @see RFC 7517 §5 */
export function publishedKeys(url: URL): () => Promise<JWTVerifyGetKey> {
  return async () => {
    const { createRemoteJWKSet, customFetch } = await import('jose')
    return createRemoteJWKSet(url, { timeoutDuration: TIMEOUT_MS, [customFetch]: patientFetch() })
  }
}

/** What jose has not: a pause after a failure, and a bound on what is read. It sees to it that there is one request at a time. */
function patientFetch(): FetchImplementation {
  let failedAt: number | undefined
  return async (url, options) => {
    // A clock that was set does not make it longer.
    if (failedAt !== undefined && Math.abs(Date.now() - failedAt) < PAUSE_MS)
      throw new Error('The keys of the issuer could not be read a moment ago.')
    try {
      const response = await fetch(url, options)
      if (response.status !== 200) throw new Error(`The issuer answered ${response.status} where it should publish its keys.`)
      const keys = await jsonIn(response)
      failedAt = undefined
      return Response.json(keys)
    } catch (error) {
      failedAt = Date.now()
      throw error
    }
  }
}

async function jsonIn({ body }: Response): Promise<unknown> {
  const chunks: Uint8Array[] = []
  let bytes = 0
  for await (const chunk of body ?? []) {
    bytes += chunk.byteLength
    if (bytes > MOST_BYTES) throw new Error(`The issuer publishes more than ${MOST_BYTES} bytes of keys.`)
    chunks.push(chunk)
  }
  return JSON.parse(Buffer.concat(chunks).toString())
}

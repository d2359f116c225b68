import { createHmac, hkdfSync } from 'node:crypto'

/** Derives a key for one purpose, so that no two uses of a server secret share one. */
export function subkey(secret: Uint8Array, purpose: string): Uint8Array {
  return new Uint8Array(hkdfSync('sha256', secret, new Uint8Array(0), `express-api-keys/${purpose}/v1`, 32))
}

/** HMAC-SHA-256 over length-prefixed parts, base64url. */
export function hmac(key: Uint8Array, parts: readonly string[]): string {
  return createHmac('sha256', key).update(lengthPrefixed(parts)).digest('base64url')
}

/** Joins parts so that no two different lists give the same bytes. */
export function lengthPrefixed(parts: readonly (string | Uint8Array)[]): Buffer {
  const lengths = parts.map((part) => Buffer.byteLength(part))
  const all = Buffer.allocUnsafe(lengths.reduce((sum, length) => sum + 4 + length, 0))
  let end = 0
  for (const [index, part] of parts.entries()) {
    end = all.writeUInt32BE(lengths[index] ?? 0, end)
    if (typeof part === 'string') end += all.write(part, end)
    else {
      all.set(part, end)
      end += part.length
    }
  }
  return all
}

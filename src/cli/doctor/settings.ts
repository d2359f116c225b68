import type { Examined } from './examined.js'
import { type Finding, ok, problem, warning } from './finding.js'

const MIN_BYTES = 32

/** What there is to say of the server secret and the prefixes. */
export function settingsFindings(examined: Examined): readonly Finding[] {
  return [...secretFindings(examined), ...prefixFindings(examined)]
}

function secretFindings({ serverSecret }: Examined): readonly Finding[] {
  if (serverSecret === undefined) return []
  const todo = 'Make one with: openssl rand -base64 32, and give the same to every instance.'
  if (serverSecret === 'missing') return [problem('server_secret', 'API_KEYS_SECRET is not set.', todo)]
  if (serverSecret.bytes >= MIN_BYTES) return [ok('server_secret', `The server secret has ${serverSecret.bytes} bytes.`)]
  return [problem('server_secret', `The server secret has ${serverSecret.bytes} bytes, and needs ${MIN_BYTES}: it could be guessed.`, todo)]
}

function prefixFindings({ prefixes, starts }: Examined): readonly Finding[] {
  const found: Finding[] = []
  for (const [index, one] of prefixes.entries()) {
    for (const other of prefixes.slice(index + 1)) {
      const shared = startsOf(one).find((start) => one !== other && startsOf(other).includes(start))
      if (shared === undefined) continue
      found.push(
        problem(
          'prefixes',
          `The prefixes ${one} and ${other} hide each other: a secret that begins with ${shared} may be of either.`,
          'Use prefixes of which none is the other with _live or _test behind it.',
        ),
      )
    }
  }
  const known = prefixes.flatMap(startsOf)
  // Keys that were issued elsewhere have none.
  const strange = starts.filter((start) => start !== '' && !known.includes(start))
  if (strange.length > 0) {
    found.push(
      warning(
        'prefix_unknown',
        `There are keys that begin with ${strange.join(', ')}, and this configuration takes only ${prefixes.join(', ')}: requests with them get 401.`,
        'Add their prefix to acceptedPrefixes; for this command, give --prefix, --accepted-prefix or --config.',
      ),
    )
  }
  return found
}

/** What secrets with a prefix may begin with. */
function startsOf(prefix: string): readonly string[] {
  return [`${prefix}_live_`, `${prefix}_test_`, `${prefix}_`]
}

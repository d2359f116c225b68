import type { Membership } from '../../store/store.js'
import { type Examined, hasFailed } from './examined.js'
import { type Finding, ok, problem, warning } from './finding.js'

/** What there is to say of the instances, the feed of changes that they follow, and the cache. */
export function instanceFindings(examined: Examined): readonly Finding[] {
  return [...feedFindings(examined), ...memberFindings(examined), ...cacheFindings(examined)]
}

function feedFindings({ feed, leaseMs }: Examined): readonly Finding[] {
  const found: Finding[] = []
  if (hasFailed(feed))
    found.push(
      problem(
        'feed',
        feed.error.message,
        'Restore all tables of the keys together from a backup, and never delete rows of express_api_key_changes by hand.',
      ),
    )
  if (leaseMs?.application !== undefined && leaseMs.store !== leaseMs.application)
    found.push(
      warning(
        'lease',
        `The instances hold leases of ${leaseMs.store} ms, and this configuration says ${leaseMs.application} ms.`,
        'Give the same leaseMs to every instance; the next one that starts sets it.',
      ),
    )
  return found
}

function memberFindings({ membership, channels }: Examined): readonly Finding[] {
  if (membership === undefined) return []
  if (hasFailed(membership))
    return [problem('instances', membership.error.message, 'Look at the database: the list of instances cannot be read.')]
  const { members, waitMs } = membership
  const alive = members.filter(({ revoked }) => !revoked)
  const gone = members.length - alive.length
  const found: Finding[] = [ok('instances', summary(alive, membership))]
  if (gone > 0)
    found.push(
      warning(
        'instances_silent',
        `Instances that did not answer any more: ${gone}. They were killed, are frozen, or cannot be reached.`,
        'End processes with SIGTERM and keys.close(); if they still run, look at why they hang.',
      ),
    )
  const reading = alive.filter(({ mode }) => mode === 'feed').length
  if (reading > 0)
    found.push(
      warning(
        'instances_reading',
        `Instances that only read the feed: ${reading}. Every change waits ${waitMs} ms for them.`,
        'Leave recall: false out where processes do not freeze between requests.',
      ),
    )
  const deaf = alive.filter(({ mode, channels: theirs }) => mode === 'recall' && !theirs.some((name) => channels.includes(name)))
  if (deaf.length > 0) {
    const ways = [...new Set(deaf.flatMap((one) => one.channels))].join(', ') || 'nothing'
    found.push(
      warning(
        'instances_unreached',
        `Instances that only ${ways} reaches: ${deaf.length}. This side does not speak there, so changes from here wait ${waitMs} ms for them.`,
        'Give the same REDIS_URL to every instance, and to this command.',
      ),
    )
  }
  return found
}

function summary(alive: Membership['members'], { seq }: Membership): string {
  const instances = alive.length === 0 ? 'No instance is running' : `${counted(alive.length, 'instance')} running`
  return `${instances}; the feed is at change ${seq}.`
}

function counted(count: number, what: string): string {
  return `${count} ${what}${count === 1 ? '' : 's'}`
}

const OLDEST_REDIS = 6

function cacheFindings({ cache }: Examined): readonly Finding[] {
  if (cache === undefined) return []
  if (hasFailed(cache)) {
    const { message, cause } = cache.error as { message: string; cause?: { message?: unknown } }
    const why = typeof cause?.message === 'string' && cause.message !== '' ? ` (${cause.message})` : ''
    return [
      problem(
        'redis',
        `${message.replace(/\.$/, '')}${why}.`,
        'Check REDIS_URL, that the server runs, and its password. Until then every check asks the database, and limits are counted by each process.',
      ),
    ]
  }
  const found: Finding[] = [ok('redis', `Redis ${cache.map(({ version }) => version ?? 'of unknown version').join(', ')} answers.`)]
  for (const { version, eviction, maxMemory } of cache) {
    if (version !== undefined && Number.parseInt(version, 10) < OLDEST_REDIS)
      found.push(problem('redis_version', `Redis ${version} is older than ${OLDEST_REDIS}.`, `Upgrade Redis to ${OLDEST_REDIS} or later.`))
    if (eviction?.endsWith('-random') === true)
      found.push(
        problem(
          'redis_eviction',
          `Redis drops entries at random when its memory is full (${eviction}): limits then let more through than they say.`,
          'Run: CONFIG SET maxmemory-policy volatile-lru, and set it in the configuration too.',
        ),
      )
    if (eviction === 'noeviction' && maxMemory !== undefined && maxMemory > 0)
      found.push(
        warning(
          'redis_eviction',
          'Redis refuses writes when its memory is full (noeviction): checks are then as slow as without it.',
          'Set maxmemory-policy to volatile-lru, or give it enough memory: about 1 KB for each key in use.',
        ),
      )
  }
  return found
}

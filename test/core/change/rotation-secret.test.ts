import bcrypt from 'bcrypt'
import { createApiKeys, memoryStore, type Store } from 'express-api-keys'
import { rotationSecrets } from '../../../src/core/change/rotation-secret.js'
import { systemClock } from '../../../src/core/clock.js'
import { TestClock } from '../../support/clock.js'

const SECRET = 'x'.repeat(32)

afterEach(() => jest.restoreAllMocks())

test('bcrypt never runs inside a transaction, whatever is done with a rotation secret', async () => {
  const inner = memoryStore()
  let open = 0
  const transaction: Store['transaction'] = async (work) => {
    open++
    try {
      return await inner.transaction(work)
    } finally {
      open--
    }
  }
  const seen: [string, number][] = []
  const spy = (name: 'hash' | 'compare'): void => {
    const real = bcrypt[name] as (...args: unknown[]) => Promise<unknown>
    jest.spyOn(bcrypt, name).mockImplementation((async (...args: unknown[]) => {
      seen.push([name, open])
      const result = await real(...args)
      seen.push([name, open])
      return result
    }) as never)
  }
  spy('hash')
  spy('compare')
  const keys = createApiKeys({ store: Object.assign(Object.create(inner), { transaction }), serverSecret: SECRET })
  const made = await keys.create({ as: 'application', ownerId: 'o', name: 'n', rotationSecret: true })
  const first = await keys.rotate({ as: { secret: made.secret }, rotationSecret: made.rotationSecret ?? '', idempotencyKey: 'a' })
  await keys.rotate({ as: { secret: made.secret }, rotationSecret: made.rotationSecret ?? '', idempotencyKey: 'a' })
  await keys.rotate({ as: 'application', id: made.key.id })
  await keys.rotate({ as: 'application', id: made.key.id, identity: 'successor' })
  await keys.rotate({ as: { secret: first.secret }, rotationSecret: first.rotationSecret ?? '' }).catch(() => {})
  expect(seen.filter(([name]) => name === 'hash').length).toBeGreaterThanOrEqual(8)
  expect(seen.filter(([name]) => name === 'compare').length).toBeGreaterThanOrEqual(2)
  expect(seen.filter(([, transactions]) => transactions > 0)).toEqual([])
  await keys.close()
})

test('the hash that was compared is looked at again inside the transaction', async () => {
  const store = memoryStore()
  const keys = createApiKeys({ store, serverSecret: SECRET })
  const { key, secret, rotationSecret = '' } = await keys.create({ as: 'application', ownerId: 'o', name: 'n', rotationSecret: true })
  const { read } = store
  // A store whose reads outside are stale, or worse.
  store.read = async (...asked) => {
    const answer = await read(...asked)
    const rotationSecretHash = await bcrypt.hash(rotationSecret, 10)
    return { ...answer, found: answer.found.map((one) => ({ ...one, generation: { ...one.generation, rotationSecretHash } })) }
  }
  await expect(keys.rotate({ as: { secret }, rotationSecret })).rejects.toMatchObject({ code: 'invalid_key' })
  store.read = read
  expect((await keys.get(key.id))?.generation).toBe(1)
  await keys.close()
})

test('at most two run at once, and beyond two hundred in wait the rest is refused', async () => {
  let running = 0
  let most = 0
  const waiting: (() => void)[] = []
  jest.spyOn(bcrypt, 'compare').mockImplementation((async () => {
    most = Math.max(most, ++running)
    await new Promise<void>((resolve) => waiting.push(resolve))
    running--
    return false
  }) as never)
  const secrets = rotationSecrets(true, systemClock)
  const asked = Array.from({ length: 250 }, () => secrets.matches('rot', null).catch(({ code, message }) => `${code}: ${message}`))
  let done = false
  const all = Promise.all(asked).finally(() => {
    done = true
  })
  while (!done) {
    for (const resume of waiting.splice(0)) resume()
    await new Promise(setImmediate)
  }
  const answers = await all
  expect(most).toBe(2)
  expect(
    answers.filter((answer) => answer === 'store_unavailable: More rotation secrets are waiting to be checked than can be.'),
  ).toHaveLength(48)
  expect(answers.filter((answer) => answer === false)).toHaveLength(202)
})

test('a rotation secret fits its own hash and no other, and without a hash it fits never and takes as long', async () => {
  const secrets = rotationSecrets(true, systemClock)
  const [one, other] = [await secrets.mint('rot_live_'), await secrets.mint('rot_test_')]
  expect([one.rotationSecret, other.rotationSecret]).toEqual([expect.stringMatching(/^rot_live_/), expect.stringMatching(/^rot_test_/)])
  expect(secrets.wellFormed(one.rotationSecret)).toBe(true)
  expect(await secrets.matches(one.rotationSecret, one.hash)).toBe(true)
  expect(await secrets.matches(one.rotationSecret, other.hash)).toBe(false)
  const compare = jest.spyOn(bcrypt, 'compare').mockImplementation((async () => true) as never)
  expect(await secrets.matches(one.rotationSecret, null)).toBe(false)
  expect(compare.mock.calls).toEqual([[one.rotationSecret, expect.stringMatching(/^\$2b\$10\$[./A-Za-z0-9]{53}$/)]])
})

test('a key without a rotation secret costs no bcrypt', async () => {
  const [hash, compare] = [jest.spyOn(bcrypt, 'hash'), jest.spyOn(bcrypt, 'compare')]
  const keys = createApiKeys({ store: memoryStore(), serverSecret: SECRET })
  const { secret } = await keys.create({ as: 'application', ownerId: 'o', name: 'n' })
  await keys.rotate({ as: { secret } })
  expect([hash.mock.calls.length, compare.mock.calls.length]).toEqual([0, 0])
  await keys.close()
})

test('what has nothing to compare with takes as long as what has, and runs bcrypt no more than once', async () => {
  const clock = new TestClock()
  const compare = jest.spyOn(bcrypt, 'compare').mockImplementation((async () => {
    clock.advance(70)
    return false
  }) as never)
  const secrets = rotationSecrets(true, clock)
  const slept: number[] = []
  clock.sleep = async (ms) => void slept.push(ms)
  // With none to go by, all who ask together wait for one that is real.
  await Promise.all(Array.from({ length: 24 }, () => secrets.feign('rot')))
  await secrets.feign('rot')
  await secrets.feign('rot')
  expect(slept).toEqual([70, 70])
  expect(compare).toHaveBeenCalledTimes(1)
  // Under load it is the last seconds that count.
  clock.advance(11_000)
  compare.mockImplementation((async () => {
    clock.advance(900)
    return false
  }) as never)
  await secrets.matches('rot', null)
  for (let times = 0; times < 20; times++) await secrets.feign('rot')
  expect(new Set(slept.slice(2))).toEqual(new Set([900]))
  expect(compare).toHaveBeenCalledTimes(2)
  // And no longer than that: a burst that is over says nothing about now, nor does one that failed.
  clock.advance(10_001)
  compare.mockImplementation((async () => {
    clock.advance(80)
    throw new Error('no turn to be had')
  }) as never)
  const before = clock.monotonicMs()
  await secrets.feign('rot')
  expect([clock.monotonicMs() - before, compare.mock.calls.length, slept.length]).toEqual([80, 3, 22])
})

test('what is feigned is one of the last 64 comparisons of the last ten seconds, also one that failed', async () => {
  const clock = new TestClock()
  let tookMs = 0
  let error: Error | undefined
  jest.spyOn(bcrypt, 'compare').mockImplementation((async () => {
    clock.advance(tookMs)
    if (error !== undefined) throw error
    return false
  }) as never)
  const chance = jest.spyOn(Math, 'random')
  const secrets = rotationSecrets(true, clock)
  clock.sleep = async (ms) => void slept.push(ms)
  const slept: number[] = []
  const feigned = async (random: number): Promise<number | undefined> => {
    chance.mockReturnValue(random)
    await secrets.feign('rot')
    return slept.at(-1)
  }
  for (tookMs = 1; tookMs <= 66; tookMs++) await secrets.matches('rot', null)
  expect([await feigned(0), await feigned(0.5), await feigned(0.999)]).toEqual([3, 35, 66])
  // What is ten seconds old is still in, and a millisecond more is out.
  clock.advance(10_000 - (66 * 67) / 2 + (3 * 4) / 2)
  expect(await feigned(0)).toBe(3)
  clock.advance(1)
  expect(await feigned(0)).toBe(4)
  tookMs = 5
  error = new Error('no turn to be had')
  await expect(secrets.matches('rot', null)).rejects.toBe(error)
  chance.mockReturnValue(0.999)
  await expect(secrets.feign('rot')).rejects.toBe(error)
  expect(slept.at(-1)).toBe(5)
})

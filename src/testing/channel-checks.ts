import { ok, deepStrictEqual as same } from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import type { Channel } from '../channel.js'
import { clearTimeout, setTimeout } from '../real-time.js'

/** Declares a test of two channels over the same server. `fail` takes the server away for good. */
export type ChannelCheck = (title: string, run: (channel: Channel, sibling: Channel, fail?: () => Promise<void>) => Promise<void>) => void

/** Nothing takes longer, and what is still not there by then is not coming. */
const LIMIT_MS = 5_000
const PRINTABLE = Array.from({ length: 95 }, (_, n) => String.fromCharCode(32 + n)).join('')

/** What every channel has to do. Messages may be lost, so what has to come is sent until it does. */
export function channelChecks(check: ChannelCheck): void {
  messageChecks(check)
  listenerChecks(check)
  endChecks(check)
}

function messageChecks(check: ChannelCheck): void {
  check('a message reaches everyone who listens under its address, and nobody else', async (channel, sibling) => {
    const [mine, theirs, both] = [address(), address(), address()]
    const [one, two] = [await ear(channel, mine, both), await ear(sibling, theirs, both)]
    for (const sender of [channel, sibling]) {
      await arrive(sender, mine, one)
      await arrive(sender, theirs, two)
      await arrive(sender, both, one, two)
    }
    same(new Set(one.heard.map((each) => each.address)), new Set([mine, both]))
    same(new Set(two.heard.map((each) => each.address)), new Set([theirs, both]))
  })

  check('a message comes as it was sent, however long it is, under any address', async (channel, sibling) => {
    const there = 'Aa0_:-'.repeat(10)
    const hears = await ear(channel, there)
    for (const text of ['a', PRINTABLE, `"'\\$1${PRINTABLE}%s{}`, 'x'.repeat(7_000), PRINTABLE.repeat(73)]) {
      await arrive(sibling, there, hears, text)
    }
  })

  check('what is too long, not ASCII or for no address is not sent', async (channel, sibling) => {
    const there = address()
    const hears = await ear(channel, there)
    for (const text of ['x'.repeat(7_001), 'x'.repeat(1_000_000), 'é', '\ud83d\ude00', `a${'\u0080'}`])
      await inTime(sibling.send(there, text))
    for (const nowhere of ['', 'x'.repeat(61), 'with space', 'ünï', 'a\nb', "';--", '*']) await inTime(sibling.send(nowhere, 'text'))
    await arrive(sibling, there, hears, 'last')
    same(new Set(hears.heard.map(({ text }) => text)), new Set(['last']))
  })

  check('many messages at once come whole, each once or more, and hardly any is lost', async (channel, sibling) => {
    const [here, there] = [address(), address()]
    const [one, two] = [await ear(channel, here), await ear(sibling, there)]
    const texts = Array.from({ length: 500 }, (_, n) => `${n}.${'x'.repeat((n * 37) % 2_000)}`)
    await inTime(Promise.all(texts.flatMap((text) => [channel.send(there, text), sibling.send(here, text)])))
    // What is heard last need not be what was sent last.
    await Promise.all([arrive(sibling, here, one), arrive(channel, there, two)])
    for (const { heard } of [one, two]) {
      const known = new Set(heard.map(({ text }) => text))
      const missing = texts.filter((text) => !known.has(text))
      ok(missing.length < 25, `${missing.length} of 500 messages were lost`)
      for (const text of known) ok(texts.includes(text) || isOurs(text), 'a message was heard that nobody sent')
    }
  })
}

function listenerChecks(check: ChannelCheck): void {
  check('listeners come and go one by one', async (channel, sibling) => {
    const [there, other] = [address(), address()]
    const [first, second] = [await ear(channel, there, other), await ear(channel, there)]
    await arrive(sibling, there, first, second)
    first.stop()
    first.stop()
    const before = first.heard.length
    await arrive(sibling, there, second)
    second.stop()
    const third = await ear(channel, there, other)
    await arrive(sibling, other, third)
    await arrive(sibling, there, third)
    same(first.heard.length, before)
  })

  check('many can be added at once', async (channel, sibling) => {
    const addresses = Array.from({ length: 20 }, address)
    const ears = await Promise.all(addresses.map((each) => ear(channel, each)))
    await Promise.all(ears.map((each, n) => arrive(sibling, addresses[n] ?? '', each)))
    for (const [n, { heard }] of ears.entries()) same(new Set(heard.map((each) => each.address)), new Set([addresses[n]]))
  })

  check('a listener that throws keeps nothing from the others', async (channel, sibling) => {
    const there = address()
    let thrown = 0
    const stop = await inTime(
      channel.listen([there], () => {
        thrown++
        throw new Error('This listener is broken.')
      }),
    )
    ok(stop !== undefined, 'the channel does not open')
    const hears = await ear(channel, there)
    await arrive(sibling, there, hears)
    await arrive(sibling, there, hears)
    ok(thrown > 0, 'the listener heard nothing')
  })

  check('an address that is none is not listened under', async (channel) => {
    for (const nowhere of ['', 'x'.repeat(61), 'with space', '*']) {
      same(await inTime(channel.listen([nowhere], () => {})), undefined)
    }
  })
}

function endChecks(check: ChannelCheck): void {
  check('has a name, is open once messages are known to arrive, and not after its end', async (channel, sibling) => {
    ok(/^[a-z][a-z0-9-]{0,30}$/.test(channel.name), `"${channel.name}" is not a name`)
    same([channel.isOpen(), sibling.name], [false, channel.name])
    const there = address()
    const [gone, stays] = [await ear(channel, there), await ear(sibling, there)]
    same([channel.isOpen(), sibling.isOpen()], [true, true])
    await inTime(channel.close())
    await inTime(channel.close())
    same([channel.isOpen(), sibling.isOpen()], [false, true])
    const before = gone.heard.length
    await arrive(sibling, there, stays)
    await inTime(channel.send(there, 'too late'))
    same(await inTime(channel.listen([there], () => {})), undefined)
    gone.stop()
    same([gone.heard.length, channel.isOpen()], [before, false])
  })

  check('can be closed while it connects', async (channel) => {
    const listening = channel.listen([address()], () => {})
    await inTime(channel.close())
    await inTime(listening)
    same(channel.isOpen(), false)
  })

  check('says nothing wrong when its server is gone: not open, in time, and never a rejection', async (channel, sibling, fail) => {
    if (fail === undefined) return
    await ear(channel, address())
    await fail()
    await until(() => !channel.isOpen(), 'the channel says that it is open')
    for (let n = 0; n < 10; n++) await inTime(channel.send(address(), 'text'))
    same(await inTime(Promise.all([channel, sibling].map((each) => each.listen([address()], () => {})))), [undefined, undefined])
    same([channel.isOpen(), sibling.isOpen()], [false, false])
    await inTime(Promise.all([channel.close(), sibling.close()]))
  })
}

interface Heard {
  readonly text: string
  readonly address: string
}

interface HearingEar {
  readonly heard: readonly Heard[]
  stop(): void
}

async function ear(channel: Channel, ...addresses: readonly string[]): Promise<HearingEar> {
  const heard: Heard[] = []
  const stop = await inTime(channel.listen(addresses, (text, from) => heard.push({ text, address: from })))
  ok(stop !== undefined, 'the channel does not open')
  return { heard, stop }
}

/** Sends a message until every one of these has heard it. */
async function arrive(sender: Channel, to: string, ...rest: readonly (HearingEar | string)[]): Promise<void> {
  const text = rest.find((each) => typeof each === 'string') ?? `ours ${address()}`
  const ears = rest.filter((each) => typeof each !== 'string')
  const isThere = (): boolean => ears.every(({ heard }) => heard.some((each) => each.text === text && each.address === to))
  const endsAt = Date.now() + LIMIT_MS
  for (let n = 0; !isThere(); n++) {
    ok(Date.now() < endsAt, 'a message that was sent many times did not come')
    // Often sent, it would hide that one in a hundred comes.
    if (n % 20 === 0) await inTime(sender.send(to, text))
    await pause(5)
  }
}

function isOurs(text: string): boolean {
  return text.startsWith('ours ')
}

async function until(isSo: () => boolean, otherwise: string): Promise<void> {
  const endsAt = Date.now() + LIMIT_MS
  while (!isSo()) {
    ok(Date.now() < endsAt, otherwise)
    await pause(5)
  }
}

function address(): string {
  return `check:${randomBytes(12).toString('base64url')}`
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, ms)
  })
}

function inTime<T>(answer: Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`There was no answer within ${LIMIT_MS} ms.`)), LIMIT_MS)
    answer.then(resolve, reject).finally(() => clearTimeout(timer))
  })
}

import express from 'express'
import { bearerAuth, contracts, createApiKeys, keyRouter, memoryStore } from 'express-api-keys'
import { network } from '../../src/http/limits/route-limits.js'
import { clientAddress } from '../../src/http/origin.js'
import { listen } from '../support/listen.js'
import { SERVER_SECRET } from '../support/process.js'

const ADDRESSES: [given: unknown, address: string | undefined][] = [
  ['203.0.113.5', '203.0.113.5'],
  ['203.0.113.5:51000', '203.0.113.5'],
  ['203.0.113.5:_hidden', '203.0.113.5'],
  [' "203.0.113.5:51000" ', '203.0.113.5'],
  ['2001:db8::1', '2001:db8::1'],
  ['[2001:db8::1]', '2001:db8::1'],
  ['[2001:db8::1]:443', '2001:db8::1'],
  ['"[2001:db8::1]:443"', '2001:db8::1'],
  ['"[2001:DB8::1]:_x.y-z"', '2001:db8::1'],
  ['2001:0DB8:0000:0000:0000:0000:0000:0001', '2001:db8::1'],
  ['2001:db8:0:0:1:0:0:1', '2001:db8::1:0:0:1'],
  ['2001:db8:0:1:1:1:1:1', '2001:db8:0:1:1:1:1:1'],
  ['0:0:0:0:0:0:0:1', '::1'],
  ['::', '::'],
  ['fe80::1%eth0', 'fe80::1'],
  ['[fe80::1%eth0]:80', 'fe80::1'],
  ['::ffff:127.0.0.1', '127.0.0.1'],
  ['::ffff:7f00:1', '127.0.0.1'],
  ['::FFFF:7F00:0001', '127.0.0.1'],
  ['0:0:0:0:0:ffff:203.0.113.5', '203.0.113.5'],
  ['[::ffff:203.0.113.5]:51000', '203.0.113.5'],
  ['64:ff9b::203.0.113.5', '64:ff9b::cb00:7105'],
  ...[
    '',
    ' ',
    'unknown',
    '_hidden',
    'localhost',
    '203.0.113',
    '203.0.113.256',
    '203.0.113.5:',
    '203.0.113.5:x',
    '203.0.113.5:1:2',
    '1.2.3.4, 5.6.7.8',
  ],
  ...[
    '[203.0.113.5]x',
    '[2001:db8::1',
    '2001:db8::1]',
    '[]',
    '[]:80',
    '2001:db8::g',
    '010.0.0.1',
    '0x7f.1',
    '2130706433',
    '"',
    '%eth0',
    "'; --",
  ],
  ...[undefined, null, 5, {}, ['203.0.113.5']],
].map((each) => (Array.isArray(each) && each.length === 2 ? each : [each, undefined]) as [unknown, string | undefined])

test.each(ADDRESSES)('%p is the address %p', (ip, address) => {
  expect(clientAddress({ ip } as never)).toBe(address)
})

test('an IPv6 network is a /56, however its addresses are written, and what is no address is one stranger', () => {
  const networks = (...ips: unknown[]): Set<string> => new Set(ips.map((ip) => network({ ip } as never)))
  expect(networks('2001:db8:0:ab00::1', '[2001:DB8:0:abff:0::2]:443', '2001:db8:0:ab12::%en0').size).toBe(1)
  expect(networks('2001:db8:0:ab00::1', '2001:db8:0:ac00::1').size).toBe(2)
  expect(networks('127.0.0.1', '::ffff:127.0.0.1', '127.0.0.1:80', '[::ffff:7f00:1]:1')).toEqual(new Set(['127.0.0.1']))
  expect(networks('unknown', '', undefined, 'x')).toEqual(new Set(['unknown']))
})

describe('behind a proxy that is trusted', () => {
  async function serve() {
    const keys = createApiKeys({
      store: memoryStore(),
      serverSecret: SERVER_SECRET,
      leaseMs: 5_000,
      waitForLease: false,
      onError: () => {},
    })
    const app = express()
    app.set('trust proxy', 1)
    app.use('/agents', keyRouter(keys, { contract: contracts.agents }))
    app.use('/keys', keyRouter(keys))
    app.get('/data', bearerAuth(keys, { failuresPerMinute: 2 }), (_req, res) => void res.end())
    const url = await listen(app)
    const ask = async (path: string, from: string, secret = `sk_live_${'0'.repeat(43)}1Vxh1Z`, body?: object): Promise<number> => {
      const headers = { authorization: `Bearer ${secret}`, 'x-forwarded-for': from, 'content-type': 'application/json' }
      const answer = await fetch(url + path, body === undefined ? { headers } : { method: 'POST', headers, body: JSON.stringify(body) })
      await answer.arrayBuffer()
      return answer.status
    }
    return { keys, ask }
  }

  test('each agent has its own allowance, however the proxy writes its address', async () => {
    const { keys, ask } = await serve()
    const path = contracts.agents.routes[0]?.path ?? ''
    for (const from of ['203.0.113.5:5100', '203.0.113.6:5100', '[2001:db8::1]:510', '[2001:db9::1]:510']) {
      const statuses: number[] = []
      for (let port = 1; port <= 4; port++) statuses.push(await ask(`/agents${path}`, `${from}${port}`, undefined, { rotationSecret: 'x' }))
      expect([from, statuses]).toEqual([from, [401, 401, 401, 429]])
    }
    await keys.close()
  })

  test('an address that presents bad keys cannot shed its failures by another port or another way of writing it', async () => {
    const { keys, ask } = await serve()
    const statuses: number[] = []
    const elsewhere = createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET })
    const unknown = async (): Promise<string> =>
      (await elsewhere.create({ as: 'application', ownerId: 'acme', name: 'a', scopes: [] })).secret
    for (const from of ['203.0.113.5:1', '::ffff:203.0.113.5', '[::ffff:cb00:7105]:2', '203.0.113.6:1'])
      statuses.push(await ask('/data', from, await unknown()))
    expect(statuses).toEqual([401, 401, 429, 401])
    await elsewhere.close()
    await keys.close()
  })

  test('the audit trail and the last use have the address alone', async () => {
    const { keys, ask } = await serve()
    for (const [from, address] of [
      ['203.0.113.5:51000', '203.0.113.5'],
      ['[2001:DB8:0::1]:443', '2001:db8::1'],
      ['::ffff:7f00:1', '127.0.0.1'],
      ['unknown', null],
    ] as const) {
      const { key, secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'a', scopes: [] })
      expect(await ask('/keys/self/rotate', from, secret, {})).toBe(200)
      expect((await keys.events({ id: key.id }))?.items[0]).toMatchObject({ type: 'key.rotated', ip: address })
    }
    await keys.close()
  })
})

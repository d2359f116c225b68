import { type Message, MOST_DIGESTS, messageCodec } from '../../../src/core/recall/messages.js'

const [NEW, OLD, FOREIGN] = [1, 2, 3].map((byte) => Buffer.alloc(32, byte)) as [Buffer, Buffer, Buffer]

const recall: Message = {
  type: 'recall',
  storeId: 'the data',
  nonce: 'n'.repeat(22),
  inbox: 'i'.repeat(22),
  position: { seq: 105, tag: 't'.repeat(22) },
  digests: ['d'.repeat(43)],
}
const acknowledgement: Message = { type: 'acknowledgement', storeId: 'the data', nonce: 'n'.repeat(22), sessions: ['one', 'another'] }

test.each([
  ['a recall', recall],
  ['a recall of everything', { ...recall, digests: null }],
  ['an acknowledgement', acknowledgement],
])('%s is read as it was written', (_what, message) => {
  expect(messageCodec([NEW]).read(messageCodec([NEW]).write(message))).toEqual(message)
})

test('what was written under any server secret that is listed is read, and under no other', () => {
  const text = messageCodec([OLD]).write(recall)
  for (const secrets of [
    [NEW, OLD],
    [OLD, NEW],
  ])
    expect(messageCodec(secrets).read(text)).toEqual(recall)
  expect(messageCodec([NEW]).read(text)).toBeUndefined()
  expect(messageCodec([NEW, OLD]).read(messageCodec([FOREIGN]).write(recall))).toBeUndefined()
})

test('a message with any bit flipped is none', () => {
  const codec = messageCodec([NEW])
  const bytes = Buffer.from(codec.write(recall))
  const flipped = Array.from({ length: bytes.length * 8 }, (_, bit) => {
    const copy = Buffer.from(bytes)
    copy.writeUInt8(copy.readUInt8(bit >> 3) ^ (1 << (bit & 7)), bit >> 3)
    return codec.read(copy.toString('latin1'))
  })
  expect(flipped.filter((message) => message !== undefined)).toEqual([])
})

test('the MAC of one message vouches for no other', () => {
  const codec = messageCodec([NEW])
  const [mac] = codec.write(recall).split('.')
  const [, body] = codec.write({ ...recall, nonce: 'another' }).split('.')
  expect(codec.read(`${mac}.${body}`)).toBeUndefined()
})

test.each([
  ['nothing', ''],
  ['a dot', '.'],
  ['a word', 'hello'],
  ['three parts', `${messageCodec([NEW]).write(recall)}.more`],
  ['half of a message', messageCodec([NEW]).write(recall).slice(0, 100)],
  ['a very long text', 'x'.repeat(1_000_000)],
  ['letters of other scripts', 'ключ.ключ'],
  ['no text', Buffer.from('hello') as unknown as string],
  ['nothing at all', undefined as unknown as string],
])('%s is read as no message, and throws nothing', (_what, text) => {
  expect(messageCodec([NEW]).read(text)).toBeUndefined()
})

const { position: _position, ...withoutPosition } = recall
const { sessions: _sessions, ...withoutSessions } = acknowledgement

test.each([
  ['of another type', { ...recall, type: 'farewell' }],
  ['without a type', { ...recall, type: undefined }],
  ['an older recall, without a position', withoutPosition],
  ['a recall of a position that is no number', { ...recall, position: { seq: '105', tag: 't' } }],
  ['a recall of a position that is not whole', { ...recall, position: { seq: 1.5, tag: 't' } }],
  ['a recall that names its digests otherwise', { ...recall, digests: { of: 'key' } }],
  ['a recall of digests that are no text', { ...recall, digests: [1] }],
  ['a recall that says nothing of digests', { ...recall, digests: undefined }],
  ['a recall without an inbox', { ...recall, inbox: undefined }],
  ['without the name of the data', { ...recall, storeId: undefined }],
  ['without a nonce', { ...acknowledgement, nonce: 7 }],
  ['an acknowledgement without sessions', withoutSessions],
  ['an acknowledgement of sessions that are no text', { ...acknowledgement, sessions: [null] }],
  ['a list', [recall]],
  ['null', null],
])('an authentic message of a shape that is not known here is none: %s', (_what, message) => {
  const codec = messageCodec([NEW])
  expect(codec.read(codec.write(message as unknown as Message))).toBeUndefined()
})

test('fields that a later version adds do no harm', () => {
  const codec = messageCodec([NEW])
  expect(codec.read(codec.write({ ...recall, added: true } as Message))).toMatchObject(recall)
})

test('the longest messages are what a channel carries', () => {
  const codec = messageCodec([NEW])
  const digests = Array.from({ length: MOST_DIGESTS }, () => 'd'.repeat(43))
  const position = { seq: Number.MAX_SAFE_INTEGER, tag: 't'.repeat(22) }
  const longest = [
    codec.write({ ...recall, storeId: 's'.repeat(36), position, digests }),
    codec.write({ ...acknowledgement, sessions: Array.from({ length: 8 }, () => 's'.repeat(22)) }),
  ]
  for (const text of longest) expect(text).toMatch(/^[\x20-\x7e]{1,7000}$/)
})

test('the addresses of two kinds of data, and under two server secrets, differ; each is one that a channel takes', () => {
  const addresses = [
    messageCodec([NEW]).addresses('the data'),
    messageCodec([NEW]).addresses('other data'),
    messageCodec([OLD]).addresses('the data'),
  ]
  expect(new Set(addresses.flat()).size).toBe(3)
  for (const address of addresses.flat()) expect(address).toMatch(/^[\w:-]{1,60}$/)
})

test('while a server secret is being replaced, instances listen where those before and after them send', () => {
  const [before, between, after] = [messageCodec([OLD, NEW]), messageCodec([NEW, OLD]), messageCodec([NEW])]
  expect(before.addresses('the data')).toContain(between.addresses('the data')[0])
  expect(between.addresses('the data')).toContain(before.addresses('the data')[0])
  expect(between.addresses('the data')).toContain(after.addresses('the data')[0])
})

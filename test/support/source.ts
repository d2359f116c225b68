import { bare, basic, bearer, header, type Source, scheme } from '../../src/index.js'

/** A place where requests carry their key: how a server reads it there, and how a client writes it. */
export interface SourceCase {
  readonly source: Source
  sent(secret: string): { readonly [name: string]: string }
}

const SOURCES: { readonly [name: string]: SourceCase } = {
  bearer: { source: bearer(), sent: (secret) => ({ authorization: `Bearer ${secret}` }) },
  header: { source: header('X-API-Key'), sent: (secret) => ({ 'x-api-key': secret }) },
  scheme: { source: scheme('ApiKey'), sent: (secret) => ({ authorization: `ApiKey ${secret}` }) },
  basic: {
    source: basic(),
    sent: (secret) => ({ authorization: `Basic ${Buffer.from(`${secret}:`).toString('base64')}` }),
  },
  bare: { source: bare(), sent: (secret) => ({ authorization: secret }) },
  own: {
    source: {
      challenge: 'Own',
      read(req) {
        const { 'x-own': value } = req.headers
        return typeof value === 'string' ? value.split('').reverse().join('') : undefined
      },
    },
    sent: (secret) => ({ 'x-own': secret.split('').reverse().join('') }),
  },
}

/** Where the clients and servers of a run have their keys: `npm run test:sources` runs the promises once for each. */
export const SOURCE: SourceCase = caseOf(process.env.TEST_SOURCE ?? 'bearer')

function caseOf(name: string): SourceCase {
  const found = SOURCES[name]
  if (found === undefined) throw new Error(`TEST_SOURCE is ${name}; there are ${Object.keys(SOURCES).join(', ')}.`)
  return found
}

import { Ajv2020, type ValidateFunction } from 'ajv/dist/2020.js'
import { openApiDocument } from 'express-api-keys'
import type { Contract } from 'express-api-keys/contract'
import type { Checked, Sent } from './contract.js'

/** An operation of an OpenAPI document, as far as answers and requests are held against it. */
export interface Operation {
  readonly parameters?: readonly { readonly name: string; readonly in: string; readonly required?: boolean; readonly schema: object }[]
  readonly requestBody?: { readonly required: boolean; readonly content: { readonly [type: string]: { readonly schema: object } } }
  readonly responses: {
    readonly [status: string]: {
      readonly headers?: { readonly [name: string]: { readonly required: boolean; readonly schema: { readonly type?: string } } }
      readonly content?: { readonly [type: string]: { readonly schema: object } }
    }
  }
}

/** What Node and Express send with every answer; the Content-Type is described with the content. */
const OF_THE_SERVER = 'date connection keep-alive content-length content-type x-powered-by transfer-encoding etag'.split(' ')

/** The document of a contract, to hold exchanges against. */
export function documentOf(contract: Contract): {
  /** Every operation, by its method and template, such as `POST /v1/api-keys/{id}/rotate`. */
  readonly operations: { readonly [name: string]: Operation }
  /** The operation that a request means. */
  nameOf(sent: Sent): string
  /** Throws where an answer, or a request that succeeded, is not as described. */
  check(sent: Sent, answer: Checked): void
} {
  const document = JSON.parse(JSON.stringify(openApiDocument(contract))) as {
    paths: { [template: string]: { [method: string]: Operation } }
  }
  const operations = Object.fromEntries(
    Object.entries(document.paths).flatMap(([template, methods]) =>
      Object.entries(methods).map(([method, operation]) => [`${method.toUpperCase()} ${template}`, operation] as const),
    ),
  )
  // Answers write every id and instant in one way; requests may use others.
  const answers = validator(/^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/)
  const requests = validator(/^[0-9a-f-]{36}$/i, /^\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$/i)

  return { operations, nameOf, check }

  function nameOf({ method = 'POST', path }: Sent): string {
    const bare = (contract.path + path).split('?')[0] ?? ''
    const fits = (template: string): boolean => new RegExp(`^${template.replaceAll(/\{\w+\}/g, '[^/]+')}/?$`).test(bare)
    const templates = Object.keys(document.paths).filter((template) => document.paths[template]?.[method.toLowerCase()] && fits(template))
    // A concrete path goes before a template that fits as well.
    const template = templates.find((each) => !each.includes('{')) ?? templates[0]
    if (template === undefined) throw new Error(`No document knows ${method} ${bare}.`)
    return `${method} ${template}`
  }

  function check(sent: Sent, answer: Checked): void {
    const name = nameOf(sent)
    const operation = operations[name] as Operation
    const { status, body, headers } = answer
    const described = operation.responses[status]
    if (described === undefined) throw new Error(`${name} answered ${status}, which its document does not know: ${JSON.stringify(body)}`)
    const [type = ''] = (headers['content-type'] ?? '').split(';')
    if (described.content === undefined) expect([name, status, body]).toEqual([name, status, undefined])
    else answers(described.content[type]?.schema, body, `${name} ${status} as ${type}`)
    for (const [header, value = ''] of Object.entries(headers)) {
      if (OF_THE_SERVER.includes(header)) continue
      const [, about] = Object.entries(described.headers ?? {}).find(([known]) => known.toLowerCase() === header) ?? []
      answers(about?.schema, about?.schema.type === 'integer' ? Number(value) : value, `${name} ${status} header ${header}`)
    }
    for (const [header, { required }] of Object.entries(described.headers ?? {}))
      if (required && headers[header.toLowerCase()] === undefined) throw new Error(`${name} answered ${status} without ${header}.`)
    if (status < 300) checkRequest(sent, operation, name)
  }

  /** What succeeded must be what the document lets a client send. */
  function checkRequest(sent: Sent, { parameters = [], requestBody }: Operation, name: string): void {
    const { path, body = '', idempotencyKey, headers = [] } = sent
    const given = new Map<string, string>(new URLSearchParams(path.split('?')[1] ?? ''))
    if (idempotencyKey !== undefined) given.set('Idempotency-Key', idempotencyKey)
    for (const own of ['Idempotency-Key', 'X-Request-Id']) {
      const at = headers.indexOf(own)
      if (at >= 0 && (own !== 'X-Request-Id' || contract.requestId)) given.set(own, headers[at + 1] ?? '')
    }
    const known = parameters.filter((one) => one.in !== 'path')
    for (const [parameter, value] of given) {
      const { schema } = known.find((one) => one.name === parameter) ?? {}
      requests(schema, (schema as { type?: string })?.type === 'integer' ? Number(value) : value, `${name} with ${parameter}`)
    }
    for (const { name: parameter, required } of known)
      if (required && !given.has(parameter)) throw new Error(`${name} succeeded without ${parameter}, which its document requires.`)
    const text = typeof body === 'string' ? body : JSON.stringify(body)
    if (text !== '' && text !== '{}') requests(requestBody?.content['application/json']?.schema, JSON.parse(text), `the body of ${name}`)
    else if (requestBody?.required) throw new Error(`${name} succeeded without a body, which its document requires.`)
  }
}

type Hold = (schema: object | undefined, value: unknown, what: string) => void

function validator(uuid: RegExp, instant: RegExp): Hold {
  // `orNull` gives a type and null.
  const ajv = new Ajv2020({ strict: true, allErrors: true, formats: { uuid, 'date-time': instant }, allowUnionTypes: true })
  const compiled = new Map<object, ValidateFunction>()
  return (schema, value, what) => {
    if (schema === undefined) throw new Error(`The document does not know ${what}.`)
    const validate = compiled.get(schema) ?? ajv.compile(schema)
    compiled.set(schema, validate)
    if (!validate(value)) throw new Error(`${what}: ${ajv.errorsText(validate.errors)} in ${JSON.stringify(value)}`)
  }
}

import type { Contract } from '../src/http/contract.js'
import { contracts, openApiDocument } from '../src/index.js'

/** The page docs/reference/http-api.md: every route of every contract, as its OpenAPI document describes it. */
export function httpApiPage(): string {
  return [HEAD, ...Object.entries(contracts).map(([name, contract]) => contractSection(name, contract))].join('\n')
}

const HEAD = `# HTTP API

The routes of each contract, made from their OpenAPI documents in [docs/openapi](../openapi) with \`npm run openapi\`. Each router serves its own document at \`openapi.json\`.

Paths are those where a contract is usually mounted; \`app.use\` decides. Bodies are JSON of at most 16 KiB. Every change takes an \`Idempotency-Key\`. [Headers](headers.md) and [errors](errors.md) have pages of their own.

| route of \`contracts.standard\` | who | what |
|---|---|---|
| \`POST /\` | \`api_keys:write\` | makes a key for the caller's owner |
| \`GET /\`, \`GET /:id\` | \`api_keys:read\` | lists the owner's keys; one key. Never a secret |
| \`PATCH /:id\` | \`api_keys:write\` | changes \`name\`, \`scopes\`, \`metadata\`, \`expiresAt\` |
| \`POST /:id/rotate\` | \`api_keys:write\`, or the key itself | a new secret for the same key |
| \`POST /self/rotate\` | the key itself | the same |
| \`GET /self\` | the key itself | [what it is](../guides/own-key.md) |
| \`POST /self/revoke\` | the key itself | ends itself for good |
| \`POST /:id/revoke\` | \`api_keys:write\`, or the key itself | ends a key for good |
| \`POST /:id/disable\`, \`/:id/enable\` | \`api_keys:write\` | [disables a key for a while](../guides/disable-a-key.md), and enables it again |
| \`GET /:id/events\` | \`api_keys:read\` | the audit trail, newest first |
| \`GET /openapi.json\` | anyone | OpenAPI 3.1 of these routes |

A caller sees the keys of its own owner only, and [what it may hand out is bounded](../guides/scopes.md#what-a-key-may-hand-out).
`

interface Schema {
  readonly type?: string | readonly string[]
  readonly enum?: readonly string[]
  readonly format?: string
  readonly description?: string
  readonly items?: Schema
  readonly oneOf?: readonly Schema[]
  readonly properties?: { readonly [name: string]: Schema }
  readonly required?: readonly string[]
}

interface Operation {
  readonly summary: string
  readonly parameters?: readonly {
    readonly name: string
    readonly in: string
    readonly required?: boolean
    readonly description?: string
    readonly schema: Schema
  }[]
  readonly requestBody?: { readonly content: { readonly [type: string]: { readonly schema: Schema } } }
  readonly responses: {
    readonly [status: string]: {
      readonly content?: {
        readonly [type: string]: { readonly example?: object; readonly examples?: { readonly [code: string]: { readonly value: object } } }
      }
    }
  }
}

function contractSection(name: string, contract: Contract): string {
  const { paths } = openApiDocument(contract) as { paths: { readonly [path: string]: { readonly [method: string]: Operation } } }
  const routes = Object.entries(paths).flatMap(([path, methods]) =>
    Object.entries(methods)
      .filter(() => !path.endsWith('/openapi.json'))
      .map(([method, operation]) => routeSection(`${method.toUpperCase()} ${path}`, operation)),
  )
  return `## contracts.${name}\n\nUsually at \`${contract.path}\`. A failure looks like this:\n\n${json(failureIn(paths))}\n${routes.join('\n')}`
}

/** What the contract responds to a bad key, as an example of its failures. */
function failureIn(paths: { readonly [path: string]: { readonly [method: string]: Operation } }): object | undefined {
  const operations = Object.values(paths).flatMap((methods) => Object.values(methods))
  const contents = operations.flatMap(({ responses }) => Object.values(responses).flatMap(({ content = {} }) => Object.values(content)))
  return contents.map(({ examples }) => examples?.invalid_key?.value).find((example) => example !== undefined)
}

function routeSection(route: string, operation: Operation): string {
  const { summary, parameters = [], requestBody, responses } = operation
  const fields = requestBody?.content['application/json']?.schema
  const rows = [
    ...parameters
      .filter(({ name }) => name !== 'Idempotency-Key' && name !== 'X-Request-Id')
      .map((one) => row(one.name, one.in, one.required, one.description ?? described(one.schema))),
    ...Object.entries(fields?.properties ?? {}).map(([name, schema]) =>
      row(name, 'body', fields?.required?.includes(name), described(schema)),
    ),
    ...parameters.filter(({ name, required }) => name === 'Idempotency-Key' && required).map(({ name }) => row(name, 'header', true, '')),
  ]
  const [status = '', success] =
    Object.entries(responses).find(([, { content }]) => content?.['application/json']?.example !== undefined) ?? []
  const codes = Object.entries(responses)
    .filter(([failed]) => failed !== status)
    .map(
      ([failed, { content = {} }]) =>
        `| ${failed} | ${Object.values(content)
          .flatMap(({ examples = {} }) => Object.keys(examples))
          .map((code) => `[\`${code}\`](errors.md#${code})`)
          .join(', ')} |\n`,
    )
  return [
    `### ${route}\n\n${summary}.\n`,
    rows.length === 0 ? '' : `\n| | in | |\n|---|---|---|\n${rows.join('')}`,
    `\nResponds with ${status}:\n\n${json(success?.content?.['application/json']?.example)}`,
    `\n| otherwise | code |\n|---|---|\n${codes.join('')}`,
  ].join('')
}

function json(value: object | undefined): string {
  return `\`\`\`json\n${JSON.stringify(value, null, 2)}\n\`\`\`\n`
}

function row(name: string, where: string, required = false, text = ''): string {
  return `| \`${name}\` | ${where}${required ? ', required' : ''} | ${text.replaceAll('|', '\\|')} |\n`
}

function described(schema: Schema): string {
  const type = schema.oneOf?.map(typeOf).join(' or ') ?? typeOf(schema)
  const about = schema.description ?? schema.items?.description
  return about === undefined ? type : `${type}. ${about}`
}

function typeOf({ type, enum: values, format, items, properties }: Schema): string {
  if (values !== undefined) return values.map((value) => `\`"${value}"\``).join(' or ')
  if (items !== undefined) return `list of ${typeOf(items)}s`
  if (properties !== undefined)
    return `\`{ ${Object.entries(properties)
      .map(([name, one]) => `${name}: ${typeOf(one)}`)
      .join(', ')} }\``
  const words = (typeof type === 'string' ? [type] : (type ?? [])).map((one) =>
    format === 'date-time' && one === 'string' ? 'RFC 3339 instant' : one,
  )
  return words.join(' or ')
}

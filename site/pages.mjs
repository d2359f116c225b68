/**
 * Every page of the documentation, in the order of the site's menu: its title there, and its file. A test fails on a page that is not here.
 *
 * @type {readonly { readonly text: string, readonly pages: readonly (readonly [title: string, file: string])[] }[]}
 */
export const sections = [
  {
    text: 'Start',
    pages: [
      ['Overview', 'README.md'],
      ['Getting started', 'docs/getting-started.md'],
    ],
  },
  {
    text: 'Guides',
    pages: [
      ['Rotate a key', 'docs/guides/rotate.md'],
      ['Grace periods', 'docs/guides/grace-periods.md'],
      ['Rotation secrets', 'docs/guides/rotation-secrets.md'],
      ['Without an Idempotency-Key', 'docs/guides/retry-without-key.md'],
      ['Accept X-API-Key', 'docs/guides/x-api-key.md'],
      ['Basic auth', 'docs/guides/basic-auth.md'],
      ['Optional keys and CORS', 'docs/guides/optional-keys.md'],
      ['Key or session or JWT', 'docs/guides/key-or-session.md'],
      ['Your own error format', 'docs/guides/error-format.md'],
      ['Test keys and live routes', 'docs/guides/test-keys.md'],
      ['Keys that work from some addresses only', 'docs/guides/allow-lists.md'],
      ['Disable a key for a while', 'docs/guides/disable-a-key.md'],
      ['Scopes and delegation', 'docs/guides/scopes.md'],
      ['Operators with a JWT', 'docs/guides/operators.md'],
      ['What a key can ask about itself', 'docs/guides/own-key.md'],
      ['List and find keys', 'docs/guides/list-and-find.md'],
      ['End a stream when its key ends', 'docs/guides/streams.md'],
      ['Users manage their keys', 'docs/guides/users-manage-their-keys.md'],
      ['JWT from Auth0, Keycloak, …', 'docs/guides/jwt-issuers.md'],
      ['Typed metadata', 'docs/guides/metadata.md'],
      ['Check without HTTP', 'docs/guides/verify.md'],
      ['WebSocket', 'docs/guides/websocket.md'],
      ['GraphQL', 'docs/guides/graphql.md'],
      ['Nest', 'docs/guides/nest.md'],
      ['Queue workers', 'docs/guides/queue-workers.md'],
      ['Events', 'docs/guides/events.md'],
      ['Idempotency on your routes', 'docs/guides/idempotency.md'],
      ['Limits and trust proxy', 'docs/guides/limits.md'],
      ['Several instances', 'docs/guides/instances.md'],
      ['Change the prefix or secret', 'docs/guides/change-settings.md'],
      ['Deploy', 'docs/guides/deploy.md'],
      ['Prisma, Drizzle, Knex, …', 'docs/guides/orms.md'],
      ['Own stores and caches', 'docs/guides/stores-and-caches.md'],
      ['Own contract', 'docs/contracts.md'],
      ['Test your application', 'docs/guides/testing.md'],
      ['For client authors', 'docs/clients.md'],
    ],
  },
  {
    text: 'Reference',
    pages: [
      ['Options', 'docs/reference/options.md'],
      ['Methods', 'docs/reference/api.md'],
      ['HTTP API', 'docs/reference/http-api.md'],
      ['Errors', 'docs/reference/errors.md'],
      ['Headers', 'docs/reference/headers.md'],
      ['Tables', 'docs/reference/tables.md'],
    ],
  },
  {
    text: 'Background',
    pages: [
      ['Operations', 'docs/operations.md'],
      ['Security', 'SECURITY.md'],
      ['Design', 'docs/design.md'],
      ['Performance', 'docs/performance.md'],
      ['Reliability', 'docs/reliability.md'],
      ['Alternatives', 'docs/comparison.md'],
      ['Changelog', 'CHANGELOG.md'],
      ['Contributing', 'CONTRIBUTING.md'],
    ],
  },
]

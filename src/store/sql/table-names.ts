import {
  AliasNode,
  IdentifierNode,
  type Kysely,
  type KyselyPlugin,
  type OperationNode,
  OperationNodeTransformer,
  type QueryId,
  type RawBuilder,
  type SchemableIdentifierNode,
  SelectQueryNode,
  sql,
  TableNode,
} from 'kysely'
import { ApiKeyError } from '../../errors.js'

const TABLES = [
  'express_api_keys',
  'express_api_key_generations',
  'express_api_key_replays',
  'express_api_key_events',
  'express_api_key_settings',
  'express_api_key_feed',
  'express_api_key_changes',
  'express_api_key_instances',
  'express_api_key_migrations',
] as const
export type TableName = (typeof TABLES)[number]

/** Where a table lies: in a schema that was set, or else where the connection looks for names without one. */
export interface Place {
  readonly schema: string | undefined
  readonly name: string
}
export type Places = { readonly [table in TableName]: Place }

/** PostgreSQL cuts longer names, in bytes, which would make one out of two. */
const LONGEST_NAME = 63
const LONGEST_SUFFIX = '_by_expiry'.length

/**
 * Asks the plugins of a Kysely instance where they move the tables, by sending each through them: every statement honors `withSchema` and plugins that
 * prefix tables, and nothing else that plugins do.
 *
 * @throws ApiKeyError `invalid_option` where a plugin makes something else of a table, or names that cannot be.
 */
// biome-ignore lint/suspicious/noExplicitAny: the application's own tables are none of our business
export function placesOf(database: Kysely<any>): Places {
  const places = Object.fromEntries(TABLES.map((table) => [table, placeOf(database, table)])) as Places
  const names = TABLES.map((table) => quoted(places[table]))
  if (new Set(names).size < names.length) throw unusable('give several tables of the keys one name', undefined)
  return places
}

/** Moves the tables of statements that were written with our own names for them. */
export function placing(places: Places): KyselyPlugin | undefined {
  const moved = new Map(Object.entries(places).filter(([table, { schema, name }]) => schema !== undefined || name !== table))
  if (moved.size === 0) return undefined
  const transformer = new PlacingTransformer(moved)
  return {
    transformQuery: ({ node, queryId }) => transformer.transformNode(node, queryId),
    transformResult: async ({ result }) => result,
  }
}

/** A name as SQL text, quoted. */
export function quoted({ schema, name }: Place): string {
  return [...(schema === undefined ? [] : [schema]), name].map((part) => `"${part.replaceAll('"', '""')}"`).join('.')
}

export function identifier({ schema, name }: Place): RawBuilder<unknown> {
  return schema === undefined ? sql.id(name) : sql.id(schema, name)
}

// biome-ignore lint/suspicious/noExplicitAny: see above
function placeOf(database: Kysely<any>, table: TableName): Place {
  let node: OperationNode
  try {
    node = database.selectFrom(table).selectAll().toOperationNode()
  } catch (error) {
    throw unusable(`fail over the table "${table}"`, error)
  }
  const [from, ...more] = SelectQueryNode.is(node) ? (node.from?.froms ?? []) : []
  const target = from !== undefined && AliasNode.is(from) ? from.node : from
  if (target === undefined || more.length > 0 || !TableNode.is(target))
    throw unusable(`make something else of the table "${table}"`, undefined)
  const place = { schema: target.table.schema?.name, name: target.table.identifier.name }
  for (const part of [place.schema, place.name]) {
    if (part === '' || part?.includes('\0')) throw unusable('give a schema or a table an empty name, or one with U+0000', undefined)
  }
  if (Buffer.byteLength(place.schema ?? '') > LONGEST_NAME || Buffer.byteLength(place.name) > LONGEST_NAME - LONGEST_SUFFIX) {
    throw unusable(`give the table "${table}" a name or schema that is too long for PostgreSQL`, undefined)
  }
  return place
}

function unusable(what: string, cause: unknown): ApiKeyError {
  return new ApiKeyError(
    'invalid_option',
    `The plugins of this Kysely instance ${what}; give sqlStore an instance without them: sqlStore(db.withoutPlugins().withSchema('auth')).`,
    { cause },
  )
}

class PlacingTransformer extends OperationNodeTransformer {
  readonly #moved: ReadonlyMap<string, Place>

  constructor(moved: ReadonlyMap<string, Place>) {
    super()
    this.#moved = moved
  }

  protected override transformSchemableIdentifier(node: SchemableIdentifierNode, queryId?: QueryId): SchemableIdentifierNode {
    const place = node.schema === undefined ? this.#moved.get(node.identifier.name) : undefined
    if (place === undefined) return super.transformSchemableIdentifier(node, queryId)
    const { schema, name } = place
    return {
      kind: 'SchemableIdentifierNode',
      identifier: IdentifierNode.create(name),
      ...(schema === undefined ? {} : { schema: IdentifierNode.create(schema) }),
    }
  }
}

// Writes the OpenAPI document of each contract to docs/openapi/, and the page that is made from them.
import { mkdirSync, writeFileSync } from 'node:fs'
import { contracts, openApiDocument } from '../src/index.js'
import { httpApiPage } from './http-api.js'

mkdirSync('docs/openapi', { recursive: true })
for (const [name, contract] of Object.entries(contracts)) {
  writeFileSync(`docs/openapi/${name}.json`, `${JSON.stringify(openApiDocument(contract), null, 2)}\n`)
}
writeFileSync('docs/reference/http-api.md', httpApiPage())

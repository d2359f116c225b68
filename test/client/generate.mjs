// Makes the types of a client from each document in docs/openapi.
import { execFileSync } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { basename, join } from 'node:path'

const here = import.meta.dirname
const documents = join(here, '../../docs/openapi')
const generator = join(here, 'node_modules/openapi-typescript/bin/cli.js')
for (const file of readdirSync(documents)) {
  execFileSync(process.execPath, [generator, join(documents, file), '-o', join(here, `${basename(file, '.json')}.ts`)], {
    stdio: 'inherit',
    cwd: here,
  })
}

import { readdirSync, readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import type { Node, SourceFile } from './compilers/5.4/node_modules/typescript/lib/typescript.js'

const SRC = join(__dirname, '../src')
/** A compiler that can be asked questions, which the one of the project cannot. */
const ts = createRequire(join(__dirname, 'compilers/5.4/package.json'))(
  'typescript',
) as typeof import('./compilers/5.4/node_modules/typescript/lib/typescript.js')

const LONGEST = 80

test(`no function is longer than ${LONGEST} lines`, () => {
  const files = readdirSync(SRC, { recursive: true, encoding: 'utf8' }).filter((file) => file.endsWith('.ts'))
  const longer = files.flatMap((file) => {
    const source = ts.createSourceFile(file, readFileSync(join(SRC, file), 'utf8'), ts.ScriptTarget.ES2022, true)
    return functionsOf(source).flatMap((one) => (lines(source, one) > LONGEST ? [`${file} ${nameOf(one)}`] : []))
  })
  expect(longer).toEqual([])
})

function functionsOf(source: SourceFile): Node[] {
  const found: Node[] = []
  const look = (node: Node): void => {
    if (ts.isFunctionLike(node) && 'body' in node && node.body !== undefined) found.push(node)
    ts.forEachChild(node, look)
  }
  look(source)
  return found
}

function lines(source: SourceFile, node: Node): number {
  const line = (position: number): number => source.getLineAndCharacterOfPosition(position).line
  return line(node.getEnd()) - line(node.getStart()) + 1
}

function nameOf(node: Node): string {
  const { name, parent } = node as Node & { readonly name?: Node; readonly parent: Node & { readonly name?: Node } }
  return (name ?? parent.name)?.getText() ?? 'without a name'
}

import { createRequire } from 'node:module'
import { join } from 'node:path'
import type { Node, Program, Symbol as TypeSymbol } from './compilers/5.4/node_modules/typescript/lib/typescript.js'

const ROOT = join(__dirname, '..')
/** A compiler that can be asked questions, which the one of the project cannot. */
const ts = createRequire(join(ROOT, 'test/compilers/5.4/package.json'))(
  'typescript',
) as typeof import('./compilers/5.4/node_modules/typescript/lib/typescript.js')
const { paths } = (createRequire(join(ROOT, 'package.json'))('./tsconfig.json') as { compilerOptions: { paths: Record<string, [string]> } })
  .compilerOptions

test('every type that a public declaration names is exported by an entry', () => {
  const entries = Object.values(paths).map(([file]) => join(ROOT, file))
  expect(entries.length).toBeGreaterThan(7)
  const program = ts.createProgram(entries, {
    target: ts.ScriptTarget.ES2022,
    module: ts.ModuleKind.NodeNext,
    moduleResolution: ts.ModuleResolutionKind.NodeNext,
    strict: true,
    skipLibCheck: true,
    types: ['node'],
  })
  const exported = new Set(entries.flatMap((entry) => exportsOf(program, entry)))
  const missing = [...exported].flatMap((symbol) =>
    namedBy(program, symbol)
      .filter((named) => !exported.has(named))
      .map((named) => `${symbol.name} names ${named.name}`),
  )
  expect(exported.size).toBeGreaterThan(80)
  expect(missing).toEqual([])
})

function exportsOf(program: Program, entry: string): TypeSymbol[] {
  const checker = program.getTypeChecker()
  const file = program.getSourceFile(entry)
  const symbol = file && checker.getSymbolAtLocation(file)
  if (symbol === undefined) throw new Error(`${entry} is not a module.`)
  return checker.getExportsOfModule(symbol).map((each) => resolved(program, each))
}

/** The types of this package that the signature of an export names. */
function namedBy(program: Program, symbol: TypeSymbol): TypeSymbol[] {
  const found: TypeSymbol[] = []
  for (const declaration of symbol.declarations ?? []) look(declaration)
  return found

  function look(node: Node): void {
    if (ts.isBlock(node) || isPrivate(node)) return
    const name = ts.isTypeReferenceNode(node) ? node.typeName : ts.isExpressionWithTypeArguments(node) ? node.expression : undefined
    const named = name && program.getTypeChecker().getSymbolAtLocation(name)
    if (named !== undefined && isOurs(resolved(program, named))) found.push(resolved(program, named))
    ts.forEachChild(node, look)
  }
}

/** An initializer is no part of a signature, and a private member no part of a class. */
function isPrivate(node: Node): boolean {
  if (ts.isClassElement(node) && node.name !== undefined && ts.isPrivateIdentifier(node.name)) return true
  return node.parent !== undefined && ts.isVariableDeclaration(node.parent) && node.parent.initializer === node
}

function isOurs(symbol: TypeSymbol): boolean {
  if ((symbol.flags & ts.SymbolFlags.TypeParameter) !== 0) return false
  return (symbol.declarations ?? []).some((declaration) => declaration.getSourceFile().fileName.startsWith(join(ROOT, 'src')))
}

function resolved(program: Program, symbol: TypeSymbol): TypeSymbol {
  return (symbol.flags & ts.SymbolFlags.Alias) === 0 ? symbol : program.getTypeChecker().getAliasedSymbol(symbol)
}

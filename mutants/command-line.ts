import { parseArgs } from 'node:util'

/** What a flag takes, and what it is without. */
export interface Flags {
  readonly [name: string]: { readonly type: 'boolean' } | { readonly type: 'string'; readonly default: string }
}

/** A flag without its value is `true`. */
export type Given = { readonly [name: string]: string | boolean | undefined }

/** Returns the given flags. Ends the process with the help for `--help`, and with 2 for a wrong flag. */
export function readFlags(help: string, flags: Flags): Given {
  const { values, positionals } = parseArgs({ options: { help: { type: 'boolean' }, ...flags }, strict: false })
  for (const [name, value] of Object.entries(values)) {
    if (name !== 'help' && !Object.hasOwn(flags, name)) refuse(`There is no flag ${name.length === 1 ? '-' : '--'}${name}.`)
    if (flags[name]?.type !== 'string' && typeof value !== 'boolean') refuse(`--${name} takes no value.`)
  }
  if (positionals.length > 0) refuse(`"${positionals[0]}" belongs to no flag.`)
  if (!values.help) return values as Given
  console.log(help)
  process.exit()
}

export function wholeNumber(flags: Given, name: string): number {
  const value = flags[name] === true ? Number.NaN : Number(flags[name])
  if (!Number.isSafeInteger(value) || value < 1) refuse(`--${name} takes a whole number above 0, such as --${name} 2.`)
  return value
}

export function refuse(sentence: string): never {
  console.error(`${sentence}\nTry --help.`)
  process.exit(2)
}

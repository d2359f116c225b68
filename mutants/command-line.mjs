import { parseArgs } from 'node:util'

/** Returns the flags as they were given. Ends the process with the help where that is asked for, or with 2 where a flag is none. */
export function readFlags(help, options) {
  const { values, positionals } = parseArgs({ options: { help: { type: 'boolean' }, ...options }, strict: false })
  for (const [name, value] of Object.entries(values)) {
    if (name !== 'help' && !Object.hasOwn(options, name)) refuse(`There is no flag ${name.length === 1 ? '-' : '--'}${name}.`)
    if (options[name]?.type !== 'string' && typeof value !== 'boolean') refuse(`--${name} takes no value.`)
  }
  if (positionals.length > 0) refuse(`"${positionals[0]}" belongs to no flag.`)
  if (!values.help) return values
  console.log(help)
  process.exit()
}

export function wholeNumber(flags, name) {
  // A flag without its value is `true`.
  const value = flags[name] === true ? Number.NaN : Number(flags[name])
  if (!Number.isSafeInteger(value) || value < 1) refuse(`--${name} takes a whole number above 0, such as --${name} 2.`)
  return value
}

export function refuse(sentence) {
  console.error(`${sentence}\nTry --help.`)
  process.exit(2)
}

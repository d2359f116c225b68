import { explore } from './explore.ts'
import { feedMachine } from './feed-model.ts'
import { type Configuration, largeConfigurations, smallConfigurations } from './worlds.ts'

const HELP = `Looks at every state of the feed and the recall, in some configurations.

npm run model -- [--size small|large] [--only WORDS] [--max STATES]

  --size   which configurations; small by default
  --only   those whose name has these words in it
  --max    gives a configuration up beyond so many states; 60,000,000 by default
`

function given(option: string): string | undefined {
  const at = process.argv.indexOf(option)
  return at === -1 ? undefined : process.argv[at + 1]
}

function look({ name, world, states: expected }: Configuration, maxStates: number): boolean {
  const started = Date.now()
  const seconds = (): string => `${((Date.now() - started) / 1000).toFixed(1)} s`
  const machine = feedMachine({}, world)
  const progress = (states: number, looked: number): void => {
    if (process.stderr.isTTY)
      process.stderr.write(`\r${name}: ${(states - looked).toLocaleString('en')} of ${states.toLocaleString('en')} open, ${seconds()}   `)
  }
  try {
    const { states, broken } = explore(machine, { maxStates, progress })
    if (process.stderr.isTTY) process.stderr.write('\r\x1b[K')
    const differs = states === expected || broken !== undefined ? '' : `, expected ${expected.toLocaleString('en')}`
    console.log(`${name}: ${states.toLocaleString('en')} states of ${machine.initial.length} bytes in ${seconds()}${differs}`)
    if (broken !== undefined) console.log(`breaks ${broken.promise}\n  ${broken.trace.join('\n  ')}`)
    return broken === undefined && differs === ''
  } catch (error) {
    console.log(`${name}: ${error instanceof Error ? error.message : error} Given up after ${seconds()}.`)
    return false
  }
}

function main(): void {
  if (process.argv.includes('--help')) {
    console.log(HELP)
    return
  }
  const size = given('--size') ?? 'small'
  if (size !== 'small' && size !== 'large') {
    console.error(`--size is small or large.\n\n${HELP}`)
    process.exitCode = 2
    return
  }
  const only = given('--only') ?? ''
  const configurations = (size === 'small' ? smallConfigurations : largeConfigurations).filter(({ name }) => name.includes(only))
  const maxStates = Number(given('--max') ?? 60_000_000)
  const held = configurations.filter((configuration) => look(configuration, maxStates))
  console.log(`${held.length} of ${configurations.length} configurations hold.`)
  if (held.length < configurations.length) process.exitCode = 1
}

main()

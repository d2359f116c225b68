import { explore } from './explore.ts'
import { feedMachine } from './feed-model.ts'
import { type Mistake, mistakes } from './mistakes.ts'
import { type Configuration, largeConfigurations, smallConfigurations } from './worlds.ts'

const HELP = `Looks at every state of the feed and the recall, in some configurations.

npm run model -- [--size small|large] [--only WORDS] [--max STATES]

  --size   which configurations; small by default
  --only   those, and the mistakes, whose name has these words in it
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

function isRejected({ rule, title, faults, world, promise, steps, end }: Mistake): boolean {
  const { states, broken } = explore(feedMachine(faults, world), { promises: [promise] })
  const isAsExpected = broken?.trace.length === steps && end.every((line, at) => line === broken.trace.at(at - end.length))
  console.log(`${rule}: ${title}: ${isAsExpected ? `rejected after ${states.toLocaleString('en')} states` : 'not rejected as expected'}`)
  if (!isAsExpected) console.log(`  ${broken?.trace.join('\n  ') ?? ''}`)
  return isAsExpected
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
  const wanted = mistakes.filter(({ title, large }) => title.includes(only) && (large === true) === (size === 'large'))
  const rejected = wanted.filter(isRejected)
  console.log(`${rejected.length} of ${wanted.length} mistakes are rejected.`)
  if (held.length < configurations.length || rejected.length < wanted.length) process.exitCode = 1
}

main()

import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { buildSync } from 'esbuild'
import { designed, small, type World } from './design.ts'
import { explore, stuck } from './explore.ts'
import { feedMachine } from './feed-model.ts'
import { mistakes, smallMistakes } from './mistakes.ts'
import type { Report } from './report.ts'
import { IN, type State, WAITING } from './state.ts'
import { smallConfigurations } from './worlds.ts'

let report: Report

beforeAll(async () => {
  const { outputFiles } = buildSync({ entryPoints: [join(__dirname, 'report.ts')], bundle: true, platform: 'node', write: false })
  const running = promisify(execFile)(process.execPath, ['-'])
  running.child.stdin?.end(outputFiles[0]?.text)
  report = JSON.parse((await running).stdout)
}, 300_000)

describe('P3: the design of the feed and the recall holds in every interleaving', () => {
  test.each([...smallConfigurations.entries()].map(([at, { name, states }]) => ({ at, name, states })))('with $name', ({ at, states }) => {
    expect(report.designed[at]?.broken).toBeUndefined()
    // All there are. Another number means that the model has changed, and a small one that it no longer sees much.
    expect(report.designed[at]?.states).toBe(states)
  })
})

describe('a design with one thing wrong is rejected', () => {
  test.each([...smallMistakes.entries()].map(([at, mistake]) => ({ at, ...mistake })))('$rule: $title', ({ at, promise, steps, end }) => {
    const broken = report.wrong[at]?.broken
    expect(broken?.promise).toBe(promise)
    expect(broken?.trace.slice(-end.length)).toEqual(end)
    expect(broken?.trace).toHaveLength(steps)
  })

  test('there is a mistake for each rule that a fault can be planted in', () => {
    expect(new Set(mistakes.flatMap(({ faults }) => Object.keys(faults)))).toEqual(new Set(Object.keys(designed)))
  })
})

describe('a limit of the design', () => {
  test('a restore that is over while leases of before are live, and that shows as no other server, breaks P3', () => {
    const { broken } = explore(feedMachine({}, { ...small, setback: 'restore', quickRestore: true }))
    expect(broken?.trace).toEqual([
      '0  V1 joins as session 1',
      '0  V1 asks about digest a without a position',
      '0  the store answers V1 as of 0',
      '0  the store is restored from the dump, at 0',
      '0  the rotator commits change 1',
      '0  the rotator reads the members: none',
      '0  the rotator answers early',
      '0  V1 takes the answer',
    ])
  })
})

describe('nothing stands still', () => {
  const isWaiting = ({ rotators }: State): boolean => rotators.some(({ phase }) => phase === WAITING)

  test.each<[what: string, world: Partial<World>]>([
    ['members are suspected', { suspicion: true, sessions: 2 }],
    ['the store fails over', { setback: 'fail-over' }],
    ['instances close and changes are taken up again', { closing: true, replays: true, rotators: 2 }],
  ])('a change that is committed can be answered, though %s', (_what, world) => {
    const machine = feedMachine({}, { ...small, ...world })
    const { asked, trace } = stuck(machine, {
      from: (bytes) => isWaiting(machine.read(bytes)),
      goal: (bytes) => !isWaiting(machine.read(bytes)),
      allowed: () => true,
    })
    expect(trace).toBeUndefined()
    expect(asked).toBeGreaterThan(500)
  })

  test('P6: a change is answered without any time passing, wherever everybody can be reached', () => {
    const machine = feedMachine({}, { ...small, changes: 2, slowCommit: true })
    const { asked, trace } = stuck(machine, {
      from: (bytes) => isWaiting(machine.read(bytes)),
      goal: (bytes) => !isWaiting(machine.read(bytes)),
      allowed: (label) => label !== undefined,
    })
    expect(trace).toBeUndefined()
    expect(asked).toBeGreaterThan(500)
  })

  test('P6: a member that only reads the feed makes a change wait', () => {
    const machine = feedMachine({}, { ...small, feedMembers: 1 })
    const { trace } = stuck(machine, {
      from: (bytes) => isWaiting(machine.read(bytes)),
      goal: (bytes) => !isWaiting(machine.read(bytes)),
      allowed: (label) => label !== undefined,
    })
    expect(trace).toEqual(['0  the rotator commits change 1', '0  V1 joins as session 1'])
  })

  test('an instance gets a lease again, whatever state it is in, as long as it may join', () => {
    const machine = feedMachine({}, { ...small, setback: 'fail-over', pruning: true, sessions: 3, drift: 0, recalls: false })
    const { asked, trace } = stuck(machine, {
      from: (bytes) => machine.read(bytes).verifiers.every(({ session }) => session === 0),
      goal: (bytes) => machine.read(bytes).verifiers.every(({ phase, lease, facts }) => phase === IN && lease > 0 && facts[0] !== 0),
      allowed: () => true,
    })
    expect(trace).toBeUndefined()
    expect(asked).toBeGreaterThan(500)
  })
})

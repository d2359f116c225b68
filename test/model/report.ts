/** Prints what the searches of the tests find. Bundled, and in a process of their own, they take a quarter of the time that they take under the test runner. */

import { explore, type Search } from './explore.ts'
import { feedMachine } from './feed-model.ts'
import { smallMistakes } from './mistakes.ts'
import { smallConfigurations } from './worlds.ts'

export interface Report {
  /** One for each small configuration. */
  readonly designed: readonly Search[]
  /** One for each small mistake. */
  readonly wrong: readonly Search[]
}

const report: Report = {
  designed: smallConfigurations.map(({ world }) => explore(feedMachine({}, world))),
  wrong: smallMistakes.map(({ faults, world, promise }) => explore(feedMachine(faults, world), { promises: [promise] })),
}
process.stdout.write(JSON.stringify(report))

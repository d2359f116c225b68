import type { Contract } from '../contract.js'
import { agents } from './agents.js'
import { blendFi } from './blend-fi.js'
import { redditFind } from './reddit-find.js'
import { rixl } from './rixl.js'
import { standard } from './standard.js'
import { suwappu } from './suwappu.js'

/** The contracts that come with the package, by name. */
export interface Contracts {
  readonly standard: Contract
  readonly redditFind: Contract
  readonly agents: Contract
  readonly rixl: Contract
  readonly suwappu: Contract
  readonly blendFi: Contract
}

/** The contracts that come with the package: our own, and five published APIs. */
export const contracts: Contracts = { standard, redditFind, agents, rixl, suwappu, blendFi }

import type { Contract } from './contract.js'
import { agents } from './contracts/agents.js'
import { blendFi } from './contracts/blend-fi.js'
import { redditFind } from './contracts/reddit-find.js'
import { rixl } from './contracts/rixl.js'
import { standard } from './contracts/standard.js'
import { suwappu } from './contracts/suwappu.js'

interface Contracts {
  readonly standard: Contract
  readonly redditFind: Contract
  readonly agents: Contract
  readonly rixl: Contract
  readonly suwappu: Contract
  readonly blendFi: Contract
}

/** The contracts that come with the package: our own, and five published APIs. */
export const contracts: Contracts = { standard, redditFind, agents, rixl, suwappu, blendFi }

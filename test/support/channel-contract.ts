import type { Channel } from 'express-api-keys'
import { channelChecks } from '../../src/testing/channel-checks.js'

/** Two channels over one server, as two processes would have them. */
export interface TestChannels {
  readonly channel: Channel
  readonly sibling: Channel
  /** Takes the server away for good. Left out, nothing is asked about failures. */
  fail?(): Promise<void>
  close(): Promise<void>
}

/**
 * What every channel has to pass, whatever carries it.
 *
 * @param makeChannels makes two that have not listened yet; called once per test.
 */
export function channelContract(name: string, makeChannels: () => Promise<TestChannels>, declare: typeof test.skip = test): void {
  describe(name, () => {
    channelChecks((title, run) =>
      declare(title, async () => {
        const { channel, sibling, fail, close } = await makeChannels()
        try {
          await run(channel, sibling, fail)
        } finally {
          await close()
        }
      }),
    )
  })
}

import type { IssuedKey } from '../core/api-keys.js'
import { CliError, EXIT } from './exit.js'
import { ClosedPipe, type Output } from './output.js'

/** Prints a new secret: on stdout and nowhere else, and only now. */
export async function printSecret(out: Output, { key, secret, rotationSecret, replayed, acceptedUntil }: IssuedKey): Promise<void> {
  const value = {
    key,
    secret,
    ...(rotationSecret === undefined ? {} : { rotationSecret }),
    replayed,
    ...(acceptedUntil === undefined ? {} : { acceptedUntil }),
  }
  try {
    await out.result(value, () => [secret, ...(rotationSecret === undefined ? [] : [rotationSecret])])
  } catch (error) {
    if (!(error instanceof ClosedPipe)) throw error
    throw new CliError(
      `The secret of key ${key.id} is made and was not read: stdout is closed. With --idempotency-key-from the same command prints it again; without, rotate the key.`,
      { exit: EXIT.failed, code: 'secret_not_read' },
    )
  }
}

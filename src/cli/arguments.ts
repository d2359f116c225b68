import { holdsSecret } from '../core/secret.js'
import { CliError } from './exit.js'

/** Options that other programs have, and what stands for them here. */
const INSTEAD: readonly (readonly [name: RegExp, instead: string])[] = [
  [/^--(server-)?secret$|^--api-keys-secret$/, 'set API_KEYS_SECRET, or API_KEYS_SECRET_FILE to a file that has it'],
  [/^--(database|db)(-url)?$/, 'set DATABASE_URL, or DATABASE_URL_FILE to a file that has it'],
  [/^--redis(-url)?$/, 'set REDIS_URL, or REDIS_URL_FILE to a file that has it'],
  [/^--(password|token|api-key|key)$/, 'put it in the environment or into a file'],
  [/^--idempotency-key$/, 'write --idempotency-key-from with a file, or with env:NAME'],
]
const WHY = 'Every user of the machine sees arguments, and the shell keeps them'
const URL_WITH_PASSWORD = /[a-z][a-z+]*:\/\/[^/@\s]*:[^/@\s]+@/i

/**
 * Refuses secrets among the arguments, without repeating them.
 *
 * @param serverSecret that of the environment
 * @throws CliError
 */
export function refuseSecrets(args: readonly string[], serverSecret: string | undefined): void {
  for (const argument of args) {
    const name = argument.split('=', 1)[0] ?? ''
    const [, instead] = INSTEAD.find(([pattern]) => pattern.test(name)) ?? []
    if (instead !== undefined) throw secretArgument(`There is no option ${name}: ${instead}.`)
    if (URL_WITH_PASSWORD.test(argument))
      throw secretArgument('An argument holds an address with a password: set DATABASE_URL or REDIS_URL.')
    const isServerSecret = serverSecret !== undefined && serverSecret !== '' && argument.includes(serverSecret)
    if (isServerSecret || holdsSecret(argument)) {
      throw secretArgument(
        'An argument holds a secret: put it into a file or a variable, and write --secret-from FILE or --secret-from env:NAME.',
      )
    }
  }
}

function secretArgument(message: string): CliError {
  return new CliError(`${message} ${WHY}.`, { code: 'secret_in_argument' })
}

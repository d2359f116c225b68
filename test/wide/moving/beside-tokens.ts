import type { RequestHandler } from 'express'
import { type ApiKeys, anyOf, bearer, bearerAuth, type Login } from 'express-api-keys'
import { expressjwt, type Request } from 'express-jwt'

/** A request brings a key, or one of the tokens that are not issued any more. */
export function keyOrOldToken(keys: ApiKeys, publicKey: string): RequestHandler {
  const oldTokens: Login = {
    from: bearer(),
    use: expressjwt({ secret: publicKey, algorithms: ['RS256'] }),
    signedIn: (req: Request) => req.auth !== undefined,
  }
  return anyOf(bearerAuth(keys), oldTokens)
}

// As much as the bench uses of the packages that are installed for it alone.
declare module '@better-auth/api-key' {
  export function apiKey(options: { storage: 'secondary-storage'; rateLimit: { enabled: boolean } }): object
}

declare module 'better-auth' {
  /** Where better-auth keeps what it looks up at each request. */
  interface SecondaryStorage {
    get(key: string): Promise<string | null> | string | null
    set(key: string, value: string, ttl?: number): unknown
    delete(key: string): unknown
  }
  interface Auth {
    $context: Promise<{
      internalAdapter: { createUser(user: { email: string; name: string; emailVerified: boolean }): Promise<{ id: string }> }
    }>
    api: {
      createApiKey(request: { body: { userId: string; name: string } }): Promise<{ key: string }>
      verifyApiKey(request: { body: { key: string | undefined } }): Promise<{ valid: boolean; key: object | null }>
    }
  }
  export function betterAuth(options: {
    secret: string
    baseURL: string
    telemetry: { enabled: boolean }
    database: object
    secondaryStorage: SecondaryStorage
    plugins: object[]
  }): Auth
}

declare module 'better-auth/adapters/memory' {
  export function memoryAdapter(tables: { [table: string]: object[] }): object
}

declare module 'express-bearer-token' {
  export default function bearerToken(): import('express').RequestHandler
}

declare module 'express-jwt' {
  export function expressjwt(options: { secret: import('node:crypto').KeyObject; algorithms: ['HS256'] }): import('express').RequestHandler
}

declare module 'passport' {
  export class Passport {
    use(strategy: import('passport-http-bearer').Strategy): this
    authenticate(name: 'bearer', options: { session: boolean }): import('express').RequestHandler
  }
}

declare module 'passport-http-bearer' {
  export class Strategy {
    constructor(verify: (token: string, done: (error: unknown, user?: object | false, info?: { scope: string }) => void) => void)
  }
}

declare module 'tinybench' {
  interface Result {
    readonly state: string
    readonly error?: unknown
    readonly latency: { readonly p50: number; readonly mean: number; readonly p99: number; readonly samplesCount: number }
  }
  export class Bench {
    constructor(options: { time: number; warmupTime: number })
    add(name: string, run: () => unknown): this
    run(): Promise<unknown>
    readonly tasks: readonly { readonly name: string; readonly result: Result }[]
  }
}

declare module 'undici' {
  interface Handler {
    onConnect(): void
    onHeaders(status: number): boolean
    onData(): boolean
    onComplete(): void
    onError(error: Error): void
  }
  export class Client {
    constructor(origin: string, options: { pipelining: number })
    dispatch(request: { path: string; method: string; headers: { authorization: string } | undefined }, handler: Handler): boolean
    destroy(): Promise<void>
  }
}

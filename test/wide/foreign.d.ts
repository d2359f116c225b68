// Declared here, since they are installed only for these tests.
declare module '@codegenie/serverless-express'
declare module '@vendia/serverless-express'
declare module 'body-parser1'
declare module 'body-parser2'
declare module 'co-body'
declare module 'express-fileupload'
declare module 'express-jwt' {
  import type { Request as ExpressRequest, RequestHandler } from 'express'
  export type Request = ExpressRequest & { auth?: { sub?: string } }
  export function expressjwt(options: object): RequestHandler
}
declare module 'express-session'
declare module 'http-errors'
declare module 'http2-express-bridge'
declare module 'morgan'
declare module 'multer'
declare module 'node-mocks-http'
declare module 'passport'
declare module 'passport-http-bearer'
declare module 'passport-local'
declare module 'serverless-http'
declare module 'vitest'

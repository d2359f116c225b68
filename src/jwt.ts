export type { OperatorAlgorithm } from './http/operator-jwt.js'
export { operatorJwt } from './http/operator-jwt.js'
export type { OperatorJwtOptions } from './http/operator-jwt.js'
export type { OperatorKey } from './http/operator-jwt.js'

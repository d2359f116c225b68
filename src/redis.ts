export type { RedisCacheOptions } from './cache/redis.js'
export { redisCache } from './cache/redis.js'

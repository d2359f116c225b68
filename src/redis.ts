export { redisCache } from './cache/redis.js'
export type { RedisCacheOptions } from './cache/redis.js'

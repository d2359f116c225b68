import { redisCache } from 'express-api-keys/redis'
import { Redis, type RedisOptions } from 'ioredis'
import type { Cache } from '../../../src/cache/cache.js'
import type { Channel } from '../../../src/channel.js'
import { channelContract } from '../../support/channel-contract.js'
import { atEnd } from '../../support/cleanup.js'
import { startRedis } from '../../support/redis.js'

channelContract('the channel of redisCache', async () => {
  const redis = await startRedis()
  const [channel, sibling] = [open(redis.url), open(redis.url)]
  return {
    channel,
    sibling,
    fail: redis.stop,
    async close() {
      for (const each of [channel, sibling]) await each.close()
      await redis.stop()
    },
  }
})

function open(url: string, options: RedisOptions = {}): Channel {
  const client = new Redis(url, { lazyConnect: true, ...options })
  client.on('error', () => {})
  const cache = redisCache(client, { onStateChange() {} })
  atEnd(cache.close)
  return (cache as Required<Cache>).channel()
}

import type { Channel } from '../../channel.js'
import { channelOver } from '../../channel-over.js'
import type { Client } from './clients.js'
import type { Connection } from './connection.js'
import { CONNECT_MS, openEar, publish } from './hearing.js'

/** Messages over pub/sub: what is sent goes over the cache's connection, and one of its own is opened for listening. */
export function redisChannel(client: Client, connection: Connection, timeoutMs: number): Channel {
  const redis = { client, connection, timeoutMs }
  return channelOver({
    name: 'redis',
    patienceMs: CONNECT_MS + timeoutMs,
    openEar: (parts) => openEar(redis, parts),
    send: (address, message) => publish(redis, address, message),
  })
}

import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import { Pool } from 'pg'
import { atEnd } from './cleanup.js'

/** What may become of a COMMIT: whether it gets there, and how its sender loses sight of it. */
export interface Fate {
  readonly arrives: boolean
  readonly line: 'cut' | 'silent'
}

export interface Way {
  readonly pool: Pool
  /** Cuts the connection that sends this statement, once it has been passed on. */
  cutAnswerTo(statement: string): void
  /** Decides on the next COMMIT of a mutation. */
  commit(fate: Fate): void
  /** Leads somewhere else from now on, and breaks what leads to where it led. */
  aim(url: string): void
  /** Passes nothing on in either direction. */
  swallow(on: boolean): void
}

/** A way to the database that can be cut when a given statement has been passed on, or swallow everything. */
export async function throughProxy(url: string): Promise<Way> {
  let target = new URL(url)
  let cutAt: string | undefined
  let fate: Fate | undefined
  let swallowing = false
  const sockets = new Set<Socket>()
  const server = createServer((client) => {
    const onward = connect(Number(target.port), target.hostname)
    let mutates = false
    let cut = false
    let silent = false
    for (const end of [client, onward]) {
      sockets.add(end)
      end.on('error', () => end.destroy()).on('close', () => sockets.delete(end))
    }
    client.on('data', (chunk) => {
      if (swallowing || silent) return
      const said = String(chunk)
      // A line of the audit trail is the last thing before the COMMIT of a mutation, and in no other transaction.
      if (said.includes('begin isolation level')) mutates = false
      mutates ||= said.includes('insert into "express_api_key_events"')
      if (fate !== undefined && mutates && said.includes('commit\0')) {
        const { arrives, line } = fate
        fate = undefined
        if (!arrives && line === 'cut') return void client.destroy()
        cut = line === 'cut'
        silent = line === 'silent'
        if (!arrives) return
      }
      if (cutAt !== undefined && said.includes(cutAt)) {
        cutAt = undefined
        cut = true
      }
      onward.write(chunk)
    })
    onward.on('data', (chunk) => {
      if (cut) {
        // The statement is done over there; its answer ends here.
        client.destroy()
        onward.destroy()
      } else if (!swallowing && !silent) client.write(chunk)
    })
    client.on('close', () => onward.destroy())
    onward.on('close', () => client.destroy())
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  const pool = new Pool({ connectionString: Object.assign(new URL(url), { host: `127.0.0.1:${port}` }).href })
  pool.on('error', () => {})
  atEnd(async () => {
    for (const socket of sockets) socket.destroy()
    server.close()
    await pool.end()
  })
  return {
    pool,
    cutAnswerTo: (statement) => {
      cutAt = statement
    },
    commit: (next) => {
      fate = next
    },
    aim: (next) => {
      target = new URL(next)
      for (const socket of sockets) socket.destroy()
    },
    swallow: (on) => {
      swallowing = on
    },
  }
}

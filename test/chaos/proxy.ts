import { once } from 'node:events'
import { connect, createServer, type Socket } from 'node:net'

/** Where bytes are going: `up` to the database, `down` to the process that asks it. */
export type Direction = 'up' | 'down'

/** What happens to the bytes that go one way. */
type Trouble =
  | { readonly kind: 'pass' }
  /** Every piece comes so much later. */
  | { readonly kind: 'delay'; readonly ms: number }
  /** Nothing comes, and the connection stays up. */
  | { readonly kind: 'black-hole' }
  /** So many more bytes come, and then the connection is cut. */
  | { readonly kind: 'truncate'; readonly bytes: number }

/**
 * What happens when PostgreSQL is told to commit: it hears it and its answer is lost with the connection (`cut-answer`) or without
 * (`lose-answer`), or it never hears it (`cut-request`).
 */
export type CommitTrouble = 'cut-answer' | 'lose-answer' | 'cut-request'

/** A line to a database, on which things go wrong when told to. */
export interface FaultProxy {
  readonly port: number
  /** How many pieces of data, connections, COMMITs or replies any trouble has met so far. */
  met(): number
  /** What happens to bytes from now on, on connections that are up and on new ones. */
  trouble(direction: Direction, trouble: Trouble): void
  /** What happens at the next COMMITs; undefined for nothing. */
  troubleCommits(trouble: CommitTrouble | undefined): void
  /** Refuses new connections, and cuts those that are up. */
  refuse(): void
  /** Cuts every connection with a RST. */
  reset(): void
  /** Has Redis tell another time, by so much; 0 puts it right. */
  skewRedisTime(ms: number): void
  /** Connects to another port from now on; what is up is cut. */
  redirect(port: number): void
  /** Ends all trouble on the way. What went into a black hole stays there, and its connection is cut. */
  heal(): void
  close(): Promise<void>
}

const PASS: Trouble = { kind: 'pass' }

/** Starts a proxy on a free port of this machine to a port of it. */
export async function faultProxy(target: number): Promise<FaultProxy> {
  const troubles: Record<Direction, Trouble> = { up: PASS, down: PASS }
  let commits: CommitTrouble | undefined
  let refusing = false
  let skewMs = 0
  let met = 0
  let upstream = target
  const links = new Set<Link>()

  interface Link {
    readonly client: Socket
    readonly server: Socket
    /** Something was swallowed: what follows would make no sense. */
    broken: boolean
    deaf: boolean
  }

  const listening = createServer({ noDelay: true }, (client) => {
    if (refusing) {
      met++
      client.on('error', () => {}).resetAndDestroy()
      return
    }
    const server = connect({ port: upstream, host: '127.0.0.1', noDelay: true })
    const link: Link = { client, server, broken: false, deaf: false }
    links.add(link)
    for (const end of [client, server]) {
      end.on('error', () => cut(link))
      end.on('close', () => cut(link))
    }
    const up = forward(link, 'up', server)
    const down = forward(link, 'down', client)
    client.on('data', (bytes) => {
      if (commits === undefined || !isCommit(bytes)) return up(bytes)
      met++
      if (commits === 'cut-request') return cut(link)
      link.deaf = true
      link.broken = true
      if (commits === 'lose-answer') return void server.write(bytes)
      // Closed in good order, so that PostgreSQL surely reads it.
      client.resetAndDestroy()
      server.end(bytes)
      return undefined
    })
    server.on('data', (bytes) => {
      if (!link.deaf) down(skewMs === 0 ? bytes : skewed(bytes))
    })
  })
  listening.listen(0, '127.0.0.1')
  await once(listening, 'listening')
  const address = listening.address()
  if (address === null || typeof address === 'string') throw new Error('The proxy has no port.')

  return {
    port: address.port,
    met: () => met,
    trouble(direction, trouble) {
      troubles[direction] = trouble
    },
    troubleCommits(trouble) {
      commits = trouble
    },
    refuse() {
      refusing = true
      cutAll()
    },
    reset: cutAll,
    skewRedisTime(ms) {
      skewMs = ms
    },
    redirect(port) {
      upstream = port
      for (const link of links) cut(link)
    },
    heal() {
      troubles.up = PASS
      troubles.down = PASS
      commits = undefined
      refusing = false
      for (const link of links) if (link.broken) cut(link)
    },
    async close() {
      const closed = once(listening, 'close')
      listening.close()
      for (const link of links) cut(link)
      await closed
    },
  }

  function cutAll(): void {
    met += links.size
    for (const link of links) cut(link)
  }

  function cut(link: Link): void {
    if (!links.delete(link)) return
    for (const end of [link.client, link.server]) if (!end.destroyed && !end.writableEnded) end.resetAndDestroy()
    // One that was ended is let go when the other side has read to its end.
    link.server.resume()
  }

  /** Passes bytes on by the trouble of the moment; delayed ones keep their order. */
  function forward(link: Link, direction: Direction, to: Socket): (bytes: Buffer) => void {
    let left: number | undefined
    const late: { bytes: Buffer; dueAt: number }[] = []
    const deliver = (): void => {
      for (let first = late[0]; first !== undefined; first = late[0]) {
        const waitMs = first.dueAt - performance.now()
        if (waitMs > 0) return void setTimeout(deliver, waitMs)
        late.shift()
        if (to.writable) to.write(first.bytes)
      }
    }
    return (bytes) => {
      const trouble = troubles[direction]
      if (link.broken) return
      if (trouble.kind !== 'pass') met++
      if (trouble.kind !== 'truncate') left = undefined
      if (trouble.kind === 'black-hole') {
        link.broken = true
      } else if (trouble.kind === 'truncate') {
        left ??= trouble.bytes
        const part = bytes.subarray(0, left)
        left -= part.length
        to.write(part)
        if (left === 0) {
          // In good order, so that the part arrives.
          to.end()
          cut(link)
        }
      } else {
        // What is not late itself waits behind what is.
        late.push({ bytes, dueAt: performance.now() + (trouble.kind === 'delay' ? trouble.ms : 0) })
        if (late.length === 1) deliver()
      }
    }
  }

  /** The reply of TIME wherever it stands in a reply, moved; seconds since 2001 have ten digits, so the length stays. */
  function skewed(bytes: Buffer): Buffer {
    const moved = bytes
      .toString('latin1')
      .replaceAll(/\*2\r\n\$10\r\n(\d{10})\r\n\$(\d)\r\n(\d+)\r\n/g, (_all, seconds: string, _length, micros: string) => {
        met++
        const time = Number(seconds) * 1_000_000 + Number(micros) + skewMs * 1_000
        const rest = String(time % 1_000_000)
        return `*2\r\n$10\r\n${Math.floor(time / 1_000_000)}\r\n$${rest.length}\r\n${rest}\r\n`
      })
    return Buffer.from(moved, 'latin1')
  }
}

/** The statement as a simple query or as one to be parsed. */
function isCommit(bytes: Buffer): boolean {
  return bytes.toString('latin1').toLowerCase().includes('commit\0')
}

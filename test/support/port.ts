import { randomInt } from 'node:crypto'
import { createServer } from 'node:net'

/**
 * Returns a port that was free a moment ago. The port 10,000 higher was free too: a Redis of a cluster talks to the others there. Both are below the
 * ports that the system gives to clients: a client that dials a stopped server over and over would at some time get the server's own port, connect to
 * itself, and keep the server from coming back.
 */
export async function freePort(): Promise<number> {
  for (;;) {
    const port = randomInt(10_240, 22_000)
    if ((await isFree(port)) && (await isFree(port + 10_000))) return port
  }
}

function isFree(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const server = createServer()
    server.once('error', () => resolve(false))
    server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)))
  })
}

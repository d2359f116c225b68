// Makes sure that the tests have a Redis: REDIS_URL, or a server on PATH, or one from the system's package manager.
import { spawnSync } from 'node:child_process'

const there = (/** @type {string} */ name) => spawnSync(name, ['--version'], { stdio: 'ignore' }).status === 0
const hasServer = () => there('redis-server') || there('valkey-server')

if (process.env.REDIS_URL !== undefined && !hasServer()) {
  console.log('REDIS_URL is used. Tests that need a replica or a cluster of their own are skipped: there is no redis-server on PATH.')
}
if (process.env.REDIS_URL === undefined && !hasServer()) {
  const root = process.getuid?.() === 0 ? [] : ['sudo', '-n']
  const ways = [
    // RUNLEVEL=1: Debian then installs the server without starting one of its own.
    {
      manager: 'apt-get',
      steps: [
        [...root, 'apt-get', 'update', '-q'],
        [...root, 'env', 'RUNLEVEL=1', 'DEBIAN_FRONTEND=noninteractive', 'apt-get', 'install', '-y', '-q', 'redis-server'],
      ],
    },
    { manager: 'brew', steps: [['brew', 'install', 'redis']] },
    { manager: 'apk', steps: [[...root, 'apk', 'add', 'redis']] },
    { manager: 'dnf', steps: [[...root, 'dnf', 'install', '-y', 'redis']] },
  ]
  const way = ways.find(({ manager }) => there(manager))
  for (const [command = '', ...args] of way?.steps ?? []) {
    console.log(`Installing a Redis server for the tests: ${[command, ...args].join(' ')}`)
    const { status, stdout, stderr } = spawnSync(command, args, { encoding: 'utf8' })
    if (status !== 0) console.log(`${stdout ?? ''}${stderr ?? ''}`.trim().split('\n').slice(-3).join('\n'))
  }
  if (!hasServer()) {
    console.error('The tests need a Redis server: install redis-server (or valkey-server) so that it is on PATH, or set REDIS_URL.')
    process.exit(1)
  }
}

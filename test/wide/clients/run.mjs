// Makes requests with one client, all at once, and prints what each ended with: `node run.mjs <client>`, the rest as JSON on stdin.
import { json } from 'node:stream/consumers'

const { settings, requests } = await json(process.stdin)
const client = await import(`./${process.argv[2]}.mjs`)
const ended = requests.map(async ({ url, headers, ...options }) => {
  try {
    return await client[settings](url, headers, options)
  } catch (error) {
    return { error: String(error) }
  }
})
process.stdout.write(JSON.stringify(await Promise.all(ended)), () => process.exit())

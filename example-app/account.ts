import express, { type Request, type Router } from 'express'
import { type ApiKeys, keyRouter, type Operator } from 'express-api-keys'
import session from 'express-session'

/**
 * The page where people who have signed in make, rotate and revoke their own keys. Anybody may sign in under any name here; a real application asks for a password. The
 * sessions are kept in memory, so they end with the process.
 */
export function account(keys: ApiKeys, sessionSecret: string): Router {
  const router = express.Router()
  router.use(session({ secret: sessionSecret, resave: false, saveUninitialized: false, cookie: { sameSite: 'lax', httpOnly: true } }))
  router.get('/', (req, res) => {
    res
      .set('Content-Security-Policy', "default-src 'self'")
      .type('html')
      .send(pageFor(sessionOf(req).user))
  })
  router.get('/page.js', (_req, res) => {
    res.type('js').send(SCRIPT)
  })
  router.post('/login', express.urlencoded({ extended: false }), (req, res, next) => {
    const name: unknown = req.body?.name
    if (typeof name !== 'string' || !/^[a-z]{1,32}$/.test(name)) {
      res.status(400).type('text').send('A name has 1 to 32 small letters.')
      return
    }
    // Another id: whoever planted the one before is not signed in by this.
    req.session.regenerate((error) => {
      if (error) return next(error)
      sessionOf(req).user = name
      res.redirect(303, '.')
    })
  })
  router.post('/logout', (req, res, next) => {
    req.session.destroy((error) => (error ? next(error) : res.redirect(303, '.')))
  })
  router.use('/keys', keyRouter(keys, { operators: signedIn }))
  return router
}

/** Who has signed in manages the keys of their own name, and hands out what is named here. */
function signedIn(req: Request): Operator | undefined {
  const { user } = sessionOf(req)
  if (user === undefined) return undefined
  return {
    ...{ issuer: 'parcels', subject: user, owners: [user], scopes: ['api_keys:read', 'api_keys:write'] },
    grants: { scopes: ['parcels:*'], environments: ['live'] },
  }
}

function sessionOf({ session }: Request): { user?: string } {
  return session as { user?: string }
}

function pageFor(user: string | undefined): string {
  const out =
    '<form method="post" action="login"><label>Name <input name="name" pattern="[a-z]{1,32}" required></label> <button>Sign in</button></form>'
  const inside = `<form method="post" action="logout">Signed in as <b id="user">${user}</b>. <button>Sign out</button></form>
<form id="make"><label>Name of a new key <input name="name" maxlength="255" required></label> <button>Make</button></form>
<p id="said" role="status"></p>
<table><thead><tr><th>Name<th>Secret<th>State<th></thead><tbody id="keys"></tbody></table>
<script src="page.js"></script>`
  return `<!doctype html><html lang="en"><meta charset="utf-8"><title>My keys</title><h1>My keys</h1>${user === undefined ? out : inside}</html>`
}

/** Runs in the browser. What a key is called is text, and never markup. */
const SCRIPT = `
const ownerId = document.getElementById('user').textContent
const said = document.getElementById('said')
const rows = document.getElementById('keys')

// A change whose answer was lost is asked for again with the same Idempotency-Key: it is made once, and its secret is not lost.
async function ask(method, path, body) {
  const headers = { 'content-type': 'application/json', 'idempotency-key': crypto.randomUUID() }
  for (let tries = 0; ; tries++) {
    try {
      const response = await fetch('keys' + path, { method, headers, ...(body && { body: JSON.stringify(body) }) })
      if (response.status < 500 || tries === 3) return await response.json()
    } catch (error) {
      if (tries === 3) throw error
    }
    await new Promise((resolve) => setTimeout(resolve, 500))
  }
}

async function change(path, body) {
  const { secret, detail } = await ask('POST', path, body)
  said.textContent = secret ? 'Shown this once: ' + secret : (detail ?? 'Done.')
  await show()
}

async function show() {
  const { keys } = await ask('GET', '?ownerId=' + ownerId)
  rows.replaceChildren(...keys.map(({ id, name, secretStart, secretLast4, status }) => {
    const row = document.createElement('tr')
    for (const text of [name, secretStart + '…' + secretLast4, status]) row.insertCell().textContent = text
    const buttons = row.insertCell()
    for (const [label, action] of status === 'active' ? [['Rotate', 'rotate'], ['Revoke', 'revoke']] : []) {
      const button = document.createElement('button')
      button.textContent = label
      button.onclick = () => change('/' + id + '/' + action)
      buttons.append(button)
    }
    return row
  }))
}

document.getElementById('make').onsubmit = (event) => {
  event.preventDefault()
  const name = new FormData(event.target).get('name')
  change('', { ownerId, name, scopes: ['parcels:read', 'parcels:write'] })
}
show()
`

import { memoryStore } from 'express-api-keys'
import { storeContract } from 'express-api-keys/testing'

storeContract({ describe, test }, 'my store', async () => {
  const store = memoryStore() // Your own goes here, over data of its own.
  return { store, close: () => store.close() }
})

import { mysqlStore } from 'express-api-keys/mysql'
import { storeContract } from 'express-api-keys/testing'
import { freshMysql } from '../support/mariadb.js'

storeContract({ describe, test }, 'mysqlStore on MariaDB, two stores on one database', async () => {
  const { pool } = await freshMysql()
  return { store: mysqlStore(pool), sibling: mysqlStore(pool), close: async () => {} }
})

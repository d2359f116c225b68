import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'

/** The release before: the last commit in which each key had a lease of its own, and a rotation waited for the longest. */
const COMMIT = '64b8582'
const SOURCES = ['src', 'scripts/build.mjs', 'tsconfig.json', 'tsconfig.build.json', 'package.json']

/**
 * Builds the release before from its commit, unless that was done already, and returns the folder of the package. It uses the packages that are installed
 * for this one, so that the two differ in nothing else.
 */
export function releaseBefore() {
  const folder = resolve('.tmp', `release-${COMMIT}`)
  if (existsSync(folder)) return folder
  console.error(`building the release before, ${COMMIT}`)
  const making = `${folder}-${process.pid}`
  mkdirSync(making, { recursive: true })
  try {
    const archive = execFileSync('git', ['archive', COMMIT, ...SOURCES], { maxBuffer: 2 ** 28, stdio: ['ignore', 'pipe', 2] })
    execFileSync('tar', ['-x', '-C', making], { input: archive })
    // Under another name: two packages of one name in a folder are a mistake to many tools.
    const file = join(making, 'package.json')
    writeFileSync(
      file,
      JSON.stringify({ ...JSON.parse(readFileSync(file, 'utf8')), name: 'express-api-keys-before', private: true }, null, 2),
    )
    symlinkSync(resolve('node_modules'), join(making, 'node_modules'))
    const { status } = spawnSync(process.execPath, ['scripts/build.mjs'], { cwd: making, stdio: ['ignore', 2, 2] })
    if (status !== 0) throw new Error('The release before does not build.')
    renameSync(making, folder)
  } catch (error) {
    rmSync(making, { recursive: true, force: true })
    throw new Error(`There is no release to compare with. It is made from ${COMMIT}, which needs the history: git fetch --unshallow.`, {
      cause: error,
    })
  }
  return folder
}

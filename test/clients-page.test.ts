import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'

const ROOT = join(__dirname, '..')
const PROGRAMS = join(ROOT, 'test/wide/clients')

test('the page for client authors shows the very code that the clients are tested with', () => {
  const page = readFileSync(join(ROOT, 'docs/clients.md'), 'utf8')
  const shown = [...page.matchAll(/^```\w+\n(.*?)\n```$/gms)].map(([, code]) => code)
  const tested = readdirSync(PROGRAMS).flatMap((name) => regionOf(readFileSync(join(PROGRAMS, name), 'utf8')) ?? [])
  expect(tested).toHaveLength(10)
  expect(new Set(shown)).toEqual(new Set(tested))
})

/** What stands between the marks, moved to the left. */
function regionOf(program: string): string | undefined {
  const [, indent = '', code] = /^([ \t]*)(?:\/\/|#) #region recovers\n(.*?)\n[ \t]*(?:\/\/|#) #endregion$/ms.exec(program) ?? []
  return code?.replaceAll(new RegExp(`^${indent}`, 'gm'), '')
}

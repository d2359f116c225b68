import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Fault } from './planted.mjs'

/** Returns the file with the fault in it. When the code moves, the fault moves with it. */
export function plant(root: string, { name, file, find, replace, times = 1, also }: Fault): string {
  const source = replaced(name, file, readFileSync(join(root, file), 'utf8'), find, replace, times)
  return also === undefined ? source : replaced(name, file, source, also.find, also.replace, 1)
}

/** A line for every fault that does not fit its file, and for every test file that does not exist. */
export function misfits(root: string, faults: readonly Fault[]): readonly string[] {
  return faults.flatMap((fault) => {
    try {
      plant(root, fault)
    } catch (error) {
      return [(error as Error).message]
    }
    return fault.tests.filter(([file]) => !existsSync(join(root, file))).map(([file]) => `"${fault.name}": there is no ${file}.`)
  })
}

function replaced(name: string, file: string, source: string, find: string, replace: string, times: number): string {
  const pattern = anyLayout(find)
  const found = [...source.matchAll(pattern)].length
  if (found !== times) throw new Error(`"${name}": ${file} holds what is to be replaced ${found} times, not ${times}:\n${find}`)
  const result = source.replace(pattern, () => replace)
  if (result === source) throw new Error(`"${name}": what takes its place in ${file} is the same.`)
  return result
}

/** Matches code however it is laid out: a formatter may break a line anywhere between two tokens, and then adds a comma before a closing bracket. */
function anyLayout(code: string): RegExp {
  const tokens = code.match(/\w+|[^\w\s]/g) ?? []
  const pattern = tokens.map((token, i) => {
    const [before = '', after = ''] = [tokens[i - 1], tokens[i + 1]]
    if (token === ',' && isClosing(after)) return ',?'
    const escaped = token.replace(/[\\^$.*+?()[\]{}|/]/g, '\\$&')
    if (isClosing(token) && before !== '' && before !== ',') return `,?\\s*${escaped}`
    // Two words stay two words.
    return /^\w/.test(token) && /\w$/.test(before) ? `(?<=\\s)${escaped}` : escaped
  })
  return new RegExp(pattern.join('\\s*'), 'g')
}

function isClosing(token: string): boolean {
  return token === ')' || token === ']' || token === '}'
}

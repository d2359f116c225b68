import { markdown, number, withSpread } from './stats.mjs'

/**
 * @import { Comparison, Figure, Result } from './compare.mjs'
 */

/**
 * The rows as one table in Markdown.
 *
 * @param {Comparison} comparison
 */
export function table({ node, pinning, rounds, same, results }) {
  /** @type {{ [head: string]: (row: Result) => string }} */
  const columns = {
    '': (row) => row.title,
    'requests/s': (row) => cell(row.perSecond),
    'CPU µs/request': (row) => withSpread(row.cpuMicros),
    'CPU × empty': (row) => (row.cpuMicros.tie ? `tie (${number(row.cpuMicros.ratio.median)})` : withSpread(row.cpuMicros.ratio)),
    'p50 ms': (row) => cell(row.p50),
    'p99 ms': (row) => cell(row.p99),
    'p99 ms at half load': (row) => cell(row.p99AtHalfLoad),
    'Redis commands/request': (row) => share(row.commandsPerRequest),
    'authority reads/request': (row) => share(row.readsPerRequest),
  }
  // What a run did not measure has no column.
  const shown = Object.entries(columns).filter(([, of]) => results.some((row) => of(row) !== '–'))
  return [
    markdown(
      shown.map(([head]) => head),
      results.map((row) => shown.map(([, of]) => of(row))),
    ),
    '',
    `Median (p10–p90) over ${rounds} rounds, × the same app with an empty middleware; Node ${node}; the server on ${pinning}.`,
    `"tie": no further away than the two empty middlewares are from each other (CPU ×${number(same.cpuMicros.p10)}–${number(same.cpuMicros.p90)}).`,
  ].join('\n')
}

/** @param {Figure} figure */
function cell({ ratio, tie, ...values }) {
  if (Number.isNaN(values.median)) return '–'
  return `${withSpread(values)} ${tie ? `tie (×${number(ratio.median)})` : `×${number(ratio.median)}`}`
}

/** @param {number} value */
function share(value) {
  if (value < 0.0001) return '–'
  return value < 0.005 ? '<0.01' : number(value)
}

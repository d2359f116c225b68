/**
 * The value below which a part of all values lies, with straight lines between neighbours.
 *
 * @param {Iterable<number>} values
 * @param {number} part
 */
export function quantile(values, part) {
  const sorted = Float64Array.from(values).sort()
  const place = (sorted.length - 1) * part
  const below = Math.floor(place)
  // There is nothing to read in an empty list: not a number.
  const low = sorted[below] ?? Number.NaN
  const high = sorted[Math.min(below + 1, sorted.length - 1)] ?? Number.NaN
  return low + (high - low) * (place - below)
}

/** @typedef {{ readonly p10: number, readonly median: number, readonly p90: number }} Spread */

/**
 * @param {readonly number[]} values
 * @returns {Spread}
 */
export function spread(values) {
  return { p10: quantile(values, 0.1), median: quantile(values, 0.5), p90: quantile(values, 0.9) }
}

/**
 * Whether a ratio is no further from 1 than two runs of the same thing were from each other.
 *
 * @param {number} ratio
 * @param {Spread} same
 */
export function isTie(ratio, same) {
  return ratio <= widest(same) && ratio >= 1 / widest(same)
}

/**
 * By which factor two runs of the same thing were apart, but for one round of ten in either direction.
 *
 * @param {Spread} same
 */
export function widest({ p10, p90 }) {
  return Math.max(p90, 1 / p10)
}

/**
 * Three significant digits, and whole numbers with commas.
 *
 * @param {number} value
 */
export function number(value) {
  if (!Number.isFinite(value)) return '–'
  if (value >= 100 || Number.isInteger(value)) return Math.round(value).toLocaleString('en-US')
  return value >= 10 ? value.toFixed(1) : value.toFixed(2)
}

/** @param {Spread} spread */
export function withSpread({ p10, median, p90 }) {
  return `${number(median)} (${number(p10)}–${number(p90)})`
}

/**
 * @param {readonly string[]} head
 * @param {readonly (readonly (string | number)[])[]} rows
 */
export function markdown(head, rows) {
  const line = (/** @type {readonly (string | number)[]} */ cells) => `| ${cells.join(' | ')} |`
  return [line(head), line(head.map((_, i) => (i === 0 ? '---' : '--:'))), ...rows.map(line)].join('\n')
}

/** The value below which a part of all values lies, with straight lines between neighbours. */
export function quantile(values, part) {
  const sorted = Float64Array.from(values).sort()
  if (sorted.length === 0) return Number.NaN
  const place = (sorted.length - 1) * part
  const below = Math.floor(place)
  const low = sorted[below]
  const high = sorted[Math.min(below + 1, sorted.length - 1)]
  return low + (high - low) * (place - below)
}

/** @typedef {{ p10: number, median: number, p90: number }} Spread */

/** @returns {Spread} */
export function spread(values) {
  return { p10: quantile(values, 0.1), median: quantile(values, 0.5), p90: quantile(values, 0.9) }
}

/** Whether a ratio is no further from 1 than two runs of the same thing were from each other. */
export function isTie(ratio, /** @type {Spread} */ same) {
  return ratio <= widest(same) && ratio >= 1 / widest(same)
}

/** By which factor two runs of the same thing were apart, but for one round of ten in either direction. */
export function widest(/** @type {Spread} */ { p10, p90 }) {
  return Math.max(p90, 1 / p10)
}

/** Three significant digits, and whole numbers with commas. */
export function number(value) {
  if (!Number.isFinite(value)) return '–'
  if (value >= 100 || Number.isInteger(value)) return Math.round(value).toLocaleString('en-US')
  return value >= 10 ? value.toFixed(1) : value.toFixed(2)
}

export function withSpread(/** @type {Spread} */ { p10, median, p90 }) {
  return `${number(median)} (${number(p10)}–${number(p90)})`
}

export function markdown(head, rows) {
  const line = (cells) => `| ${cells.join(' | ')} |`
  return [line(head), line(head.map((_, i) => (i === 0 ? '---' : '--:'))), ...rows.map(line)].join('\n')
}

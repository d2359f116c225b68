/**
 * Draws by Zipf's law: the k-th most used key is used 1/k times as often as the first.
 *
 * @param {number} keys
 * @param {number} draws
 */
export function zipf(keys, draws) {
  const upTo = new Float64Array(keys)
  let total = 0
  for (let k = 0; k < keys; k++) {
    total += 1 / (k + 1)
    upTo[k] = total
  }
  return Uint32Array.from({ length: draws }, () => {
    const point = Math.random() * total
    let [low, high] = [0, keys - 1]
    while (low < high) {
      const middle = (low + high) >> 1
      if ((upTo[middle] ?? 0) < point) low = middle + 1
      else high = middle
    }
    return low
  })
}

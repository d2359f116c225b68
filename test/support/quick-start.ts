/** The first application that the README shows, and what it says that this prints. */
export function quickStart(readme: string): { code: string; output: string } {
  const [, code, output] = /^```js\n(.*?)^```\n.*?^```\n(.*?)^```$/ms.exec(readme) ?? []
  if (code === undefined || output === undefined) throw new Error('The README shows no application and its output.')
  return { code, output }
}

/** Output whose shortened secrets are numbered in the order in which they come: each run makes others. */
export function outputWithNumberedSecrets(output: string): string {
  const seen: string[] = []
  return output.replaceAll(/sk_live_\w+…/g, (secret) => {
    if (!seen.includes(secret)) seen.push(secret)
    return `secret ${seen.indexOf(secret) + 1}`
  })
}

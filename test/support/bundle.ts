import { build } from 'esbuild'

/** Makes one file of a program, which then starts in a fraction of the time. */
export async function bundle(program: string, outfile: string): Promise<string> {
  await build({
    entryPoints: [program],
    outfile,
    bundle: true,
    platform: 'node',
    format: 'esm',
    external: ['bcrypt', 'libsql'],
    banner: { js: `import { createRequire } from 'node:module'; const require = createRequire(import.meta.url)` },
  })
  return outfile
}

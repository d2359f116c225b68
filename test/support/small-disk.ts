import { spawnSync } from 'node:child_process'
import { closeSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { atEnd } from './cleanup.js'

export interface SmallDisk {
  readonly folder: string
  /** Takes every byte that is left. */
  fill(): void
  free(): void
}

/** A disk of so many megabytes, in memory; undefined where nothing may be mounted. */
export function smallDisk(megabytes: number): SmallDisk | undefined {
  const folder = mkdtempSync(join(tmpdir(), 'api-keys-disk-'))
  const asRoot = (...command: string[]): boolean => {
    const [name = '', ...rest] = process.getuid?.() === 0 ? command : ['sudo', '-n', ...command]
    return spawnSync(name, rest).status === 0
  }
  const mounted = asRoot('mount', '-t', 'tmpfs', '-o', `size=${megabytes}m,mode=777`, 'tmpfs', folder)
  atEnd(async () => {
    // Lazily: a driver may close its files a little later.
    if (mounted) asRoot('umount', '-l', folder)
    rmSync(folder, { recursive: true, force: true })
  })
  if (!mounted) return undefined
  const ballast = join(folder, 'ballast')
  return {
    folder,
    fill() {
      const file = openSync(ballast, 'a')
      for (const size of [65_536, 4_096, 1]) {
        try {
          for (;;) writeSync(file, Buffer.alloc(size))
        } catch (error) {
          if ((error as { code?: string }).code !== 'ENOSPC') throw error
        }
      }
      closeSync(file)
    },
    free: () => rmSync(ballast),
  }
}

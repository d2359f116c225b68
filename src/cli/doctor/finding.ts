/** What was found, and what to do about it. */
export interface Finding {
  /** Stable, for scripts: `docs/reference/cli.md` lists them. */
  readonly id: string
  /** `problem`: something does not work, or not as promised. `warning`: it works, and somebody should know. */
  readonly level: 'ok' | 'warning' | 'problem'
  readonly message: string
  /** One sentence; null where there is nothing to do. */
  readonly todo: string | null
}

export function ok(id: string, message: string): Finding {
  return { id, level: 'ok', message, todo: null }
}

export function warning(id: string, message: string, todo: string): Finding {
  return { id, level: 'warning', message, todo }
}

export function problem(id: string, message: string, todo: string): Finding {
  return { id, level: 'problem', message, todo }
}

/** What happens to a process at a step: it is killed, it is suspended, or the step takes so much longer. */
export type Trap = 'kill' | 'stop' | 'wait'

/** Steps between the parts of an instance, before and after each call, at one of which something can happen. */
export interface Traps {
  /** Has something happen when a step is reached the next time; undefined for nothing. */
  set(trap: { readonly step: string; readonly what: Trap; readonly ms: number } | undefined): void
  /** How often something has happened so far. */
  met(): number
  /** The same part, with steps such as `before store.read` and `after store.read`. */
  around<Part extends object>(name: string, part: Part): Part
  /** The same function, with such steps. */
  aroundCall<Args extends unknown[], Result>(name: string, call: (...args: Args) => Result): (...args: Args) => Result
}

export function traps(): Traps {
  let armed: Parameters<Traps['set']>[0]
  let met = 0

  const aroundCall: Traps['aroundCall'] =
    (name, call) =>
    (...args) => {
      const waited = reached(`before ${name}`)
      if (waited !== undefined) return waited.then(() => call(...args)) as ReturnType<typeof call>
      const result = call(...args)
      if (!(result instanceof Promise)) {
        void reached(`after ${name}`)
        return result
      }
      return result.then(async (answer: unknown) => {
        await reached(`after ${name}`)
        return answer
      }) as typeof result
    }

  return {
    set(trap) {
      armed = trap
    },
    met: () => met,
    aroundCall,
    around: (name, part) =>
      new Proxy(part, {
        get(target, method) {
          const value: unknown = Reflect.get(target, method, target)
          if (typeof value !== 'function') return value
          const call = value.bind(target) as (...args: unknown[]) => unknown
          // What answers at once cannot be made to wait.
          return AT_ONCE.has(String(method)) ? call : aroundCall(`${name}.${String(method)}`, call)
        },
      }),
  }

  function reached(step: string): Promise<void> | undefined {
    if (armed?.step !== step) return undefined
    const { what, ms } = armed
    armed = undefined
    met++
    if (what !== 'wait') process.kill(process.pid, what === 'kill' ? 'SIGKILL' : 'SIGSTOP')
    return what === 'wait' ? new Promise((resolve) => setTimeout(resolve, ms)) : undefined
  }
}

const AT_ONCE: ReadonlySet<string> = new Set(['channel', 'counters', 'isOpen', 'onFault', 'currentPosition'])

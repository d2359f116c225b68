import { inTime } from '../src/in-time.js'

const late = (): Error => new Error('late')

test('what comes in time is passed on, whether it is a result, a promise or a failure', async () => {
  expect(await inTime(60_000, 1, late)).toBe(1)
  expect(await inTime(60_000, Promise.resolve(2), late)).toBe(2)
  const missed = jest.fn()
  await expect(inTime(60_000, Promise.reject(new Error('failed')), late, missed)).rejects.toThrow('failed')
  expect(missed).not.toHaveBeenCalled()
})

test('what does not come in time is a rejection, and a failure after that is told', async () => {
  let fail: (error: Error) => void = () => {}
  const work = new Promise<never>((_resolve, reject) => {
    fail = reject
  })
  const missed = jest.fn()
  // The timer is not what keeps this process alive.
  const alive = setInterval(() => {}, 1_000)
  await expect(inTime(1, work, late, missed)).rejects.toThrow('late')
  clearInterval(alive)
  expect(missed).not.toHaveBeenCalled()
  fail(new Error('failed'))
  await work.catch(() => {})
  expect(missed).toHaveBeenCalledWith(new Error('failed'))
})

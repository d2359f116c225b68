import { PAGES, ranPrograms } from './pages/programs.js'

test('every program of the pages about other libraries prints what it says', () => {
  const programs = ranPrograms()
  expect(new Set(programs.map(({ page }) => page))).toEqual(new Set(PAGES))
  for (const { page, prints, says } of programs) expect([page, prints]).toEqual([page, says])
})

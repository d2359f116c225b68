import { existsSync, readFileSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import { defineConfig } from 'vitepress'
import { sections } from '../pages.mjs'

const ROOT = fileURLToPath(new URL('../..', import.meta.url))
const { description, repository } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'))
const files = sections.flatMap(({ pages }) => pages.map(([, file]) => file))

export default defineConfig({
  title: 'express-api-keys',
  description,
  lang: 'en-US',
  // The pages lie where they read well on GitHub too.
  srcDir: '..',
  srcExclude: ['bench', 'dist', 'example-app', 'mutants', 'node_modules', 'site', 'src', 'test'].map((folder) => `${folder}/**`),
  rewrites: Object.fromEntries(files.map((file) => [file, `${routeOf(file)}.md`])),
  outDir: 'dist',
  cleanUrls: true,
  head: [['link', { rel: 'icon', href: 'data:,' }]],
  markdown: {
    html: false,
    // Braces are those of paths and objects.
    attrs: { disable: true },
    anchor: { slugify: anchorOf },
    config: (md) => md.core.ruler.push('links between pages', linkPages),
  },
  themeConfig: {
    nav: [
      { text: 'Getting started', link: '/getting-started' },
      { text: 'Rotate a key', link: '/guides/rotate' },
      { text: 'Errors', link: '/reference/errors' },
    ],
    sidebar: sections.map(({ text, pages }) => ({
      text,
      items: pages.map(([title, file]) => ({ text: title, link: linkTo(file) })),
    })),
    outline: [2, 3],
    search: { provider: 'local' },
  },
})

/** Where a page is on the site, without its ending. */
function routeOf(file) {
  if (file === 'README.md') return 'index'
  return file.startsWith('docs/') ? file.slice('docs/'.length, -'.md'.length) : file.slice(0, -'.md'.length).toLowerCase()
}

function linkTo(file) {
  return file === 'README.md' ? '/' : `/${routeOf(file)}`
}

/** The anchor that GitHub gives a heading, so that one link serves both; `error_codes` keep their underscores. */
function anchorOf(heading) {
  return heading
    .toLowerCase()
    .replaceAll(/[^\p{L}\p{M}\p{N}\p{Pc}\- ]/gu, '')
    .replaceAll(' ', '-')
}

/** Links to other pages lead to their places on the site. Links to files that are not pages lead to the repository, or are plain text while it has no address. */
function linkPages({ tokens, env }) {
  for (const { children } of tokens) {
    const dropped = []
    for (const token of children ?? []) {
      if (token.type === 'link_open') dropped.push(!resolved(token, env.realPath ?? env.path))
      const drop = token.type === 'link_close' ? dropped.pop() : token.type === 'link_open' && dropped.at(-1)
      if (drop) Object.assign(token, { type: 'text', tag: '', nesting: 0, content: '' })
    }
  }
}

/** Sets the target of a link; false where it has none on the site. */
function resolved(token, from) {
  const href = token.attrGet('href') ?? ''
  if (/^(?:[a-z]+:|#|\/)/.test(href)) return true
  const [path, anchor] = href.split('#')
  const file = relative(ROOT, join(dirname(from), decodeURI(path)))
  const target = files.includes(file) ? linkTo(file) : repositoryLink(file)
  if (target === undefined) return false
  token.attrSet('href', anchor === undefined ? target : `${target}#${anchor}`)
  return true
}

function repositoryLink(file) {
  const url = (typeof repository === 'string' ? repository : repository?.url)?.replace(/^git\+/, '').replace(/\.git$/, '')
  if (!existsSync(join(ROOT, file))) throw new Error(`There is no ${file} to link to.`)
  return url?.startsWith('https://') ? `${url}/blob/main/${file}` : undefined
}

import { Marked, type Tokens } from 'marked';

/**
 * Markdown to HTML that is not yet safe: whoever puts it on a page sanitizes it first. Model text may not name images (fetching one
 * tells a stranger what was said), and tags that it does not need are shown as the text they are, so `List<string>` stays readable.
 */
const marked = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    html: ({ text }) => (/^<\/?(?:br|sub|sup|kbd|mark|u|s|b|i|em|strong|details|summary)\s*\/?>\s*$/i.test(text) ? text : escape(text)),
    image: ({ text, href }) => `<span class="no-image">${escape(text || 'image')} (${escape(href)})</span>`,
    // An answer sits below the page's own headings.
    heading({ tokens, depth }: Tokens.Heading) {
      const level = Math.min(depth + 2, 6);
      return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>\n`;
    },
  },
});

export const toHtml = (markdown: string): string => marked.parse(markdown, { async: false });

/**
 * How many characters at the start of `text` are blocks that no further text can change: all before the last block that is not
 * blank. Only whole lines count, because half a line may be read as another kind of block than the whole.
 */
export function settledLength(text: string): number {
  const tokens = marked.lexer(text.slice(0, text.lastIndexOf('\n') + 1));
  let open = tokens.length - 1;
  while (open >= 0 && tokens[open]!.type === 'space') open--;
  if (open >= 0 && isClosedFence(tokens[open]!.raw)) open++;
  return tokens.slice(0, Math.max(open, 0)).reduce((length, token) => length + token.raw.length, 0);
}

export interface Fence {
  lang: string;
  code: string;
}

/** The code block that `text` opens at its start and has not closed, or null. */
export function openFence(text: string): Fence | null {
  const fence = /^ {0,3}(`{3,}|~{3,})([^\n`]*)\n/.exec(text);
  if (!fence || closing(fence[1]!).test(text.slice(fence[0].length - 1))) return null;
  // The closing fence may be half written: hold back a last line that is all fence characters.
  const code = text.slice(fence[0].length).replace(/(^|\n) {0,3}[`~]+$/, '$1');
  return { lang: fence[2]!.trim().split(/\s/, 1)[0]!, code };
}

function isClosedFence(raw: string): boolean {
  const fence = /^ {0,3}(`{3,}|~{3,})[^\n]*(?=\n)/.exec(raw);
  return fence !== null && raw.endsWith('\n') && closing(fence[1]!).test(raw.slice(fence[0].length));
}

const closing = (fence: string): RegExp => new RegExp(`\\n {0,3}${fence[0]}{${fence.length},}[ \\t]*(?:\\n|$)`);

const escape = (text: string): string => text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);

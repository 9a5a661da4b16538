import DOMPurify, { type Config } from 'dompurify';
import remend from 'remend';
import { openFence, settledLength, toHtml } from './blocks.ts';

const purify = DOMPurify();

const allowed: Config & { RETURN_DOM_FRAGMENT: true } = {
  ALLOWED_TAGS: ['p', 'br', 'hr', 'h1', 'h2', 'h3', 'h4', 'h5', 'h6', 'strong', 'b', 'em', 'i', 'u', 's', 'del', 'mark', 'sub', 'sup', 'kbd', 'code', 'pre', 'span',
    'blockquote', 'ul', 'ol', 'li', 'input', 'table', 'thead', 'tbody', 'tr', 'th', 'td', 'a', 'details', 'summary'],
  ALLOWED_ATTR: ['href', 'title', 'class', 'align', 'start', 'type', 'checked', 'disabled'],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto|tel):/i,
  ADD_URI_SAFE_ATTR: ['align', 'start', 'type'],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

purify.addHook('afterSanitizeAttributes', (node) => {
  if (node.nodeName === 'A') {
    node.setAttribute('target', '_blank');
    node.setAttribute('rel', 'noopener noreferrer nofollow');
  } else if (node.nodeName === 'INPUT') {
    // Only what marked writes for task lists.
    node.setAttribute('type', 'checkbox');
    node.setAttribute('disabled', '');
    node.setAttribute('aria-label', node.hasAttribute('checked') ? 'Done' : 'To do');
  }
});

/** Highlighting longer blocks costs more than it helps. */
const maxHighlighted = 50_000;

/**
 * Writes an answer into `host` while it grows, at a cost that does not depend on what is already settled: settled blocks become DOM
 * nodes once and are never touched again, the open tail is parsed anew, and an open code block only has its text changed.
 */
export class MarkdownStream {
  readonly #host: HTMLElement;
  readonly #tail = document.createElement('div');
  #settled = '';
  #seenLine = 0;
  #awaited: string | null = null;
  #due = 0;
  #code: HTMLElement | null = null;

  constructor(host: HTMLElement) {
    this.#host = host;
    this.#tail.className = 'tail';
    host.replaceChildren(this.#tail);
  }

  /**
   * `text` is the whole answer so far. It is drawn at the next frame, or later where drawing is dear (a long list is one open
   * block), so that drawing takes a quarter of the time at most.
   */
  grow(text: string): void {
    const scheduled = this.#awaited !== null;
    this.#awaited = text;
    if (scheduled) return;
    setTimeout(() => requestAnimationFrame(() => {
      if (this.#awaited === null) return;
      const start = performance.now();
      const newest = this.#awaited;
      this.#awaited = null;
      this.#settleBlocks(newest);
      this.#showTail(newest.slice(this.#settled.length));
      this.#due = start + 4 * (performance.now() - start);
    }), this.#due - performance.now());
  }

  /** Nothing follows; drawn before this returns. Open ends of what is `cut` are closed as in a growing text. */
  end(text: string, cut: boolean): void {
    this.#awaited = null;
    this.#settleBlocks(text);
    this.#settle(text, text.length - this.#settled.length, cut ? closeOpenEnds : undefined);
    this.#clearTail();
  }

  #settleBlocks(text: string): void {
    if (!text.startsWith(this.#settled)) this.#reset();
    const lines = text.lastIndexOf('\n') + 1;
    if (lines <= this.#seenLine) return;
    this.#seenLine = lines;
    this.#settle(text, settledLength(text.slice(this.#settled.length)));
  }

  #settle(text: string, length: number, mend = (markdown: string) => markdown): void {
    if (length === 0) return;
    const start = this.#settled.length;
    const blocks = render(toHtml(mend(text.slice(start, start + length))));
    for (const code of blocks.querySelectorAll('figure code')) void highlight(code as HTMLElement);
    this.#tail.before(blocks);
    this.#settled = text.slice(0, start + length);
    this.#clearTail();
  }

  #showTail(text: string): void {
    const fence = openFence(text);
    if (!fence) {
      this.#code = null;
      this.#tail.replaceChildren(render(toHtml(closeOpenEnds(text))));
      return;
    }
    if (!this.#code) {
      this.#tail.replaceChildren(codeFigure(fence.lang));
      this.#code = this.#tail.querySelector('code')!;
      this.#code.append('');
    }
    const shown = this.#code.firstChild as Text;
    if (fence.code.startsWith(shown.data)) shown.appendData(fence.code.slice(shown.data.length));
    else shown.data = fence.code;
  }

  #clearTail(): void {
    this.#code = null;
    this.#tail.replaceChildren();
  }

  #reset(): void {
    this.#settled = '';
    this.#seenLine = 0;
    this.#clearTail();
    this.#host.replaceChildren(this.#tail);
  }
}

/** So that a half-typed `**`, link or tag does not show as such. */
const closeOpenEnds = (markdown: string): string => remend(markdown, { linkMode: 'text-only', images: false });

/** The only door from model text to the page. */
function render(html: string): DocumentFragment {
  const fragment = purify.sanitize(html, allowed);
  for (const code of fragment.querySelectorAll('pre > code')) {
    const lang = /\blanguage-(\S+)/.exec(code.className)?.[1] ?? '';
    const figure = codeFigure(lang);
    figure.querySelector('code')!.textContent = (code.textContent ?? '').replace(/\n$/, '');
    code.parentElement!.replaceWith(figure);
  }
  for (const table of fragment.querySelectorAll('table')) {
    const scroller = document.createElement('div');
    scroller.className = 'table';
    scroller.tabIndex = 0;
    table.replaceWith(scroller);
    scroller.append(table);
  }
  return fragment;
}

function codeFigure(lang: string): HTMLElement {
  const figure = document.createElement('figure');
  const caption = document.createElement('figcaption');
  const name = document.createElement('span');
  name.textContent = lang || 'text';
  const copy = document.createElement('button');
  copy.type = 'button';
  copy.className = 'copy-code';
  copy.textContent = 'Copy';
  copy.setAttribute('aria-label', 'Copy code');
  caption.append(name, copy);
  const pre = document.createElement('pre');
  pre.tabIndex = 0;
  const code = document.createElement('code');
  code.dataset.lang = lang;
  pre.append(code);
  figure.append(caption, pre);
  return figure;
}

async function highlight(code: HTMLElement): Promise<void> {
  const text = code.textContent ?? '';
  if (!code.dataset.lang || text.length > maxHighlighted) return;
  const { toSpans } = await import('./highlight.ts');
  const html = toSpans(text, code.dataset.lang);
  if (html !== null) code.replaceChildren(purify.sanitize(html, { ...allowed, ALLOWED_TAGS: ['span'], ALLOWED_ATTR: ['class'] }));
}

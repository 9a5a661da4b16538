import assert from 'node:assert/strict';
import { test } from 'node:test';
import { openFence, settledLength, toHtml } from '../src/blocks.ts';

const documents = [
  'One paragraph\nof two lines.\n\nAnother with **bold** and `code`.\n\nSetext\n===\n\n# ATX\nright after\n\n---\n',
  '- a\n- b\n\n  still b\n\n- c\n  1. x\n  2. y\n\nAfter the list.\n\n1. one\n\n2. two\n3. three\n- other bullet\n* another list\n',
  '```csharp\nvar x = 1;\n\n# no heading\n```\nText\n~~~\n```\nnested\n~~~\n\n````md\n```\ninner\n```\n````\n\n    indented\n    code\n\nend\n',
  '| a | b |\n|---|--:|\n| 1 | 2 |\n| 3 | 4 |\n\n> quote\n> more\nlazy\n\n> second\n\n- [x] done\n- [ ] open\n',
  'Text <b>bold</b> List<string>\n\n<div>\nblock\n</div>\n\n![img](https://x.example/p.png) [l](https://x.example)\n\n<!-- note\n\nstill -->\n\nend',
  '```js\nnever closed\n\n- not a list\n',
];

/** What a stream of pieces shows in the end, block by block as MarkdownStream settles them. */
function streamed(text: string, pieces: number[]): string {
  let html = '';
  let settled = 0;
  let at = 0;
  for (let i = 0; at < text.length; i++) {
    at = Math.min(text.length, at + pieces[i % pieces.length]!);
    const length = settledLength(text.slice(settled, at));
    html += toHtml(text.slice(settled, settled + length));
    settled += length;
  }
  return html + toHtml(text.slice(settled));
}

for (const [i, text] of documents.entries()) {
  test(`document ${i} is the same however it arrives`, () => {
    const whole = toHtml(text);
    for (const pieces of [[1], [2, 3], [7], [1, 11, 4], [1000]]) assert.equal(streamed(text, pieces), whole, `pieces of ${pieces}`);
  });
}

test('finished blocks settle, so the tail stays short', () => {
  const text = documents.slice(0, 4).join('\n');
  assert.ok(settledLength(text) > text.length * 0.9);
  assert.equal(settledLength('para\n\n- open list\n\n'), 'para\n\n'.length);
  assert.equal(settledLength('```\ncode\n```\n'), '```\ncode\n```\n'.length, 'a fence is settled once it is closed');
  assert.equal(settledLength('no line end yet'), 0);
});

test('an open fence shows its code without the half-written closing', () => {
  assert.deepEqual(openFence('```c# title\nvar x;\n``'), { lang: 'c#', code: 'var x;\n' });
  assert.deepEqual(openFence('~~~\n```\n'), { lang: '', code: '```\n' });
  assert.equal(openFence('```js\nx\n```\n'), null);
  assert.equal(openFence('```js'), null);
  assert.equal(openFence('text\n```js\n'), null);
});

test('model text names no image and no tag of its own', () => {
  const html = toHtml('![p](https://evil.example/?d=1) <img src=x onerror=alert(1)> <script>x</script> List<int> a<br>b\n\n<div style="x">y</div>\n');
  assert.doesNotMatch(html, /<(img|script|div|int)/i);
  assert.match(html, /List&#60;int|List&lt;int/);
  assert.match(html, /a<br>b/);
});

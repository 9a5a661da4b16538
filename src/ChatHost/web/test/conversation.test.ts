import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  addLane, answers, apply, ask, edit, fail, keepLane, newConversation, path, promptOf, replace, retry, rows, select, setModel, siblings, titleOf,
  type Answer, type Conversation,
} from '../src/conversation.ts';
import type { GenerationEvent } from '../src/protocol.ts';

const stream: GenerationEvent[] = [
  { seq: 0, type: 'queued', id: 'g1', ahead: 2, promptTokens: 9 },
  { seq: 1, type: 'adapter_load', adapter: 'sha256:a' },
  { seq: 2, type: 'prefill', done: 4, total: 9 },
  { seq: 3, type: 'delta', text: 'Ahoy' },
  { seq: 4, type: 'delta', text: ' there' },
  { seq: 5, type: 'done', finishReason: 'stop', usage: { promptTokens: 9, completionTokens: 2, totalTokens: 11 } },
];

function complete(c: Conversation, text: (a: Answer) => string = (a) => `${a.model} says`): Conversation {
  for (const a of answers(c)) {
    if (a.state !== 'streaming') continue;
    const events: GenerationEvent[] = [{ seq: 0, type: 'delta', text: text(a) }, { seq: 1, type: 'done', finishReason: 'stop' }];
    c = replace(c, events.reduce((answer, event) => apply(answer, event), a));
  }
  return c;
}

const say = (c: Conversation, text: string): Conversation => complete(ask(c, text)[0]);
const shown = (c: Conversation, lane = 0): string[] => path(c, lane).map((m) => m.text);

test('an answer is the sum of its events, and a replay from anywhere adds nothing', () => {
  const [c, [id]] = ask(newConversation('harbor'), 'Hi');
  const start = c.messages[id!] as Answer;
  const whole = stream.reduce((a, e) => apply(a, e, 5), start);
  assert.equal(whole.text, 'Ahoy there');
  assert.equal(whole.state, 'complete');
  assert.equal(whole.completionTokens, 2);
  assert.equal(whole.run, undefined);
  for (let cut = 0; cut < stream.length; cut++) {
    const before = stream.slice(0, cut).reduce((a, e) => apply(a, e, 5), start);
    const stored = JSON.parse(JSON.stringify(before)) as Answer;
    for (let from = 0; from <= cut; from++) assert.deepEqual({ ...stream.slice(from).reduce((a, e) => apply(a, e, 5), stored) }, { ...whole });
  }
});

test('progress is told before text comes, and gone when it ends', () => {
  const [c, [id]] = ask(newConversation('harbor'), 'Hi');
  const seen: string[] = [];
  stream.reduce((a, e) => {
    const next = apply(a, e);
    seen.push(next.phase?.kind ?? '-');
    return next;
  }, c.messages[id!] as Answer);
  assert.deepEqual(seen, ['queued', 'loading', 'prefill', 'writing', 'writing', '-']);
});

test('an error keeps the text so far', () => {
  const [c, [id]] = ask(newConversation('harbor'), 'Hi');
  const broken = apply(apply(c.messages[id!] as Answer, { seq: 0, type: 'delta', text: 'Ah' }), { seq: 1, type: 'error', code: 'internal_error', message: 'no' });
  assert.deepEqual([broken.text, broken.state, broken.error?.code], ['Ah', 'error', 'internal_error']);
});

test('editing branches, and both branches can be shown again', () => {
  let c = say(say(newConversation('harbor'), 'one'), 'two');
  const first = rows(c)[0]![0]!;
  c = complete(edit(c, first, 'ONE')[0]);
  assert.deepEqual(shown(c), ['ONE', 'harbor says']);
  const cell = rows(c)[0]![0]!;
  const both = siblings(c, cell);
  assert.deepEqual(both.map((m) => m.text), ['one', 'ONE']);
  assert.deepEqual(shown(select(c, cell, both[0]!.id)), ['one', 'harbor says', 'two', 'harbor says']);
});

test('regenerating with another model adds a sibling and moves the lane to that model', () => {
  let c = say(newConversation('harbor'), 'one');
  c = complete(retry(c, rows(c)[1]![0]!, 'base')[0]);
  assert.deepEqual(shown(c), ['one', 'base says']);
  assert.equal(c.lanes[0]!.model, 'base');
  assert.equal(siblings(c, rows(c)[1]![0]!).length, 2);
});

test('lanes share what was said before them and the question, not the answers', () => {
  let c = say(newConversation('harbor'), 'one');
  c = setModel(addLane(addLane(c, 'base'), 'x'), 2, 'lora');
  c = say(say(c, 'two'), 'three');
  assert.deepEqual(rows(c).map((r) => r.map((cell) => cell.lanes)), [[[0, 1, 2]], [[0, 1, 2]], [[0, 1, 2]], [[0], [1], [2]], [[0, 1, 2]], [[0], [1], [2]]]);
  assert.deepEqual(shown(c, 1), ['one', 'harbor says', 'two', 'base says', 'three', 'base says']);
  for (const cell of rows(c)[3]!) assert.deepEqual(siblings(c, cell), [cell.message], 'what another lane shows is not an alternative');
  const kept = keepLane(c, 2);
  assert.deepEqual(shown(kept), ['one', 'harbor says', 'two', 'lora says', 'three', 'lora says']);
  assert.equal(siblings(kept, rows(kept)[3]![0]!).length, 3);
});

test('editing while lanes are compared asks in every lane anew', () => {
  let c = say(say(addLane(newConversation('harbor'), 'base'), 'one'), 'two');
  c = complete(edit(c, rows(c)[2]![0]!, 'TWO')[0]);
  assert.deepEqual([shown(c, 0), shown(c, 1)], [['one', 'harbor says', 'TWO', 'harbor says'], ['one', 'base says', 'TWO', 'base says']]);
});

test('the prompt is the walk to the question, without turns that failed silently', () => {
  let c = say(newConversation('harbor'), 'one');
  const [asked, [failed]] = ask(c, 'lost');
  c = replace(asked, fail(asked.messages[failed!] as Answer, 'lost', 'gone'));
  const [d, [id]] = ask(c, 'two');
  assert.deepEqual(promptOf(d, id!, ' be brief '), [
    { role: 'system', content: ' be brief ' }, { role: 'user', content: 'one' }, { role: 'assistant', content: 'harbor says' }, { role: 'user', content: 'two' },
  ]);
  assert.equal(promptOf(d, id!, '  ')[0]!.role, 'user');
});

test('a title is the first line, shortened', () => {
  assert.equal(titleOf('\n Hello \nworld'), 'Hello');
  assert.equal(titleOf('x'.repeat(80)).length, 60);
});

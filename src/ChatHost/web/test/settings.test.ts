import assert from 'node:assert/strict';
import { test } from 'node:test';
import { age, bytes, stats } from '../src/format.ts';
import type { Answer } from '../src/conversation.ts';
import { parseStops, writeStops } from '../src/settings.ts';

test('stop strings are written one a line, with escapes, and read back', () => {
  const stops = ['\n\n', 'END', '\\n', '\t'];
  assert.deepEqual(parseStops(writeStops(stops)), stops);
  assert.deepEqual(parseStops('\\n\\n\n\nEND'), ['\n\n', 'END']);
});

test('sizes and ages read well', () => {
  assert.deepEqual([bytes(456_000), bytes(1_500_000), bytes(12)], ['456 KB', '1.5 MB', '12 B']);
  const now = new Date(2026, 10, 22, 9).getTime();
  assert.deepEqual([1, 10, 40, 400].map((hours) => age(now - hours * 3_600_000, now)), ['Today', 'Yesterday', 'Last 7 days', 'Earlier']);
});

test('an answer without tokens has no speed', () => {
  const answer = { role: 'assistant', state: 'stopped', at: 0, completionTokens: 0, promptTokens: 3, timings: { tokensPerSecond: 0, timeToFirstTokenMs: 4 } } as Answer;
  assert.deepEqual(stats(answer, 10).map((s) => s.value), ['3 in, 0 out']);
});

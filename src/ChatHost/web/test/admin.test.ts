import assert from 'node:assert/strict';
import { test } from 'node:test';
import { aliases, byDay, deed, few, filled, hashOf, hoursIn, inOrder, onDisk, pageOf, pick, size, sorted, summary, tally, tryLanes, type Page } from '../src/admin.ts';
import { percent } from '../src/format.ts';
import type { AdapterCard, AuditEntry, Finding, Severity, UsageCard } from '../src/protocol.ts';

const card: AdapterCard = { name: 'harbor', etag: 'e', createdAt: '', active: 'v2', previous: 'v1', canary: { version: 'v3', share: 10 }, versions: 3, pinned: false };
const finding = (severity: Severity, code: string): Finding => ({ code, severity, what: '', where: '', expected: null, found: null, fix: null });
const picked = (...paths: string[]) => pick(paths.map((path) => ({ path, file: path })));

test('every page has an address that leads back to it', () => {
  const pages: Page[] = [{ view: 'adapters' }, { view: 'adapters', name: 'a b/ü%' }, { view: 'memory' }, { view: 'usage' }, { view: 'keys' }, { view: 'audit' }, { view: 'chat' }];
  for (const page of pages) assert.deepEqual(pageOf(hashOf(page)), page);
  assert.deepEqual(pageOf('#/0f0e4b6c-9a2b-4d55-8c76-3f1d5a9f0b11'), { view: 'chat' });
  assert.deepEqual(pageOf('#/adapters/50%'), { view: 'adapters', name: '50%' });
});

test('a size is told beside what plain LoRA would take, where that is more', () => {
  assert.deepEqual(size({ bytes: 456_000, expandedBytes: 1_824_000 }), { words: '456 KB, 25\u00a0% of the 1.8 MB of plain LoRA', share: 0.25 });
  assert.deepEqual(size({ bytes: 1_824_000, expandedBytes: 1_824_000 }), { words: '1.8 MB', share: null });
  assert.equal(percent(0.001), '<1\u00a0%');
});

test('the disk is told with its quota, where there is one', () => {
  assert.equal(onDisk({ bytes: 640_000, quota: 1_048_576 }), 'All versions take 640 KB of the 1.0 MB that they may take on the disk.');
  assert.equal(onDisk({ bytes: 640_000, quota: null }), 'All versions take 640 KB on the disk.');
});

test('aliases come in the order of their weight', () => {
  assert.deepEqual(aliases(card).map((a) => `${a.alias} ${a.version}`), ['active v2', 'canary v3', 'previous v1']);
  assert.deepEqual(aliases(card, 'v3'), [{ alias: 'canary', version: 'v3', share: 10 }]);
  assert.deepEqual(aliases({ ...card, active: null, canary: null, previous: null }), []);
});

test('a version is tried beside what answers now', () => {
  const steady = { ...card, canary: null };
  assert.deepEqual(tryLanes(steady, 'v1', 'base'), ['harbor', 'harbor@v1']);
  assert.deepEqual(tryLanes(card, 'v3', 'base'), ['harbor@active', 'harbor@v3']);
  assert.deepEqual(tryLanes(steady, 'v2', 'base'), ['base', 'harbor@v2']);
  assert.deepEqual(tryLanes({ ...steady, active: null }, 'v1', undefined), ['harbor@v1']);
});

test('errors come first and keep their order', () => {
  const findings = [finding('information', 'a'), finding('error', 'b'), finding('warning', 'c'), finding('error', 'd')];
  assert.deepEqual(inOrder(findings).map((f) => f.code), ['b', 'd', 'c', 'a']);
  assert.equal(tally(findings), '2 errors, 1 warning, 1 note');
  assert.equal(tally([]), 'nothing found');
});

test('an entry of the audit says what became what, and one that this page does not know says its own name', () => {
  const entry: AuditEntry = { id: 1, at: '', who: 'anna', action: 'activate', adapter: 'harbor', from: 'v1', to: 'v2', why: null };
  assert.deepEqual(deed(entry), { what: 'Activated', adapter: 'harbor', change: 'v1 → v2' });
  assert.deepEqual(deed({ ...entry, action: 'upload', from: null }), { what: 'Uploaded', adapter: 'harbor', change: 'v2' });
  assert.deepEqual(deed({ ...entry, action: 'frozen', adapter: null, from: null, to: null }), { what: 'frozen', adapter: '', change: '' });
});

test('two files, a folder or an archive is an adapter; what lies beside it is named', () => {
  assert.deepEqual(picked('adapter_model.safetensors', 'adapter_config.json'), { kind: 'pair', config: 'adapter_config.json', weights: 'adapter_model.safetensors', name: '', others: [] });
  assert.deepEqual(picked('/harbor/README.md', '/harbor/adapter_config.json', '/harbor/adapter_model.safetensors'),
    { kind: 'pair', config: '/harbor/adapter_config.json', weights: '/harbor/adapter_model.safetensors', name: 'harbor', others: ['harbor/README.md'] });
  assert.deepEqual(picked('night.tar.gz', 'notes.txt'), { kind: 'archive', archive: 'night.tar.gz', type: 'application/gzip', name: 'night', others: ['notes.txt'] });
  assert.deepEqual(picked('Night.ZIP'), { kind: 'archive', archive: 'Night.ZIP', type: 'application/zip', name: 'Night', others: [] });
});

test('of a trainer’s folder the outermost adapter is taken, not a checkpoint in it', () => {
  const result = picked('run/checkpoint-10/adapter_config.json', 'run/checkpoint-10/adapter_model.safetensors', 'run/adapter_config.json', 'run/adapter_model.safetensors');
  assert.equal(result.kind === 'pair' && result.weights, 'run/adapter_model.safetensors');
});

test('what is no adapter is refused in words that help', () => {
  const why = (...paths: string[]): string => {
    const result = picked(...paths);
    return result.kind === 'nothing' ? result.why : '';
  };
  assert.match(why('adapter_config.json'), /^adapter_model\.safetensors is missing/);
  assert.match(why('a/adapter_config.json', 'b/adapter_model.safetensors'), /is missing/);
  assert.match(why('adapter_model.safetensors'), /^adapter_config\.json is missing/);
  assert.match(why('adapter_config.json', 'adapter_model.bin'), /pickle/);
  assert.match(why('a/adapter_config.json', 'a/adapter_model.safetensors', 'b/adapter_config.json', 'b/adapter_model.safetensors'), /several adapters: a, b/);
  assert.match(why('a.zip', 'b.zip'), /several archives: a\.zip, b\.zip/);
  assert.match(why('photo.jpg'), /photo\.jpg/);
  assert.equal(few(['a', 'b', 'c'], 2), 'a, b and 1 more');
});

test('usage: hours without requests are zero, and days are those of the clock on the wall', () => {
  const zone = process.env.TZ;
  try {
    for (process.env.TZ of ['UTC', 'Asia/Kolkata', 'America/New_York']) {
      const midnight = new Date(2026, 2, 9).getTime(); // the day after New York lost an hour
      for (const now of [midnight, midnight + 1, midnight + 20 * 60_000, midnight + 23.9 * 3_600_000]) {
        const count = hoursIn(7, now);
        const first = (Math.floor(now / 3_600_000) - count + 1) * 3_600_000;
        const at = (hour: number) => new Date(first + hour * 3_600_000).toISOString();
        const used = { requests: 1, errors: 0, promptTokens: 10, completionTokens: 5 };
        const hours = filled({ from: at(0), count, hours: [{ hour: at(0), ...used }, { hour: at(2), ...used }, { hour: at(count - 1), ...used }] });
        assert.deepEqual([hours.length, hours[0]!.at, hours[1]!.requests, hours[2]!.promptTokens], [count, first, 0, 10]);
        const days = byDay(hours);
        const last = new Date(Math.floor(now / 3_600_000) * 3_600_000).getDate(); // in India midnight is amid an hour
        assert.deepEqual(days.map((d) => new Date(d.at).getDate()), [3, 4, 5, 6, 7, 8, 9].filter((d) => d <= last), `${process.env.TZ} ${now - midnight}`);
        assert.deepEqual(days.map((d) => d.requests), days.map((_, i) => (i === 0 ? 2 : 0) + (i === days.length - 1 ? 1 : 0)));
        assert.deepEqual(summary(days).total, { requests: 3, errors: 0, promptTokens: 30, completionTokens: 15 });
        assert.equal(summary(days).peak, days[0]);
      }
    }
  } finally {
    if (zone === undefined) delete process.env.TZ;
    else process.env.TZ = zone;
  }
  assert.equal(hoursIn(1, Date.now()), 24);
  assert.ok(hoursIn(90, Date.now()) <= 2160);
});

test('usage is sorted by any column, what has no value last', () => {
  const cards = [['a', 'v9', 1, null], ['b', null, 3, 20], ['a', 'v10', 2, 10]].map(([name, version, requests, firstTokenP50]) => ({ name, version, requests, firstTokenP50 }) as UsageCard);
  const order = (by: keyof UsageCard, down: boolean) => sorted(cards, by, down).map((c) => c.requests);
  assert.deepEqual(order('requests', true), [3, 2, 1]);
  assert.deepEqual(order('version', false), [1, 2, 3]);
  assert.deepEqual(order('version', true), [2, 1, 3]);
  assert.deepEqual(order('firstTokenP50', false), [2, 3, 1]);
  assert.deepEqual(order('name', false), [1, 2, 3]);
});

import { useEffect, useRef, useState } from 'preact/hooks';
import type uPlot from 'uplot';
import { byDay, filled, periods, sorted, summary, type Admin, type Slot } from '../admin.ts';
import type { UsageCard } from '../protocol.ts';
import { Loading, PageTitle } from './Admin.tsx';
import { Icon } from './parts.tsx';

const number = new Intl.NumberFormat();
/** The server tells percentiles to within a fifth. */
const about = new Intl.NumberFormat(undefined, { maximumSignificantDigits: 2 });
const milliseconds = new Intl.NumberFormat(undefined, { maximumSignificantDigits: 2, style: 'unit', unit: 'millisecond' });
const seconds = new Intl.NumberFormat(undefined, { maximumSignificantDigits: 2, style: 'unit', unit: 'second' });
const compact = new Intl.NumberFormat(undefined, { notation: 'compact' });
const hourOf = new Intl.DateTimeFormat(undefined, { weekday: 'short', hour: 'numeric', minute: '2-digit' });
const timeOf = new Intl.DateTimeFormat(undefined, { hour: 'numeric' });
const dayOf = new Intl.DateTimeFormat(undefined, { month: 'short', day: 'numeric' });

const duration = (ms: number): string => (ms < 1000 ? milliseconds.format(ms) : seconds.format(ms / 1000));

const named = (n: number, word: string): string => `${number.format(n)} ${word}${n === 1 ? '' : 's'}`;

type Column = { by: keyof UsageCard; name: string; show?: (value: number) => string };

const columns: Column[] = [
  { by: 'name', name: 'Adapter' },
  { by: 'version', name: 'Version' },
  { by: 'requests', name: 'Requests' },
  { by: 'promptTokens', name: 'Tokens\u00a0in' },
  { by: 'completionTokens', name: 'Tokens\u00a0out' },
  { by: 'errors', name: 'Errors' },
  { by: 'cancelled', name: 'Cancelled' },
  { by: 'firstTokenP50', name: 'First\u00a0token p50', show: duration },
  { by: 'firstTokenP95', name: 'First\u00a0token p95', show: duration },
  { by: 'tokensPerSecondP50', name: 'Tokens/s p50', show: about.format },
];

export function UsageView({ admin }: { admin: Admin }) {
  const usage = admin.usage.value;
  const days = admin.period.value;
  return (
    <>
      <header class="page-head">
        <PageTitle>Usage</PageTitle>
        <button type="button" class="secondary" data-testid="refresh" onClick={() => void admin.read()}><Icon name="retry" />Refresh</button>
        <fieldset class="segments" data-testid="usage-period">
          <legend class="sr-only">Period</legend>
          {periods.map((p) => <label key={p.days}><input type="radio" name="period" checked={p.days === days} onChange={() => void admin.look(p.days)} /><span>{p.name}</span></label>)}
        </fieldset>
      </header>
      {!usage || (usage.days !== days && admin.problem.value) ? <Loading admin={admin} /> : (
        <div class="usage" data-testid="usage">
          {usage.adapters.length === 0
            ? <p class="empty-list" role="status">Nobody has asked anything in the last {periods.find((p) => p.days === usage.days)!.name}.</p>
            : <Used adapters={usage.adapters} slots={usage.days > 1 ? byDay(filled(usage)) : filled(usage)} days={usage.days} />}
        </div>
      )}
    </>
  );
}

function Used({ adapters, slots, days }: { adapters: UsageCard[]; slots: Slot[]; days: number }) {
  const { total, peak } = summary(slots);
  const at = (slot: Slot): string => (days > 1 ? dayOf : hourOf).format(slot.at);
  const told = ({ requests, promptTokens, completionTokens }: Omit<Slot, 'at'>): string => `${named(requests, 'request')} and ${named(promptTokens + completionTokens, 'token')}`;
  const period = `the last ${periods.find((p) => p.days === days)!.name}`;
  return (
    <>
      <dl class="card totals">
        {([['Requests', total.requests], ['Tokens in', total.promptTokens], ['Tokens out', total.completionTokens], ['Errors', total.errors]] as const)
          .map(([name, value]) => <div key={name} data-testid="usage-total"><dt>{name}</dt><dd>{number.format(value)}</dd></div>)}
      </dl>
      <TimeLine slots={slots} daily={days > 1} tell={(slot) => `${at(slot)}: ${told(slot)}`} label={`${told(total)} in ${period}, by the ${days > 1 ? 'day' : 'hour'}. Peak: ${at(peak)}, ${told(peak)}.`} />
      <UsageTable adapters={adapters} />
    </>
  );
}

// ── the time line ────────────────────────────────────────────────────────────────────────────────────────────────────────────

const whole = Array.from({ length: 15 }, (_, i) => [1, 2, 5].map((n) => n * 10 ** i)).flat();

function TimeLine({ slots, daily, tell, label }: { slots: Slot[]; daily: boolean; tell: (slot: Slot) => string; label: string }) {
  const box = useRef<HTMLDivElement>(null);
  const [pointed, setPointed] = useState<number | null>(null);
  const plot = useRef<uPlot | undefined>(undefined);
  const data = useRef<uPlot.AlignedData>([[]]);
  data.current = [slots.map((s) => s.at / 1000), slots.map((s) => s.promptTokens + s.completionTokens), slots.map((s) => s.requests)];

  useEffect(() => {
    const host = box.current!;
    const over = new AbortController();
    const resized = new ResizeObserver(() => plot.current?.setSize(sizeOf(host)));
    const recoloured = new MutationObserver(() => plot.current?.redraw(false));
    void import('uplot').then(({ default: Plot }) => {
      if (over.signal.aborted) return;
      plot.current = new Plot(options(Plot, host, daily, setPointed), data.current, host);
      resized.observe(host);
      recoloured.observe(document.documentElement, { attributeFilter: ['data-theme'] });
      matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => plot.current?.redraw(false), over);
    });
    return () => {
      over.abort();
      resized.disconnect();
      recoloured.disconnect();
      plot.current?.destroy();
      plot.current = undefined;
    };
  }, [daily]);
  useEffect(() => plot.current?.setData(data.current), [slots]);

  const slot = pointed === null ? undefined : slots[pointed];
  return (
    <figure class="card time-line">
      <figcaption aria-hidden="true"><span class="tokens">Tokens</span><span class="requests">Requests</span>{slot && <span class="grow figure">{tell(slot)}</span>}</figcaption>
      <div ref={box} role="img" aria-label={label} data-testid="usage-chart" />
    </figure>
  );
}

const sizeOf = (box: HTMLElement): { width: number; height: number } => ({ width: box.clientWidth, height: box.clientHeight });

function options(Plot: typeof uPlot, box: HTMLElement, daily: boolean, point: (slot: number | null) => void): uPlot.Options {
  // Asked at each drawing: a canvas does not know the page's variables, nor which theme holds.
  const colour = (name: string) => (): string => {
    box.style.color = `var(--${name})`;
    const { color } = getComputedStyle(box);
    box.style.color = '';
    return color;
  };
  const { fontFamily } = getComputedStyle(box);
  const axis = (scale: string, ink: string): uPlot.Axis => ({
    scale, stroke: colour(ink), gap: 6, size: (_, values) => 14 + 7 * Math.max(1, ...(values ?? []).map((v) => v.length)), font: `12px ${fontFamily}`, ticks: { show: false }, grid: { show: scale === 'tokens', stroke: colour('line'), width: 1 },
    incrs: whole, values: (_, splits) => splits.map((n) => compact.format(n)),
  });
  const half = daily ? 43_200 : 1800;
  const fromZero: uPlot.Scale = { range: (_, __, most) => [0, Math.max(1, most * 1.05)] };
  return {
    ...sizeOf(box),
    legend: { show: false },
    cursor: { y: false, points: { show: false }, drag: { x: false, y: false } },
    scales: { x: { range: (_, from, to) => [from - half, to + half] }, tokens: fromZero, requests: fromZero },
    axes: [
      { ...axis('x', 'soft'), incrs: (daily ? [1, 2, 7, 14, 28] : [1, 2, 3, 6]).map((n) => n * 2 * half), space: 60, size: 26, values: (_, splits) => splits.map((s) => (daily ? dayOf : timeOf).format(s * 1000)) },
      axis('tokens', 'accent'),
      { ...axis('requests', 'warning'), side: 1 },
    ],
    series: [
      {},
      { scale: 'tokens', fill: colour('bars'), width: 0, paths: Plot.paths.bars!({ size: [0.7, 40] }), points: { show: false } },
      { scale: 'requests', stroke: colour('warning'), width: 2, points: { size: 6, fill: colour('warning'), filter: (u) => (u.data[2] as number[]).flatMap((n, i) => (n && u.data[0].length < 40 ? [i] : [])) } },
    ],
    hooks: { setCursor: [(u) => point(u.cursor.idx ?? null)] },
  };
}

// ── the table ────────────────────────────────────────────────────────────────────────────────────────────────────────────────

function UsageTable({ adapters }: { adapters: UsageCard[] }) {
  const [{ by, down }, order] = useState<{ by: keyof UsageCard; down: boolean }>({ by: 'requests', down: true });
  return (
    <div class="scroll" role="region" aria-label="Usage by adapter and version" tabIndex={0}>
      <table class="usage-table">
        <thead>
          <tr>
            {columns.map((c) => (
              <th key={c.by} scope="col" aria-sort={c.by !== by ? undefined : down ? 'descending' : 'ascending'}>
                <button type="button" data-testid="usage-sort" data-by={c.by} onClick={() => order({ by: c.by, down: c.by === by ? !down : c.by !== 'name' && c.by !== 'version' })}>{c.name}</button>
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {sorted(adapters, by, down).map((card) => (
            <tr key={`${card.name} ${card.version}`} data-testid="usage-row" data-name={card.name} data-version={card.version ?? undefined}>
              <th scope="row">{card.name}{card.version === null && <small> base model</small>}</th>
              <td title={card.version ?? undefined}>{card.version?.replace(/^sha256:(.{12}).*/, '$1')}</td>
              {columns.slice(2).map(({ by, show = number.format }) => <td key={by} class="figure">{card[by] === null ? '–' : show(card[by] as number)}</td>)}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

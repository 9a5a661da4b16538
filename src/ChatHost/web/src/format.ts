import type { Answer } from './conversation.ts';
import type { ModelCard } from './protocol.ts';

const number = new Intl.NumberFormat('en');

export const count = (n: number): string => number.format(n);

export const bytes = (n: number): string => (n < 1000 ? `${n} B` : n < 1e6 ? `${Math.round(n / 1000)} KB` : n < 1e9 ? `${(n / 1e6).toFixed(1)} MB` : `${(n / 1e9).toFixed(1)} GB`);

export const milliseconds = (ms: number): string => (ms < 10 ? `${ms.toFixed(1)} ms` : ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);

const kinds: Record<string, string> = { prolora: 'PRoLoRA', lora: 'LoRA' };

/** "PRoLoRA r16". */
export const kindOf = ({ kind, rank }: { kind: string; rank: number }): string => `${kinds[kind] ?? kind} r${rank}`;

/** "PRoLoRA r16 · 456 KB", or "base model". Single versions, `name@v2`, can be asked without being listed. */
export const describe = (card: ModelCard | undefined, id = ''): string =>
  card?.adapter ? `${kindOf(card.adapter)} · ${bytes(card.adapter.bytes)}` : card ? 'base model' : id.includes('@') ? 'this version only' : 'no longer offered';

/** The sign stands off by a space that does not break. */
export const percent = (share: number): string => (share > 0 && share < 0.01 ? '<1\u00a0%' : `${Math.round(share * 100)}\u00a0%`);

export const plural = (n: number, word: string): string => `${count(n)} ${word}${n === 1 ? '' : 's'}`;

const moment = new Intl.DateTimeFormat('en', { dateStyle: 'medium', timeStyle: 'short' });

/** "Nov 27, 2026, 9:39 PM", by this browser's clock. */
export const when = (iso: string): string => (Number.isNaN(Date.parse(iso)) ? iso : moment.format(new Date(iso)));

/** What is known of an answer's speed and size, in reading order; live values until the server's own come. */
export function stats(answer: Answer, now: number): { name: string; value: string }[] {
  const facts: { name: string; value: string }[] = [];
  const { completionTokens: tokens, promptTokens, timings, firstTextAt, estimated } = answer;
  const seconds = firstTextAt === undefined ? 0 : (now - firstTextAt) / 1000;
  const rate = tokens === 0 ? undefined : timings?.tokensPerSecond ?? (answer.state === 'streaming' && tokens && seconds > 0.25 ? tokens / seconds : undefined);
  const first = tokens === 0 ? undefined : timings?.timeToFirstTokenMs ?? (firstTextAt === undefined ? undefined : firstTextAt - answer.at);
  const about = estimated ? '≈' : '';
  if (rate) facts.push({ name: 'Speed', value: `${about && !timings ? about : ''}${rate < 10 ? rate.toFixed(1) : count(Math.round(rate))} tok/s` });
  if (first !== undefined) facts.push({ name: 'Time to first token', value: `first token ${milliseconds(first)}` });
  const sizes = [promptTokens === undefined ? '' : `${count(promptTokens)} in`, tokens === undefined ? '' : `${about}${count(tokens)} out`].filter(Boolean);
  if (sizes.length > 0) facts.push({ name: 'Prompt and completion tokens', value: `${sizes.join(', ')}` });
  return facts;
}

/** What goes on before the first text, in words; null once text flows. */
export function progress(answer: Answer): { words: string; share?: number } | null {
  const phase = answer.phase;
  switch (phase?.kind) {
    case 'sending': return { words: 'Sending…' };
    case 'queued': return { words: phase.ahead > 0 ? `Waiting, ${phase.ahead} ahead…` : 'Waiting for a free place…' };
    case 'loading': return { words: 'Loading the adapter…' };
    case 'prefill': return { words: `Reading the prompt, ${count(phase.done)} of ${count(phase.total)} tokens`, share: phase.total > 0 ? phase.done / phase.total : undefined };
    default: return null;
  }
}

/** The heading under which a conversation is listed. */
export function age(at: number, now = Date.now()): string {
  const midnight = new Date(now).setHours(0, 0, 0, 0);
  const days = Math.ceil((midnight - at) / 86_400_000);
  return days <= 0 ? 'Today' : days === 1 ? 'Yesterday' : days <= 7 ? 'Last 7 days' : 'Earlier';
}

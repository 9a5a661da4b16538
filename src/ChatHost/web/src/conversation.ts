/**
 * A conversation is a tree of messages that never change their place; a lane is a walk from the root to one leaf. One lane is an
 * ordinary chat. Several lanes are models side by side. Editing and regenerating add siblings and move the lane's leaf.
 * Everything here is pure: values in, values out.
 */
import type { GenerationEvent, PromptMessage, Timings, Usage } from './protocol.ts';

interface Node {
  id: string;
  parent: string | null;
  text: string;
  /** Unix milliseconds. */
  at: number;
}

export interface Question extends Node {
  role: 'user';
}

export type AnswerState = 'streaming' | 'complete' | 'stopped' | 'error';

/** What the server does before the first text comes. */
export type Phase =
  | { kind: 'sending' }
  | { kind: 'queued'; ahead: number }
  | { kind: 'loading' }
  | { kind: 'prefill'; done: number; total: number }
  | { kind: 'writing' };

export interface Answer extends Node {
  role: 'assistant';
  model: string;
  state: AnswerState;
  phase?: Phase;
  /** The generation in the server and the first event not yet taken: enough to go on after a reload. */
  run?: { id?: string; next: number };
  finishReason?: 'stop' | 'length' | 'stopped';
  error?: { code: string; message: string };
  promptTokens?: number;
  /** Counted by the server or, while it streams without counts, estimated from the text. */
  completionTokens?: number;
  estimated?: boolean;
  /** When the first text came, Unix milliseconds by this browser's clock. */
  firstTextAt?: number;
  usage?: Usage;
  timings?: Timings;
  adapter?: string | null;
  fingerprint?: string | null;
}

export type Message = Question | Answer;

export interface Lane {
  model: string;
  leaf: string | null;
}

export interface Conversation {
  id: string;
  title: string;
  createdAt: number;
  updatedAt: number;
  lanes: Lane[];
  messages: Record<string, Message>;
}

/** Messages of one depth that the lanes share (one cell) or not (one each). */
export interface Cell {
  message: Message;
  lanes: number[];
  depth: number;
}

export const maxLanes = 4;

export const newConversation = (model: string, now = Date.now()): Conversation =>
  ({ id: crypto.randomUUID(), title: '', createdAt: now, updatedAt: now, lanes: [{ model, leaf: null }], messages: {} });

export const isStreaming = (c: Conversation): boolean => answers(c).some((a) => a.state === 'streaming');

export const answers = (c: Conversation): Answer[] => Object.values(c.messages).filter((m) => m.role === 'assistant');

/** From the root to the lane's leaf. */
export function path(c: Conversation, lane: number): Message[] {
  const walk: Message[] = [];
  for (let id = c.lanes[lane]?.leaf ?? null; id !== null;) {
    const message = c.messages[id];
    if (!message) break;
    walk.push(message);
    id = message.parent;
  }
  return walk.reverse();
}

/** The lanes beside each other, one row per depth. Equal questions are one cell even where the lanes' histories differ. */
export function rows(c: Conversation): Cell[][] {
  const paths = c.lanes.map((_, lane) => path(c, lane));
  const depth = Math.max(...paths.map((p) => p.length));
  return Array.from({ length: depth }, (_, d) => {
    const cells: Cell[] = [];
    paths.forEach((p, lane) => {
      const message = p[d];
      if (!message) return;
      const shared = cells.find((cell) => cell.message.id === message.id || (message.role === 'user' && cell.message.role === 'user' && cell.message.text === message.text));
      if (shared) shared.lanes.push(lane);
      else cells.push({ message, lanes: [lane], depth: d });
    });
    return cells;
  });
}

/** Asks in every lane. Returns the new answers' ids beside the conversation. */
export const ask = (c: Conversation, text: string, now = Date.now()): [Conversation, string[]] =>
  branch(c, text, c.lanes.map((lane, i) => ({ lane: i, parent: lane.leaf })), now);

/** Asks anew in the cell's place; the earlier question and what followed it stay as a sibling. */
export const edit = (c: Conversation, cell: Cell, text: string, now = Date.now()): [Conversation, string[]] =>
  branch(c, text, cell.lanes.map((lane) => ({ lane, parent: path(c, lane)[cell.depth]?.parent ?? null })), now);

/** Another answer to the same question, by the same model or another; the lane moves to it and keeps that model. */
export function retry(c: Conversation, cell: Cell, model?: string, now = Date.now()): [Conversation, string[]] {
  const old = cell.message as Answer;
  const fresh = newAnswer(old.parent, model ?? old.model, now);
  return [{
    ...c,
    updatedAt: now,
    messages: { ...c.messages, [fresh.id]: fresh },
    lanes: c.lanes.map((lane, i) => (cell.lanes.includes(i) ? { model: fresh.model, leaf: fresh.id } : lane)),
  }, [fresh.id]];
}

/** The cell's message and its alternatives, oldest first, without those that other lanes show. */
export function siblings(c: Conversation, cell: Cell): Message[] {
  const elsewhere = new Set(c.lanes.flatMap((_, i) => (cell.lanes.includes(i) ? [] : path(c, i).map((m) => m.id))));
  return Object.values(c.messages).filter((m) => m.parent === cell.message.parent && m.role === cell.message.role && !elsewhere.has(m.id));
}

/** Moves the cell's lanes to a sibling and down to its latest leaf, preferring answers by the lane's own model. */
export function select(c: Conversation, cell: Cell, id: string): Conversation {
  const lanes = c.lanes.map((lane, i) => (cell.lanes.includes(i) ? { ...lane, leaf: latestLeaf(c, id, lane.model) } : lane));
  return { ...c, lanes };
}

/** A new lane shares everything said so far in the first. */
export const addLane = (c: Conversation, model: string): Conversation =>
  c.lanes.length < maxLanes ? { ...c, lanes: [...c.lanes, { model, leaf: c.lanes[0]?.leaf ?? null }] } : c;

export const removeLane = (c: Conversation, lane: number): Conversation =>
  c.lanes.length > 1 ? { ...c, lanes: c.lanes.filter((_, i) => i !== lane) } : c;

export const keepLane = (c: Conversation, lane: number): Conversation => ({ ...c, lanes: c.lanes.slice(lane, lane + 1) });

export const setModel = (c: Conversation, lane: number, model: string): Conversation =>
  ({ ...c, lanes: c.lanes.map((l, i) => (i === lane ? { ...l, model } : l)) });

/** What the model is to read before it writes this answer. A question whose answer failed without a word is left out. */
export function promptOf(c: Conversation, answerId: string, system: string): PromptMessage[] {
  const prompt: PromptMessage[] = [];
  for (let id = c.messages[answerId]?.parent ?? null, skip = false; id !== null;) {
    const message: Message | undefined = c.messages[id];
    if (!message) break;
    if (message.role === 'assistant' && message.text === '') skip = true;
    else if (skip) skip = false;
    else prompt.push({ role: message.role, content: message.text });
    id = message.parent;
  }
  if (system.trim() !== '') prompt.push({ role: 'system', content: system });
  return prompt.reverse();
}

/** The answer after one more event. An event that was already taken changes nothing, so a replay cannot double text. */
export function apply(answer: Answer, event: GenerationEvent, now = Date.now()): Answer {
  const run = answer.run;
  if (!run || event.seq < run.next) return answer;
  const next = { ...answer, run: { ...run, next: event.seq + 1 } };
  switch (event.type) {
    case 'queued':
      return { ...next, run: { id: event.id, next: event.seq + 1 }, phase: { kind: 'queued', ahead: event.ahead }, promptTokens: event.promptTokens || undefined };
    case 'adapter_load':
      return { ...next, phase: { kind: 'loading' } };
    case 'prefill':
      return { ...next, phase: { kind: 'prefill', done: event.done, total: event.total }, promptTokens: event.total };
    case 'delta': {
      const text = answer.text + event.text;
      const counted = event.tokens !== undefined;
      return {
        ...next,
        text,
        phase: { kind: 'writing' },
        firstTextAt: answer.firstTextAt ?? now,
        completionTokens: counted ? (answer.completionTokens ?? 0) + event.tokens! : Math.ceil(text.length / 4),
        estimated: !counted,
      };
    }
    case 'done':
      return {
        ...ended(next, event.finishReason === 'stopped' ? 'stopped' : 'complete'),
        finishReason: event.finishReason,
        usage: event.usage,
        timings: event.timings,
        promptTokens: event.usage?.promptTokens ?? answer.promptTokens,
        completionTokens: event.usage?.completionTokens ?? answer.completionTokens,
        estimated: event.usage ? false : answer.estimated,
        adapter: event.adapter,
        fingerprint: event.fingerprint,
      };
    case 'error':
      return fail(next, event.code, event.message);
    default:
      return next;
  }
}

/** Ends an answer that failed; what it had written so far stays. */
export const fail = (answer: Answer, code: string, message: string): Answer => ({ ...ended(answer, 'error'), error: { code, message } });

export const replace = (c: Conversation, message: Message): Conversation => ({ ...c, messages: { ...c.messages, [message.id]: message } });

export const titleOf = (text: string): string => {
  const line = text.trim().split('\n', 1)[0]!.trim();
  return line.length > 60 ? `${line.slice(0, 59).trimEnd()}…` : line;
};

function branch(c: Conversation, text: string, places: { lane: number; parent: string | null }[], now: number): [Conversation, string[]] {
  const messages = { ...c.messages };
  const lanes = [...c.lanes];
  const questions = new Map<string | null, Question>(); // Lanes that stand at the same place share the question.
  const asked: string[] = [];
  for (const { lane, parent } of places) {
    let question = questions.get(parent);
    if (!question) {
      question = { id: crypto.randomUUID(), parent, role: 'user', text, at: now };
      questions.set(parent, question);
      messages[question.id] = question;
    }
    const model = lanes[lane]!.model;
    const answer = newAnswer(question.id, model, now);
    messages[answer.id] = answer;
    lanes[lane] = { model, leaf: answer.id };
    asked.push(answer.id);
  }
  return [{ ...c, title: c.title || titleOf(text), updatedAt: now, messages, lanes }, asked];
}

const newAnswer = (parent: string | null, model: string, at: number): Answer =>
  ({ id: crypto.randomUUID(), parent, role: 'assistant', text: '', at, model, state: 'streaming', phase: { kind: 'sending' }, run: { next: 0 } });

const ended = (answer: Answer, state: AnswerState): Answer => ({ ...answer, state, phase: undefined, run: undefined });

function latestLeaf(c: Conversation, id: string, model: string): string {
  for (;;) {
    const children = Object.values(c.messages).filter((m) => m.parent === id);
    const next = children.findLast((m) => m.role === 'assistant' && m.model === model) ?? children.at(-1);
    if (!next) return id;
    id = next.id;
  }
}

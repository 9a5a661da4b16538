/** What crosses the border to the server: /api, /v1/models and the hub. */

export interface Site {
  name: string;
  demo: boolean;
  baseModel: string;
  /** Only in demo mode; else empty. */
  tenants: { id: string; name: string }[];
}

export interface Session {
  tenant: string;
  name: string;
  token: string;
  expiresAt: string;
}

export interface ModelCard {
  id: string;
  parent?: string | null;
  /** Absent for the base model. */
  adapter?: { kind: string; rank: number; bytes: number; expandedBytes?: number; digest: string } | null;
}

/** Unset fields mean the model's own defaults. */
export interface SamplingOptions {
  temperature?: number;
  topK?: number;
  topP?: number;
  minP?: number;
  repetitionPenalty?: number;
  frequencyPenalty?: number;
  presencePenalty?: number;
  seed?: number;
  maxTokens?: number;
  stop?: string[];
}

export interface PromptMessage {
  role: 'system' | 'user' | 'assistant';
  content: string;
}

export interface GenerationRequest {
  model: string;
  messages: PromptMessage[];
  options: SamplingOptions;
}

export interface Usage {
  promptTokens: number;
  completionTokens: number;
  totalTokens: number;
}

/** Milliseconds. */
export interface Timings {
  queuedMs: number;
  prefillMs: number;
  decodeMs: number;
  timeToFirstTokenMs: number;
  tokensPerSecond: number;
}

/** Numbered from 0 without gaps; exactly one `done` or `error`, and it is the last. */
export type GenerationEvent = { seq: number } & (
  | { type: 'queued'; id: string; ahead: number; promptTokens: number }
  | { type: 'adapter_load'; adapter: string }
  | { type: 'prefill'; done: number; total: number }
  /** `tokens`, where the server says it, is how many tokens this piece holds. */
  | { type: 'delta'; text: string; tokens?: number }
  | { type: 'done'; finishReason: 'stop' | 'length' | 'stopped'; usage?: Usage; timings?: Timings; model?: string; adapter?: string | null; fingerprint?: string | null }
  | { type: 'error'; code: string; message: string }
);

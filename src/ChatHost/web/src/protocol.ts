/** What crosses the border to the server: /api, /v1/models and the hub. Times are ISO 8601. */

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
  role?: 'admin' | 'member';
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

// ── what admins see ────────────────────────────────────────────────────────────────────────────────────────────────────────────

export interface AdapterCard {
  name: string;
  /** Names one state of the aliases; a change must say which state it was made for. */
  etag: string;
  createdAt: string;
  active: string | null;
  previous: string | null;
  canary: { version: string; share: number } | null;
  versions: number;
  /** Its active version stays in memory. */
  pinned: boolean;
}

/** What all versions take on the disk, the same bytes once, and what they may; null: no limit. */
export interface Disk {
  bytes: number;
  quota: number | null;
}

export interface AdapterDetail extends AdapterCard {
  /** Newest first. */
  versionList: VersionCard[];
}

export interface VersionCard {
  version: string;
  digest: string;
  kind: string;
  rank: number;
  bytes: number;
  /** What plain LoRA of the same ranks would take. */
  expandedBytes: number;
  baseModel: string | null;
  createdAt: string;
  createdBy: string;
  findings: Finding[];
}

export type Severity = 'error' | 'warning' | 'information';

export interface Finding {
  code: string;
  severity: Severity;
  what: string;
  where: string;
  expected: string | null;
  found: string | null;
  fix: string | null;
}

export interface AuditEntry {
  id: number;
  at: string;
  who: string;
  action: string;
  adapter: string | null;
  from: string | null;
  to: string | null;
  why: string | null;
}

export interface UsageCard {
  name: string;
  /** Null: the base model. */
  version: string | null;
  requests: number;
  errors: number;
  cancelled: number;
  promptTokens: number;
  completionTokens: number;
  firstTokenP50: number | null;
  firstTokenP95: number | null;
  tokensPerSecondP50: number | null;
}

/** Only hours with requests, oldest first. */
export interface UsagePage {
  from: string;
  adapters: UsageCard[];
  hours: { hour: string; requests: number; errors: number; promptTokens: number; completionTokens: number }[];
}

export interface KeyCard {
  id: string;
  label: string;
  role: string;
  createdAt: string | null;
  source: 'store' | 'configuration' | 'demo';
}

export interface Resident {
  deviceBytes: number;
  deviceBudget: number;
  adapters: { name: string; version: string; digest: string; bytes: number; place: Place }[];
}

export type Place = 'device' | 'host' | 'disk';

import { signal, type Signal } from '@preact/signals';
import { ApiError, request, upload } from './api.ts';
import { bytes, percent, plural } from './format.ts';
import type { AdapterCard, AdapterDetail, AuditEntry, Disk, Finding, KeyCard, Resident, Session, Severity, UsageCard, UsagePage, VersionCard } from './protocol.ts';

// ── where one is ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

export type Page = { view: 'chat' } | { view: 'adapters'; name?: string } | { view: 'memory' } | { view: 'usage' } | { view: 'keys' } | { view: 'audit' };

/** Everything that is not an admin's page is the chat, whose conversations have UUIDs for names. */
export function pageOf(hash: string): Page {
  const [view, name] = hash.replace(/^#\//, '').split('/');
  switch (view) {
    case 'adapters': return name ? { view, name: unescaped(name) } : { view };
    case 'memory': case 'usage': case 'keys': case 'audit': return { view };
    default: return { view: 'chat' };
  }
}

export const hashOf = (page: Page): string =>
  page.view === 'chat' ? '' : page.view === 'adapters' && page.name !== undefined ? `#/adapters/${encodeURIComponent(page.name)}` : `#/${page.view}`;

function unescaped(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // A stray % in an address that somebody typed.
  }
}

// ── what is said of adapters ─────────────────────────────────────────────────────────────────────────────────────────────────

/** The size beside plain LoRA of the same rank; `share` is null where there is nothing to save. */
export function size({ bytes: taken, expandedBytes }: Pick<VersionCard, 'bytes' | 'expandedBytes'>): { words: string; share: number | null } {
  return expandedBytes > taken
    ? { words: `${bytes(taken)}, ${percent(taken / expandedBytes)} of the ${bytes(expandedBytes)} of plain LoRA`, share: taken / expandedBytes }
    : { words: bytes(taken), share: null };
}

/** The names that point to versions, in the order of their weight. */
export function aliases(card: AdapterCard, version?: string): { alias: 'active' | 'canary' | 'previous'; version: string; share?: number }[] {
  const all = [
    { alias: 'active' as const, version: card.active },
    { alias: 'canary' as const, version: card.canary?.version ?? null, share: card.canary?.share },
    { alias: 'previous' as const, version: card.previous },
  ];
  return all.flatMap((a) => (a.version !== null && (version === undefined || a.version === version) ? [{ ...a, version: a.version }] : []));
}

/** The version beside what answers now, or beside the base model where that is the same version or none. */
export function tryLanes(card: AdapterCard, version: string, base: string | undefined): string[] {
  // While a canary runs, the bare name is now and then the canary.
  const now = card.active === null || card.active === version ? base : card.canary ? `${card.name}@active` : card.name;
  return [now, `${card.name}@${version}`].filter((model) => model !== undefined);
}

/** How full the tenant's part of the disk is. */
export const onDisk = ({ bytes: taken, quota }: Disk): string =>
  quota === null ? `All versions take ${bytes(taken)} on the disk.` : `All versions take ${bytes(taken)} of the ${bytes(quota)} that they may take on the disk.`;

const severities: Severity[] = ['error', 'warning', 'information'];
const severityWords: Record<Severity, string> = { error: 'error', warning: 'warning', information: 'note' };

export const severityWord = (severity: Severity): string => severityWords[severity] ?? severity;

/** Errors first; a severity that this page does not know comes before all. */
export const inOrder = (findings: Finding[]): Finding[] => findings.toSorted((a, b) => severities.indexOf(a.severity) - severities.indexOf(b.severity));

/** "1 error, 2 notes". */
export function tally(findings: Finding[]): string {
  const found = new Set(inOrder(findings).map((f) => f.severity));
  return [...found].map((severity) => plural(findings.filter((f) => f.severity === severity).length, severityWord(severity))).join(', ') || 'nothing found';
}

const deeds: Record<string, string> = {
  upload: 'Uploaded', refused: 'Upload refused', activate: 'Activated', canary: 'Canary', canary_end: 'Canary ended', rollback: 'Rolled back',
  delete_version: 'Version deleted', delete_adapter: 'Adapter deleted', key_created: 'Key created', key_revoked: 'Key revoked',
  pin: 'Pinned in memory', unpin: 'Unpinned',
};

/** What was done, to what: "Activated", "harbor", "v1 → v2". */
export function deed({ action, adapter, from, to }: AuditEntry): { what: string; adapter: string; change: string } {
  return { what: deeds[action] ?? action, adapter: adapter ?? '', change: from !== null && to !== null ? `${from} → ${to}` : (to ?? from ?? '') };
}

// ── what was used ────────────────────────────────────────────────────────────────────────────────────────────────────────────

/** The longest is what the server tells. */
export const periods = [{ days: 1, name: '24 hours' }, { days: 7, name: '7 days' }, { days: 30, name: '30 days' }, { days: 90, name: '90 days' }];

/** One hour or one day, which began at `at`, in milliseconds. */
export interface Slot {
  at: number;
  requests: number;
  errors: number;
  promptTokens: number;
  completionTokens: number;
}

const hour = 3_600_000;
const hourOf = (at: number): number => Math.floor(at / hour);
const nothing = { requests: 0, errors: 0, promptTokens: 0, completionTokens: 0 };
const add = (a: Omit<Slot, 'at'>, b: Omit<Slot, 'at'>) => ({ requests: a.requests + b.requests, errors: a.errors + b.errors, promptTokens: a.promptTokens + b.promptTokens, completionTokens: a.completionTokens + b.completionTokens });

/** A day is the last 24 hours; more days are this one and whole days before it, by this browser's clock. */
export function hoursIn(days: number, now: number): number {
  const first = new Date(now);
  first.setHours(0, 0, 0, 0);
  first.setDate(first.getDate() - days + 1);
  return days === 1 ? 24 : Math.min(hourOf(now) - Math.ceil(first.getTime() / hour) + 1, 90 * 24);
}

/** Every hour of the period, those without requests too. */
export function filled({ from, hours, count }: Pick<UsagePage, 'from' | 'hours'> & { count: number }): Slot[] {
  const known = new Map(hours.map((h) => [hourOf(Date.parse(h.hour)), h]));
  const first = hourOf(Date.parse(from));
  return Array.from({ length: count }, (_, i) => ({ at: (first + i) * hour, ...add(nothing, known.get(first + i) ?? nothing) }));
}

/** The sums of days by this browser's clock; an hour is of the day in which it begins, even where days begin amid hours. */
export function byDay(hours: Slot[]): Slot[] {
  const days = new Map<number, Omit<Slot, 'at'>>();
  for (const h of hours) {
    const at = new Date(h.at).setHours(0, 0, 0, 0);
    days.set(at, add(days.get(at) ?? nothing, h));
  }
  return [...days].map(([at, sum]) => ({ at, ...sum }));
}

/** All together, and the slot with the most tokens, of several the first with the most requests. */
export function summary(slots: Slot[]): { total: Omit<Slot, 'at'>; peak: Slot } {
  const tokens = (s: Slot): number => s.promptTokens + s.completionTokens;
  return { total: slots.reduce(add, nothing), peak: slots.reduce((a, b) => ((tokens(b) - tokens(a) || b.requests - a.requests) > 0 ? b : a)) };
}

/** Numbers as numbers, v10 after v9; what has no value comes last either way. */
export function sorted(cards: UsageCard[], by: keyof UsageCard, down: boolean): UsageCard[] {
  const { compare } = new Intl.Collator(undefined, { numeric: true });
  return cards.toSorted((a, b) => {
    const [x, y] = [a[by], b[by]];
    if (x === null || y === null) return Number(x === null) - Number(y === null);
    const order = typeof x === 'number' ? x - (y as number) : compare(x, y as string);
    return down ? -order : order;
  });
}

// ── what is uploaded ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/** A file and where it lay in what was dropped or chosen, for example `harbor/adapter_config.json`. */
export interface Candidate<F = File> {
  path: string;
  file: F;
}

/** What can be sent, the name that suggests itself, and what lay beside it and is not sent. */
export type Picked<F = File> =
  | { kind: 'pair'; config: F; weights: F; name: string; others: string[] }
  | { kind: 'archive'; archive: F; type: string; name: string; others: string[] }
  | { kind: 'nothing'; why: string };

const configName = 'adapter_config.json';
const weightsName = 'adapter_model.safetensors';
const archiveTypes = [{ end: /\.zip$/i, type: 'application/zip' }, { end: /\.(tar\.gz|tgz)$/i, type: 'application/gzip' }];

/** Finds the one adapter in what was dropped: an archive, or the two files in one folder. Of several folders the outermost counts: trainers put checkpoints within. */
export function pick<F>(dropped: Candidate<F>[]): Picked<F> {
  const paths = dropped.map((c) => c.path.replace(/^\/+/, ''));
  const beside = (...sent: number[]): string[] => paths.filter((_, i) => !sent.includes(i));
  const at = (path: string): number => paths.indexOf(path);

  const folders = paths.filter((p) => baseOf(p) === configName).map(folderOf).filter((folder) => at(folder + weightsName) >= 0);
  const depth = Math.min(...folders.map(depthOf));
  const outermost = folders.filter((folder) => depthOf(folder) === depth);
  if (outermost.length > 1) return { kind: 'nothing', why: `There are several adapters: ${outermost.map((f) => f.slice(0, -1)).join(', ')}. Choose one of them.` };
  const [folder] = outermost;
  if (folder !== undefined) {
    const [config, weights] = [at(folder + configName), at(folder + weightsName)];
    return { kind: 'pair', config: dropped[config]!.file, weights: dropped[weights]!.file, name: baseOf(folder.slice(0, -1)), others: beside(config, weights) };
  }

  const archives = paths.flatMap((p, i) => archiveTypes.filter((a) => a.end.test(p)).map((a) => ({ i, type: a.type, name: baseOf(p).replace(a.end, '') })));
  if (archives.length > 1) return { kind: 'nothing', why: `There are several archives: ${archives.map((a) => paths[a.i]).join(', ')}. Choose one of them.` };
  const [archive] = archives;
  if (archive) return { kind: 'archive', archive: dropped[archive.i]!.file, type: archive.type, name: archive.name, others: beside(archive.i) };

  return { kind: 'nothing', why: missing(paths) };
}

function missing(paths: string[]): string {
  const names = paths.map(baseOf);
  const pickle = names.find((n) => /\.(bin|pt|pth|pkl)$/i.test(n));
  if (pickle) return `${pickle} may hold a pickle, which can run code when it is read. Save the adapter as ${weightsName} (save_pretrained does by default).`;
  if (names.includes(configName)) return `${weightsName} is missing: it belongs beside ${configName}.`;
  if (names.includes(weightsName)) return `${configName} is missing: it belongs beside ${weightsName}.`;
  return `Neither ${configName} with ${weightsName} nor a .zip or .tar.gz of them is among what was chosen${names.length > 0 ? `: ${few(names)}` : ''}.`;
}

/** The first of many names. */
export const few = (names: string[], most = 4): string => names.slice(0, most).join(', ') + (names.length > most ? ` and ${names.length - most} more` : '');

const folderOf = (path: string): string => path.slice(0, path.lastIndexOf('/') + 1);
const baseOf = (path: string): string => path.slice(path.lastIndexOf('/') + 1);
const depthOf = (folder: string): number => folder.split('/').length;

export type Upload =
  | { state: 'chosen'; picked: Picked; name: string }
  | { state: 'sending'; picked: Picked; name: string; sent: number; total: number }
  | { state: 'taken'; name: string; version: VersionCard; created: boolean }
  /** `unknown` where no answer came or the server itself failed: it may have been added. */
  | { state: 'refused'; picked: Picked; name: string; message: string; findings: Finding[]; unknown: boolean };

// ── what is done ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

/** What went wrong; `changed` where somebody else was faster, and what the page shows is old. */
export interface Problem {
  message: string;
  changed: boolean;
  /** The page could not be read, so reading it again may help. */
  unread: boolean;
}

export interface Listing<T> {
  items: T[];
  /** Where the next part begins; null at the end. */
  next: string | null;
}

const auditPart = 50;

/** A tenant's adapters, keys and audit as its admin sees and changes them. Views read the signals and call the verbs. */
export class Admin {
  /** Null until read. */
  readonly adapters = signal<Listing<AdapterCard> | null>(null);
  readonly detail = signal<AdapterDetail | null>(null);
  readonly disk = signal<Disk | null>(null);
  readonly resident = signal<Resident | null>(null);
  readonly usage = signal<(UsagePage & { days: number; count: number }) | null>(null);
  /** The days that the usage is asked for. */
  readonly period = signal(1);
  readonly keys = signal<KeyCard[] | null>(null);
  readonly audit = signal<Listing<AuditEntry> | null>(null);
  /** Shown until put away; nothing else has it. */
  readonly newKey = signal<{ label: string; key: string } | null>(null);
  readonly upload = signal<Upload | null>(null);
  readonly problem = signal<Problem | null>(null);
  /** What was just done, in words. */
  readonly done = signal('');
  readonly busy = signal(false);

  readonly #session: Session;
  readonly #signedOut: () => void;
  readonly #changed: () => Promise<void>;
  #page: Page = { view: 'chat' };
  #cancel: AbortController | undefined;

  /** `changed` is called after what the chat can ask may have changed. */
  constructor(session: Session, signedOut: () => void, changed: () => Promise<void>) {
    this.#session = session;
    this.#signedOut = signedOut;
    this.#changed = changed;
  }

  /** Reads what the page shows. */
  async show(page: Page): Promise<void> {
    this.#page = page;
    this.problem.value = null;
    this.done.value = '';
    if (page.view === 'adapters' && page.name !== this.detail.value?.name) this.detail.value = null;
    const upload = this.upload.value;
    if (upload?.state === 'taken' && page.view === 'adapters' && page.name !== undefined && page.name !== upload.name) this.putUploadAway();
    await this.read();
  }

  async read(): Promise<void> {
    const page = this.#page;
    this.problem.value = null;
    try {
      switch (page.view) {
        case 'adapters':
          if (page.name === undefined) await this.#list(page);
          else this.#keep(page, this.detail, await this.#get<AdapterDetail>(adapterPath(page.name)));
          break;
        case 'memory': this.#keep(page, this.resident, await request<Resident>('api/adapters/resident', this.#init())); break;
        case 'usage': {
          const days = this.period.value;
          const count = hoursIn(days, Date.now());
          const usage = await this.#get<UsagePage>(`usage?hours=${count}`);
          if (days === this.period.value) this.#keep(page, this.usage, { ...usage, days, count });
          break;
        }
        case 'keys': this.#keep(page, this.keys, (await this.#get<{ keys: KeyCard[] }>('keys')).keys); break;
        case 'audit': this.#keep(page, this.audit, this.#part((await this.#get<{ entries: AuditEntry[] }>(`audit?limit=${auditPart}`)).entries)); break;
      }
    } catch (error) {
      if (this.#page === page) this.#failed(error, true);
    }
  }

  look(days: number): Promise<void> {
    this.period.value = days;
    return this.read();
  }

  async more(): Promise<void> {
    const page = this.#page;
    await this.#doing(async () => {
      const { adapters, audit } = this;
      if (page.view === 'audit' && audit.value?.next) {
        const { entries } = await this.#get<{ entries: AuditEntry[] }>(`audit?before=${audit.value.next}&limit=${auditPart}`);
        this.#keep(page, audit, { ...this.#part(entries), items: [...audit.value.items, ...entries] });
      }
      if (page.view === 'adapters' && adapters.value?.next) await this.#list(page, adapters.value);
    });
  }

  activate = (card: AdapterCard, version: string, why: string): Promise<void> =>
    this.#move(card, 'PUT', 'aliases/active', { version, why: why || undefined }, `${version} of ${card.name} is active now.`);

  canary = (card: AdapterCard, version: string, share: number, why: string): Promise<void> =>
    this.#move(card, 'PUT', 'aliases/canary', { version, share, why: why || undefined }, `${version} of ${card.name} answers ${percent(share / 100)} of the requests now.`);

  endCanary = (card: AdapterCard): Promise<void> => this.#move(card, 'DELETE', 'aliases/canary', undefined, 'The canary has ended.');

  rollBack = (card: AdapterCard): Promise<void> => this.#move(card, 'POST', 'rollback', {}, `Rolled back: ${card.previous} of ${card.name} is active now.`);

  pin = (card: AdapterCard, pinned: boolean): Promise<void> =>
    this.#move(card, pinned ? 'PUT' : 'DELETE', 'pin', undefined, pinned ? `${card.name} stays in memory now.` : `${card.name} takes turns with others now.`);

  // These and the keys' verbs resolve to false where it was not done; `problem` then says why.

  removeVersion = (card: AdapterCard, version: string): Promise<boolean> => this.#doing(async () => {
    await this.#send('DELETE', `${adapterPath(card.name)}/versions/${encodeURIComponent(version)}`, undefined, card.etag);
    await this.#refresh(`${version} of ${card.name} is deleted.`);
  });

  remove = (card: AdapterCard): Promise<boolean> => this.#doing(async () => {
    await this.#send('DELETE', adapterPath(card.name), undefined, card.etag);
    await this.#changed();
  });

  createKey = (label: string, role: string): Promise<boolean> => this.#doing(async () => {
    const { key } = await this.#send<{ key: string }>('POST', 'keys', { label, role });
    this.newKey.value = { label, key };
    await this.read();
  });

  revokeKey = (key: KeyCard): Promise<boolean> => this.#doing(async () => {
    await this.#send('DELETE', `keys/${encodeURIComponent(key.id)}`);
    await this.#refresh(`The key “${key.label}” is revoked.`);
  });

  // ── upload ───────────────────────────────────────────────────────────────────────────────────────────────────────────────

  choose(dropped: Candidate[]): void {
    if (this.upload.value?.state === 'sending') return this.tell('One upload at a time: wait for this one, or cancel it.');
    const picked = pick(dropped);
    const selected = this.#page.view === 'adapters' ? this.#page.name : undefined;
    this.upload.value = { state: 'chosen', picked, name: selected ?? (picked.kind === 'nothing' ? '' : picked.name) };
  }

  /** Resolves to the adapter's name once the server has taken it, and to null where it has not. */
  async send(name: string): Promise<string | null> {
    const before = this.upload.value;
    if (!before || before.state === 'sending' || before.state === 'taken' || before.picked.kind === 'nothing') return null;
    const picked = before.picked;
    const sending = (sent: number, total: number): void => { this.upload.value = { state: 'sending', picked, name, sent, total }; };
    sending(0, 1);
    this.#cancel = new AbortController();
    try {
      const path = this.#path(`${adapterPath(name)}/versions`);
      const { version, created } = await upload<{ version: VersionCard; created: boolean }>(path, this.#session.token, bodyOf(picked), sending, this.#cancel.signal);
      this.upload.value = { state: 'taken', name, version, created };
      await this.read();
      return name;
    } catch (error) {
      if (error instanceof DOMException && error.name === 'AbortError') this.upload.value = { state: 'chosen', picked, name };
      else if (error instanceof ApiError && error.status === 401) this.#signedOut();
      else {
        const { status, message, findings } = error instanceof ApiError ? error : new ApiError(0, (error as Error).message);
        this.upload.value = { state: 'refused', picked, name, message, findings, unknown: status < 400 || status >= 500 };
      }
      return null;
    }
  }

  cancelUpload(): void {
    this.#cancel?.abort();
  }

  putUploadAway(): void {
    this.upload.value = null;
  }

  /** Of what went wrong on the page itself. */
  tell(message: string): void {
    this.problem.value = { message, changed: false, unread: false };
  }

  // ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────────────────

  async #list(page: Page, before?: Listing<AdapterCard>): Promise<void> {
    const { adapters, next, disk } = await this.#get<{ adapters: AdapterCard[]; next: string | null; disk: Disk }>(`adapters${before?.next ? `?after=${encodeURIComponent(before.next)}` : ''}`);
    this.#keep(page, this.disk, disk);
    this.#keep(page, this.adapters, { items: [...(before?.items ?? []), ...adapters], next });
  }

  #part(entries: AuditEntry[]): Listing<AuditEntry> {
    return { items: entries, next: entries.length === auditPart ? String(entries.at(-1)!.id) : null };
  }

  /** An answer that comes after the reader has gone elsewhere is not shown there. */
  #keep<T>(page: Page, into: Signal<T>, value: T): void {
    if (this.#page === page) into.value = value;
  }

  async #move(card: AdapterCard, method: string, path: string, body: object | undefined, done: string): Promise<void> {
    const page = this.#page;
    await this.#doing(async () => {
      this.#keep(page, this.detail, await this.#send<AdapterDetail>(method, `${adapterPath(card.name)}/${path}`, body, card.etag));
      await this.#changed();
      this.done.value = done;
    });
  }

  async #refresh(done: string): Promise<void> {
    await this.read();
    await this.#changed();
    this.done.value = done;
  }

  async #doing(work: () => Promise<void>): Promise<boolean> {
    this.problem.value = null;
    this.done.value = '';
    this.busy.value = true;
    try {
      await work();
      return true;
    } catch (error) {
      this.#failed(error, false);
      return false;
    } finally {
      this.busy.value = false;
    }
  }

  #failed(error: unknown, unread: boolean): void {
    const status = error instanceof ApiError ? error.status : 0;
    if (status === 401) this.#signedOut();
    else this.problem.value = { message: (error as Error).message, changed: status === 412, unread };
  }

  #get<T>(path: string): Promise<T> {
    return request<T>(this.#path(path), this.#init());
  }

  #send<T>(method: string, path: string, body?: object, etag?: string): Promise<T> {
    const json: Record<string, string> = body ? { 'content-type': 'application/json' } : {};
    const match: Record<string, string> = etag === undefined ? {} : { 'if-match': `"${etag}"` };
    return request<T>(this.#path(path), this.#init({ method, body: body && JSON.stringify(body), headers: { ...json, ...match } }));
  }

  #path(path: string): string {
    return `api/tenants/${encodeURIComponent(this.#session.tenant)}/${path}`;
  }

  #init(init: RequestInit & { headers?: Record<string, string> } = {}): RequestInit {
    return { ...init, headers: { ...init.headers, authorization: `Bearer ${this.#session.token}` } };
  }
}

const adapterPath = (name: string): string => `adapters/${encodeURIComponent(name)}`;

function bodyOf(picked: Exclude<Picked, { kind: 'nothing' }>): FormData | Blob {
  if (picked.kind === 'archive') return picked.archive.slice(0, picked.archive.size, picked.type);
  const form = new FormData();
  form.append(configName, picked.config, configName);
  form.append(weightsName, picked.weights, weightsName);
  return form;
}

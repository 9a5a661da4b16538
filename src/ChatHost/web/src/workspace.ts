import { computed, effect, signal, type ReadonlySignal, type Signal } from '@preact/signals';
import { Admin, hashOf, pageOf, type Page } from './admin.ts';
import { ApiError, address, listModels } from './api.ts';
import { Archive } from './archive.ts';
import {
  addLane, apply, answers, ask, edit, fail, isStreaming, keepLane, newConversation, promptOf, removeLane, replace, retry, select, setModel,
  type Answer, type Cell, type Conversation,
} from './conversation.ts';
import { count } from './format.ts';
import { Hub, type Following, type LinkState, type Source } from './hub.ts';
import type { GenerationEvent, ModelCard, Session } from './protocol.ts';
import { settingsOf, type Settings } from './settings.ts';

/** The hub takes one message of 1 MB; what is longer would close the connection without a word. */
const maxRequestBytes = 1_000_000;

const ended = 'Your session has ended. Please sign in again.';

/** Streaming text is written to the browser's storage this often; the page's end writes the rest. */
const saveEveryMs = 500;

/** Everything one signed-in tenant works with in this tab. Views read the signals and call the verbs. */
export class Workspace {
  readonly session: Session;
  readonly models = signal<ModelCard[]>([]);
  readonly modelsError = signal('');
  readonly settings: Signal<Settings>;
  /** Newest first. A signal each, so that a streaming answer redraws its own conversation only. */
  readonly conversations = signal<Signal<Conversation>[]>([]);
  readonly current: Signal<Signal<Conversation>>;
  readonly page: Signal<Page>;
  /** Null where the key is a member's. */
  readonly admin: Admin | null;
  readonly link: ReadonlySignal<LinkState>;
  readonly busy: ReadonlySignal<boolean>;
  /** For the one polite live region: what screen readers hear of a generation. */
  readonly status = signal('');
  /** For the assertive one. */
  readonly alert = signal('');
  /** Shown to everybody until dismissed. */
  readonly notice = signal('');
  /** Put into the composer, for example by a link with `?q=`. */
  readonly draft = signal('');

  readonly #hub: Hub;
  readonly #archive: Archive;
  readonly #following = new Map<string, Following>();
  readonly #unsaved = new Map<string, Conversation>();
  readonly #cleanup: (() => void)[] = [];
  #saving: ReturnType<typeof setTimeout> | undefined;

  constructor(session: Session, signedOut: (why: string) => void) {
    this.session = session;
    this.#archive = new Archive(session.tenant);
    this.#hub = new Hub(address('hub'), session.token, () => signedOut(ended));
    this.admin = session.role === 'admin' ? new Admin(session, () => signedOut(ended), () => this.loadModels()) : null;
    this.page = signal(this.#pageNow());
    this.link = this.#hub.state;
    this.conversations.value = this.#archive.all().map((c) => signal(c));
    this.current = signal(this.#named(location.hash) ?? signal(newConversation('')));
    this.busy = computed(() => isStreaming(this.current.value.value));

    const kept = settingsOf(session.tenant);
    this.settings = signal(kept.load());
    this.#cleanup.push(effect(() => kept.save(this.settings.value)));

    this.#on('hashchange', () => {
      const page = this.#pageNow();
      if (page.view === 'chat') this.open(location.hash.slice(2));
      else this.page.value = page;
    });
    this.#on('pagehide', () => this.#flush());
    this.#on('visibilitychange', () => { if (document.hidden) this.#flush(); }, document);
    this.#cleanup.push(this.#archive.watch((id, changed) => this.#changedElsewhere(id, changed)));

    void this.#hub.start();
    void this.loadModels(signedOut);
    for (const conversation of this.conversations.value) this.#resume(conversation);
  }

  async loadModels(signedOut?: (why: string) => void): Promise<void> {
    this.modelsError.value = '';
    try {
      this.models.value = await listModels(this.session.token);
      this.#nameDraftModel();
    } catch (error) {
      if (error instanceof ApiError && error.status === 401 && signedOut) signedOut(ended);
      else this.modelsError.value = (error as Error).message;
    }
  }

  async close(): Promise<void> {
    this.#flush();
    this.admin?.cancelUpload();
    for (const undo of this.#cleanup) undo();
    await this.#hub.close();
  }

  // ── conversations ──────────────────────────────────────────────────────────────────────────────────────────────────────────

  newChat(model?: string): void {
    this.page.value = { view: 'chat' };
    const lanes = this.current.value.value.lanes;
    const fresh = newConversation(model ?? lanes[0]!.model);
    this.current.value = signal(model === undefined ? { ...fresh, lanes: lanes.map((lane) => ({ model: lane.model, leaf: null })) } : fresh);
    this.#nameDraftModel();
    if (location.hash !== '') history.pushState(null, '', location.pathname + location.search);
  }

  /** A new chat in which these models answer side by side. */
  compare(models: string[]): void {
    this.newChat(models[0]);
    for (const model of models.slice(1)) this.#changeCurrent((c) => addLane(c, model));
  }

  open(id: string): void {
    const found = this.conversations.value.find((c) => c.value.id === id);
    if (!found) return this.newChat();
    this.page.value = { view: 'chat' };
    this.current.value = found;
    this.#setHash(id);
  }

  /** From an admin's page to the conversation that was open before. */
  backToChat(): void {
    const current = this.current.value;
    this.page.value = { view: 'chat' };
    if (this.conversations.value.includes(current)) this.#setHash(current.value.id);
    else history.pushState(null, '', location.pathname + location.search);
  }

  goTo(page: Page): void {
    location.hash = hashOf(page);
  }

  rename(conversation: Signal<Conversation>, title: string): void {
    if (title.trim() !== '') this.#change(conversation, { ...conversation.value, title: title.trim() });
  }

  remove(conversation: Signal<Conversation>): void {
    for (const answer of answers(conversation.value)) {
      this.#following.get(answer.id)?.stop();
      this.#following.delete(answer.id);
    }
    this.conversations.value = this.conversations.value.filter((c) => c !== conversation);
    this.#unsaved.delete(conversation.value.id);
    this.#archive.remove(conversation.value.id);
    if (this.current.value === conversation) this.newChat();
  }

  // ── lanes ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────

  setModel(lane: number, model: string): void {
    this.#changeCurrent((c) => setModel(c, lane, model));
  }

  /** Beside the others: the first model that no lane has yet. */
  addLane(): void {
    this.#changeCurrent((c) => {
      const free = this.models.value.find((m) => c.lanes.every((lane) => lane.model !== m.id));
      return addLane(c, (free ?? this.models.value[0])?.id ?? c.lanes[0]!.model);
    });
  }

  removeLane(lane: number): void {
    this.#changeCurrent((c) => removeLane(c, lane));
  }

  keepLane(lane: number): void {
    this.#changeCurrent((c) => keepLane(c, lane));
  }

  select(cell: Cell, id: string): void {
    this.#changeCurrent((c) => select(c, cell, id));
  }

  // ── answers ────────────────────────────────────────────────────────────────────────────────────────────────────────────────

  /** False where nothing was sent; `notice` then says why. */
  send(text: string): boolean {
    if (text.trim() === '' || this.busy.value) return false;
    const size = new TextEncoder().encode(text).length;
    if (size > maxRequestBytes * 0.9) {
      this.notice.value = `This message has ${count(size)} bytes; at most ${count(maxRequestBytes * 0.9)} can be sent.`;
      return false;
    }
    this.#begin(ask(this.current.value.value, text.trim()));
    return true;
  }

  edit(cell: Cell, text: string): void {
    if (text.trim() !== '' && !this.busy.value) this.#begin(edit(this.current.value.value, cell, text.trim()));
  }

  retry(cell: Cell, model?: string): void {
    this.#begin(retry(this.current.value.value, cell, model));
  }

  stop(answerId: string): void {
    this.#following.get(answerId)?.stop();
  }

  stopAll(): void {
    for (const answer of answers(this.current.value.value)) if (answer.state === 'streaming') this.stop(answer.id);
  }

  // ── inside ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────

  #begin([changed, asked]: [Conversation, string[]]): void {
    const conversation = this.current.value;
    this.#change(conversation, changed);
    if (this.conversations.value.includes(conversation)) this.#sort();
    else {
      this.conversations.value = [conversation, ...this.conversations.value];
      this.#setHash(changed.id);
    }
    this.status.value = 'Generating…';
    this.alert.value = '';
    const { system, options } = this.settings.value;
    for (const id of asked) {
      const answer = changed.messages[id] as Answer;
      const request = { model: answer.model, messages: promptOf(changed, id, system), options };
      if (JSON.stringify(request).length > maxRequestBytes) this.#fail(conversation, id, 'too_large', 'The conversation has grown beyond what can be sent at once. Start a new chat.');
      else this.#follow(conversation, id, { request });
    }
    this.#flush();
  }

  #follow(conversation: Signal<Conversation>, id: string, source: Source): void {
    const following = this.#hub.follow(source, {
      event: (event) => {
        if (this.#following.get(id) !== following) return; // Its conversation was deleted.
        const answer = conversation.value.messages[id] as Answer;
        this.#change(conversation, replace(conversation.value, apply(answer, event)));
        if (event.type === 'done' || event.type === 'error') this.#ended(conversation, id, event);
      },
      lost: (reason) => this.#fail(conversation, id, 'lost', reason === 'generation not found' ? 'The answer was interrupted and the server no longer has it.' : reason),
    });
    this.#following.set(id, following);
  }

  #fail(conversation: Signal<Conversation>, id: string, code: string, message: string): void {
    this.#change(conversation, replace(conversation.value, fail(conversation.value.messages[id] as Answer, code, message)));
    this.#ended(conversation, id, { seq: 0, type: 'error', code, message });
  }

  #ended(conversation: Signal<Conversation>, id: string, event: GenerationEvent): void {
    this.#following.delete(id);
    this.#flush();
    if (conversation !== this.current.value) return;
    const answer = conversation.value.messages[id] as Answer;
    const who = conversation.value.lanes.length > 1 ? ` from ${answer.model}` : '';
    if (event.type === 'error') {
      this.status.value = '';
      this.alert.value = `Error${who}: ${event.message}`;
    } else {
      this.status.value = answer.state === 'stopped' ? `Stopped${who}` : `Answer${who} complete, ${count(answer.completionTokens ?? 0)} tokens`;
    }
  }

  /** Goes on with answers that were streaming when the page was left. */
  #resume(conversation: Signal<Conversation>): void {
    for (const { id, state, run } of answers(conversation.value)) {
      if (state !== 'streaming' || this.#following.has(id)) continue;
      if (run?.id) this.#follow(conversation, id, { id: run.id, next: run.next });
      else this.#fail(conversation, id, 'lost', 'The page was left before the server took the request.');
    }
  }

  #changeCurrent(change: (c: Conversation) => Conversation): void {
    this.#change(this.current.value, change(this.current.value.value));
  }

  #change(conversation: Signal<Conversation>, changed: Conversation): void {
    conversation.value = changed;
    if (Object.keys(changed.messages).length === 0) return; // A draft that nobody has written in is not kept.
    this.#unsaved.set(changed.id, changed);
    this.#saving ??= setTimeout(() => this.#flush(), saveEveryMs);
  }

  #flush(): void {
    clearTimeout(this.#saving);
    this.#saving = undefined;
    try {
      for (const [id, conversation] of this.#unsaved) {
        this.#archive.save(conversation);
        this.#unsaved.delete(id);
      }
    } catch {
      this.notice.value = 'The browser has no room left for conversations. Export and delete some; new messages are not kept until then.';
    }
  }

  #changedElsewhere(id: string, changed: Conversation | null): void {
    const known = this.conversations.value.find((c) => c.value.id === id);
    if (known && answers(known.value).some((a) => this.#following.has(a.id))) return; // What streams here is newer.
    if (changed && known) known.value = changed;
    else if (changed) this.conversations.value = [signal(changed), ...this.conversations.value];
    else if (known) {
      this.conversations.value = this.conversations.value.filter((c) => c !== known);
      if (this.current.value === known) this.newChat();
    }
  }

  #sort(): void {
    this.conversations.value = this.conversations.value.toSorted((a, b) => b.value.updatedAt - a.value.updatedAt);
  }

  /** A draft's lanes get real models once these are known: the tenant's first adapter, or the base. */
  #nameDraftModel(): void {
    const models = this.models.value;
    const first = (models.find((m) => m.adapter) ?? models[0])?.id;
    const draft = this.current.value.value;
    if (first === undefined || Object.keys(draft.messages).length > 0) return;
    const known = (id: string): boolean => id.includes('@') || models.some((m) => m.id === id); // Single versions, `name@v2`, are not listed.
    const lanes = draft.lanes.map((lane) => (known(lane.model) ? lane : { ...lane, model: first }));
    this.current.value.value = { ...draft, lanes };
  }

  #pageNow(): Page {
    return this.admin ? pageOf(location.hash) : { view: 'chat' };
  }

  #named(hash: string): Signal<Conversation> | undefined {
    return this.conversations.value.find((c) => `#/${c.value.id}` === hash);
  }

  #setHash(id: string): void {
    if (location.hash !== `#/${id}`) history.pushState(null, '', `#/${id}`);
  }

  #on(type: string, listener: () => void, target: EventTarget = window): void {
    target.addEventListener(type, listener);
    this.#cleanup.push(() => target.removeEventListener(type, listener));
  }
}

import { HubConnectionBuilder, HubConnectionState, LogLevel, type HubConnection } from '@microsoft/signalr';
import { signal } from '@preact/signals';
import type { GenerationEvent, GenerationRequest } from './protocol.ts';

export type LinkState = 'connecting' | 'online' | 'reconnecting';

/** Where a generation starts: asked for now, or one that already runs in the server, from its event `next` on. */
export type Source = { request: GenerationRequest } | { id: string; next: number };

export interface Listener {
  /** Each event once and in order, whatever the connection does. */
  event(event: GenerationEvent): void;
  /** No more events will come, and the terminal one did not. */
  lost(reason: string): void;
}

const retryDelays = [0, 1000, 2000, 5000];
const delayBefore = (attempt: number): number => retryDelays[attempt] ?? 10_000;
const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/**
 * The one connection of a tab. It reconnects for as long as the page lives; generations survive that, because they run in the
 * server and are attached to again from the first event not yet seen.
 */
export class Hub {
  readonly state = signal<LinkState>('connecting');
  readonly #connection: HubConnection;
  readonly #refused: () => void;
  #waiting: (() => void)[] = [];
  #closed = false;

  /** `refused` is called when the server no longer takes the token. */
  constructor(url: string, token: string, refused: () => void) {
    this.#refused = refused;
    this.#connection = new HubConnectionBuilder()
      .withUrl(url, { accessTokenFactory: () => token, withCredentials: false })
      .withAutomaticReconnect({ nextRetryDelayInMilliseconds: (c) => (isUnauthorized(c.retryReason) ? null : delayBefore(c.previousRetryCount)) })
      .configureLogging(LogLevel.None)
      .build();
    this.#connection.onreconnecting(() => { this.state.value = 'reconnecting'; });
    this.#connection.onreconnected(() => this.#online());
    this.#connection.onclose((error) => {
      if (this.#closed) return;
      if (isUnauthorized(error)) this.#refused();
      else void this.start();
    });
  }

  /** Returns when connected; keeps trying until then. */
  async start(): Promise<void> {
    for (let attempt = 0; !this.#closed; attempt++) {
      try {
        await this.#connection.start();
        this.#online();
        return;
      } catch (error) {
        if (this.#closed) return;
        if (isUnauthorized(error)) return this.#refused();
        this.state.value = 'reconnecting';
        await pause(delayBefore(attempt + 1));
      }
    }
  }

  async close(): Promise<void> {
    this.#closed = true;
    await this.#connection.stop();
  }

  follow(source: Source, listener: Listener): Following {
    const following = new Following(this.#connection, () => this.#whenOnline(), source, listener);
    void following.run();
    return following;
  }

  #online(): void {
    this.state.value = 'online';
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const resume of waiting) resume();
  }

  #whenOnline(): Promise<void> {
    return this.#connection.state === HubConnectionState.Connected ? Promise.resolve() : new Promise((resolve) => this.#waiting.push(resolve));
  }
}

/** One generation, followed over any number of connections. */
export class Following {
  readonly #connection: HubConnection;
  readonly #whenOnline: () => Promise<void>;
  readonly #listener: Listener;
  readonly #request: GenerationRequest | undefined;
  #id: string | undefined;
  #next = 0;
  #sent = false;
  #stopping = false;
  #finished = false;

  constructor(connection: HubConnection, whenOnline: () => Promise<void>, source: Source, listener: Listener) {
    this.#connection = connection;
    this.#whenOnline = whenOnline;
    this.#listener = listener;
    if ('request' in source) this.#request = source.request;
    else [this.#id, this.#next, this.#sent] = [source.id, source.next, true];
  }

  async run(): Promise<void> {
    while (!this.#finished) {
      await this.#whenOnline();
      if (this.#finished) return;
      if (this.#sent && this.#id === undefined) return this.#lose('The connection was lost before the server took the request.');
      this.#sent = true;
      const failure = await this.#stream();
      if (this.#finished) return;
      await pause(0); // A closing connection fails its streams first and changes its state right after.
      if (this.#connection.state === HubConnectionState.Connected) return this.#lose(failure ?? 'The answer ended early.');
    }
  }

  /** Stops the generation in the server; its last event then says `stopped`. */
  stop(): void {
    this.#stopping = true;
    if (!this.#sent) this.#take({ seq: 0, type: 'done', finishReason: 'stopped' });
    else this.#sendStop();
  }

  /** Resolves at the stream's end, with what the server said if that was an error. */
  #stream(): Promise<string | undefined> {
    return new Promise((resolve) => {
      const events = this.#id === undefined
        ? this.#connection.stream<GenerationEvent>('Send', this.#request)
        : this.#connection.stream<GenerationEvent>('Attach', this.#id, this.#next);
      events.subscribe({
        next: (event) => this.#take(event),
        error: (error: unknown) => resolve(plain(error)),
        complete: () => resolve(undefined),
      });
      if (this.#stopping) this.#sendStop();
    });
  }

  #take(event: GenerationEvent): void {
    if (this.#finished || event.seq < this.#next) return;
    this.#next = event.seq + 1;
    if (event.type === 'queued') {
      this.#id = event.id;
      if (this.#stopping) this.#sendStop();
    }
    this.#finished = event.type === 'done' || event.type === 'error';
    this.#listener.event(event);
  }

  // A stop that meets a dead connection is sent again when the stream is attached to again.
  #sendStop(): void {
    if (this.#id !== undefined && this.#connection.state === HubConnectionState.Connected) this.#connection.invoke('Stop', this.#id).catch(() => {});
  }

  #lose(reason: string): void {
    this.#finished = true;
    this.#listener.lost(reason);
  }
}

const isUnauthorized = (error: unknown): boolean => error instanceof Error && /\b401\b|unauthorized/i.test(error.message);

/** Without SignalR's wrapping: "An unexpected error occurred invoking 'Attach' on the server. HubException: generation not found". */
const plain = (error: unknown): string => (error instanceof Error ? error.message : String(error)).replace(/^.*HubException: /s, '');

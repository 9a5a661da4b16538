import type { Conversation } from './conversation.ts';

/**
 * A tenant's conversations in this browser: one localStorage entry each, so that saving one while it streams costs little and is
 * done before the page goes away. Text and the place in the event stream are saved together; however old the entry is, going on
 * from it neither loses nor doubles text.
 */
export class Archive {
  readonly #prefix: string;
  readonly #storage: Storage;

  constructor(tenant: string, storage: Storage = localStorage) {
    this.#prefix = `tl:${tenant}:chat:`;
    this.#storage = storage;
  }

  all(): Conversation[] {
    const found: Conversation[] = [];
    for (let i = 0; i < this.#storage.length; i++) {
      const conversation = this.#read(this.#storage.key(i)!);
      if (conversation) found.push(conversation);
    }
    return found.sort((a, b) => b.updatedAt - a.updatedAt);
  }

  /** Throws where the browser's quota is used up. */
  save(conversation: Conversation): void {
    this.#storage.setItem(this.#prefix + conversation.id, JSON.stringify(conversation));
  }

  remove(id: string): void {
    this.#storage.removeItem(this.#prefix + id);
  }

  /** Tells of changes that other tabs of this tenant made. Returns how to stop listening. */
  watch(changed: (id: string, conversation: Conversation | null) => void): () => void {
    const listen = (event: StorageEvent): void => {
      if (event.key?.startsWith(this.#prefix)) changed(event.key.slice(this.#prefix.length), this.#read(event.key));
    };
    addEventListener('storage', listen);
    return () => removeEventListener('storage', listen);
  }

  #read(key: string): Conversation | null {
    if (!key.startsWith(this.#prefix)) return null;
    try {
      const value = JSON.parse(this.#storage.getItem(key) ?? 'null') as Conversation | null;
      return value && Array.isArray(value.lanes) && value.lanes.length > 0 && value.messages ? value : null;
    } catch {
      return null; // An entry that cannot be read must not take the others with it.
    }
  }
}

import type { Finding, ModelCard, Session, Site } from './protocol.ts';

/** A refusal, with the server's own words where it gave any. */
export class ApiError extends Error {
  readonly status: number;
  readonly code: string;
  /** What is wrong with an adapter that was refused. */
  readonly findings: Finding[];

  constructor(status: number, message: string, code = '', findings: Finding[] = []) {
    super(message);
    this.status = status;
    this.code = code;
    this.findings = findings;
  }
}

/** Resolves against the page, so that the page also works below a path prefix. */
export const address = (path: string): string => new URL(path, document.baseURI).href;

const unreachable = (): ApiError => new ApiError(0, 'The server cannot be reached. Check the connection and try again.');

export async function request<T>(path: string, init: RequestInit = {}): Promise<T> {
  let response: Response;
  try {
    response = await fetch(address(path), { ...init, credentials: 'omit', cache: 'no-store' });
  } catch {
    throw unreachable();
  }
  return taken<T>(response.status, await response.json().catch(() => null));
}

/** Posts with word of how much has been sent, which fetch does not give. Rejects with an AbortError where it is cancelled. */
export function upload<T>(path: string, token: string, body: FormData | Blob, sent: (bytes: number, total: number) => void, cancel: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const post = new XMLHttpRequest();
    post.open('POST', address(path));
    post.responseType = 'json';
    post.setRequestHeader('authorization', `Bearer ${token}`);
    post.upload.onprogress = (event) => sent(event.loaded, event.total);
    post.onload = () => {
      try {
        resolve(taken<T>(post.status, post.response));
      } catch (error) {
        reject(error as Error);
      }
    };
    post.onerror = () => reject(unreachable());
    post.onabort = () => reject(new DOMException('Cancelled.', 'AbortError'));
    cancel.addEventListener('abort', () => post.abort());
    post.send(body);
  });
}

function taken<T>(status: number, body: unknown): T {
  const { detail, error, code, findings } = (body ?? {}) as { detail?: string; error?: { message?: string }; code?: string; findings?: Finding[] };
  // RFC 7807 (`detail`) on /api, OpenAI's envelope (`error.message`) on /v1.
  if (status < 200 || status > 299) throw new ApiError(status, detail ?? error?.message ?? `The server answered ${status}.`, code, findings);
  if (body === null && status !== 204) throw new ApiError(status, 'The server answered with something that is not JSON.');
  return body as T;
}

export const getSite = (): Promise<Site> => request('api/site');

export const openSession = (proof: { key: string } | { tenant: string }): Promise<Session> =>
  request('api/session', { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(proof) });

export const listModels = async (token: string): Promise<ModelCard[]> =>
  (await request<{ data: ModelCard[] }>('v1/models', { headers: { authorization: `Bearer ${token}` } })).data;

/** One tenant per tab: the token lives in sessionStorage and goes with the tab. */
export const keptSession = {
  load(): Session | null {
    const text = sessionStorage.getItem('tl:session');
    if (!text) return null;
    const session = JSON.parse(text) as Session;
    return Date.parse(session.expiresAt) > Date.now() ? session : null;
  },
  save: (session: Session): void => sessionStorage.setItem('tl:session', JSON.stringify(session)),
  clear: (): void => sessionStorage.removeItem('tl:session'),
};

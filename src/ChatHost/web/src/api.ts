import type { ModelCard, Session, Site } from './protocol.ts';

/** A refusal, with the server's own words where it gave any. */
export class ApiError extends Error {
  readonly status: number;

  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

/** Resolves against the page, so that the page also works below a path prefix. */
export const address = (path: string): string => new URL(path, document.baseURI).href;

async function request<T>(path: string, init: RequestInit = {}): Promise<T> {
  let response: Response;
  try {
    response = await fetch(address(path), { ...init, credentials: 'omit', cache: 'no-store' });
  } catch {
    throw new ApiError(0, 'The server cannot be reached. Check the connection and try again.');
  }
  const body: unknown = await response.json().catch(() => null);
  if (!response.ok) throw new ApiError(response.status, reason(body) ?? `The server answered ${response.status}.`);
  if (body === null) throw new ApiError(response.status, 'The server answered with something that is not JSON.');
  return body as T;
}

/** RFC 7807 (`detail`) on /api, OpenAI's envelope (`error.message`) on /v1. */
function reason(body: unknown): string | undefined {
  const { detail, error } = (body ?? {}) as { detail?: string; error?: { message?: string } };
  return detail ?? error?.message;
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

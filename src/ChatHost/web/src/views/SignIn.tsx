import { useEffect, useState } from 'preact/hooks';
import { getSite, openSession } from '../api.ts';
import type { Session, Site } from '../protocol.ts';
import { Icon, Monogram } from './parts.tsx';

/** Who is asking: a tenant of the demo, or whoever holds a key. */
export function SignIn({ reason, signedIn }: { reason: string; signedIn: (session: Session, site: Site) => void }) {
  const [site, setSite] = useState<Site | null>(null);
  const [error, setError] = useState('');
  const [key, setKey] = useState('');
  const [busy, setBusy] = useState('');

  const load = (): void => {
    setError('');
    getSite().then(setSite, (e: Error) => setError(e.message));
  };
  useEffect(load, []);

  const enter = async (proof: { key: string } | { tenant: string }): Promise<void> => {
    setError('');
    setBusy('tenant' in proof ? proof.tenant : 'key');
    try {
      signedIn(await openSession(proof), site!);
    } catch (e) {
      setError((e as Error).message);
      setBusy('');
    }
  };

  return (
    <main class="sign-in">
      <div class="sign-in-card">
        <img class="mark" src="./favicon.svg" alt="" />
        <h1>{site?.name ?? 'TenantLora'}</h1>
        {site?.demo && <p class="lead">One shared model, <strong>{site.baseModel}</strong>, and a small adapter for every tenant. Choose whose assistant to talk to.</p>}
        {site && !site.demo && <p class="lead">Sign in with your tenant’s key to talk to its assistant.</p>}
        {reason && !error && <p class="note" role="status">{reason}</p>}
        {error && <p class="note error" role="alert"><Icon name="alert" /><span>{error}</span>{!site && <button type="button" class="link" onClick={load}>Try again</button>}</p>}
        {!site && !error && <div class="skeleton-list" role="status" aria-label="Loading"><i /><i /><i /></div>}
        {site?.demo && (
          <ul class="tenants" data-testid="tenant-picker">
            {site.tenants.map((tenant) => (
              <li key={tenant.id}>
                <button type="button" data-testid={`tenant-${tenant.id}`} disabled={busy !== ''} aria-busy={busy === tenant.id} onClick={() => void enter({ tenant: tenant.id })}>
                  <Monogram name={tenant.name} /><span>{tenant.name}</span><Icon name="right" />
                </button>
              </li>
            ))}
          </ul>
        )}
        {site && (
          <form class="key-form" onSubmit={(event) => { event.preventDefault(); void enter({ key: key.trim() }); }}>
            <label for="key">{site.demo ? 'Or use a key' : 'Key'}</label>
            <div class="key-row">
              <input id="key" type="password" autocomplete="off" spellcheck={false} placeholder="tl_…" required data-testid="key-input" value={key} onInput={(e) => setKey(e.currentTarget.value)} />
              <button type="submit" class={site.demo ? 'secondary' : 'primary'} disabled={busy !== ''}>Sign in</button>
            </div>
          </form>
        )}
      </div>
      <p class="fine-print">Conversations stay in this browser.</p>
    </main>
  );
}

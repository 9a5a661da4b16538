import type { ComponentChildren } from 'preact';
import { useEffect, useRef, useState } from 'preact/hooks';
import { deed, hashOf, type Admin, type Page } from '../admin.ts';
import { bytes, when } from '../format.ts';
import type { KeyCard, Place } from '../protocol.ts';
import type { Workspace } from '../workspace.ts';
import { AdapterView, AdaptersView, Digest } from './Adapters.tsx';
import { UsageView } from './Usage.tsx';
import { Dialog, Icon, IconButton, copyText } from './parts.tsx';

export type AdminPlace = Exclude<Page, { view: 'chat' }>;

export const pageNames: Record<AdminPlace['view'], string> = { adapters: 'Adapters', memory: 'Memory', usage: 'Usage', keys: 'Keys', audit: 'Audit' };

/** What an admin sees in the place of the chat. */
export function AdminPage({ workspace, admin, page, toggle }: { workspace: Workspace; admin: Admin; page: AdminPlace; toggle: ComponentChildren }) {
  const place = hashOf(page);
  useEffect(() => {
    void admin.show(page);
    document.querySelector('.tabs [aria-current]')?.scrollIntoView({ block: 'nearest', inline: 'nearest' });
    if (document.activeElement === document.body) document.getElementById('page-title')?.focus(); // The link that led here is gone.
  }, [place]);
  return (
    <>
      <header class="bar">
        {toggle}
        <nav class="tabs" aria-label="Administration">
          {Object.entries(pageNames).map(([view, name]) => <a key={view} href={`#/${view}`} aria-current={page.view === view ? 'page' : undefined} data-testid={`tab-${view}`}>{name}</a>)}
        </nav>
        <button type="button" class="add-lane" aria-label="Back to chat" data-testid="back-to-chat" onClick={() => workspace.backToChat()}><Icon name="left" /><span>Chat</span></button>
      </header>
      <div class="admin" key={place}>
        <div class="admin-content">
          <Notices admin={admin} />
          {page.view === 'adapters' && (page.name === undefined ? <AdaptersView admin={admin} workspace={workspace} /> : <AdapterView admin={admin} workspace={workspace} name={page.name} />)}
          {page.view === 'memory' && <MemoryView admin={admin} />}
          {page.view === 'usage' && <UsageView admin={admin} />}
          {page.view === 'keys' && <KeysView admin={admin} />}
          {page.view === 'audit' && <AuditView admin={admin} />}
        </div>
      </div>
    </>
  );
}

/** What went wrong, and what was done. The focus comes here where the button that did it is gone. */
function Notices({ admin }: { admin: Admin }) {
  const note = useRef<HTMLParagraphElement>(null);
  const problem = admin.problem.value;
  const done = admin.done.value;
  useEffect(() => { if (done && document.activeElement === document.body) note.current?.focus(); }, [done]);
  return (
    <>
      <div role="status">{done && <p class="note" ref={note} tabIndex={-1} data-testid="done"><Icon name="check" /><span>{done}</span><IconButton icon="close" class="small" label="Dismiss" onClick={() => { admin.done.value = ''; }} /></p>}</div>
      <div role="alert">
        {problem && (
          <p class="note error" data-testid="problem">
            <Icon name="alert" />
            <span>{problem.changed && <strong>Somebody else has changed this meanwhile. </strong>}{problem.message}</span>
            {problem.changed || problem.unread
              ? <button type="button" class="link" data-testid="reload" onClick={() => void admin.read()}>{problem.changed ? 'Reload' : 'Try again'}</button>
              : <IconButton icon="close" class="small" label="Dismiss" onClick={() => { admin.problem.value = null; }} />}
          </p>
        )}
      </div>
    </>
  );
}

export const PageTitle = ({ children }: { children: ComponentChildren }) => <h1 id="page-title" tabIndex={-1}>{children}</h1>;

/** Stands where a list will be, until it is read or cannot be. */
export const Loading = ({ admin }: { admin: Admin }) => admin.problem.value ? null : <div class="skeleton-list" role="status" aria-label="Loading"><i /><i /><i /></div>;

export const Time = ({ at }: { at: string }) => <time dateTime={at}>{when(at)}</time>;

export const More = ({ admin }: { admin: Admin }) => <button type="button" class="secondary" data-testid="more" disabled={admin.busy.value} onClick={() => void admin.more()}>More</button>;

// ── memory ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────

const places: [Place, string][] = [['device', 'On the device'], ['host', 'In the host’s memory'], ['disk', 'On disk only']];

function MemoryView({ admin }: { admin: Admin }) {
  const resident = admin.resident.value;
  const most = resident && (resident.deviceBudget || Math.max(1, ...resident.adapters.map((a) => a.bytes)));
  return (
    <>
      <header class="page-head"><PageTitle>Memory</PageTitle><button type="button" class="secondary" data-testid="refresh" onClick={() => void admin.read()}><Icon name="retry" />Refresh</button></header>
      <p class="hint">An adapter answers from the device. The others are brought there when somebody asks them.</p>
      {!resident || !most ? <Loading admin={admin} /> : (
        <>
          <div class="card" data-testid="device">
            <p><strong>{bytes(resident.deviceBytes)}</strong>{resident.deviceBudget > 0 ? ` of the ${bytes(resident.deviceBudget)} that the device has for adapters` : ' of the device hold adapters'}</p>
            {resident.deviceBudget > 0 && <progress class="share" max={resident.deviceBudget} value={resident.deviceBytes} aria-hidden="true" />}
          </div>
          {places.map(([place, name]) => {
            const here = resident.adapters.filter((a) => a.place === place);
            return here.length > 0 && (
              <section key={place}>
                <h2>{name}</h2>
                <ul class="rows">
                  {here.map((a) => (
                    <li key={`${a.name} ${a.version}`} class="resident" data-testid="resident" data-place={place}>
                      <a href={hashOf({ view: 'adapters', name: a.name })}>{a.name} {a.version}</a>
                      <Digest digest={a.digest} />
                      <span class="figure">{bytes(a.bytes)}</span>
                      <progress class="share" max={most} value={a.bytes} aria-hidden="true" />
                    </li>
                  ))}
                </ul>
              </section>
            );
          })}
          {resident.adapters.length === 0 && <p class="empty-list">There are no adapters.</p>}
        </>
      )}
    </>
  );
}

// ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

const roles = { member: 'Member', admin: 'Admin' };
const sources = { store: '', configuration: 'from the configuration', demo: 'of the demo' };

function KeysView({ admin }: { admin: Admin }) {
  const [revoking, setRevoking] = useState<KeyCard | null>(null);
  const keys = admin.keys.value;
  const fresh = admin.newKey.value;
  useEffect(() => () => { admin.newKey.value = null; }, []);
  const create = async (event: SubmitEvent): Promise<void> => {
    event.preventDefault();
    const form = event.currentTarget as HTMLFormElement;
    const fields = new FormData(form);
    if (await admin.createKey(String(fields.get('label')).trim(), String(fields.get('role')))) form.reset();
  };
  return (
    <>
      <PageTitle>Keys</PageTitle>
      <p class="hint">A key lets a program or a person in. Members chat; admins also see these pages.</p>
      {fresh && <NewKey fresh={fresh} close={() => { admin.newKey.value = null; }} />}
      <form class="card key-create" onSubmit={(e) => void create(e)}>
        <div><label for="label">Label</label><input id="label" name="label" required maxLength={100} autocomplete="off" placeholder="What or whom it is for" data-testid="key-label" /></div>
        <fieldset class="segments">
          <legend>Role</legend>
          {Object.entries(roles).map(([id, name]) => <label key={id}><input type="radio" name="role" value={id} defaultChecked={id === 'member'} /><span>{name}</span></label>)}
        </fieldset>
        <button type="submit" class="primary" data-testid="key-create" disabled={admin.busy.value}>Create key</button>
      </form>
      {!keys ? <Loading admin={admin} /> : (
        <ul class="rows" data-testid="key-list">
          {keys.map((key) => (
            <li key={key.id} class="row-line" data-testid="key" data-id={key.id}>
              <div class="grow">
                <strong>{key.label}</strong> <span class={`badge ${key.role === 'admin' ? 'active' : ''}`}>{key.role}</span>
                <small>{[key.createdAt && `created ${when(key.createdAt)}`, sources[key.source]].filter(Boolean).join(', ')}</small>
              </div>
              {key.source === 'store' && <button type="button" class="small" data-testid="revoke" disabled={admin.busy.value} onClick={() => setRevoking(key)}><Icon name="trash" />Revoke</button>}
            </li>
          ))}
          {keys.length === 0 && <li class="empty-list">There are no keys.</li>}
        </ul>
      )}
      <Dialog open={revoking !== null} close={() => setRevoking(null)} title="Revoke the key?">
        <p>Whoever uses “{revoking?.label}” can no longer sign in. This cannot be undone.</p>
        <footer>
          <button type="button" class="secondary" onClick={() => setRevoking(null)}>Cancel</button>
          <button type="button" class="primary danger" data-testid="confirm" onClick={() => { void admin.revokeKey(revoking!); setRevoking(null); }}>Revoke</button>
        </footer>
      </Dialog>
    </>
  );
}

function NewKey({ fresh, close }: { fresh: { label: string; key: string }; close: () => void }) {
  const field = useRef<HTMLInputElement>(null);
  const [copied, setCopied] = useState<boolean | null>(null);
  useEffect(() => {
    field.current!.focus();
    field.current!.select();
    setCopied(null);
  }, [fresh.key]);
  return (
    <section class="card fresh" aria-label="New key" data-testid="new-key">
      <label for="new-key"><strong>The key “{fresh.label}”.</strong> Copy it now: it is not shown again.</label>
      <div class="key-row">
        <input id="new-key" ref={field} readOnly spellcheck={false} value={fresh.key} data-testid="new-key-value" onFocus={(e) => e.currentTarget.select()} />
        <button type="button" class="primary" onClick={() => void copyText(fresh.key).then(setCopied)}>{copied ? 'Copied' : 'Copy'}</button>
        <button type="button" class="secondary" onClick={close}>Done</button>
      </div>
      {copied === false && <p class="hint" role="status">The browser does not allow it: select the key and copy it by hand.</p>}
    </section>
  );
}

// ── audit ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

function AuditView({ admin }: { admin: Admin }) {
  const audit = admin.audit.value;
  return (
    <>
      <PageTitle>Audit</PageTitle>
      <p class="hint">Who changed what, newest first.</p>
      {!audit ? <Loading admin={admin} /> : (
        <div data-testid="audit">
          {audit.items.length === 0 ? <p class="empty-list">Nothing has been changed yet.</p> : (
            <table class="audit">
              <thead><tr><th scope="col">When</th><th scope="col">Who</th><th scope="col">What</th><th scope="col">Why</th></tr></thead>
              <tbody>
                {audit.items.map((entry) => {
                  const { what, adapter, change } = deed(entry);
                  return (
                    <tr key={entry.id} data-testid="audit-entry" data-action={entry.action}>
                      <td><Time at={entry.at} /></td>
                      <td>{entry.who}</td>
                      <td><strong>{what}</strong> {adapter} {change && <span class="change">{change}</span>}</td>
                      <td>{entry.why}</td>
                    </tr>
                  );
                })}
              </tbody>
            </table>
          )}
        </div>
      )}
      {audit?.next && <More admin={admin} />}
    </>
  );
}

import type { ComponentChildren } from 'preact';
import { useEffect, useRef, useState } from 'preact/hooks';
import { aliases, few, hashOf, inOrder, onDisk, severityWord, size, tally, tryLanes, type Admin, type Candidate, type Picked, type Upload } from '../admin.ts';
import { bytes, kindOf, percent, plural } from '../format.ts';
import type { AdapterCard, AdapterDetail, Finding, VersionCard } from '../protocol.ts';
import type { Workspace } from '../workspace.ts';
import { Loading, More, PageTitle, Time } from './Admin.tsx';
import { CopyButton, Dialog, Icon, IconButton, Menu } from './parts.tsx';

interface Props {
  admin: Admin;
  workspace: Workspace;
}

export function AdaptersView({ admin, workspace }: Props) {
  const list = admin.adapters.value;
  const disk = admin.disk.value;
  return (
    <>
      <PageTitle>Adapters</PageTitle>
      <UploadBox admin={admin} workspace={workspace} />
      {!list ? <Loading admin={admin} /> : (
        <>
          <ul class="rows" data-testid="adapter-list">
            {list.items.map((card) => (
              <li key={card.name}>
                <a class="row-line" href={hashOf({ view: 'adapters', name: card.name })} data-testid="adapter" data-name={card.name}>
                  <span class="grow"><strong>{card.name}</strong><small>{plural(card.versions, 'version')}, since <Time at={card.createdAt} /></small></span>
                  <Aliases card={card} />
                  <Icon name="right" />
                </a>
              </li>
            ))}
          </ul>
          {list.items.length === 0 && <p class="empty-list">There is no adapter yet. Upload the first one.</p>}
          {list.next && <More admin={admin} />}
          {disk && (
            <div class="card" data-testid="disk">
              <p>{onDisk(disk)}</p>
              {disk.quota !== null && <progress class="share" max={disk.quota} value={disk.bytes} aria-hidden="true" />}
            </div>
          )}
        </>
      )}
    </>
  );
}

/** Which version is active, canary and previous; of one version, which of these it is. */
function Aliases({ card, version }: { card: AdapterCard; version?: string }) {
  return (
    <span class="aliases">
      {aliases(card, version).map((a) => (
        <span key={a.alias} class={`badge ${a.alias}`} data-testid={`alias-${a.alias}`}>{a.alias}{version === undefined && ` ${a.version}`}{a.share !== undefined && ` ${percent(a.share / 100)}`}</span>
      ))}
      {version === undefined && card.active === null && <span class="badge">none active</span>}
      {version === undefined && card.pinned && <span class="badge" title="Its active version stays in memory" data-testid="pinned">pinned</span>}
    </span>
  );
}

export const Digest = ({ digest }: { digest: string }) => (
  <span class="digest"><code title={digest}>{digest.replace(/^sha256:/, '').slice(0, 12)}</code><CopyButton text={digest} label="Copy digest" /></span>
);

// ── one adapter ──────────────────────────────────────────────────────────────────────────────────────────────────────────────

/** What a dialog asks before it is done. */
type Question = { about: 'activate' | 'canary' | 'delete'; version: string } | { about: 'delete-adapter' };

export function AdapterView({ admin, workspace, name }: Props & { name: string }) {
  const [question, setQuestion] = useState<Question | null>(null);
  const card = admin.detail.value?.name === name ? admin.detail.value : null;
  const busy = admin.busy.value;
  return (
    <>
      <a class="back" href="#/adapters"><Icon name="left" />Adapters</a>
      <header class="page-head">
        <PageTitle>{name}</PageTitle>
        {card && <Aliases card={card} />}
        {card?.previous && <button type="button" class="secondary" data-testid="roll-back" disabled={busy} onClick={() => void admin.rollBack(card)}><Icon name="undo" />Roll back to {card.previous}</button>}
        {card && <Menu name={`Actions for ${name}`} title="Actions" class="icon-button" testid="adapter-menu" trigger={<Icon name="more" />} items={[
          { label: card.pinned ? 'Unpin' : 'Pin in memory', detail: card.pinned ? 'It takes turns with others again' : 'Its active version is ready at once', icon: card.pinned ? 'close' : 'layers', run: () => void admin.pin(card, !card.pinned) },
          { label: 'Delete adapter', icon: 'trash', danger: true, run: () => setQuestion({ about: 'delete-adapter' }) },
        ]} />}
      </header>
      {card?.canary && <Canary admin={admin} card={card} ask={setQuestion} />}
      <UploadBox admin={admin} workspace={workspace} adapter={card} activate={(version) => setQuestion({ about: 'activate', version })} />
      {!card ? <Loading admin={admin} /> : (
        <section>
          <h2>Versions</h2>
          <ul class="versions" data-testid="versions">
            {card.versionList.map((v) => <Version key={v.version} admin={admin} workspace={workspace} card={card} v={v} ask={setQuestion} />)}
          </ul>
          {card.versionList.length === 0 && <p class="empty-list">There is no version. Upload one.</p>}
        </section>
      )}
      {card && <Asking admin={admin} workspace={workspace} card={card} question={question} close={() => setQuestion(null)} />}
    </>
  );
}

function Canary({ admin, card, ask }: { admin: Admin; card: AdapterDetail; ask: (question: Question) => void }) {
  const { version, share } = card.canary!;
  return (
    <div class="card strip" data-testid="canary">
      <p class="grow">The canary <strong>{version}</strong> answers {percent(share / 100)} of the requests.</p>
      <button type="button" class="secondary" data-testid="canary-share" disabled={admin.busy.value} onClick={() => ask({ about: 'canary', version })}>Change share</button>
      <button type="button" class="secondary" data-testid="canary-end" disabled={admin.busy.value} onClick={() => void admin.endCanary(card)}>End canary</button>
    </div>
  );
}

function Version({ admin, workspace, card, v, ask }: Props & { card: AdapterDetail; v: VersionCard; ask: (question: Question) => void }) {
  const { version } = v;
  const isActive = card.active === version;
  const isCanary = card.canary?.version === version;
  return (
    <li class="card version" data-testid="version" data-version={version}>
      <header>
        <h3>{version}</h3>
        <Aliases card={card} version={version} />
        <span class="badge">{kindOf(v)}</span>
        <span class="buttons">
          <TryButton workspace={workspace} card={card} version={version} />
          {!isActive && <button type="button" class="small" data-testid="activate" disabled={admin.busy.value} onClick={() => ask({ about: 'activate', version })}><Icon name="check" />Activate</button>}
          {!isActive && (
            <Menu name={`Actions for ${version}`} title="Actions" class="icon-button" testid="version-menu" trigger={<Icon name="more" />} items={[
              { label: isCanary ? 'Change canary share' : 'Make canary', icon: 'columns', run: () => ask({ about: 'canary', version }) },
              ...(isCanary ? [] : [{ label: 'Delete version', icon: 'trash' as const, danger: true, run: () => ask({ about: 'delete', version }) }]),
            ]} />
          )}
        </span>
      </header>
      <Size v={v} />
      <p class="facts">
        <span>created <Time at={v.createdAt} /> by {v.createdBy}</span>
        {v.baseModel && <span>for {v.baseModel}</span>}
        <Digest digest={v.digest} />
      </p>
      <details>
        <summary data-testid="report-summary">Report: {tally(v.findings)}</summary>
        <Report findings={v.findings} />
      </details>
    </li>
  );
}

function Size({ v }: { v: VersionCard }) {
  const { words, share } = size(v);
  return <div class="size" data-testid="size"><span>{words}</span>{share !== null && <progress class="share" max={1} value={share} aria-hidden="true" />}</div>;
}

/** Opens the chat with the version beside what answers now. */
function TryButton({ workspace, card, version, class: look = 'small' }: { workspace: Workspace; card: AdapterCard; version: string; class?: string }) {
  const base = workspace.models.value.find((m) => !m.adapter)?.id;
  return <button type="button" class={look} data-testid="try" title="Chat with it beside what answers now" onClick={() => workspace.compare(tryLanes(card, version, base))}><Icon name="columns" />Try it</button>;
}

export const Report = ({ findings }: { findings: Finding[] }) => (
  <ul class="findings" data-testid="report">
    {inOrder(findings).map((f, i) => (
      <li key={i} class={`finding ${f.severity}`} data-testid="finding" data-severity={f.severity} data-code={f.code}>
        <Icon name={f.severity === 'information' ? 'info' : 'alert'} />
        <div>
          <p><strong class="severity">{severityWord(f.severity)}</strong> {f.what}</p>
          <dl>
            {[['Where', f.where], ['Expected', f.expected], ['Found', f.found], ['How to fix', f.fix]].map(([name, text]) => text && <div key={name}><dt>{name}</dt><dd>{text}</dd></div>)}
          </dl>
          <small class="code">{f.code}</small>
        </div>
      </li>
    ))}
    {findings.length === 0 && <li class="hint">The check found nothing to say.</li>}
  </ul>
);

function Asking({ admin, workspace, card, question, close }: Props & { card: AdapterDetail; question: Question | null; close: () => void }) {
  const { name } = card;
  const version = question && 'version' in question ? question.version : '';
  const answer = async (form: FormData): Promise<void> => {
    const why = String(form.get('why') ?? '').trim();
    close();
    switch (question?.about) {
      case 'activate': return admin.activate(card, version, why);
      case 'canary': return admin.canary(card, version, Number(form.get('share')), why);
      case 'delete': return void await admin.removeVersion(card, version);
      case 'delete-adapter': if (await admin.remove(card)) workspace.goTo({ view: 'adapters' });
    }
  };
  const [title, button] = {
    activate: [`Activate ${version} of ${name}?`, 'Activate'],
    canary: [`${version} of ${name} as canary`, card.canary ? 'Change canary' : 'Start canary'],
    delete: [`Delete ${version} of ${name}?`, 'Delete'],
    'delete-adapter': [`Delete ${name}?`, 'Delete'],
    '': ['', ''],
  }[question?.about ?? ''];
  const deletes = question?.about === 'delete' || question?.about === 'delete-adapter';
  return (
    <Dialog open={question !== null} close={close} title={title!} class="ask">
      <form onSubmit={(e) => { e.preventDefault(); void answer(new FormData(e.currentTarget)); }}>
        {question?.about === 'activate' && <p>{card.active ? `It answers from now on in the place of ${card.active}, which stays as previous: going back is one click.` : 'It answers from now on.'}</p>}
        {question?.about === 'canary' && (
          <>
            <p>It answers this share of the requests; {card.active ?? 'the active version'} answers the others.{card.canary && card.canary.version !== version && ` It takes the place of ${card.canary.version}.`}</p>
            <label>Share in percent<input type="number" name="share" min={1} max={99} step={1} required inputmode="numeric" autofocus defaultValue={String(card.canary?.share ?? 10)} data-testid="share" /></label>
          </>
        )}
        {question?.about === 'delete' && <p>Nobody will be able to ask this version. This cannot be undone.</p>}
        {question?.about === 'delete-adapter' && <p>The adapter and its {plural(card.versions, 'version')} will be deleted; whoever asks it gets an error. This cannot be undone.</p>}
        {!deletes && <label>Reason (optional)<input name="why" maxLength={500} autocomplete="off" placeholder="Kept in the audit" autofocus={question?.about === 'activate'} data-testid="why" /></label>}
        <footer>
          <button type="button" class="secondary" onClick={close}>Cancel</button>
          <button type="submit" class={deletes ? 'primary danger' : 'primary'} data-testid="confirm">{button}</button>
        </footer>
      </form>
    </Dialog>
  );
}

// ── upload ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────

interface UploadProps extends Props {
  /** The adapter that the page shows, if one. */
  adapter?: AdapterDetail | null;
  activate?: (version: string) => void;
}

/** Where files are dropped and chosen, how far they are, and what the server says of them. */
function UploadBox({ admin, workspace, adapter, activate }: UploadProps) {
  const box = useRef<HTMLElement>(null);
  const files = useRef<HTMLInputElement>(null);
  const folder = useRef<HTMLInputElement>(null);
  const dragging = useDropped((dropped) => admin.choose(dropped), (why) => admin.tell(why));
  const now = admin.upload.value;
  const state = now?.state;
  useEffect(() => { if (state && document.activeElement === document.body) box.current?.focus(); }, [state]);

  const chosen = (input: HTMLInputElement): void => {
    admin.choose([...input.files!].map((file) => ({ file, path: file.webkitRelativePath || file.name })));
    input.value = ''; // So that the same files can be chosen again.
  };
  const send = async (name: string): Promise<void> => {
    const from = workspace.page.value;
    const taken = await admin.send(name);
    if (taken !== null && workspace.page.value === from) workspace.goTo({ view: 'adapters', name: taken });
  };
  return (
    <section ref={box} tabIndex={-1} class={`card upload ${dragging ? 'dragging' : ''}`} aria-label="Upload" data-testid="upload" data-state={state ?? 'empty'}>
      {now?.state === 'chosen' && (now.picked.kind === 'nothing'
        ? <p class="note error" role="alert" data-testid="upload-error"><Icon name="alert" /><span>{now.picked.why}</span><IconButton icon="close" class="small" label="Dismiss" onClick={() => admin.putUploadAway()} /></p>
        : <ChosenForm picked={now.picked} name={now.name} send={(name) => void send(name)} cancel={() => admin.putUploadAway()} />)}
      {now?.state === 'sending' && <Sending now={now} cancel={() => admin.cancelUpload()} />}
      {now?.state === 'refused' && (
        <Result close={() => admin.putUploadAway()} title={now.unknown ? `The upload to ${now.name} failed.` : `Refused: nothing was added to ${now.name}.`} refused>
          <p>{now.message}</p>
          {now.findings.length > 0 ? <Report findings={now.findings} /> : <button type="button" class="secondary" data-testid="upload-again" onClick={() => void send(now.name)}>Try again</button>}
        </Result>
      )}
      {now?.state === 'taken' && (
        <Result close={() => admin.putUploadAway()} title={now.created ? `${now.version.version} was added to ${now.name}.` : `Nothing was added: the same bytes are ${now.version.version} of ${now.name} already.`}>
          {now.created && <p>It is not active until you say so.</p>}
          <Size v={now.version} />
          <Report findings={now.version.findings} />
          {adapter?.name === now.name && (
            <span class="buttons">
              <TryButton workspace={workspace} card={adapter} version={now.version.version} class="secondary" />
              {adapter.active !== now.version.version && <button type="button" class="secondary" data-testid="activate" disabled={admin.busy.value} onClick={() => activate?.(now.version.version)}><Icon name="check" />Activate</button>}
            </span>
          )}
        </Result>
      )}
      {(!now || now.state === 'refused' || (now.state === 'chosen' && now.picked.kind === 'nothing')) && (
        <>
          <p class="grow"><Icon name="upload" />{dragging ? 'Drop it here.' : 'Drop an adapter: its folder, its two files, a .zip or a .tar.gz.'}</p>
          <span class="buttons">
            <button type="button" class="secondary" data-testid="choose-files" onClick={() => files.current!.click()}>Choose files</button>
            <button type="button" class="secondary" data-testid="choose-folder" onClick={() => folder.current!.click()}>Choose a folder</button>
          </span>
        </>
      )}
      <input ref={files} type="file" multiple hidden data-testid="file-input" onChange={(e) => chosen(e.currentTarget)} />
      <input ref={(input) => { folder.current = input; if (input) input.webkitdirectory = true; }} type="file" hidden data-testid="folder-input" onChange={(e) => chosen(e.currentTarget)} />
    </section>
  );
}

function ChosenForm({ picked, name, send, cancel }: { picked: Exclude<Picked, { kind: 'nothing' }>; name: string; send: (name: string) => void; cancel: () => void }) {
  const input = useRef<HTMLInputElement>(null);
  useEffect(() => input.current!.focus(), [picked]);
  const files = picked.kind === 'archive' ? [picked.archive] : [picked.config, picked.weights];
  return (
    <form class="chosen" onSubmit={(e) => { e.preventDefault(); send(input.current!.value.trim()); }}>
      <ul>{files.map((file) => <li key={file.name}><strong>{file.name}</strong> <small>{bytes(file.size)}</small></li>)}</ul>
      {picked.others.length > 0 && <p class="hint">Not sent: {few(picked.others)}</p>}
      <label for="adapter-name">Adapter</label>
      <div class="key-row">
        <input id="adapter-name" ref={input} key={name} required autocomplete="off" spellcheck={false} placeholder="Its name, new or known" defaultValue={name} data-testid="upload-name" />
        <button type="submit" class="primary" data-testid="upload-send">Upload</button>
        <button type="button" class="secondary" onClick={cancel}>Cancel</button>
      </div>
    </form>
  );
}

function Sending({ now, cancel }: { now: Extract<Upload, { state: 'sending' }>; cancel: () => void }) {
  const share = now.sent / now.total;
  return (
    <div class="sending">
      <p class="grow" role="status">{share < 1 ? `Uploading to ${now.name}…` : 'Sent. The server is checking it…'}</p>
      <span class="figure">{percent(share)}</span>
      <button type="button" class="secondary" data-testid="upload-cancel" onClick={cancel}>Cancel</button>
      <progress class="share" max={1} value={share} aria-label="Sent" />
    </div>
  );
}

function Result({ title, refused, close, children }: { title: string; refused?: boolean; close: () => void; children: ComponentChildren }) {
  return (
    <div class={`result ${refused ? 'refused' : ''}`} data-testid="upload-result">
      <header><Icon name={refused ? 'alert' : 'check'} /><div class="grow" role={refused ? 'alert' : 'status'}><h2>{title}</h2></div><IconButton icon="close" class="small" label="Dismiss" onClick={close} /></header>
      {children}
    </div>
  );
}

/** More would not be an adapter but somebody's disk. */
const mostFiles = 1000;

/** Takes files that are dropped anywhere on the page. True while some are held over it. */
function useDropped(take: (dropped: Candidate[]) => void, fail: (why: string) => void): boolean {
  const [dragging, setDragging] = useState(false);
  const latest = useRef({ take, fail });
  latest.current = { take, fail };
  useEffect(() => {
    const holdsFiles = (event: DragEvent): boolean => event.dataTransfer?.types.includes('Files') ?? false;
    const over = (event: DragEvent): void => {
      if (!holdsFiles(event)) return;
      event.preventDefault();
      setDragging(true);
    };
    const left = (event: DragEvent): void => { if (event.relatedTarget === null) setDragging(false); };
    const drop = (event: DragEvent): void => {
      if (!holdsFiles(event)) return;
      event.preventDefault();
      setDragging(false);
      // Taken before the first await: they go with the event.
      const held = [...event.dataTransfer!.items].flatMap((item) => item.webkitGetAsEntry() ?? item.getAsFile() ?? []);
      void filesOf(held).then((dropped) => latest.current.take(dropped), (e: Error) => latest.current.fail(`What was dropped cannot be read. ${e.message}`));
    };
    addEventListener('dragover', over);
    addEventListener('dragleave', left);
    addEventListener('drop', drop);
    return () => {
      removeEventListener('dragover', over);
      removeEventListener('dragleave', left);
      removeEventListener('drop', drop);
    };
  }, []);
  return dragging;
}

/** All files, with those in folders. */
async function filesOf(held: (FileSystemEntry | File)[]): Promise<Candidate[]> {
  const found: Candidate[] = [];
  for (const queue = [...held]; queue.length > 0;) {
    const entry = queue.shift()!;
    if (entry instanceof File) found.push({ path: entry.name, file: entry });
    else if (entry.isFile) found.push({ path: entry.fullPath, file: await new Promise((resolve, reject) => (entry as FileSystemFileEntry).file(resolve, reject)) });
    else {
      const reader = (entry as FileSystemDirectoryEntry).createReader();
      for (;;) { // A call gives a hundred at most; none is the end.
        const some = await new Promise<FileSystemEntry[]>((resolve, reject) => reader.readEntries(resolve, reject));
        if (some.length === 0) break;
        queue.push(...some);
      }
    }
    if (found.length + queue.length > mostFiles) throw new Error(`There are more than ${mostFiles} files. Choose the adapter’s own folder.`);
  }
  return found;
}

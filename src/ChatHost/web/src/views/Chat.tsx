import { useSignal } from '@preact/signals';
import { useEffect, useState } from 'preact/hooks';
import { maxLanes, path } from '../conversation.ts';
import { describe } from '../format.ts';
import { prefs } from '../prefs.ts';
import { isChanged } from '../settings.ts';
import type { Workspace } from '../workspace.ts';
import { AdminPage, pageNames } from './Admin.tsx';
import { Composer } from './Composer.tsx';
import { HelpDialog, SettingsDialog } from './Dialogs.tsx';
import { Icon, IconButton, Menu, copyText } from './parts.tsx';
import { Sidebar } from './Sidebar.tsx';
import { Thread } from './Thread.tsx';

const suggestions = ['When are you open?', 'What do you sell?', 'What is 7 plus 8?', 'Who are you?'];

export function Chat({ workspace, leave, leaveLabel }: { workspace: Workspace; leave: () => void; leaveLabel: string }) {
  const narrow = useMedia('(max-width: 800px)');
  const [drawer, setDrawer] = useState(false);
  const [dialog, setDialog] = useState<'settings' | 'help' | null>(null);
  const search = useSignal('');
  const sidebarOpen = narrow ? drawer : prefs.sidebar.value;
  const toggleSidebar = (): void => { if (narrow) setDrawer(!drawer); else prefs.sidebar.value = !prefs.sidebar.value; };
  const { admin } = workspace;
  const page = workspace.page.value;
  const conversation = workspace.current.value.value;
  const empty = Object.keys(conversation.messages).length === 0;

  const title = page.view === 'chat' ? conversation.title : page.view === 'adapters' && page.name ? page.name : pageNames[page.view];
  useEffect(() => { document.title = title ? `${title} · ${workspace.session.name}` : workspace.session.name; }, [title]);
  useShortcuts({
    stop: () => { if (page.view === 'chat' && workspace.busy.value) workspace.stopAll(); },
    focus: () => document.getElementById('composer')?.focus(),
    'shift+o': () => workspace.newChat(),
    k: () => {
      if (!sidebarOpen) toggleSidebar();
      setTimeout(() => document.getElementById('search')?.focus());
    },
    b: toggleSidebar,
    'shift+c': () => {
      const last = path(workspace.current.value.value, 0).findLast((m) => m.role === 'assistant');
      if (last) void copyText(last.text).then((ok) => { if (ok) workspace.status.value = 'Copied'; });
    },
    '/': () => setDialog('help'),
  });

  const toggle = sidebarOpen && narrow ? null : <IconButton icon="menu" label={sidebarOpen ? 'Hide sidebar' : 'Show sidebar'} data-testid="sidebar-toggle" onClick={toggleSidebar} />;

  return (
    <div class={`chat ${sidebarOpen ? 'with-sidebar' : ''}`}>
      <Sidebar workspace={workspace} open={sidebarOpen} search={search} close={toggleSidebar} chosen={() => setDrawer(false)} leave={leave} leaveLabel={leaveLabel}
        showSettings={() => setDialog('settings')} showHelp={() => setDialog('help')} />
      {narrow && drawer && <button type="button" class="scrim" aria-label="Close sidebar" onClick={() => setDrawer(false)} />}
      <main inert={narrow && drawer}>
        {admin && page.view !== 'chat' ? <AdminPage workspace={workspace} admin={admin} page={page} toggle={toggle} /> : (
          <>
            {!empty && <h1 class="sr-only">{conversation.title}</h1>}
            <header class="bar">
              {toggle}
              <Lanes workspace={workspace} />
              <IconButton icon="settings" class={isChanged(workspace.settings.value) ? 'marked' : ''} label={isChanged(workspace.settings.value) ? 'Settings (changed)' : 'Settings'} data-testid="settings" onClick={() => setDialog('settings')} />
              <IconButton icon="plus" class="only-narrow" label="New chat" onClick={() => workspace.newChat()} />
            </header>
            <Banner workspace={workspace} />
            <Thread workspace={workspace}>
              {empty && (
                <div class="welcome">
                  <h1>{workspace.session.name}</h1>
                  <p>{conversation.lanes.length > 1 ? 'One question, several models, side by side.' : 'How can we help you today?'}</p>
                  <ul>{suggestions.map((text) => <li key={text}><button type="button" class="suggestion" disabled={workspace.models.value.length === 0} onClick={() => workspace.send(text)}>{text}</button></li>)}</ul>
                </div>
              )}
            </Thread>
            <div class="dock">
              <Composer workspace={workspace} />
              <p class="fine-print">Answers come from a language model and may be wrong.</p>
            </div>
          </>
        )}
      </main>
      <div class="sr-only" role="status" aria-live="polite" data-testid="status">{workspace.status.value}</div>
      <div class="sr-only" role="alert" data-testid="alert">{workspace.alert.value}</div>
      <SettingsDialog workspace={workspace} open={dialog === 'settings'} close={() => setDialog(null)} />
      <HelpDialog open={dialog === 'help'} close={() => setDialog(null)} />
    </div>
  );
}

/** Which models answer: one, or up to four beside each other. */
function Lanes({ workspace }: { workspace: Workspace }) {
  const { lanes } = workspace.current.value.value;
  const models = workspace.models.value;
  const several = lanes.length > 1;
  const busy = workspace.busy.value;
  return (
    <div class="lanes-bar" role="group" aria-label="Models" data-testid="lanes">
      {lanes.map((lane, i) => (
        <span class="lane" key={i}>
          <Menu
            name={several ? `Model ${i + 1}: ${lane.model}` : `Model: ${lane.model}`} class="lane-button" testid="model-picker" named
            trigger={<><span class="sr-only">{several ? `Model ${i + 1}: ` : 'Model: '}</span><span class="lane-name">{lane.model || 'Loading…'}</span>{!several && <span class="badge">{models.length > 0 && describe(models.find((m) => m.id === lane.model), lane.model)}</span>}<Icon name="chevron" /></>}
            items={models.map((m) => ({ label: m.id, detail: describe(m), checked: m.id === lane.model, run: () => workspace.setModel(i, m.id) }))}
          />
          {several && <IconButton icon="close" class="small" label={`Remove ${lane.model}`} disabled={busy} onClick={() => workspace.removeLane(i)} />}
        </span>
      ))}
      {lanes.length < maxLanes && models.length > 0 && (
        <button type="button" class="add-lane" data-testid="compare" disabled={busy} title="Answer the same message with another model beside" onClick={() => workspace.addLane()}>
          <Icon name={several ? 'plus' : 'columns'} /><span>{several ? 'Add' : 'Compare'}</span>
        </button>
      )}
    </div>
  );
}

function Banner({ workspace }: { workspace: Workspace }) {
  const link = workspace.link.value;
  return (
    <>
      <div class="banner" data-testid="connection" data-state={link} hidden={link === 'online'} role="status">
        {link !== 'online' && <><span class="spinner" aria-hidden="true" />{link === 'connecting' ? 'Connecting…' : 'The connection is lost. Trying again…'}</>}
      </div>
      {workspace.modelsError.value && (
        <div class="banner error" role="alert"><Icon name="alert" />The models could not be listed. {workspace.modelsError.value}<button type="button" class="link" onClick={() => void workspace.loadModels()}>Try again</button></div>
      )}
      {workspace.notice.value && (
        <div class="banner error" role="alert"><Icon name="alert" />{workspace.notice.value}<button type="button" class="link" onClick={() => { workspace.notice.value = ''; }}>Dismiss</button></div>
      )}
    </>
  );
}

/** `stop` is Esc and `focus` is Shift+Esc; the others go with Ctrl or ⌘ and can be turned off. */
function useShortcuts(actions: Record<string, () => void>): void {
  useEffect(() => {
    const pressed = (event: KeyboardEvent): void => {
      if (event.defaultPrevented || event.isComposing || document.querySelector('dialog[open], [popover]:popover-open')) return;
      const name = event.key === 'Escape'
        ? event.shiftKey ? 'focus' : 'stop'
        : prefs.shortcuts.value && (event.ctrlKey || event.metaKey) && !event.altKey ? `${event.shiftKey ? 'shift+' : ''}${event.key.toLowerCase()}` : '';
      const action = actions[name];
      if (!action) return;
      event.preventDefault();
      action();
    };
    addEventListener('keydown', pressed);
    return () => removeEventListener('keydown', pressed);
  });
}

function useMedia(query: string): boolean {
  const [matches, setMatches] = useState(() => matchMedia(query).matches);
  useEffect(() => {
    const media = matchMedia(query);
    const changed = (): void => setMatches(media.matches);
    media.addEventListener('change', changed);
    return () => media.removeEventListener('change', changed);
  }, [query]);
  return matches;
}

import type { Signal } from '@preact/signals';
import { useState } from 'preact/hooks';
import type { Conversation } from '../conversation.ts';
import { age } from '../format.ts';
import type { Workspace } from '../workspace.ts';
import { Dialog, Icon, IconButton, Menu, Monogram } from './parts.tsx';

interface SidebarProps {
  workspace: Workspace;
  open: boolean;
  search: Signal<string>;
  close: () => void;
  /** A conversation was chosen: on a phone the drawer goes away. */
  chosen: () => void;
  leave: () => void;
  leaveLabel: string;
  showSettings: () => void;
  showHelp: () => void;
}

export function Sidebar({ workspace, open, search, close, chosen, leave, leaveLabel, showSettings, showHelp }: SidebarProps) {
  const [deleting, setDeleting] = useState<Signal<Conversation> | null>(null);
  const words = search.value.trim().toLowerCase();
  const found = workspace.conversations.value.filter((c) => words === '' || matches(c.peek(), words));
  const groups = Map.groupBy(found, (c) => age(c.peek().updatedAt));
  return (
    <aside class="sidebar" inert={!open} aria-label="Conversations">
      <div class="sidebar-top">
        <Monogram name={workspace.session.name} />
        <strong class="tenant-name" data-testid="tenant-name">{workspace.session.name}</strong>
        <IconButton icon="close" class="only-narrow" label="Close sidebar" onClick={close} />
      </div>
      <button type="button" class="new-chat" data-testid="new-chat" onClick={() => { workspace.newChat(); chosen(); }}><Icon name="plus" />New chat</button>
      {workspace.admin && <a class="side-link" href="#/adapters" aria-current={workspace.page.value.view === 'chat' ? undefined : 'page'} data-testid="adapters" onClick={chosen}><Icon name="layers" />Adapters</a>}
      <div class="search">
        <Icon name="search" />
        <input id="search" type="search" placeholder="Search" aria-label="Search conversations" value={search.value} onInput={(e) => { search.value = e.currentTarget.value; }} />
      </div>
      <nav class="conversations" aria-label="Conversations" data-testid="conversation-list">
        {[...groups].map(([name, list]) => (
          <section key={name}>
            <h2>{name}</h2>
            <ul>{list.map((c) => <Item key={c.peek().id} conversation={c} workspace={workspace} chosen={chosen} askDelete={() => setDeleting(c)} />)}</ul>
          </section>
        ))}
        {found.length === 0 && <p class="empty-list">{words === '' ? 'Your conversations will be listed here. They stay in this browser.' : 'Nothing found.'}</p>}
      </nav>
      <div class="sidebar-bottom">
        <IconButton icon="settings" label="Settings" onClick={showSettings} />
        <IconButton icon="help" label="Keyboard shortcuts" onClick={showHelp} />
        <IconButton icon="download" label="Export all conversations" disabled={workspace.conversations.value.length === 0} onClick={() => download(workspace.conversations.value.map((c) => c.value), 'conversations')} />
        <button type="button" class="leave" data-testid="leave" onClick={leave}><Icon name="leave" />{leaveLabel}</button>
      </div>
      <Dialog open={deleting !== null} close={() => setDeleting(null)} title="Delete conversation?">
        <p>“{deleting?.value.title}” will be deleted from this browser. This cannot be undone.</p>
        <footer>
          <button type="button" class="secondary" onClick={() => setDeleting(null)}>Cancel</button>
          <button type="button" class="primary danger" data-testid="confirm-delete" onClick={() => { workspace.remove(deleting!); setDeleting(null); }}>Delete</button>
        </footer>
      </Dialog>
    </aside>
  );
}

function Item({ conversation, workspace, chosen, askDelete }: { conversation: Signal<Conversation>; workspace: Workspace; chosen: () => void; askDelete: () => void }) {
  const [renaming, setRenaming] = useState(false);
  const { id, title } = conversation.value;
  const isCurrent = workspace.page.value.view === 'chat' && workspace.current.value === conversation;
  if (renaming) {
    return (
      <li>
        <input class="rename" aria-label="Title" defaultValue={title} ref={(input) => input?.select()}
          onBlur={(e) => { workspace.rename(conversation, e.currentTarget.value); setRenaming(false); }}
          onKeyDown={(e) => {
            if (e.key === 'Escape') e.currentTarget.value = title;
            if (e.key === 'Escape' || e.key === 'Enter') { e.stopPropagation(); e.currentTarget.blur(); }
          }} />
      </li>
    );
  }
  return (
    <li class="conversation">
      <button type="button" class="conversation-title" aria-current={isCurrent ? 'page' : undefined} onClick={() => { workspace.open(id); chosen(); }}>{title}</button>
      <Menu name={`Actions for ${title}`} title="Actions" class="icon-button" trigger={<Icon name="more" />} items={[
        { label: 'Rename', icon: 'edit', run: () => setRenaming(true) },
        { label: 'Export JSON', icon: 'download', run: () => download([conversation.value], title) },
        { label: 'Delete', icon: 'trash', danger: true, run: askDelete },
      ]} />
    </li>
  );
}

const matches = (c: Conversation, words: string): boolean =>
  c.title.toLowerCase().includes(words) || Object.values(c.messages).some((m) => m.text.toLowerCase().includes(words));

function download(conversations: Conversation[], name: string): void {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([JSON.stringify({ format: 'tenantlora-conversations', version: 1, conversations }, null, 2)], { type: 'application/json' }));
  link.download = `${name.replace(/[^\p{L}\p{N}]+/gu, '-').slice(0, 60) || 'conversation'}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

import { render } from 'preact';
import { useState } from 'preact/hooks';
import { keptSession } from './api.ts';
import type { Session } from './protocol.ts';
import './prefs.ts';
import './style.css';
import { Chat } from './views/Chat.tsx';
import { SignIn } from './views/SignIn.tsx';
import { Workspace } from './workspace.ts';

/** Signed out, or one tenant's workspace. */
function App() {
  const [reason, setReason] = useState('');
  const [workspace, setWorkspace] = useState<Workspace | null>(() => {
    const session = keptSession.load();
    return session && enter(session);
  });

  function enter(session: Session): Workspace {
    keptSession.save(session);
    const entered = new Workspace(session, (why) => leave(entered, why));
    const link = new URLSearchParams(location.search);
    if (link.has('model') || link.has('q')) {
      // A link may fill the composer but not send: whoever made the link is not who signed in.
      history.replaceState(null, '', location.pathname);
      entered.newChat(link.get('model') ?? undefined);
      entered.draft.value = link.get('q') ?? '';
    }
    return entered;
  }

  function leave(left: Workspace, why: string): void {
    keptSession.clear();
    void left.close();
    history.replaceState(null, '', location.pathname);
    document.title = 'TenantLora';
    setReason(why);
    setWorkspace(null);
  }

  return workspace
    ? <Chat key={workspace.session.tenant} workspace={workspace} leave={() => leave(workspace, '')} leaveLabel="Sign out" />
    : <SignIn reason={reason} signedIn={(session) => setWorkspace(enter(session))} />;
}

render(<App />, document.getElementById('app')!);

import { useEffect, useLayoutEffect, useRef } from 'preact/hooks';
import type { Workspace } from '../workspace.ts';
import { IconButton } from './parts.tsx';

/** Enter sends and Shift+Enter breaks the line; on touch screens, whose keyboards have no Shift+Enter, Enter breaks the line. */
export function Composer({ workspace }: { workspace: Workspace }) {
  const input = useRef<HTMLTextAreaElement>(null);
  const busy = workspace.busy.value;
  const draft = workspace.draft.value;
  const lanes = workspace.current.value.value.lanes.length;

  useLayoutEffect(() => {
    const area = input.current!;
    area.style.height = 'auto';
    area.style.height = `${area.scrollHeight}px`;
  }, [draft]);
  useEffect(() => { if (!isTouch()) input.current!.focus(); }, [workspace.current.value]);

  const send = (): void => {
    if (workspace.send(draft)) workspace.draft.value = '';
  };
  return (
    <form class="composer" onSubmit={(e) => { e.preventDefault(); send(); }}>
      <textarea
        id="composer" ref={input} rows={1} data-testid="composer" aria-label="Message" enterkeyhint={isTouch() ? 'enter' : 'send'}
        placeholder={lanes > 1 ? `Ask ${lanes} models at once` : 'Write a message'}
        value={draft}
        onInput={(e) => { workspace.draft.value = e.currentTarget.value; }}
        onKeyDown={(e) => {
          if (e.key !== 'Enter' || e.shiftKey || e.isComposing || isTouch()) return;
          e.preventDefault();
          send();
        }}
      />
      {busy
        ? <IconButton icon="stop" class="send" label="Stop" title="Stop (Esc)" data-testid="stop" onClick={() => workspace.stopAll()} />
        : <IconButton icon="send" class="send" label="Send" type="submit" data-testid="send" disabled={draft.trim() === '' || workspace.models.value.length === 0} />}
    </form>
  );
}

const isTouch = (): boolean => matchMedia('(pointer: coarse)').matches;

import { Component, type ComponentChildren } from 'preact';
import { useEffect, useLayoutEffect, useRef, useState } from 'preact/hooks';
import { rows, siblings, type Answer, type Cell, type Conversation, type Message } from '../conversation.ts';
import { describe, progress, stats } from '../format.ts';
import { MarkdownStream } from '../markdown.ts';
import type { Workspace } from '../workspace.ts';
import { CopyButton, Icon, IconButton, Menu, copyText, useNow } from './parts.tsx';

/** The messages, rows of one cell or of one a lane; stays at the end while new text comes, unless the reader has scrolled away. */
export function Thread({ workspace, children }: { workspace: Workspace; children?: ComponentChildren }) {
  const conversation = workspace.current.value.value;
  const { scroller, content, away, toEnd } = useStickToEnd(conversation.id, Object.keys(conversation.messages).length);
  const table = rows(conversation);
  return (
    <div class="thread-frame">
      <div class="thread" ref={scroller} onClick={copyCode} tabIndex={-1}>
        <div class="thread-content" ref={content} data-lanes={conversation.lanes.length}>
          {children}
          <div role="log" aria-live="off" aria-label="Messages" aria-busy={workspace.busy.value}>
            {table.map((cells, depth) => {
              const shared = cells.length === 1;
              return (
                <div key={depth} class={shared ? 'row shared' : 'row lanes'} data-lanes={conversation.lanes.length} data-testid={shared ? undefined : 'compare-row'}
                  tabIndex={shared ? undefined : 0} role={shared ? undefined : 'group'} aria-label={shared ? undefined : 'Answers side by side'}>
                  {cells.map((cell) => {
                    const alternatives = siblings(conversation, cell);
                    return <CellView key={cell.message.id} workspace={workspace} cell={cell} conversation={conversation} message={cell.message} alternatives={alternatives}
                      signature={`${cell.lanes} ${alternatives.length} ${conversation.lanes.length} ${workspace.busy.value} ${workspace.models.value.length}`} />;
                  })}
                </div>
              );
            })}
          </div>
        </div>
      </div>
      {away && <button type="button" class="to-end" data-testid="jump-to-latest" onClick={toEnd}><Icon name="down" />Jump to latest</button>}
    </div>
  );
}

interface CellProps {
  workspace: Workspace;
  conversation: Conversation;
  cell: Cell;
  message: Message;
  alternatives: Message[];
  /** All that a cell shows beside its message, in one comparable value. */
  signature: string;
}

/** Redrawn only when its message or what surrounds it changes, so a long conversation costs nothing while its end streams. */
class CellView extends Component<CellProps> {
  override shouldComponentUpdate(next: CellProps): boolean {
    return next.message !== this.props.message || next.signature !== this.props.signature;
  }

  override render() {
    return this.props.message.role === 'user' ? <QuestionView {...this.props} /> : <AnswerView {...this.props} answer={this.props.message} />;
  }
}

function QuestionView({ workspace, cell, message, alternatives }: CellProps) {
  const [editing, setEditing] = useState(false);
  const text = useRef<HTMLTextAreaElement>(null);
  useEffect(() => { text.current?.focus(); }, [editing]);
  const submit = (): void => {
    setEditing(false);
    workspace.edit(cell, text.current!.value);
  };
  return (
    <article class="question" data-role="user" data-testid="message">
      <h2 class="sr-only">You</h2>
      {editing ? (
        <form class="edit" onSubmit={(e) => { e.preventDefault(); submit(); }}>
          <textarea ref={text} aria-label="Edit message" defaultValue={message.text} rows={3}
            onKeyDown={(e) => {
              if (e.key === 'Escape') { e.stopPropagation(); setEditing(false); }
              if (e.key === 'Enter' && !e.shiftKey && !e.isComposing) { e.preventDefault(); submit(); }
            }} />
          <div class="edit-actions">
            <button type="button" class="secondary" onClick={() => setEditing(false)}>Cancel</button>
            <button type="submit" class="primary">Send</button>
          </div>
        </form>
      ) : (
        <>
          <div class="bubble">{message.text}</div>
          <div class="actions">
            <Pager cell={cell} alternatives={alternatives} workspace={workspace} />
            <CopyButton text={message.text} label="Copy message" />
            <IconButton icon="edit" label="Edit message" data-testid="edit" disabled={workspace.busy.value} onClick={() => setEditing(true)} />
          </div>
        </>
      )}
    </article>
  );
}

function AnswerView({ workspace, cell, conversation, answer, alternatives }: CellProps & { answer: Answer }) {
  const streaming = answer.state === 'streaming';
  const compared = conversation.lanes.length > 1 && cell.lanes.length === 1;
  const card = workspace.models.value.find((m) => m.id === answer.model);
  const [stopping, setStopping] = useState(false);
  const stop = (): void => {
    setStopping(true);
    workspace.stop(answer.id);
  };
  return (
    <article class="answer" data-role="assistant" data-state={answer.state} data-model={answer.model} data-testid="message">
      <header>
        <h2><span class="sr-only">Answer by </span>{answer.model}</h2>
        {card && <span class="badge">{describe(card)}</span>}
        {streaming && compared && <button type="button" class="small" data-testid="stop-lane" disabled={stopping} onClick={stop}><Icon name="stop" />{stopping ? 'Stopping…' : 'Stop'}</button>}
      </header>
      <Progress answer={answer} />
      <Markdown text={answer.text} state={streaming ? 'growing' : answer.state === 'complete' ? 'whole' : 'cut'} />
      {answer.error && (
        <div class="failure" data-testid="error">
          <Icon name="alert" />
          <div><strong>{answer.text ? 'The answer broke off.' : 'No answer.'}</strong> {answer.error.message}<small>{answer.error.code}</small></div>
          <button type="button" class="secondary" data-testid="retry" onClick={() => workspace.retry(cell)}>Try again</button>
        </div>
      )}
      <footer>
        <Stats answer={answer} />
        {!streaming && (
          <div class="actions">
            <Pager cell={cell} alternatives={alternatives} workspace={workspace} />
            {answer.text && <CopyButton text={answer.text} label="Copy answer" />}
            <IconButton icon="retry" label="Regenerate" data-testid="regenerate" onClick={() => workspace.retry(cell)} />
            <Menu name="Regenerate with another model" class="icon-button narrow" testid="regenerate-with" trigger={<Icon name="chevron" />}
              items={workspace.models.value.map((m) => ({ label: m.id, detail: describe(m), checked: m.id === answer.model, run: () => workspace.retry(cell, m.id) }))} />
            {compared && <button type="button" class="small" data-testid="keep-lane" title={`Go on with ${answer.model} only`} onClick={() => workspace.keepLane(cell.lanes[0]!)}>Keep</button>}
          </div>
        )}
      </footer>
    </article>
  );
}

function Progress({ answer }: { answer: Answer }) {
  const now = progress(answer);
  if (!now) return null;
  return (
    <div class="progress" data-testid="progress">
      <span class="dots" aria-hidden="true"><i /><i /><i /></span>
      <span>{now.words}</span>
      {now.share !== undefined && <progress max={1} value={now.share} aria-label="Prompt read" />}
    </div>
  );
}

const endings = { stopped: 'stopped', length: 'cut off at the token limit' } as const;

function Stats({ answer }: { answer: Answer }) {
  const now = useNow(answer.state === 'streaming' && answer.firstTextAt !== undefined);
  const facts = stats(answer, now);
  const ending = answer.state === 'stopped' ? endings.stopped : answer.finishReason === 'length' ? endings.length : undefined;
  return (
    <p class="stats" data-testid="stats">
      {ending && <strong class="ending">{ending}</strong>}
      {facts.map((fact) => <span key={fact.name} title={fact.name}>{fact.value}</span>)}
    </p>
  );
}

function Pager({ cell, alternatives, workspace }: { cell: Cell; alternatives: Message[]; workspace: Workspace }) {
  const at = alternatives.findIndex((m) => m.id === cell.message.id);
  if (alternatives.length < 2) return null;
  const go = (to: number) => () => workspace.select(cell, alternatives[to]!.id);
  return (
    <span class="pager" role="group" aria-label="Versions" data-testid="pager">
      <IconButton icon="left" label="Earlier version" disabled={at <= 0} onClick={go(at - 1)} />
      <span>{at + 1}/{alternatives.length}</span>
      <IconButton icon="right" label="Later version" disabled={at >= alternatives.length - 1} onClick={go(at + 1)} />
    </span>
  );
}

function Markdown({ text, state }: { text: string; state: 'growing' | 'cut' | 'whole' }) {
  const host = useRef<HTMLDivElement>(null);
  const stream = useRef<MarkdownStream>(null);
  useLayoutEffect(() => {
    stream.current ??= new MarkdownStream(host.current!);
    if (state === 'growing') stream.current.grow(text);
    else stream.current.end(text, state === 'cut');
  }, [text, state]);
  return <div class="markdown" ref={host} data-testid="answer-text" />;
}

/** Copy buttons of code blocks are drawn by the Markdown stream; their clicks arrive here. */
function copyCode(event: MouseEvent): void {
  const button = (event.target as Element).closest<HTMLElement>('.copy-code');
  const code = button?.closest('figure')?.querySelector('code')?.textContent;
  if (!button || code == null) return;
  void copyText(code).then((copied) => {
    button.textContent = copied ? 'Copied' : 'Not allowed';
    setTimeout(() => { button.textContent = 'Copy'; }, 1500);
  });
}

/** Nearer than this to the end counts as reading along. Pixels. */
const nearEnd = 24;

function useStickToEnd(conversation: string, messages: number) {
  const scroller = useRef<HTMLDivElement>(null);
  const content = useRef<HTMLDivElement>(null);
  const stuck = useRef(true);
  const [away, setAway] = useState(false);

  const toEnd = (): void => {
    stuck.current = true;
    scroller.current!.scrollTop = scroller.current!.scrollHeight;
    setAway(false);
  };
  useLayoutEffect(toEnd, [conversation, messages]);
  useEffect(() => {
    const view = scroller.current!;
    const distance = (): number => view.scrollHeight - view.scrollTop - view.clientHeight;
    let last = view.scrollTop;
    const scrolled = (): void => {
      // Only the reader scrolls up; growing content never does.
      if (distance() <= nearEnd) stuck.current = true;
      else if (view.scrollTop < last - 1) stuck.current = false;
      last = view.scrollTop;
      setAway(!stuck.current && distance() > 120);
    };
    const grown = new ResizeObserver(() => {
      if (stuck.current) view.scrollTop = view.scrollHeight;
      else setAway(distance() > 120);
    });
    const wheel = (event: WheelEvent): void => { if (event.deltaY < 0 && view.scrollTop > 0) stuck.current = false; };
    view.addEventListener('scroll', scrolled, { passive: true });
    view.addEventListener('wheel', wheel, { passive: true });
    grown.observe(content.current!);
    grown.observe(view);
    return () => {
      view.removeEventListener('scroll', scrolled);
      view.removeEventListener('wheel', wheel);
      grown.disconnect();
    };
  }, []);
  return { scroller, content, away, toEnd };
}

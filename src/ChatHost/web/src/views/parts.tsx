import type { ComponentChildren, JSX } from 'preact';
import { useEffect, useId, useLayoutEffect, useRef, useState } from 'preact/hooks';

const icons = {
  menu: 'M4 6h16M4 12h16M4 18h16',
  plus: 'M12 5v14M5 12h14',
  send: 'M12 19V5M5.5 11.5 12 5l6.5 6.5',
  stop: 'M7 7h10v10H7z',
  copy: 'M9 9h10v11H9zM15 9V5H5v11h4',
  check: 'M5 12.5 10 17.5 19.5 7',
  retry: 'M20 11a8 8 0 1 0-2.3 6M20 5v6h-6',
  edit: 'M4 20l1-4L16 5l3 3L8 19zM14 7l3 3',
  more: 'M5 12h.01M12 12h.01M19 12h.01',
  close: 'M6 6l12 12M18 6 6 18',
  chevron: 'M6 9.5l6 6 6-6',
  left: 'M14.5 6l-6 6 6 6',
  right: 'M9.5 6l6 6-6 6',
  down: 'M12 5v14M5.5 12.5 12 19l6.5-6.5',
  columns: 'M4 5h7v14H4zM13 5h7v14h-7z',
  settings: 'M4 7h9M17 7h3M4 17h3M11 17h9M15 4.5v5M9 14.5v5',
  search: 'M10.5 17a6.5 6.5 0 1 0 0-13 6.5 6.5 0 0 0 0 13zM15.5 15.5 20 20',
  trash: 'M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13',
  download: 'M12 4v11M7 11l5 5 5-5M5 20h14',
  leave: 'M14 4h5v16h-5M4 12h11M11 8l4 4-4 4',
  help: 'M9 9.5a3 3 0 1 1 4.2 2.7c-.8.4-1.2 1-1.2 1.8M12 17.5h.01',
  layers: 'M12 4 3 9l9 5 9-5zM3 14l9 5 9-5',
  upload: 'M12 16V5M7 10l5-5 5 5M5 20h14',
  undo: 'M9 5 4 10l5 5M4 10h10.5a5 5 0 0 1 0 10H11',
  info: 'M12 11v5M12 8h.01M12 21a9 9 0 1 0 0-18 9 9 0 0 0 0 18z',
  alert: 'M12 8v5M12 16.5h.01M12 3 2.5 20h19z',
} as const;

export type IconName = keyof typeof icons;

export const Icon = ({ name }: { name: IconName }) => (
  <svg class="icon" viewBox="0 0 24 24" aria-hidden="true"><path d={icons[name]} /></svg>
);

type ButtonProps = Omit<JSX.IntrinsicElements['button'], 'icon'> & { icon: IconName; label: string; 'data-testid'?: string };

/** A button that shows only its icon; the label is its name and its tooltip. */
export const IconButton = ({ icon, label, class: extra, ...rest }: ButtonProps) => (
  <button type="button" class={`icon-button ${String(extra ?? '')}`} aria-label={label} title={label} {...rest}><Icon name={icon} /></button>
);

/** Copies, and shows for a moment that it did. */
export function CopyButton({ text, label }: { text: string; label: string }) {
  const [copied, setCopied] = useState(false);
  useEffect(() => {
    if (!copied) return;
    const timer = setTimeout(() => setCopied(false), 1500);
    return () => clearTimeout(timer);
  }, [copied]);
  return <IconButton icon={copied ? 'check' : 'copy'} label={copied ? 'Copied' : label} onClick={() => void copyText(text).then(setCopied)} />;
}

/** False where the browser refuses (the clipboard needs https or localhost). */
export const copyText = (text: string): Promise<boolean> =>
  navigator.clipboard ? navigator.clipboard.writeText(text).then(() => true, () => false) : Promise.resolve(false);

export interface MenuItem {
  label: string;
  detail?: string;
  icon?: IconName;
  checked?: boolean;
  danger?: boolean;
  run: () => void;
}

interface MenuProps {
  name: string;
  /** What the button shows; an icon only, unless `named`: then it also says the name. */
  trigger: ComponentChildren;
  named?: boolean;
  items: MenuItem[];
  class?: string;
  testid?: string;
  title?: string;
}

/** A button that opens a list of actions or of choices (`checked`). Light dismiss and Esc come from the popover. */
export function Menu({ name, trigger, named, items, class: extra = '', testid, title }: MenuProps) {
  const id = useId();
  const button = useRef<HTMLButtonElement>(null);
  const list = useRef<HTMLDivElement>(null);
  const [open, setOpen] = useState(false);

  const toggled = (event: { newState: string }): void => {
    const isOpen = event.newState === 'open';
    setOpen(isOpen);
    if (!isOpen) return;
    place(button.current!, list.current!);
    (list.current!.querySelector<HTMLElement>('[aria-checked=true]') ?? list.current!.querySelector<HTMLElement>('button'))?.focus();
  };
  const move = (event: KeyboardEvent): void => {
    const all = [...list.current!.querySelectorAll('button')];
    const at = all.indexOf(document.activeElement as HTMLButtonElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (event.key === 'Tab') list.current!.hidePopover();
    if (to === undefined) return;
    event.preventDefault();
    all.at(to % all.length)?.focus();
  };
  return (
    <>
      <button ref={button} type="button" class={extra} popovertarget={id} aria-haspopup="menu" aria-expanded={open} aria-label={named ? undefined : name} title={title ?? name} data-testid={testid}>{trigger}</button>
      <div ref={list} id={id} class="menu" popover="auto" role="menu" aria-label={name} onToggle={toggled} onKeyDown={move}>
        {items.map((item) => (
          <button
            key={item.label}
            type="button"
            class={item.danger ? 'danger' : ''}
            role={item.checked === undefined ? 'menuitem' : 'menuitemradio'}
            aria-checked={item.checked}
            tabIndex={-1}
            onClick={() => { list.current!.hidePopover(); item.run(); }}
          >
            {item.icon && <Icon name={item.icon} />}
            <span class="menu-text"><span>{item.label}</span>{item.detail && <small>{item.detail}</small>}</span>
            {item.checked && <Icon name="check" />}
          </button>
        ))}
      </div>
    </>
  );
}

/** Below the button, or above it where there is more room; always within the window. */
function place(button: HTMLElement, list: HTMLElement): void {
  const at = button.getBoundingClientRect();
  const { offsetWidth: width, offsetHeight: height } = list;
  const below = at.bottom + 6 + height <= innerHeight || at.top < height;
  list.style.left = `${Math.max(8, Math.min(at.left, innerWidth - width - 8))}px`;
  list.style.top = `${below ? at.bottom + 6 : at.top - height - 6}px`;
}

interface DialogProps {
  open: boolean;
  close: () => void;
  title: string;
  class?: string;
  children: ComponentChildren;
}

/** Focus trap and Esc come from <dialog>; a click beside it closes it. */
export function Dialog({ open, close, title, class: extra = '', children }: DialogProps) {
  const dialog = useRef<HTMLDialogElement>(null);
  const heading = useId();
  useLayoutEffect(() => {
    if (open && !dialog.current!.open) dialog.current!.showModal();
    if (!open && dialog.current!.open) dialog.current!.close();
  }, [open]);
  return (
    <dialog ref={dialog} class={extra} aria-labelledby={heading} onClose={close} onClick={(event) => { if (event.target === dialog.current) close(); }}>
      {open && (
        <div class="dialog-body">
          <header><h2 id={heading}>{title}</h2><IconButton icon="close" label="Close" onClick={close} /></header>
          {children}
        </div>
      )}
    </dialog>
  );
}

export const Monogram = ({ name }: { name: string }) => (
  <span class="monogram" aria-hidden="true">{name.split(/[^\p{L}\p{N}]+/u).filter(Boolean).slice(0, 2).map((word) => word[0]!.toUpperCase()).join('')}</span>
);

/** The time, fresh four times a second while `ticking`. */
export function useNow(ticking: boolean): number {
  const [now, setNow] = useState(Date.now);
  useEffect(() => {
    if (!ticking) return;
    const timer = setInterval(() => setNow(Date.now()), 250);
    return () => clearInterval(timer);
  }, [ticking]);
  return ticking ? Date.now() : now;
}

import { useRef } from 'preact/hooks';
import { noSettings, numberOptions, parseStops, writeStops, type NumberOption } from '../settings.ts';
import type { Workspace } from '../workspace.ts';
import { prefs } from '../prefs.ts';
import { Dialog } from './parts.tsx';

interface Props {
  open: boolean;
  close: () => void;
}

export function SettingsDialog({ workspace, open, close }: Props & { workspace: Workspace }) {
  const { system, options } = workspace.settings.value;
  const form = useRef<HTMLFormElement>(null);
  const change = (key: string, value: unknown): void => {
    const { [key as keyof typeof options]: _, ...others } = options;
    workspace.settings.value = { system, options: value === undefined ? others : { ...others, [key]: value } };
  };
  return (
    <Dialog open={open} close={close} title="Settings" class="drawer">
      <form ref={form} class="settings" onSubmit={(e) => e.preventDefault()}>
        <section>
          <h3>Instructions</h3>
          <label for="system">System prompt</label>
          <textarea id="system" rows={4} placeholder="None" defaultValue={system} onInput={(e) => { workspace.settings.value = { options, system: e.currentTarget.value }; }} />
        </section>
        <section>
          <h3>Sampling</h3>
          <p class="hint">Empty fields use the model’s own defaults.</p>
          <div class="fields">
            {numberOptions.map((option) => <NumberField key={option.key} option={option} value={options[option.key]} change={(value) => change(option.key, value)} />)}
          </div>
          <label for="stops">Stop strings</label>
          <textarea id="stops" rows={2} placeholder="One a line; \n for a line break" aria-describedby="stops-hint" defaultValue={writeStops(options.stop)}
            onInput={(e) => { const stops = parseStops(e.currentTarget.value).slice(0, 4); change('stop', stops.length > 0 ? stops : undefined); }} />
          <p class="hint" id="stops-hint">Up to four. The answer ends before the first of them.</p>
          <button type="button" class="secondary" onClick={() => { form.current!.reset(); workspace.settings.value = noSettings; clear(form.current!); }}>Reset to defaults</button>
        </section>
        <section>
          <h3>This browser</h3>
          <fieldset class="segments">
            <legend>Theme</legend>
            {(['system', 'light', 'dark'] as const).map((theme) => (
              <label key={theme}><input type="radio" name="theme" checked={prefs.theme.value === theme} onChange={() => { prefs.theme.value = theme; }} /><span>{theme[0]!.toUpperCase() + theme.slice(1)}</span></label>
            ))}
          </fieldset>
          <label class="check"><input type="checkbox" checked={prefs.shortcuts.value} onChange={(e) => { prefs.shortcuts.value = e.currentTarget.checked; }} />Keyboard shortcuts</label>
        </section>
      </form>
    </Dialog>
  );
}

// Uncontrolled fields keep what was typed even while it is not valid; only valid values are taken.
function NumberField({ option, value, change }: { option: NumberOption; value: number | undefined; change: (value: number | undefined) => void }) {
  const { key, label, hint, min, max, step } = option;
  return (
    <div class="field">
      <label for={key}>{label}</label>
      <input id={key} type="number" inputmode="decimal" min={min} max={max} step={step === 1 ? 1 : 'any'} placeholder="default" aria-describedby={`${key}-hint`} defaultValue={value === undefined ? '' : String(value)}
        onInput={(e) => { if (e.currentTarget.validity.valid) change(e.currentTarget.value === '' ? undefined : e.currentTarget.valueAsNumber); }} />
      <small id={`${key}-hint`}>{hint}</small>
    </div>
  );
}

function clear(form: HTMLFormElement): void {
  for (const field of form.querySelectorAll<HTMLInputElement | HTMLTextAreaElement>('input[type=number], textarea')) field.value = '';
}

/** Ctrl or ⌘, as the machine at hand has it. */
const command = /Mac|iPhone|iPad/.test(navigator.userAgent) ? '⌘' : 'Ctrl';

export const shortcuts: [keys: string[], what: string][] = [
  [['Enter'], 'Send the message'],
  [['Shift', 'Enter'], 'New line'],
  [['Esc'], 'Stop answering'],
  [['Shift', 'Esc'], 'Go to the message box'],
  [[command, 'Shift', 'O'], 'New chat'],
  [[command, 'K'], 'Search conversations'],
  [[command, 'B'], 'Show or hide the sidebar'],
  [[command, 'Shift', 'C'], 'Copy the last answer'],
  [[command, '/'], 'Show this list'],
];

export const HelpDialog = ({ open, close }: Props) => (
  <Dialog open={open} close={close} title="Keyboard shortcuts" class="help">
    <dl>
      {shortcuts.map(([keys, what]) => <div key={what}><dt>{what}</dt><dd>{keys.map((key) => <kbd key={key}>{key}</kbd>)}</dd></div>)}
    </dl>
    {!prefs.shortcuts.value && <p class="hint">Shortcuts with {command} are turned off in the settings.</p>}
  </Dialog>
);

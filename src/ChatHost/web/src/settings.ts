import type { SamplingOptions } from './protocol.ts';

export interface Settings {
  system: string;
  options: SamplingOptions;
}

export interface NumberOption {
  key: Exclude<keyof SamplingOptions, 'stop'>;
  label: string;
  hint: string;
  min: number;
  max: number;
  step: number;
}

/** The ranges are the server's; what is left empty is the model's own default. */
export const numberOptions: NumberOption[] = [
  { key: 'temperature', label: 'Temperature', hint: '0 always takes the likeliest token', min: 0, max: 2, step: 0.05 },
  { key: 'topK', label: 'Top-k', hint: 'keep the k likeliest tokens; 0 keeps all', min: 0, max: 1_000_000, step: 1 },
  { key: 'topP', label: 'Top-p', hint: 'keep tokens up to this share of probability', min: 0.01, max: 1, step: 0.01 },
  { key: 'minP', label: 'Min-p', hint: 'drop tokens below this share of the likeliest', min: 0, max: 0.99, step: 0.01 },
  { key: 'repetitionPenalty', label: 'Repetition penalty', hint: '1 is none', min: 0.05, max: 5, step: 0.05 },
  { key: 'frequencyPenalty', label: 'Frequency penalty', hint: 'per earlier use of a token', min: -2, max: 2, step: 0.1 },
  { key: 'presencePenalty', label: 'Presence penalty', hint: 'once for a token used before', min: -2, max: 2, step: 0.1 },
  { key: 'seed', label: 'Seed', hint: 'the same seed repeats the same answer', min: 0, max: Number.MAX_SAFE_INTEGER, step: 1 },
  { key: 'maxTokens', label: 'Max tokens', hint: 'the longest answer', min: 1, max: 1_000_000, step: 1 },
];

export const noSettings: Settings = { system: '', options: {} };

export const settingsOf = (tenant: string, storage: Storage = localStorage) => ({
  load(): Settings {
    try {
      return { ...noSettings, ...(JSON.parse(storage.getItem(`tl:${tenant}:settings`) ?? '{}') as Partial<Settings>) };
    } catch {
      return noSettings;
    }
  },
  save: (settings: Settings): void => storage.setItem(`tl:${tenant}:settings`, JSON.stringify(settings)),
});

export const isChanged = ({ system, options }: Settings): boolean => system.trim() !== '' || Object.keys(options).length > 0;

/** One stop string a line; \n, \t and \\ are written out. */
export const parseStops = (text: string): string[] =>
  text.split('\n').filter((line) => line !== '').map((line) => line.replace(/\\([nt\\])/g, (_, c: string) => (c === 'n' ? '\n' : c === 't' ? '\t' : '\\')));

export const writeStops = (stops: string[] = []): string =>
  stops.map((stop) => stop.replaceAll('\\', '\\\\').replaceAll('\n', '\\n').replaceAll('\t', '\\t')).join('\n');

import { effect, signal } from '@preact/signals';

/** What belongs to this browser and to no tenant. */
export const prefs = {
  theme: signal((localStorage.getItem('tl:theme') ?? 'system') as 'system' | 'light' | 'dark'),
  shortcuts: signal(localStorage.getItem('tl:shortcuts') !== 'off'),
  sidebar: signal(localStorage.getItem('tl:sidebar') !== 'closed'),
};

effect(() => {
  document.documentElement.dataset.theme = prefs.theme.value;
  localStorage.setItem('tl:theme', prefs.theme.value);
});
effect(() => localStorage.setItem('tl:shortcuts', prefs.shortcuts.value ? 'on' : 'off'));
effect(() => localStorage.setItem('tl:sidebar', prefs.sidebar.value ? 'open' : 'closed'));

// Runs before the first paint, so that a chosen theme does not flash. A file of its own because the CSP allows no inline script.
document.documentElement.dataset.theme = localStorage.getItem('tl:theme') ?? 'system';

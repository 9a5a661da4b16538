import { defineConfig } from 'vite';

// Relative addresses, so that the page also works below a path prefix. No inlined assets: the page's CSP allows only 'self'.
export default defineConfig({
  base: './',
  build: {
    outDir: '../wwwroot',
    emptyOutDir: true,
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    target: 'es2023',
  },
  server: { proxy: { '/api': 'http://127.0.0.1:5080', '/v1': 'http://127.0.0.1:5080', '/hub': { target: 'http://127.0.0.1:5080', ws: true } } },
});

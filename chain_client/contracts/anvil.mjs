// Runs the pinned anvil: as a module for the tests, or `node anvil.mjs [anvil options]` with the options a local chain needs
// for `finalized` to move (a block a second, one-slot epochs). The binary comes from the npm package of this platform.
import { spawn } from 'node:child_process';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const require = createRequire(import.meta.url);

export function anvilPath() {
  const cpu = { x64: 'amd64', arm64: 'arm64' }[process.arch];
  try {
    return join(dirname(require.resolve(`@foundry-rs/anvil-${process.platform}-${cpu}/package.json`)), 'bin', 'anvil');
  } catch {
    throw new Error(`no anvil package for ${process.platform} ${process.arch}: run npm ci, or install anvil and start it yourself`);
  }
}

export const INTERVAL = ['--block-time', '1', '--slots-in-an-epoch', '1'];

// starts anvil on a free loopback port; resolves when it listens
export function startAnvil(options = []) {
  const child = spawn(anvilPath(), ['--host', '127.0.0.1', '--port', '0', '--hardfork', 'prague', ...options], { stdio: ['ignore', 'pipe', 'pipe'] });
  return new Promise((resolve, reject) => {
    let out = '';
    const seen = (chunk) => {
      out += chunk;
      const m = out.match(/Listening on (127\.0\.0\.1:\d+)/);
      if (!m) return;
      child.stdout.off('data', seen);
      child.stdout.resume();
      resolve({ url: `http://${m[1]}`, stop: () => new Promise((done) => (child.once('exit', done), child.kill())) });
    };
    child.stdout.on('data', seen);
    child.stderr.on('data', (d) => (out += d));
    child.once('error', reject);
    child.once('exit', (code) => reject(new Error(`anvil ended with ${code}: ${out.slice(-500)}`)));
  });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const child = spawn(anvilPath(), ['--host', '127.0.0.1', '--hardfork', 'prague', ...INTERVAL, ...process.argv.slice(2)], { stdio: 'inherit' });
  for (const s of ['SIGINT', 'SIGTERM']) process.on(s, () => child.kill(s));
  child.on('exit', (code) => process.exit(code ?? 0));
}

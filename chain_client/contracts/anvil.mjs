// Runs the pinned anvil: as a module for the tests, or `node anvil.mjs [anvil options]` with the options a local chain needs
// for `finalized` to move (a block a second, one-slot epochs). The binary comes from the npm package of this platform.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { createServer } from 'node:net';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const require = createRequire(import.meta.url);

export function anvilPath() {
  const cpu = { x64: 'amd64', arm64: 'arm64' }[process.arch];
  try {
    return join(dirname(require.resolve(`@foundry-rs/anvil-${process.platform}-${cpu}/package.json`)), 'bin', 'anvil');
  } catch {
    return 'anvil'; // no package for this platform: one on PATH serves as well
  }
}

export const INTERVAL = ['--block-time', '1', '--slots-in-an-epoch', '1'];

async function freePort() {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address();
  server.close();
  await once(server, 'close');
  return port;
}

async function answers(url) {
  try {
    const reply = await fetch(url, { method: 'POST', headers: { 'content-type': 'application/json' }, body: '{"jsonrpc":"2.0","id":1,"method":"eth_chainId","params":[]}' });
    return (await reply.json()).result !== undefined;
  } catch {
    return false;
  }
}

// starts a silent anvil on a free loopback port; resolves when it answers. Its output goes nowhere: a pipe that nobody reads
// would stop it.
export async function startAnvil(options = []) {
  for (let tries = 0; tries < 5; tries++) {
    const port = await freePort(), url = `http://127.0.0.1:${port}`;
    const child = spawn(anvilPath(), ['--host', '127.0.0.1', '--port', String(port), '--hardfork', 'prague', '--silent', ...options], { stdio: 'ignore' });
    const gone = new Promise((resolve, reject) => child.once('exit', resolve).once('error', (e) =>
      reject(new Error(`${anvilPath()}: ${e.message}: run npm ci, or put anvil 1.7.1 on PATH`))));
    gone.catch(() => {});
    for (let waited = 0; waited < 300 && child.exitCode === null && child.pid; waited++) {
      if (await answers(url)) return { url, stop: () => (child.kill(), gone) };
      await new Promise((r) => setTimeout(r, 50));
    }
    child.kill(); // the port was taken in between, or it never came up
    await gone;
  }
  throw new Error('anvil did not start');
}

// anvil makes a new genesis block each time it starts, and a state file ends up with all of them; which one it then serves as block 0
// is chance. The chain's own is the oldest.
function keepGenesis(file) {
  if (!existsSync(file)) return;
  const state = JSON.parse(readFileSync(file, 'utf8'));
  const number = (b) => BigInt(b.header.number), time = (b) => BigInt(b.header.timestamp);
  const genesis = (state.blocks ?? []).filter((b) => number(b) === 0n);
  if (genesis.length < 2) return;
  const oldest = genesis.reduce((a, b) => (time(b) < time(a) ? b : a));
  state.blocks = state.blocks.filter((b) => number(b) !== 0n || b === oldest);
  writeFileSync(file + '.new', JSON.stringify(state));
  renameSync(file + '.new', file);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const state = process.argv.indexOf('--state');
  if (state > 0 && process.argv[state + 1]) keepGenesis(process.argv[state + 1]);
  const child = spawn(anvilPath(), ['--host', '127.0.0.1', '--hardfork', 'prague', ...INTERVAL, ...process.argv.slice(2)], { stdio: 'inherit' });
  for (const s of ['SIGINT', 'SIGTERM']) process.on(s, () => child.kill(s));
  child.on('error', (e) => {
    console.error(`anvil: ${e.message}: run npm ci, or put anvil 1.7.1 on PATH`);
    process.exit(1);
  });
  child.on('exit', (code) => process.exit(code ?? 0));
}

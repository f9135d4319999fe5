// Compiles src/ (and test/sol/, for the tests) with the pinned solc: build/<Contract>.json {abi, bytecode, deployedBytecode}.
// Deterministic: same sources and packages, same bytes. Nothing is downloaded. Skips when nothing changed.
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const here = fileURLToPath(new URL('.', import.meta.url));
const require = createRequire(import.meta.url);
const read = (p) => readFileSync(join(here, p), 'utf8');

const sources = {};
for (const dir of ['src', 'test/sol'])
  for (const f of readdirSync(join(here, dir)).filter((f) => f.endsWith('.sol')).sort()) sources[`${dir}/${f}`] = { content: read(`${dir}/${f}`) };

const settings = {
  optimizer: { enabled: true, runs: 1000 }, viaIR: true, evmVersion: 'cancun', metadata: { bytecodeHash: 'none', appendCBOR: false },
  outputSelection: { '*': { '*': ['abi', 'evm.bytecode.object', 'evm.deployedBytecode.object'] } },
};
const input = JSON.stringify({ language: 'Solidity', sources, settings });
const stamp = createHash('sha256').update(input).update(read('package-lock.json')).update(read('build.mjs')).digest('hex');
const fresh = existsSync(join(here, 'build/stamp')) && read('build/stamp') === stamp;

if (!fresh) compile();

function compile() {
  const solc = require('solc');
  const found = (path) => {
    try {
      return { contents: readFileSync(join(here, 'node_modules', path), 'utf8') };
    } catch {
      return { error: `${path} is not installed: run npm ci` };
    }
  };
  const out = JSON.parse(solc.compile(input, { import: found }));
  let bad = 0;
  const expected = ['2394', '5159']; // transient storage in OpenZeppelin's guard; selfdestruct in a test
  for (const e of out.errors ?? []) {
    if (expected.includes(e.errorCode)) continue;
    console.error(e.formattedMessage);
    bad++; // warnings are errors
  }
  if (bad) process.exit(1);

  mkdirSync(join(here, 'build'), { recursive: true });
  for (const file of Object.keys(sources))
    for (const [name, c] of Object.entries(out.contracts[file] ?? {})) {
      const code = c.evm.deployedBytecode.object;
      writeFileSync(join(here, 'build', `${name}.json`),
        JSON.stringify({ abi: c.abi, bytecode: '0x' + c.evm.bytecode.object, deployedBytecode: '0x' + code }, null, 1) + '\n');
      console.log(`${name}: ${code.length / 2} bytes`);
    }
  writeFileSync(join(here, 'build/stamp'), stamp);
}

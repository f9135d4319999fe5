// Compiles src/ (and test/sol/, for the tests) with the pinned solc: build/<Contract>.json {abi, bytecode, deployedBytecode}.
// Deterministic: same sources and packages, same bytes. Nothing is downloaded. Code is generated for the files that changed, or that
// import one that did; build/stamp has what each was made from.
import { createHash } from 'node:crypto';
import { mkdirSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const here = fileURLToPath(new URL('.', import.meta.url));
const require = createRequire(import.meta.url);
const read = (p) => readFileSync(join(here, p), 'utf8');

const sources = {};
for (const dir of ['src', 'test/sol'])
  for (const f of readdirSync(join(here, dir)).filter((f) => f.endsWith('.sol')).sort()) sources[`${dir}/${f}`] = { content: read(`${dir}/${f}`) };

// RS_QUICK=1: code that does the same, made in half the time, for who breaks a rule and looks whether a test sees it
const quick = { enabled: true, runs: 1, details: { yul: true, yulDetails: { optimizerSteps: ':' } } };
const isQuick = process.env.RS_QUICK === '1', optimizer = isQuick ? quick : { enabled: true, runs: 1000 };
const settings = { optimizer, viaIR: true, evmVersion: 'cancun', metadata: { bytecodeHash: 'none', appendCBOR: false } };
const OUTPUT = ['abi', 'evm.bytecode.object', 'evm.deployedBytecode.object'];
const common = JSON.stringify(settings) + read('package-lock.json') + read('build.mjs');

// the file and all that it imports from here; packages are pinned by the lock
function closure(file, seen = new Set()) {
  if (seen.has(file)) return seen;
  seen.add(file);
  for (const [, path] of sources[file].content.matchAll(/from "(\.[^"]+)"/g)) closure(join(dirname(file), path), seen);
  return seen;
}

// none yet, or of another form: everything is compiled
function stamped() {
  try {
    return JSON.parse(read('build/stamp'));
  } catch {
    return {};
  }
}

const made = {}, had = stamped();
for (const file of Object.keys(sources)) {
  const hash = createHash('sha256').update(common);
  for (const name of [...closure(file)].sort()) hash.update(name).update(sources[name].content);
  made[file] = hash.digest('hex');
}
const stale = Object.keys(sources).filter((file) => made[file] !== had[file]);
if (stale.length) compile();

function compile() {
  const solc = require('solc');
  const found = (path) => {
    try {
      return { contents: readFileSync(join(here, 'node_modules', path), 'utf8') };
    } catch {
      return { error: `${path} is not installed: run npm ci` };
    }
  };
  const outputSelection = Object.fromEntries(stale.map((file) => [file, { '*': OUTPUT }]));
  const input = JSON.stringify({ language: 'Solidity', sources, settings: { ...settings, outputSelection } });
  const out = JSON.parse(solc.compile(input, { import: found }));
  let bad = 0;
  const expected = ['2394', '5159']; // transient storage in OpenZeppelin's guard; selfdestruct in a test
  for (const e of out.errors ?? []) {
    if (expected.includes(e.errorCode) || (isQuick && e.severity !== 'error')) continue; // a broken rule leaves names unused
    console.error(e.formattedMessage);
    bad++; // warnings are errors
  }
  if (bad) process.exit(1);

  mkdirSync(join(here, 'build'), { recursive: true });
  for (const file of stale)
    for (const [name, c] of Object.entries(out.contracts[file] ?? {})) {
      const code = c.evm.deployedBytecode.object;
      writeFileSync(join(here, 'build', `${name}.json`),
        JSON.stringify({ abi: c.abi, bytecode: '0x' + c.evm.bytecode.object, deployedBytecode: '0x' + code }, null, 1) + '\n');
      console.log(`${name}: ${code.length / 2} bytes`);
    }
  writeFileSync(join(here, 'build/stamp'), JSON.stringify(made, null, 1) + '\n');
}

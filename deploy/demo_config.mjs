// Writes the deployment config (chain_client/contracts/README.md 3) of the demo world.
//   node deploy/demo_config.mjs --run DIR [--server URL] --out FILE
// Without --server: the contracts and their roles. With it: also the base, the adapters, their datanets and the server's lane,
// with the ids that the running server computed from the files.
import { existsSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { documentRoot, ownerRoot } from '../chain_client/contracts/js/canon.mjs';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const require = createRequire(join(root, 'chain_client/contracts/package.json'));
const { Wallet, getAddress, keccak256 } = require('ethers');
const { values: args } = parseArgs({ options: { run: { type: 'string' }, server: { type: 'string' }, out: { type: 'string' } } });
const json = (path) => JSON.parse(readFileSync(path, 'utf8'));
const demo = join(root, 'configs/demo');
const METHOD = keccak256(new TextEncoder().encode('residual.method.s0-s1-s2.2'));

const address = (name) => new Wallet('0x' + readFileSync(join(args.run, 'keys', name + '.key'), 'utf8').trim()).address;

function base() {
  return {
    notice_s: 5, lead_s: 0, beacon_delay_s: 0, commit_age_min_s: 1, protocol_bps_min: 100, rate_ppb: 1_000_000_000,
    policy: { base: 2000, adapters: 6000, operator: 1500, protocol: 500, treasury: address('treasury') },
    window_s: 10, wait_s: 8, cap_floor: '1000000000000000000000', attestors_min: 1, attestors: [address('attestor')],
    roles: { committer: address('committer'), proposer: address('proposer'), guardian: address('guardian') },
    methods: [METHOD],
  };
}

// the demo's owners publish with the demo's public keys
function keyFiles() {
  const files = {};
  const people = json(join(demo, 'contributors.json'));
  for (const c of [...people.contributors, ...people.others]) {
    const file = join(args.run, 'keys', c.label + '.key');
    if (!existsSync(file)) writeFileSync(file, c.privateKey.replace('0x', ''), { mode: 0o600 });
    files[c.address.toLowerCase()] = file;
  }
  return files;
}

const split = (list) => list.map((e) => ({ ...e, role: e.role === 'owner' ? 'author' : e.role }));

function datanet(name, manifest, ownerKey) {
  const documents = manifest.documents.map((d) => ({ ...d, digest: '0x' + d.digest })), count = new Map();
  for (const d of documents) count.set(d.owner.toLowerCase(), (count.get(d.owner.toLowerCase()) ?? 0) + 1);
  const owners = [...count].map(([owner, n]) => ({ owner, documents: n })), salt = keccak256(new TextEncoder().encode('residual.datanet.salt.1' + name)); // as `residual datanet sign` derives it
  return {
    name, owner_key_file: ownerKey, salt, document_root: documentRoot(documents), owner_root: ownerRoot(owners),
    documents: documents.length, owners: count.size, tokenizer_digest: '0x' + manifest.tokenizerDigest,
  };
}

async function withServer(config) {
  const get = async (path) => (await fetch(args.server + path)).json();
  const modelId = '0x' + (await get('/version')).model_id;
  const ids = Object.fromEntries((await get('/v1/adapters')).data.map((a) => [a.name, '0x' + a.id]));
  const keys = keyFiles();
  const b = json(join(demo, 'base_publish.json'));
  config.bases = [{ model_id: modelId, owner: b.owner, split: split(b.split) }];
  config.datanets = [];
  config.adapters = [];
  config.coins = [];
  for (const name of readdirSync(join(demo, 'adapters'))) {
    const p = json(join(demo, 'adapters', name, 'publish.json'));
    const key = keys[p.owner.toLowerCase()];
    if (!key) throw new Error(`${name}: no demo key for its owner ${p.owner}`);
    config.coins.push({ address: getAddress(p.owner), amount: '100000000000000000' });
    config.datanets.push(datanet(name, json(join(demo, 'adapters', name, p.datanet)), key));
    config.adapters.push({
      adapter_id: ids[name], model_id: modelId, datanet: name, owner_key_file: key, price_in: p.pricesPer1000Tokens.in,
      price_out: p.pricesPer1000Tokens.out, version: p.version, split: split(p.split),
    });
  }
  config.lanes = [];
  for (const lane of readdirSync(join(args.run, 'data/lanes')).filter((n) => !n.startsWith('unbound'))) {
    const l = json(join(args.run, 'data/lanes', lane, 'lane.json'));
    if (l.ledger.toLowerCase() === json(join(args.run, 'deployment.json')).ledger.toLowerCase())
      config.lanes.push({
        lane: l.lane, key: l.address, operator: address('operator'), operator_key_file: join(args.run, 'keys/operator.key'),
        tariffs: [{ model_id: modelId, price_in: b.pricesPer1000Tokens.in, price_out: b.pricesPer1000Tokens.out }],
      });
  }
}

mkdirSync(join(args.run, 'keys'), { recursive: true, mode: 0o700 });
const config = base();
if (args.server) await withServer(config);
writeFileSync(args.out, JSON.stringify(config, null, 1));

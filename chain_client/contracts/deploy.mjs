// Deploys Registry, AttributionLedger and RewardVault and registers what a config names; formats in README.md 3.
//   node deploy.mjs --rpc URL --key-file FILE --config FILE --out FILE
// Repeatable: with an output file whose contracts are still on the chain it deploys nothing and registers only what is missing.
// The deployer pays the gas. It is admin, lane admin and registrar while it works; where roles name others it announces them, and gives
// its own rights up once the notice has passed: at once where that is short, else when the command is repeated.
import { existsSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs';
import { randomBytes } from 'node:crypto';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { Contract, ContractFactory, JsonRpcProvider, NonceManager, Wallet, ZeroAddress, ZeroHash, getAddress, hexlify, isHexString, keccak256 } from 'ethers';
import { artifact, entryTuple, parentTuple, publishTuple } from './js/abi.mjs';
import { receiptOf } from './js/wait.mjs';
import { adapterCommitment, consentDigest, datanetIdOf, publishDigest } from './js/canon.mjs';

const ROLES = { author: 1, data: 2, other: 3 };
const NOTICE_WAITED_S = 60; // a longer one is for the next run
const END_OF_TIME = (1n << 64n) - 1n;
const fail = (why) => {
  throw new Error(why);
};

// a 0600 file with one private key in hex
export function readKey(path) {
  const mode = statSync(path).mode & 0o777;
  if (mode & 0o077) fail(`${path}: mode is ${mode.toString(8)}, expected 600: other users could read the key`);
  const key = readFileSync(path, 'utf8').trim();
  const hex = key.startsWith('0x') ? key : '0x' + key;
  if (!isHexString(hex, 32)) fail(`${path}: expected one private key of 64 hex digits`);
  return hex;
}

function entriesOf(list, where) {
  const entries = list.map((e) => ({ payee: getAddress(e.payee), role: ROLES[e.role] ?? Number(e.role), bps: Number(e.bps) }));
  const sum = entries.reduce((n, e) => n + e.bps, 0);
  if (sum !== 10_000) fail(`${where}: the bps sum to ${sum}, expected 10000`);
  return entries.sort((a, b) => a.role - b.role || (BigInt(a.payee) < BigInt(b.payee) ? -1 : 1));
}

const sent = async (list) => {
  for (const tx of await Promise.all(list)) await receiptOf(tx.provider, tx.hash);
};

async function chainTime(provider) {
  return Number((await provider.getBlock('latest')).timestamp);
}

// who holds what in the end; the keys whose theft must not be one theft are apart
function rolesOf(c, me) {
  const named = c.roles ?? {}, out = {}, holder = new Map();
  for (const name of ['admin', 'committer', 'proposer', 'guardian', 'lane_admin', 'registrar']) out[name] = getAddress(named[name] ?? me);
  if (!(c.attestors_min >= 1) || !((c.attestors ?? []).length >= c.attestors_min))
    fail(`attestors: ${(c.attestors ?? []).length} named, attestors_min is ${c.attestors_min ?? 'missing'}: name as many as an epoch needs, 1 at least`);
  for (const [name, at] of [...['admin', 'committer', 'proposer', 'guardian'].map((n) => [n, out[n]]), ...c.attestors.map((a, i) => [`attestor ${i + 1}`, getAddress(a)])]) {
    if (holder.has(at)) fail(`roles: ${at} is ${holder.get(at)} and ${name}: these keys must be apart`);
    holder.set(at, name);
  }
  return out;
}

async function deployAll(provider, signer, me, c) {
  const make = async (name, ...args) => {
    const a = artifact(name);
    return new ContractFactory(a.abi, a.bytecode, signer).deploy(...args);
  };
  const start_block = (await provider.getBlockNumber()) + 1;
  const p = c.policy, roles = rolesOf(c, me);
  const ledger = await make('AttributionLedger', {
    admin: me, committer: roles.committer, laneAdmin: me, guardian: roles.guardian, notice: c.notice_s, beaconDelay: c.beacon_delay_s ?? 2400,
    wait: c.wait_s, ratePpb: c.rate_ppb ?? 1_000_000_000 });
  await sent([ledger.deploymentTransaction()]);
  const registry = await make('Registry', {
    admin: me, registrar: me, ledger: await ledger.getAddress(), notice: c.notice_s, lead: c.lead_s ?? 3600, commitAgeMin: c.commit_age_min_s,
    protocolBpsMin: c.protocol_bps_min }, [p.base, p.adapters, p.operator, p.protocol, p.treasury, 0]);
  await sent([registry.deploymentTransaction()]);
  const vault = await make('RewardVault', {
    admin: me, proposer: roles.proposer, guardian: roles.guardian, attestors: c.attestors.map(getAddress), ledger: await ledger.getAddress(),
    token: c.token ?? ZeroAddress, window: c.window_s, capFloor: c.cap_floor, attestorsMin: c.attestors_min });
  await sent([vault.deploymentTransaction()]);
  await sent([ledger.setVault(await vault.getAddress())]);
  const out = { chain_id: Number((await provider.getNetwork()).chainId), genesis_hash: (await provider.getBlock(0)).hash };
  for (const [name, at] of Object.entries({ registry, ledger, vault })) out[name] = await at.getAddress();
  out.token = c.token ?? ZeroAddress;
  out.code_hash = await codeHashes(provider, out);
  return { ...out, start_block };
}

async function codeHashes(provider, at) {
  const out = {};
  for (const name of ['registry', 'ledger', 'vault']) out[name] = keccak256(await provider.getCode(at[name]));
  return out;
}

async function reusable(provider, path) {
  if (!existsSync(path)) return null;
  const old = JSON.parse(readFileSync(path, 'utf8'));
  if (old.chain_id !== Number((await provider.getNetwork()).chainId) || old.genesis_hash !== (await provider.getBlock(0)).hash) return null;
  const now = await codeHashes(provider, old);
  return JSON.stringify(now) === JSON.stringify(old.code_hash) ? old : null;
}

async function registerThings(ctx, c) {
  const { provider, registry, ledger, signer, out } = ctx, todo = [], now = await chainTime(provider);
  for (const m of c.methods ?? []) if ((await registry.methodRegisteredAt(m)) === 0n) todo.push(registry.registerMethod(m));
  for (const b of c.bases ?? [])
    if (!(await registry.baseAt(b.model_id, now))[0]) todo.push(registry.registerBase(b.model_id, b.owner, entriesOf(b.split, `base ${b.model_id}`).map(entryTuple)));
  for (const l of c.lanes ?? []) {
    const key = await ledger.laneKey(l.lane, 1);
    if (key === ZeroAddress) todo.push(ledger.registerLane(l.lane, l.key, l.operator));
    else if (getAddress(l.key) !== key) fail(`lane ${l.lane}: registered with key ${key}, the config says ${l.key}`);
  }
  const owners = new Map(); // one counter of nonces for all datanets of an owner
  for (const d of c.datanets ?? []) {
    if (d.owner_key_file && !owners.has(d.owner_key_file)) owners.set(d.owner_key_file, new NonceManager(new Wallet(readKey(d.owner_key_file), provider)));
    const from = owners.get(d.owner_key_file) ?? signer;
    const owner = await from.getAddress();
    d.id = datanetIdOf(out.chain_id, out.registry, owner, d.salt);
    if ((await registry.datanets(d.id)).owner === ZeroAddress)
      todo.push(registry.connect(from).registerDatanet(d.salt, d.document_root, d.owner_root, d.documents, d.owners, d.tokenizer_digest));
  }
  await sent(todo);
  await setTariffs(ctx, c);
  out.datanets = (c.datanets ?? []).map((d) => ({ name: d.name, id: d.id }));
}

// the first tariff of each base on each lane; its operator sends it
async function setTariffs({ provider, registry, signer, me }, c) {
  const todo = [], keys = new Map();
  for (const l of c.lanes ?? []) {
    if (l.operator_key_file && !keys.has(l.operator_key_file)) keys.set(l.operator_key_file, new NonceManager(new Wallet(readKey(l.operator_key_file), provider)));
    const from = keys.get(l.operator_key_file) ?? signer;
    for (const t of l.tariffs ?? []) {
      if ((await registry.tariffAt(l.lane, t.model_id, END_OF_TIME)).activeAt !== 0n) continue;
      if (!l.operator_key_file && getAddress(l.operator) !== me) fail(`lane ${l.lane}: its tariffs need operator_key_file: the operator sends them`);
      todo.push(registry.connect(from).setTariff(l.lane, t.model_id, t.price_in, t.price_out));
    }
  }
  await sent(todo);
}

// what an adapter of the config registers as, with the signatures of its owner and its datanet's
function adapterOf(ctx, c, a) {
  const { out, me } = ctx, key = a.owner_key_file && readKey(a.owner_key_file);
  const owner = getAddress(a.owner ?? (key ? new Wallet(key).address : me));
  const named = a.datanet === undefined ? a.datanet_id : out.datanets.find((d) => d.name === a.datanet)?.id;
  if (a.datanet !== undefined && !named) fail(`adapter ${a.adapter_id}: datanet ${a.datanet} is not in the config`);
  const m = {
    adapterId: a.adapter_id, modelId: a.model_id, datanetId: named ?? ZeroHash, datanetVersion: BigInt(a.datanet_version ?? (named ? 1 : 0)), owner,
    priceIn: BigInt(a.price_in ?? 0), priceOut: BigInt(a.price_out ?? 0), version: BigInt(a.version ?? 1), split: entriesOf(a.split, `adapter ${a.adapter_id}`),
    parents: (a.parents ?? []).map((p) => ({ adapterId: p.adapter_id, bps: Number(p.bps) })).sort((p, q) => (BigInt(p.adapterId) < BigInt(q.adapterId) ? -1 : 1)) };
  const sign = (k, digest) => new Wallet(k).signingKey.sign(digest).serialized;
  const signature = a.owner_signature ?? (key ? sign(key, publishDigest(m, out.chain_id, out.registry)) : '0x');
  if (signature === '0x' && owner !== me) fail(`adapter ${a.adapter_id}: owner ${owner} needs owner_key_file or owner_signature`);
  const net = (c.datanets ?? []).find((d) => d.name === a.datanet), netKey = net?.owner_key_file;
  const consent = a.datanet_consent ?? (netKey ? sign(readKey(netKey), consentDigest(m, out.chain_id, out.registry)) : '0x');
  return { m, salt: a.salt ?? hexlify(randomBytes(32)), signature, consent };
}

async function registerAdapters(ctx, c) {
  const { provider, registry } = ctx, list = [];
  const registered = async (id) => (await registry.adapters(id)).owner !== ZeroAddress;
  for (const a of c.adapters ?? []) if (!(await registered(a.adapter_id))) list.push(adapterOf(ctx, c, a));
  const commitments = list.map((x) => adapterCommitment(x.m.adapterId, x.m.owner, x.salt));
  const fresh = [];
  for (const x of commitments) if ((await registry.committedAt(x)) === 0n) fresh.push(registry.commitAdapter(x));
  await sent(fresh);
  const age = Number(await registry.commitAgeMin());
  for (const x of commitments) {
    const ready = Number(await registry.committedAt(x)) + age;
    while ((await chainTime(provider)) < ready) await new Promise((r) => setTimeout(r, 250));
  }
  for (let left = list; left.length;) { // parents before those that name them
    const names = new Set(left.map((x) => x.m.adapterId));
    const now = left.filter((x) => !x.m.parents.some((p) => names.has(p.adapterId)));
    if (!now.length) fail(`adapter ${left[0].m.adapterId}: its parents name it in a circle`);
    await sent(now.map(({ m, salt, signature, consent }) => registry.register(publishTuple(m), m.split.map(entryTuple), m.parents.map(parentTuple), salt, signature, consent)));
    left = left.filter((x) => !now.includes(x));
  }
}

// announces what roles name, and once the notice has passed grants it and gives the deployer's own rights up
async function handOver(ctx, c) {
  const { provider, registry, ledger, vault, me } = ctx, roles = rolesOf(c, me);
  const moves = [[registry, await registry.REGISTRAR(), roles.registrar], [ledger, await ledger.LANE_ADMIN(), roles.lane_admin],
    [registry, ZeroHash, roles.admin], [ledger, ZeroHash, roles.admin], [vault, ZeroHash, roles.admin]].filter(([, , to]) => to !== me);
  const open = [], announce = [];
  for (const [where, role, to] of moves) {
    if (await where.hasRole(role, to)) continue;
    open.push([where, role, to]);
    if ((await where.roleReadyAt(role, to, true)) === 0n) announce.push(where.grantRole(role, to));
  }
  await sent(announce);
  let ready = 0;
  for (const [where, role, to] of open) ready = Math.max(ready, Number(await where.roleReadyAt(role, to, true)));
  if (ready - (await chainTime(provider)) > NOTICE_WAITED_S) return new Date(ready * 1000).toISOString();
  while ((await chainTime(provider)) < ready) await new Promise((r) => setTimeout(r, 250));
  await sent(open.map(([where, role, to]) => where.grantRole(role, to)));
  const mine = [];
  for (const [where, role] of moves) if (await where.hasRole(role, me)) mine.push(where.renounceRole(role, me));
  await sent(mine);
  return '';
}

// brings each address up to its amount of coins
async function topUp(provider, signer, coins) {
  const todo = [];
  for (const { address, amount } of coins) {
    const lacks = BigInt(amount) - (await provider.getBalance(address));
    if (lacks > 0n) todo.push(signer.sendTransaction({ to: address, value: lacks }));
  }
  await sent(todo);
}

async function fund({ vault, out }, target) {
  const lacks = target - (await vault.startCumFee()) - (await vault.funded());
  if (lacks > 0n) await sent([vault.fundTo(target, { value: out.token === ZeroAddress ? lacks : 0n })]);
}

function save(path, out) {
  writeFileSync(path + '.tmp', JSON.stringify(out, null, 1) + '\n');
  renameSync(path + '.tmp', path);
}

export async function deploy({ rpc, key, config, outPath }) {
  const c = config;
  const provider = new JsonRpcProvider(rpc, undefined, { cacheTimeout: -1, pollingInterval: 200 });
  try {
    const signer = new NonceManager(new Wallet(key, provider)), me = await signer.getAddress();
    let out = await reusable(provider, outPath);
    const reused = out !== null;
    if (!reused) {
      out = await deployAll(provider, signer, me, c);
      save(outPath, out); // from here on a repeated run continues
    }
    const at = (name, address) => new Contract(address, artifact(name).abi, signer);
    const ctx = { provider, signer, me, out, registry: at('Registry', out.registry), ledger: at('AttributionLedger', out.ledger), vault: at('RewardVault', out.vault) };
    await topUp(provider, signer, c.coins ?? []);
    const mine = await ctx.registry.hasRole(ZeroHash, me);
    if (mine) {
      await registerThings(ctx, c);
    } else out.datanets ??= [];
    await registerAdapters(ctx, c);
    await fund(ctx, BigInt(c.fund_to ?? 0));
    const later = mine ? await handOver(ctx, c) : '';
    save(outPath, out);
    return { ...out, reused, later };
  } finally {
    provider.destroy();
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const text = { type: 'string' };
  const { values: given } = parseArgs({ options: { rpc: text, 'key-file': text, config: text, out: text } });
  const names = ['rpc', 'key-file', 'config', 'out'];
  if (names.some((n) => !given[n])) {
    console.error('usage: node deploy.mjs --rpc URL --key-file FILE --config FILE --out FILE');
    process.exit(2);
  }
  try {
    const out = await deploy({ rpc: given.rpc, key: readKey(given['key-file']), config: JSON.parse(readFileSync(given.config, 'utf8')), outPath: given.out });
    console.log(`${out.reused ? 'found' : 'deployed'} registry ${out.registry}, ledger ${out.ledger}, vault ${out.vault}`);
    if (out.later) console.log(`the roles are announced; repeat this command after ${out.later} to hand them over`);
  } catch (e) {
    console.error(`deploy: ${e.shortMessage ?? e.message}`);
    process.exit(1);
  }
}

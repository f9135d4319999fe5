// Deploys Registry, AttributionLedger and RewardVault and registers what a config names; formats in README.md 8.
//   node deploy.mjs --rpc URL --key-file FILE --config FILE --out FILE
// Repeatable: with an output file whose contracts are still on the chain it deploys nothing and registers only what is missing.
// The deployer pays the gas; where roles name another admin, the deployer gives up its own rights at the end.
import { existsSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs';
import { randomBytes } from 'node:crypto';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { Contract, ContractFactory, JsonRpcProvider, NonceManager, Wallet, ZeroAddress, ZeroHash, getAddress, hexlify, isHexString, keccak256 } from 'ethers';
import { artifact, entryTuple, publishTuple } from './js/abi.mjs';
import { receiptOf } from './js/wait.mjs';
import { adapterCommitment, datanetIdOf, publishDigest } from './js/canon.mjs';

const ROLES = { author: 1, data: 2, other: 3 };
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

async function deployAll(provider, signer, me, c) {
  const make = async (name, ...args) => {
    const a = artifact(name);
    return new ContractFactory(a.abi, a.bytecode, signer).deploy(...args);
  };
  const start_block = (await provider.getBlockNumber()) + 1;
  const p = c.policy;
  const registry = await make('Registry', me, c.notice_s, c.commit_age_min_s, c.protocol_bps_min,
    [p.base, p.adapters, p.operator, p.protocol, p.treasury, 0]);
  const ledger = await make('AttributionLedger', me, c.notice_s, c.rate_ppb ?? 1_000_000_000);
  await sent([registry.deploymentTransaction()]);
  await sent([ledger.deploymentTransaction()]);
  const vault = await make('RewardVault', {
    admin: me, ledger: await ledger.getAddress(), token: c.token ?? ZeroAddress, window: c.window_s, wait: c.wait_s,
    maxIncrease: c.max_increase, attestorsMin: c.attestors_min ?? 0, unattested: c.unattested ?? false });
  await sent([vault.deploymentTransaction()]);
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

async function grantRoles(ctx, c) {
  const { registry, ledger, vault, me } = ctx, roles = c.roles ?? {}, want = [];
  const of = (name) => [roles[name] ?? me].flat().map(getAddress);
  for (const a of of('registrar')) want.push([registry, await registry.REGISTRAR(), a]);
  for (const a of of('poster')) want.push([ledger, await ledger.POSTER(), a], [vault, await vault.POSTER(), a]);
  for (const a of of('guardian')) want.push([ledger, await ledger.GUARDIAN(), a], [vault, await vault.GUARDIAN(), a]);
  for (const a of of('lane_admin')) want.push([ledger, await ledger.LANE_ADMIN(), a]);
  for (const a of (c.attestors ?? []).map(getAddress)) want.push([vault, await vault.ATTESTOR(), a]);
  for (const x of [me]) want.push([registry, await registry.REGISTRAR(), x], [ledger, await ledger.LANE_ADMIN(), x]); // until the end
  const seen = new Set(), todo = [];
  for (const [where, role, who] of want) {
    const id = `${await where.getAddress()}${role}${who}`;
    if (seen.has(id) || (await where.hasRole(role, who))) continue;
    seen.add(id);
    todo.push(where.grantRole(role, who));
  }
  await sent(todo);
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
      todo.push(registry.connect(from).registerDatanet(d.salt, d.document_root, d.owner_root, d.tokenizer_digest));
  }
  await sent(todo);
  out.datanets = (c.datanets ?? []).map((d) => ({ name: d.name, id: d.id }));
}

async function registerAdapters(ctx, c) {
  const { provider, registry, out } = ctx, list = [];
  for (const a of c.adapters ?? []) {
    if ((await registry.adapters(a.adapter_id)).owner !== ZeroAddress) continue;
    const key = a.owner_key_file && readKey(a.owner_key_file);
    const owner = getAddress(a.owner ?? (key ? new Wallet(key).address : ctx.me));
    const named = a.datanet === undefined ? a.datanet_id : out.datanets.find((d) => d.name === a.datanet)?.id;
    if (a.datanet !== undefined && !named) fail(`adapter ${a.adapter_id}: datanet ${a.datanet} is not in the config`);
    const m = {
      adapterId: a.adapter_id, modelId: a.model_id, datanetId: named ?? ZeroHash, owner, priceIn: BigInt(a.price_in ?? 0),
      priceOut: BigInt(a.price_out ?? 0), version: BigInt(a.version ?? 1), split: entriesOf(a.split, `adapter ${a.adapter_id}`) };
    const signature = a.owner_signature ?? (key ? new Wallet(key).signingKey.sign(publishDigest(m, out.chain_id, out.registry)).serialized : '0x');
    if (signature === '0x' && owner !== ctx.me) fail(`adapter ${a.adapter_id}: owner ${owner} needs owner_key_file or owner_signature`);
    list.push({ m, salt: a.salt ?? hexlify(randomBytes(32)), signature });
  }
  const commitments = list.map((x) => adapterCommitment(x.m.adapterId, x.m.owner, x.salt));
  const fresh = [];
  for (const x of commitments) if ((await registry.committedAt(x)) === 0n) fresh.push(registry.commitAdapter(x));
  await sent(fresh);
  const age = Number(await registry.commitAgeMin());
  for (const x of commitments) {
    const ready = Number(await registry.committedAt(x)) + age;
    while ((await chainTime(provider)) < ready) await new Promise((r) => setTimeout(r, 250));
  }
  await sent(list.map(({ m, salt, signature }) => registry.register(publishTuple(m), m.split.map(entryTuple), salt, signature)));
}

async function handOver(ctx, c) {
  const { registry, ledger, vault, me } = ctx, roles = c.roles ?? {}, admin = getAddress(roles.admin ?? me);
  const has = async (list, who) => [list ?? me].flat().map(getAddress).includes(who);
  const todo = [];
  if (!(await has(roles.registrar, me)) && (await registry.hasRole(await registry.REGISTRAR(), me))) todo.push(registry.renounceRole(await registry.REGISTRAR(), me));
  if (!(await has(roles.lane_admin, me)) && (await ledger.hasRole(await ledger.LANE_ADMIN(), me))) todo.push(ledger.renounceRole(await ledger.LANE_ADMIN(), me));
  await sent(todo);
  if (admin === me) return;
  await sent([registry, ledger, vault].map((at) => at.grantRole(ZeroHash, admin)));
  await sent([registry, ledger, vault].map((at) => at.renounceRole(ZeroHash, me)));
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
      await grantRoles(ctx, c);
      await registerThings(ctx, c);
    } else out.datanets ??= [];
    await registerAdapters(ctx, c);
    await fund(ctx, BigInt(c.fund_to ?? 0));
    if (mine) await handOver(ctx, c);
    save(outPath, out);
    return { ...out, reused };
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
  } catch (e) {
    console.error(`deploy: ${e.shortMessage ?? e.message}`);
    process.exit(1);
  }
}

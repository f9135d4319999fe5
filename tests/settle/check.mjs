// Judges settlement from outside: every epoch's root again from the archive's record files and the registry, with the JavaScript
// formats, which share no code with the worker; and a claim of what the worker's HTTP answer proves.
//   node check.mjs recompute RPC DEPLOYMENT ARCHIVE
//   node check.mjs claim RPC DEPLOYMENT KEYFILE REWARD_URL ACCOUNT...
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import * as c from '../../chain_client/contracts/js/canon.mjs';
import { artifact } from '../../chain_client/contracts/js/abi.mjs';

const require = createRequire(new URL('../../chain_client/contracts/package.json', import.meta.url));
const { Contract, JsonRpcProvider, Wallet, ZeroAddress } = require('ethers');
const [verb, rpc, deployment, ...rest] = process.argv.slice(2);
const d = JSON.parse(readFileSync(deployment, 'utf8'));
const provider = new JsonRpcProvider(rpc, d.chain_id, { staticNetwork: true, cacheTimeout: -1, pollingInterval: 100 });
const at = (name, address, signer = provider) => new Contract(address, artifact(name).abi, signer);
const ledger = at('AttributionLedger', d.ledger), vault = at('RewardVault', d.vault), registry = at('Registry', d.registry);
const fail = (why) => {
  throw new Error(why);
};

function records(archive, seq) {
  const file = readFileSync(join(archive, `batch-${String(seq).padStart(8, '0')}`, 'records.bin')), out = [];
  for (let i = 0; i < file.length; ) {
    const n = file.readUInt32BE(i);
    const record = c.decodeRecord(file.subarray(i + 4, i + 4 + n));
    out.push({ record, digest: c.recordDigest(record, d.chain_id, d.ledger) });
    i += 4 + n;
  }
  return out;
}

async function stateAt(t, paid, evidence, owners) {
  const p = await registry.policyAt(t), state = { at: t, policy: { treasury: p.treasury } };
  for (const k of ['operators', 'bases', 'adapters', 'tariffs', 'owners', 'methods']) state[k] = new Map();
  for (const k of ['base', 'adapters', 'operator', 'protocol']) state.policy[k] = Number(p[k]);
  const entries = (list) => list.map((e) => ({ payee: e.payee.toLowerCase(), role: Number(e.role), bps: Number(e.bps) }));
  // a whole history, from the newest entry back
  const history = async (ask) => {
    const out = [];
    for (let at = BigInt(t), e; (e = await ask(at)); at = e.activeAt - 1n) out.unshift(e);
    return out;
  };
  for (const { record } of paid) {
    const tariff = `${record.lane}/${record.modelId}`;
    if (!state.tariffs.has(tariff))
      state.tariffs.set(tariff, await history(async (at) => {
        const e = await registry.tariffAt(record.lane, record.modelId, at);
        return e.activeAt ? e : null;
      }));
    if (!state.operators.has(record.lane)) {
      const operator = await ledger.laneOperatorAt(record.lane, t);
      if (operator !== ZeroAddress) state.operators.set(record.lane, operator);
    }
    if (!state.bases.has(record.modelId)) {
      const [registered, list] = await registry.baseAt(record.modelId, t);
      if (registered) state.bases.set(record.modelId, entries(list));
    }
    for (const { id } of c.decodeSet(record.tails.set)) {
      if (state.adapters.has(id)) continue;
      const { registered, datanetId, split, parents } = await registry.adapterAt(id, t);
      if (!registered) continue;
      if (parents.length) fail('an adapter has parents, which this check does not follow');
      const terms = await history(async (at) => {
        const e = await registry.adapterAt(id, at);
        return e.registered ? e : null;
      });
      state.adapters.set(id, { datanetId, entries: entries(split), parents: [], terms });
    }
  }
  for (const hash of new Set(evidence.map((r) => r.methodHash))) state.methods.set(hash, await registry.methodRegisteredAt(hash));
  for (const d of owners.datanets) state.owners.set(`${d.id}/${d.version}`, d.owners.map((o) => o.owner));
  return state;
}

async function recompute(archive) {
  const last = Number(await vault.lastEpoch()), cum = new Map(), out = [];
  for (let epoch = 1; epoch <= last; epoch++) {
    const e = await vault.epochs(epoch), previous = await vault.epochs(e.previous);
    const from = e.previous === 0n ? 0n : previous.batchPaid;
    const owners = JSON.parse(readFileSync(join(archive, `epoch-${String(epoch).padStart(8, '0')}`, 'owners.json'), 'utf8'));
    let paid = [], evidence = [], t = 0n;
    for (let b = from + 1n; b <= e.batchEvidence; b++) {
      const header = JSON.parse(readFileSync(join(archive, `batch-${String(b).padStart(8, '0')}`, 'header.json'), 'utf8'));
      const all = records(archive, b);
      evidence.push(...all.filter((x) => x.record.type === 2).map((x) => x.record));
      if (b <= e.batchPaid) paid.push(...all.filter((x) => x.record.type === 1).map((x) => ({ ...x, closedAt: header.closed_at })));
      if (b === e.batchPaid) t = header.closed_at;
    }
    const order = (p, q) => p.lane - q.lane || Number(p.seq - q.seq);
    evidence.sort(order);
    paid = paid.map((x) => ({ ...x, seed: c.ZERO32, rate: c.E9 })).sort((p, q) => order(p.record, q.record));
    const { sums, stats } = c.reward(paid, evidence, await stateAt(t, paid, evidence, owners));
    for (const [account, v] of sums) cum.set(account, (cum.get(account) ?? 0n) + v);
    const tree = c.rewardTree(c.rewardDomain(d.chain_id, d.vault, d.token), cum);
    if (tree.root.hash !== e.root) fail(`epoch ${epoch}: root ${tree.root.hash}, the vault has ${e.root}`);
    if (tree.root.sum !== e.total) fail(`epoch ${epoch}: total ${tree.root.sum}, the vault has ${e.total}`);
    out.push({ epoch, inferences: paid.length, required: Number(stats.required), refused: Number(stats.refused), missing: Number(stats.missing), total: String(e.total) });
  }
  return out;
}

async function claim(keyFile, url, accounts) {
  const signer = new Wallet('0x' + readFileSync(keyFile, 'utf8').trim(), provider), out = [];
  for (const account of accounts) {
    const r = await (await fetch(`${url}/v1/rewards/${account}`)).json();
    if (!r.epoch) fail(`${account}: ${JSON.stringify(r)}`);
    const leaf = c.rewardLeaf(c.rewardDomain(d.chain_id, d.vault, d.token), r.index, account, BigInt(r.cumulative));
    const root = c.foldProof(c.REWARD_TREE, leaf, r.index, r.proof);
    if (root.hash !== r.root || root.hash !== (await vault.epochs(r.epoch)).root) fail(`${account}: the proof does not lead to the root`);
    const before = await provider.getBalance(account);
    const tx = await at('RewardVault', d.vault, signer).claim(r.epoch, r.index, account, r.cumulative, r.proof.hashes, r.proof.sums);
    await tx.wait();
    const after = await provider.getBalance(account);
    out.push({ account, cumulative: r.cumulative, paid: String(after - before), claimed_before: r.claimed, claimed: String(await vault.claimed(account)) });
  }
  return out;
}

try {
  console.log(JSON.stringify(verb === 'recompute' ? await recompute(rest[0]) : await claim(rest[0], rest[1], rest.slice(2))));
} catch (e) {
  console.error(e.message);
  process.exitCode = 1;
} finally {
  provider.destroy();
}

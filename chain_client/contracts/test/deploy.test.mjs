// deploy.mjs on a private chain: everything registered, repeatable, owners' rights, and its own way of refusing.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Contract } from 'ethers';
import { artifact } from '../js/abi.mjs';
import { ZERO32, datanetIdOf } from '../js/canon.mjs';
import { h32, role, startChain } from './setup.mjs';

let chain, dir, who, file;
before(async () => {
  chain = await startChain(['--block-time', '1']);
  who = chain.who;
  dir = mkdtempSync(join(tmpdir(), 'residual-deploy-'));
  file = (name, body, mode = 0o600) => {
    const path = join(dir, name);
    writeFileSync(path, typeof body === 'string' ? body : JSON.stringify(body));
    chmodSync(path, mode);
    return path;
  };
});
after(async () => {
  await chain?.stop();
  if (dir) rmSync(dir, { recursive: true });
});

const config = () => ({
  notice_s: 3, lead_s: 0, beacon_delay_s: 7, commit_age_min_s: 1, protocol_bps_min: 100, rate_ppb: 1_000_000_000, policy: { base: 2000, adapters: 6000, operator: 1500, protocol: 500, treasury: '0x' + 'ee'.repeat(20) },
  window_s: 2, wait_s: 1, cap_floor: '1000000', attestors_min: 1, attestors: [who.attestor1.address, who.attestor2.address],
  roles: { admin: who.bob.address, committer: who.committer.address, proposer: who.proposer.address, guardian: who.guardian.address, lane_admin: who.laneAdmin.address, registrar: who.registrar.address },
  coins: [{ address: '0x' + '77'.repeat(20), amount: '1234' }, { address: who.dave.address, amount: '1' }], methods: [h32('S0')],
  bases: [{ model_id: h32('model'), owner: who.alice.address, split: [{ payee: who.alice.address, role: 'author', bps: 10000 }] }],
  datanets: [{ name: 'tides', owner_key_file: file('alice', chain.keyOf('alice')), salt: h32('s'), document_root: h32('d'), owner_root: h32('o'), documents: 3, owners: 2, tokenizer_digest: h32('t') }, { name: 'mine', salt: h32('s'), document_root: h32('d2'), owner_root: h32('o2'), documents: 1, owners: 1, tokenizer_digest: h32('t') }],
  adapters: [
    { adapter_id: h32('a1'), model_id: h32('model'), datanet: 'tides', owner_key_file: file('carol', chain.keyOf('carol').slice(2) + '\n'), price_in: '10', price_out: '20', split: [{ payee: who.dave.address, role: 'data', bps: 6000 }, { payee: who.carol.address, role: 'author', bps: 4000 }] },
    { adapter_id: h32('a3'), model_id: h32('model'), parents: [{ adapter_id: h32('a2'), bps: 100 }, { adapter_id: h32('a1'), bps: 200 }], split: [{ payee: who.carol.address, role: 'author', bps: 10000 }] },
    { adapter_id: h32('a2'), model_id: h32('model'), split: [{ payee: who.carol.address, role: 'author', bps: 10000 }] }],
  lanes: [{ lane: 1, key: who.alice.address, operator: who.dave.address, operator_key_file: file('dave', chain.keyOf('dave')), tariffs: [{ model_id: h32('model'), price_in: '5', price_out: '6' }] }], fund_to: '500' });

const run = async (configPath, keyPath, out = join(dir, 'addresses.json')) => {
  const args = [new URL('../deploy.mjs', import.meta.url).pathname, '--rpc', chain.url, '--key-file', keyPath, '--config', configPath, '--out', out];
  const child = spawn(process.execPath, args, { timeout: 60_000 }), got = { stdout: '', stderr: '' };
  for (const s of ['stdout', 'stderr']) child[s].on('data', (d) => (got[s] += d));
  const [status] = await once(child, 'close');
  return { status, ...got };
};

test('deploys, registers, hands over, and repeats without a change', async () => {
  const key = file('admin', chain.keyOf('admin')), cfg = file('config.json', config());
  const first = await run(cfg, key);
  assert.equal(first.status, 0, first.stderr);
  assert.match(first.stdout, /^deployed registry 0x/);
  const out = JSON.parse(readFileSync(join(dir, 'addresses.json'), 'utf8'));
  assert.deepEqual(Object.keys(out).sort(), ['chain_id', 'code_hash', 'datanets', 'genesis_hash', 'ledger', 'registry', 'start_block', 'token', 'vault']);
  const at = (name, address) => new Contract(address, artifact(name).abi, chain.provider);
  const registry = at('Registry', out.registry), ledger = at('AttributionLedger', out.ledger), vault = at('RewardVault', out.vault);
  const now = await chain.now();
  const a1 = await registry.adapterAt(h32('a1'), now), a2 = await registry.adapterAt(h32('a2'), now);
  assert.equal(a1.datanetId, datanetIdOf(31337, out.registry, who.alice.address, h32('s')));
  assert.deepEqual(a1.split.map((e) => [e.payee, Number(e.role), Number(e.bps)]), [[who.carol.address, 1, 4000], [who.dave.address, 2, 6000]]);
  assert.deepEqual([a1.datanetVersion, a1.priceOut, a2.datanetVersion], [1n, 20n, 0n]);
  const a3 = await registry.adapterAt(h32('a3'), now), up = (p, q) => (BigInt(p[0]) < BigInt(q[0]) ? -1 : 1);
  assert.deepEqual(a3.parents.map((p) => [p.adapterId, Number(p.bps)]), [[h32('a1'), 200], [h32('a2'), 100]].sort(up));
  assert.deepEqual([...(await registry.tariffAt(1, h32('model'), now))].slice(1), [5n, 6n]);
  assert.deepEqual([await ledger.beaconDelay(), await ledger.wait(), await ledger.vaults(0), await registry.ledger(), await registry.lead()], [7n, 1n, out.vault, out.ledger, 0n]);
  assert.deepEqual([(await registry.datanetAt(a1.datanetId, now)).d.documents, (await registry.datanetAt(a1.datanetId, now)).d.owners], [3n, 2n]);
  assert.equal((await registry.adapters(h32('a1'))).owner, who.carol.address);
  assert.equal((await registry.adapters(h32('a2'))).owner, who.admin.address);
  assert.equal(a2.datanetId, ZERO32);
  assert.equal((await registry.baseAt(h32('model'), now)).registered, true);
  assert.equal(await ledger.laneKey(1, 1), who.alice.address);
  assert.equal(await ledger.laneOperatorAt(1, now), who.dave.address);
  assert.notEqual(await registry.methodRegisteredAt(h32('S0')), 0n);
  assert.deepEqual([await vault.ledger(), await vault.held(), await vault.wait(), await vault.window()], [out.ledger, 500n, 1n, 2n]);
  assert.equal(await chain.provider.getBalance('0x' + '77'.repeat(20)), 1234n);
  for (const c of [registry, ledger, vault]) assert.deepEqual([await c.hasRole(ZERO32, who.bob.address), await c.hasRole(ZERO32, who.admin.address)], [true, false]);
  assert.deepEqual([await ledger.hasRole(role('LANE_ADMIN'), who.admin.address), await registry.hasRole(role('REGISTRAR'), who.admin.address)], [false, false]);
  assert.deepEqual([await ledger.hasRole(role('COMMITTER'), who.committer.address), await vault.hasRole(role('PROPOSER'), who.proposer.address), await vault.hasRole(role('ATTESTOR'), who.attestor2.address), await vault.dailyCap()], [true, true, true, 1000000n]);
  assert.deepEqual([await ledger.hasRole(role('LANE_ADMIN'), who.laneAdmin.address), await registry.hasRole(role('REGISTRAR'), who.registrar.address)], [true, true]);
  const sentSoFar = await chain.provider.getTransactionCount(who.admin), again = await run(cfg, key);
  assert.equal(again.status, 0, again.stderr);
  assert.match(again.stdout, /^found registry/);
  assert.equal(await chain.provider.getTransactionCount(who.admin), sentSoFar);
  assert.equal(readFileSync(join(dir, 'addresses.json'), 'utf8'), JSON.stringify(out, null, 1) + '\n');
});

test('refusals say what is wrong', async () => {
  const key = file('admin', chain.keyOf('admin')), open = file('open', chain.keyOf('admin'), 0o644);
  const says = (r, text) => (assert.equal(r.status, 1), assert.match(r.stderr, text));
  says(await run(file('c1', config()), open, join(dir, 'o1')), /mode is 644, expected 600/);
  says(await run(file('c2', config()), file('short', '0x12'), join(dir, 'o2')), /expected one private key of 64 hex digits/);
  const bad = config();
  bad.bases[0].split[0].bps = 9999;
  says(await run(file('c3', bad), key, join(dir, 'o3')), /bps sum to 9999, expected 10000/);
  const stray = config();
  stray.adapters[0].datanet = 'nothing';
  says(await run(file('c4', stray), key, join(dir, 'o4')), /datanet nothing is not in the config/);
  for (const [over, text] of [
    [{ attestors_min: 0 }, /name as many as an epoch needs, 1 at least/], [{ attestors: [] }, /attestors: 0 named, attestors_min is 1/], [{ attestors_min: 3 }, /attestors: 2 named, attestors_min is 3/],
    [{ attestors: [who.guardian.address] }, /is guardian and attestor 1: these keys must be apart/], [{ roles: { ...config().roles, proposer: who.committer.address } }, /is committer and proposer/],
    [{ roles: { ...config().roles, admin: who.guardian.address } }, /is admin and guardian/]])
    says(await run(file('c5', { ...config(), ...over }), key, join(dir, 'o5')), text);
  const circle = config();
  circle.adapters[2].parents = [{ adapter_id: h32('a3'), bps: 1 }];
  says(await run(file('c6', circle), key, join(dir, 'o6')), /its parents name it in a circle/);
  const silent = config();
  delete silent.lanes[0].operator_key_file;
  says(await run(file('c7', silent), key, join(dir, 'o7')), /lane 1: its tariffs need operator_key_file/);
  const bare = spawn(process.execPath, [new URL('../deploy.mjs', import.meta.url).pathname]);
  assert.deepEqual(await once(bare, 'exit'), [2, null]);
});

test('a long notice: the roles are announced, and handed over by the same command once it has passed', async () => {
  const key = file('admin', chain.keyOf('admin')), long = { ...config(), notice_s: 5000, adapters: [], datanets: [], coins: [], fund_to: '0' }, out = join(dir, 'long.json');
  const first = await run(file('long', long), key, out);
  assert.equal(first.status, 0, first.stderr);
  assert.match(first.stdout, /the roles are announced; repeat this command after 20/);
  const ledger = new Contract(JSON.parse(readFileSync(out, 'utf8')).ledger, artifact('AttributionLedger').abi, chain.provider);
  assert.deepEqual([await ledger.hasRole(ZERO32, who.bob.address), await ledger.hasRole(ZERO32, who.admin.address)], [false, true]);
  await chain.pass(5000n);
  const second = await run(file('long', long), key, out);
  assert.equal(second.status, 0, second.stderr);
  assert.doesNotMatch(second.stdout, /announced/);
  assert.deepEqual([await ledger.hasRole(ZERO32, who.bob.address), await ledger.hasRole(ZERO32, who.admin.address)], [true, false]);
});

// A private chain, the contracts on it with named accounts, and small helpers. Time is moved by hand: blocks are mined on demand.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { Contract, ContractFactory, JsonRpcProvider, NonceManager, Wallet, ZeroAddress, keccak256, toUtf8Bytes } from 'ethers';
import { startAnvil } from '../anvil.mjs';
import { artifact, epochTuple, headerTuple, laneTuple } from '../js/abi.mjs';
import * as c from '../js/canon.mjs';
import { receiptOf } from '../js/wait.mjs';

export const golden = () => JSON.parse(readFileSync(new URL('../../../tests/data/golden.json', import.meta.url), 'utf8'));
export const h32 = (s) => keccak256(toUtf8Bytes(s));
export const role = (name) => h32(name);
export const NOTICE = 1000n, LEAD = 50n, WAIT = 100n, WINDOW = 500n, BEACON_DELAY = 30n;

const NAMES = ['admin', 'committer', 'proposer', 'laneAdmin', 'registrar', 'guardian', 'alice', 'bob', 'carol', 'dave', 'attestor1', 'attestor2', 'attestor3'];
const keyOf = (name) => h32('contract test ' + name);

export async function startChain(options = []) {
  const anvil = await startAnvil(['--accounts', '1', ...options]);
  const provider = new JsonRpcProvider(anvil.url, 31337, { staticNetwork: true, cacheTimeout: -1, pollingInterval: 20, batchMaxCount: 1 });
  const rpc = (m, ...p) => provider.send(m, p);
  const who = {};
  for (const n of NAMES) {
    who[n] = new Wallet(keyOf(n), provider);
    await rpc('anvil_setBalance', who[n].address, '0x' + (10n ** 30n).toString(16));
  }
  return {
    provider, rpc, who, keyOf, url: anvil.url,
    now: async () => BigInt((await provider.getBlock('latest')).timestamp),
    pass: async (s) => {
      await rpc('evm_increaseTime', Number(s));
      await rpc('evm_mine');
    },
    stop: async () => {
      provider.destroy();
      await anvil.stop();
    } };
}

export async function make(chain, name, ...args) {
  const a = artifact(name);
  const made = await new ContractFactory(a.abi, a.bytecode, new NonceManager(chain.who.admin)).deploy(...args);
  await receiptOf(chain.provider, made.deploymentTransaction().hash);
  return new Contract(await made.getAddress(), a.abi, chain.who.admin);
}

// sends, waits, returns the receipt
export async function ok(promise) {
  const tx = await promise;
  return receiptOf(tx.provider, tx.hash, { every_ms: 5 });
}

// the call must revert with this custom error (and these arguments, if given)
export async function reverts(promise, contract, error, args) {
  try {
    const tx = await promise;
    if (tx?.hash) await receiptOf(tx.provider, tx.hash);
  } catch (e) {
    let data = e.data ?? e.info?.error?.data ?? e.error?.data;
    const parsed = data && contract.interface.parseError(data);
    assert.ok(parsed, `expected ${error}, got ${e.shortMessage ?? e.message}`);
    assert.equal(parsed.name, error);
    if (args) assert.deepEqual([...parsed.args].map(String), args.map(String));
    return;
  }
  assert.fail(`expected ${error}, but the call succeeded`);
}

export const logsOf = (receipt, contract, name) =>
  receipt.logs.map((l) => contract.interface.parseLog(l)).filter((l) => l?.name === name).map((l) => l.args);

export const treasury = '0x' + 'ee'.repeat(20);
export const POLICY = [2000, 6000, 1500, 500, treasury, 0];

export const ledgerConfig = ({ who }, over = {}) => ({
  admin: who.admin.address, committer: who.committer.address, laneAdmin: who.laneAdmin.address, guardian: who.guardian.address, notice: NOTICE,
  beaconDelay: BEACON_DELAY, wait: WAIT, ratePpb: 1_000_000_000, ...over });
export const makeLedger = (chain, over) => make(chain, 'AttributionLedger', ledgerConfig(chain, over));

export async function makeRegistry(chain, ledger, { policy = POLICY, ...over } = {}) {
  return make(chain, 'Registry', {
    admin: chain.who.admin.address, registrar: chain.who.registrar.address, ledger: await ledger.getAddress(), notice: NOTICE, lead: LEAD, commitAgeMin: 60n,
    protocolBpsMin: 300, ...over }, policy);
}

// a role changed as the admin has to: announced, waited for, done
export async function change(chain, contract, grant, name, account) {
  const call = () => (grant ? contract.grantRole : contract.revokeRole)(name === 'ADMIN' ? c.ZERO32 : role(name), account);
  await ok(call());
  await chain.pass(await contract.notice());
  return ok(call());
}

// builds and keeps a chain of batches that the ledger accepts; `over` replaces header fields of one
export class Batches {
  constructor(chain, ledger) {
    Object.assign(this, { chain, ledger, list: [], next: new Map(), cumFee: 0n });
  }
  async build(sizes, feeSum, over = {}) {
    const lanes = sizes.map(([lane, n]) => ({ lane, first: this.next.get(lane) ?? 1n, last: (this.next.get(lane) ?? 1n) + BigInt(n) - 1n }));
    const leafCount = sizes.reduce((n, [, k]) => n + k, 0);
    const h = {
      seq: BigInt(this.list.length + 1), spec: 1, prevHash: this.list.at(-1)?.hash ?? c.ZERO32, logRoot: h32('root' + this.list.length), manifest: h32('manifest'),
      leafCount, inferences: leafCount, feeSum, cumFee: this.cumFee + feeSum, closedAt: await this.chain.now(), ...over };
    const lanesHash = c.lanesHash(lanes);
    return { h, lanes, lanesHash, hash: c.batchHash(h, lanesHash, 31337, await this.ledger.getAddress()) };
  }
  send(b) {
    return this.ledger.connect(this.chain.who.committer).commit(headerTuple(b.h), b.lanes.map(laneTuple));
  }
  async commit(sizes, feeSum, over) {
    const b = await this.build(sizes, feeSum, over);
    const receipt = await ok(this.send(b));
    this.list.push(b);
    this.cumFee = b.h.cumFee;
    for (const l of b.lanes) this.next.set(l.lane, l.last + 1n);
    return { ...b, receipt };
  }
}

export async function makeVault(chain, ledger, over = {}) {
  return make(chain, 'RewardVault', {
    admin: chain.who.admin.address, proposer: chain.who.proposer.address, guardian: chain.who.guardian.address, attestors: [chain.who.attestor1.address],
    ledger: await ledger.getAddress(), token: ZeroAddress, window: WINDOW, capFloor: 10n ** 30n, attestorsMin: 1, ...over });
}

// signatures of an epoch by these attestors, ascending by address
export async function attest(chain, vault, e, names = ['attestor1']) {
  const digest = c.epochDigest(e.h, 31337, await vault.getAddress());
  const up = ([a], [b]) => (BigInt(a) < BigInt(b) ? -1 : 1);
  return names.map((n) => [chain.who[n].address, c.sign(digest, chain.keyOf(n))]).sort(up).map(([, s]) => s);
}

// an epoch over cumulative amounts, ready to be proposed and claimed
export async function makeEpoch(vault, { epoch, prevRoot = c.ZERO32, paid, evidence, cum, ...over }) {
  const dom = c.rewardDomain(31337, await vault.getAddress(), await vault.token());
  const tree = c.rewardTree(dom, new Map([...cum].map(([a, v]) => [a.toLowerCase(), v])));
  const h = { epoch, prevRoot, root: tree.root.hash, total: tree.root.sum, leaves: tree.count, batchPaid: paid.h.seq, batchEvidence: (evidence ?? paid).h.seq, manifest: h32('epoch manifest'), ...over };
  const args = [epochTuple(h), headerTuple(paid.h), paid.lanesHash];
  const claimOf = (account) => {
    const i = tree.accounts.findIndex(([a]) => a === account.toLowerCase());
    const p = c.proofOf(tree, i);
    return [h.epoch, i, tree.accounts[i][0], tree.accounts[i][1], p.hashes, p.sums];
  };
  return { h, tree, args, claimOf };
}

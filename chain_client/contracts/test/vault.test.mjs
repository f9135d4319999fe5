// RewardVault: what an epoch must satisfy, what a claim can and cannot take, and what each role cannot do.
import assert from 'node:assert/strict';
import { after, before, beforeEach, test } from 'node:test';
import { Wallet } from 'ethers';
import * as c from '../js/canon.mjs';
import { epochTuple, headerTuple, laneTuple } from '../js/abi.mjs';
import { Batches, NOTICE, WAIT, WINDOW, attest, change, h32, logsOf, make, makeEpoch, makeLedger, makeVault, ok, reverts, role, startChain } from './setup.mjs';

let chain, who, ledger, batches, vault, proposer;
const account = (i) => c.hex(c.uint((BigInt(h32('holder ' + i)) >> 96n) | 1n, 20));
before(async () => {
  chain = await startChain();
  who = chain.who;
});
after(() => chain?.stop());

beforeEach(async () => {
  ledger = await makeLedger(chain);
  await ok(ledger.connect(who.laneAdmin).registerLane(1, new Wallet(h32('lane')).address, who.alice.address));
  batches = new Batches(chain, ledger);
  await setVault();
});

async function setVault(over) {
  vault = await makeVault(chain, ledger, over);
  proposer = vault.connect(who.proposer);
}

const cumOf = (list) => new Map(list.map(([w, v]) => [w.address ?? w, BigInt(v)]));
const propose = async (e, sigs) => proposer.propose(...e.args, sigs ?? (await attest(chain, vault, e)));
const fund = async (cumFee, v = vault) => ok(v.fundTo(cumFee, { value: cumFee }));

// commits a batch with this fee, waits W, funds, proposes; activates unless told not to
async function epoch(n, prev, cum, { activate = true, funded = true } = {}) {
  const total = [...cum.values()].reduce((a, b) => a + b, 0n);
  const paid = await batches.commit([[1, 1]], total - batches.cumFee);
  if (funded) await fund(total);
  await chain.pass(WAIT);
  const e = await makeEpoch(vault, { epoch: n, prevRoot: prev?.h.root, paid, cum });
  await ok(propose(e));
  if (activate) await chain.pass(WINDOW);
  return e;
}

test('claim pays the difference, once, to the account', async () => {
  const e1 = await epoch(1, null, cumOf([[account(1), 100], [account(2), 50], [account(3), 7]]));
  const before_ = await chain.provider.getBalance(account(2));
  const receipt = await ok(vault.connect(who.bob).claim(...e1.claimOf(account(2))));
  assert.equal((await chain.provider.getBalance(account(2))) - before_, 50n);
  assert.deepEqual([...logsOf(receipt, vault, 'Claimed')[0]].slice(2), [1n, 50n, 50n]);
  await reverts(vault.claim(...e1.claimOf(account(2))), vault, 'NothingToClaim', [50]);
  const e2 = await epoch(2, e1, cumOf([[account(1), 100], [account(2), 80], [account(4), 20]].concat([[account(3), 7]])));
  await ok(vault.claim(...e1.claimOf(account(1)))); // an older active epoch is still accepted
  await reverts(vault.claim(...e1.claimOf(account(2))), vault, 'NothingToClaim', [50]);
  await ok(vault.claim(...e2.claimOf(account(2))));
  assert.equal((await chain.provider.getBalance(account(2))) - before_, 80n);
  await reverts(vault.claim(...e2.claimOf(account(1))), vault, 'NothingToClaim', [100]);
  for (const i of [3, 4]) await ok(vault.claim(...e2.claimOf(account(i))));
  assert.equal(await vault.totalClaimed(), 207n);
  assert.equal(await vault.held(), 0n);
});

test('every size around powers of two: each leaf claims, and the vault ends empty', async () => {
  let prev = null;
  for (const [n, count] of [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33].entries()) {
    const cum = cumOf(Array.from({ length: count }, (_, i) => [account(`${i}`), BigInt(n + 1) * 1000n + BigInt(i)]));
    const e = await epoch(n + 1, prev, cum);
    for (const i of new Set([0, 1, count >> 1, count - 1])) if (i < count) await ok(vault.claim(...e.claimOf(account(`${i}`))));
    prev = e;
  }
  for (let i = 0; i < 33; i++) {
    const call = vault.claim(...prev.claimOf(account(`${i}`)));
    await call.then((t) => ok(t), () => null);
  }
  assert.equal(await vault.totalClaimed(), prev.h.total);
  assert.equal(await vault.held(), 0n);
});

test('proofs that must not pass', async () => {
  const cum = cumOf(Array.from({ length: 5 }, (_, i) => [account(i), 1000 + i]));
  const e = await epoch(1, null, cum), good = e.claimOf(account(2)), [n, index, who_, amount, hashes, sums] = good;
  const bad = (...args) => reverts(vault.claim(...args), vault, 'BadProof');
  await bad(n, index, who_, amount + 1n, hashes, sums);
  await bad(n, index, account(3), amount, hashes, sums);
  await bad(n, index ^ 1, who_, amount, hashes, sums);
  await bad(n, index + 8, who_, amount, hashes, sums); // index + 2^d walks the same path
  await bad(n, 5, c.ZERO20, 0n, e.claimOf(account(4))[4], e.claimOf(account(4))[5]); // the padding
  await bad(n, index, who_, amount, hashes.slice(0, 2), sums.slice(0, 2));
  await bad(n, index, who_, amount, [...hashes, c.ZERO32], [...sums, 0n]);
  await bad(n, index, who_, amount, hashes, sums.slice(0, 2));
  await bad(n, index, who_, amount, [], []);
  await bad(n, index, who_, amount, hashes, [sums[0] + 1n, sums[1] - 1n, sums[2]]);
  await bad(n, index, who_, amount, hashes, [sums[0] - 1n, sums[1] + 1n, sums[2]]);
  await bad(n, index, who_, amount, [...hashes].reverse(), [...sums].reverse());
  const inner = e.tree.levels[1][0]; // a node offered as a leaf, one level up
  await bad(n, 0, who_, inner.sum, [e.tree.levels[1][1].hash, e.tree.levels[2][1].hash], [e.tree.levels[1][1].sum, e.tree.levels[2][1].sum]);
  const max = (1n << 128n) - 1n;
  await bad(n, index, who_, max, hashes, [max, max, max]);
  await reverts(vault.claim(2, index, who_, amount, hashes, sums), vault, 'NotActive', [2]);
  await ok(vault.claim(...good));
});

test('a leaf of another vault or token is worth nothing', async () => {
  const cum = cumOf([[account(1), 10], [account(2), 20]]);
  await epoch(1, null, cum);
  const dom = c.rewardDomain(31337, await vault.getAddress(), '0x' + '77'.repeat(20));
  const tree = c.rewardTree(dom, cum), p = c.proofOf(tree, 0);
  await reverts(vault.claim(1, 0, tree.accounts[0][0], tree.accounts[0][1], p.hashes, p.sums), vault, 'BadProof');
});

test('largest amount of 2^112 - 1', async () => {
  const top = (1n << 112n) - 1n;
  await setVault({ capFloor: top });
  await chain.rpc('anvil_setBalance', who.admin.address, '0x' + (1n << 120n).toString(16));
  const e = await epoch(1, null, cumOf([[account('rich'), top]]));
  await ok(vault.claim(...e.claimOf(account('rich'))));
  assert.equal(await chain.provider.getBalance(account('rich')), top);
});

test('propose: numbers, roots, batches, time, total, funds', async () => {
  const b1 = await batches.commit([[1, 2]], 100n), cum = cumOf([[account(1), 60], [account(2), 40]]);
  const make_ = (over) => makeEpoch(vault, { epoch: 1, paid: b1, cum, ...over });
  const bad = async (over, error, args) => reverts(propose(await make_(over)), vault, error, args);
  await fund(100n);
  await bad({}, 'TooEarly', [b1.h.closedAt + WAIT]);
  await chain.pass(WAIT);
  await bad({ epoch: 2 }, 'NotNext', [1]);
  await bad({ epoch: 0 }, 'NotNext', [1]);
  await bad({ prevRoot: h32('x') }, 'WrongPrevious', [c.ZERO32]);
  await bad({ root: c.ZERO32 }, 'EmptyEpoch');
  await bad({ leaves: 0 }, 'EmptyEpoch');
  await bad({ total: 99n }, 'WrongTotal', [100]);
  await bad({ total: 101n }, 'WrongTotal', [100]);
  await bad({ batchPaid: 2n }, 'WrongBatch', [2]);
  await bad({ batchEvidence: 2n }, 'EvidenceUnknown', [2]);
  await bad({ batchEvidence: 0n }, 'EvidenceUnknown', [0]);
  const forged = { ...b1, h: { ...b1.h, cumFee: 90n } };
  await reverts(propose(await makeEpoch(vault, { epoch: 1, paid: forged, cum: cumOf([[account(1), 90]]) })), vault, 'WrongBatch', [1]);
  await reverts(vault.connect(who.bob).propose(...(await make_()).args, []), vault, 'AccessControlUnauthorizedAccount');
  const e1 = await make_();
  await ok(propose(e1));
  await reverts(propose(e1), vault, 'NotNext', [2]); // a replay
  await bad({ epoch: 2, prevRoot: e1.h.root }, 'WrongBatch', [1]); // the same batch again
  const b2 = await batches.commit([[1, 1]], 1n), next = { epoch: 2, prevRoot: e1.h.root, paid: b2, cum: cumOf([[account(1), 61], [account(2), 40]]) };
  await chain.pass(WAIT);
  await bad(next, 'Underfunded', [101, 100]);
  await fund(101n);
  await bad({ ...next, prevRoot: c.ZERO32 }, 'WrongPrevious', [e1.h.root]);
  await ok(propose(await make_(next)));
  assert.deepEqual([await vault.lastEpoch(), await vault.lastLive(), await vault.activeEpoch()], [2n, 2n, 0n]);
});

test('a cum that fell cannot be claimed twice over: the root is bounded by its total', async () => {
  const e1 = await epoch(1, null, cumOf([[account(1), 100]]));
  await ok(vault.claim(...e1.claimOf(account(1))));
  // a dishonest root forgets what account 1 was paid and grants everything to 2
  const e2 = await epoch(2, e1, cumOf([[account(2), 150]]));
  await reverts(vault.claim(...e2.claimOf(account(2))), vault, 'OverTotal', [150]); // 100 + 150 > 150
  const skipped = await ok(vault.claimMany([e2.claimOf(account(2))]));
  assert.equal(logsOf(skipped, vault, 'ClaimSkipped')[0].reason, 5n);
  assert.equal(await vault.totalClaimed(), 100n);
  assert.equal(await vault.claimed(account(2)), 0n);
});

test('a pending epoch does not lift the cap, and is not claimable', async () => {
  const e1 = await epoch(1, null, cumOf([[account(1), 100]]));
  const e2 = await epoch(2, e1, cumOf([[account(2), 150]]), { activate: false });
  await reverts(vault.claim(...e2.claimOf(account(2))), vault, 'NotActive', [2]);
  await ok(vault.claim(...e1.claimOf(account(1))));
  await chain.pass(WINDOW);
  await reverts(vault.claim(...e2.claimOf(account(2))), vault, 'OverTotal', [150]);
});

test('veto: pending epochs fall from it on, numbers stay used, the chain of roots goes on from the last good one', async () => {
  const e1 = await epoch(1, null, cumOf([[account(1), 100]]));
  const e2 = await epoch(2, e1, cumOf([[account(1), 120]]), { activate: false });
  const e3 = await epoch(3, e2, cumOf([[account(1), 130]]), { activate: false });
  const g = vault.connect(who.guardian);
  await reverts(g.veto(1), vault, 'NotPending', [1]); // too late
  await reverts(vault.veto(2), vault, 'AccessControlUnauthorizedAccount');
  const receipt = await ok(g.veto(2));
  assert.deepEqual(logsOf(receipt, vault, 'Disabled').map((x) => [...x]), [[2n, 0n], [3n, 0n]]);
  await reverts(g.veto(3), vault, 'NotPending', [3]);
  await reverts(g.veto(9), vault, 'NotPending', [9]);
  await chain.pass(WINDOW);
  await reverts(vault.claim(...e2.claimOf(account(1))), vault, 'NotActive', [2]);
  await reverts(vault.claim(...e3.claimOf(account(1))), vault, 'NotActive', [3]);
  await ok(vault.claim(...e1.claimOf(account(1))));
  // epoch 4 may name batch 2 again: its M' is that of epoch 1
  const e4 = await makeEpoch(vault, { epoch: 4, prevRoot: e1.h.root, paid: batches.list[1], cum: cumOf([[account(1), 110], [account(2), 10]]) });
  await ok(propose(e4));
  assert.equal((await vault.epochs(4)).previous, 1n);
  await chain.pass(WINDOW);
  await ok(vault.claim(...e4.claimOf(account(2))));
  assert.equal(await vault.activeEpoch(), 4n);
});

test('attestors: k signatures, ascending, of this epoch; never fewer than k, by construction', async () => {
  const three = ['attestor1', 'attestor2', 'attestor3'];
  const of = (...names) => ({ attestors: names.map((n) => who[n].address) });
  await assert.rejects(setVault({ attestorsMin: 0 }));
  await assert.rejects(setVault({ attestorsMin: 2 })); // one is named
  await assert.rejects(setVault({ attestors: [] }));
  await assert.rejects(setVault({ attestorsMin: 2, ...of('attestor1', 'attestor1') }));
  await setVault({ attestorsMin: 2, ...of(...three) });
  const paid = await batches.commit([[1, 1]], 10n);
  await fund(10n);
  await chain.pass(WAIT);
  const e = await makeEpoch(vault, { epoch: 1, paid, cum: cumOf([[account(1), 10]]) });
  const digest = c.epochDigest(e.h, 31337, await vault.getAddress());
  assert.equal(await vault.hashEpoch(epochTuple(e.h)), digest);
  const sign = (...names) => attest(chain, vault, e, names);
  await reverts(propose(e, []), vault, 'AttestorsMissing', [2]);
  await reverts(propose(e, await sign('attestor1')), vault, 'AttestorsMissing', [2]);
  const two = await sign('attestor1', 'attestor2');
  await reverts(propose(e, [two[0], two[0]]), vault, 'BadAttestation', [1]); // one signer twice
  await reverts(propose(e, [two[1], two[0]]), vault, 'BadAttestation', [1]);
  await reverts(propose(e, await sign('attestor1', 'bob')), vault, 'BadAttestation'); // forged
  const other = await makeEpoch(vault, { epoch: 1, paid, cum: cumOf([[account(2), 10]]) });
  await reverts(propose(e, await attest(chain, vault, other, three)), vault, 'BadAttestation', [0]); // replayed from another epoch
  const elsewhere = await makeVault(chain, ledger);
  await reverts(propose(e, await attest(chain, elsewhere, e, three)), vault, 'BadAttestation', [0]); // and from another vault
  const high = BigInt('0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141');
  const twist = (x) => x.slice(0, 66) + (high - BigInt('0x' + x.slice(66, 130))).toString(16).padStart(64, '0') + (x.slice(130) === '1b' ? '1c' : '1b');
  await assert.rejects(propose(e, [twist(two[0]), two[1]])); // the other half of the curve order
  await ok(propose(e, two));
  assert.equal(await vault.attestorCount(), 3n);
  await change(chain, vault, false, 'ATTESTOR', who.attestor3.address);
  await ok(vault.revokeRole(role('ATTESTOR'), who.attestor2.address));
  await chain.pass(NOTICE);
  await reverts(vault.revokeRole(role('ATTESTOR'), who.attestor2.address), vault, 'AttestorsMissing', [2]);
  await reverts(vault.connect(who.attestor2).renounceRole(role('ATTESTOR'), who.attestor2.address), vault, 'AttestorsMissing', [2]);
  await change(chain, vault, true, 'ATTESTOR', who.dave.address);
  await change(chain, vault, false, 'ATTESTOR', who.attestor2.address);
  assert.equal(await vault.attestorCount(), 2n);
});

test('keys apart: one account holds one of proposer, guardian, attestor and the ledger committer', async () => {
  const conflict = (over) => assert.rejects(setVault(over));
  await conflict({ guardian: who.proposer.address });
  await conflict({ attestors: [who.proposer.address] });
  await conflict({ attestors: [who.guardian.address] });
  await conflict({ proposer: who.committer.address });
  await conflict({ attestors: [who.committer.address] });
  await setVault();
  for (const [name, account_] of [['ATTESTOR', who.proposer], ['PROPOSER', who.guardian], ['GUARDIAN', who.attestor1], ['PROPOSER', who.committer]]) {
    await ok(vault.grantRole(role(name), account_.address));
    await chain.pass(NOTICE);
    await reverts(vault.grantRole(role(name), account_.address), vault, 'RoleConflict', [account_.address]);
  }
  await ok(ledger.setVault(await vault.getAddress()));
  for (const account_ of [who.proposer, who.attestor1]) {
    await ok(ledger.grantRole(role('COMMITTER'), account_.address));
    await chain.pass(NOTICE);
    await reverts(ledger.grantRole(role('COMMITTER'), account_.address), ledger, 'RoleConflict', [account_.address]);
  }
});

test('disableByProof: anyone, while pending, for an account that fell, is missing or stands out of order', async () => {
  const up = (list) => list.sort((p, q) => (BigInt(p) < BigInt(q) ? -1 : 1));
  const names = up(Array.from({ length: 6 }, (_, i) => account('proof' + i))), bob = vault.connect(who.bob);
  const e1 = await epoch(1, null, cumOf(names.map((a, i) => [a, 100 + i])));
  const sum = e1.h.total;
  const claim = (e, a) => e.claimOf(a);
  const trial = async (cum, kind, proofs, error) => {
    const total = [...cum.values()].reduce((a, b) => a + b, 0n);
    const snap = await chain.rpc('evm_snapshot'), kept = [[...batches.list], new Map(batches.next), batches.cumFee];
    const e2 = await epoch(2, e1, cum, { activate: false });
    assert.ok(total > sum);
    if (error) await reverts(bob.disableByProof(2, kind, proofs(e2)), vault, 'BadProof');
    else {
      const receipt = await ok(bob.disableByProof(2, kind, proofs(e2)));
      assert.deepEqual(logsOf(receipt, vault, 'Disabled').map((x) => [...x]), [[2n, BigInt(kind)]]);
      assert.deepEqual([await vault.lastLive(), (await vault.epochs(2)).disabled], [1n, true]);
      await reverts(bob.disableByProof(2, kind, proofs(e2)), vault, 'NotPending', [2]);
      await chain.pass(WINDOW);
      await ok(vault.claim(...e1.claimOf(names[0]))); // honest claims go on
    }
    await chain.rpc('evm_revert', snap);
    [batches.list, batches.next, batches.cumFee] = kept;
  };
  const all = (over) => cumOf(names.filter((_, i) => over[i] !== null).map((a) => [a, over[names.indexOf(a)] ?? 1000]));
  // 1: the third account fell; nobody else did
  const fell = all({ 2: 101 }), lowered = (a) => (e2) => [claim(e1, names[a]), claim(e2, names[a])];
  await trial(fell, 1, lowered(2));
  await trial(fell, 1, lowered(3), 'not lowered');
  await trial(fell, 1, (e2) => [claim(e1, names[2]), claim(e2, names[3])], 'two accounts');
  await trial(fell, 1, (e2) => [claim(e2, names[2]), claim(e1, names[2])], 'the wrong way round');
  await trial(fell, 1, (e2) => [claim(e1, names[2])], 'one proof');
  await trial(fell, 1, (e2) => [[1, 2, names[2], 900n, ...claim(e1, names[2]).slice(4)], claim(e2, names[2])], 'a forged proof');
  await trial(fell, 9, lowered(2), 'no such kind');
  // 2: an account of epoch 1 is in no place of epoch 2: between two, before the first, after the last
  await trial(all({ 2: null }), 2, (e2) => [claim(e1, names[2]), claim(e2, names[1]), claim(e2, names[3])]);
  await trial(all({ 0: null }), 2, (e2) => [claim(e1, names[0]), claim(e2, names[1])]);
  await trial(all({ 5: null }), 2, (e2) => [claim(e1, names[5]), claim(e2, names[4])]);
  await trial(all({ 2: null }), 2, (e2) => [claim(e1, names[2]), claim(e2, names[1]), claim(e2, names[4])], 'not neighbours');
  await trial(all({ 2: null }), 2, (e2) => [claim(e1, names[2]), claim(e2, names[1])], 'not the last');
  await trial(all({ 2: null }), 2, (e2) => [claim(e1, names[2]), claim(e2, names[3])], 'not the first');
  await trial(all({}), 2, (e2) => [claim(e1, names[2]), claim(e2, names[2]), claim(e2, names[3])], 'it is there');
  await trial(all({ 0: null }), 2, (e2) => [claim(e1, names[2]), claim(e2, names[1])], 'another is missing');
  // 3: honest neighbours ascend
  await trial(all({}), 3, (e2) => [claim(e2, names[1]), claim(e2, names[2])], 'in order');
  await trial(all({}), 3, (e2) => [claim(e2, names[2]), claim(e2, names[1])], 'not neighbours in that order');
  await reverts(bob.disableByProof(1, 1, []), vault, 'NotPending', [1]); // active
  await reverts(bob.disableByProof(7, 1, []), vault, 'NotPending', [7]);
});

test('disableByProof: a tree that is not sorted, and one account twice', async () => {
  const [a, b] = [account('u0'), account('u1')].sort((p, q) => (BigInt(p) < BigInt(q) ? -1 : 1));
  for (const [n, order] of [[1, [b, a]], [2, [a, a]]]) {
    await setVault();
    const paid = await batches.commit([[1, 1]], 30n), at = await vault.getAddress();
    await fund(batches.cumFee);
    await chain.pass(WAIT);
    const start = await vault.startCumFee(), half = (batches.cumFee - start) / 2n, dom = c.rewardDomain(31337, at, await vault.token());
    const leaves = order.map((x, i) => c.rewardLeaf(dom, i, x, half)), root = c.REWARD_TREE.node(leaves[0], leaves[1]);
    const h = { epoch: 1, prevRoot: c.ZERO32, root: root.hash, total: root.sum, leaves: 2, batchPaid: paid.h.seq, batchEvidence: paid.h.seq, manifest: h32('m') };
    const e = await makeEpoch(vault, { paid, cum: cumOf([[a, 1]]), ...h });
    await ok(propose(e));
    const proof = (i) => [1, i, order[i], half, [leaves[1 - i].hash], [leaves[1 - i].sum]];
    await reverts(vault.connect(who.bob).disableByProof(1, 1, [proof(0), proof(1)]), vault, 'BadProof'); // there is no epoch before
    await ok(vault.connect(who.bob).disableByProof(1, 3, [proof(0), proof(1)]));
    assert.equal(await vault.lastLive(), 0n, `${n}`);
  }
});

test('retireEpoch: an active epoch goes, claims fall back to the one before, and what it paid wrongly is funded again', async () => {
  const thief = account('thief'), e1 = await epoch(1, null, cumOf([[account(1), 100], [account(2), 40]]));
  await ok(vault.claim(...e1.claimOf(account(2))));
  const e2 = await epoch(2, e1, cumOf([[thief, 200]])); // its window passed unseen
  await ok(vault.claimMany([e2.claimOf(thief)])); // 240 would be over the total of 200
  assert.equal(await vault.claimed(thief), 0n);
  const e3 = await epoch(3, e2, cumOf([[thief, 90], [account(1), 210]]));
  await ok(vault.claim(...e3.claimOf(thief)));
  await reverts(vault.connect(who.guardian).retireEpoch(2), vault, 'AccessControlUnauthorizedAccount');
  await reverts(vault.retireEpoch(9), vault, 'NotLive', [9]);
  const receipt = await ok(vault.retireEpoch(2));
  assert.deepEqual(logsOf(receipt, vault, 'Disabled').map((x) => [...x]), [[2n, 4n], [3n, 4n]]);
  await reverts(vault.retireEpoch(3), vault, 'NotLive', [3]);
  assert.deepEqual([await vault.activeEpoch(), await vault.lastLive()], [1n, 1n]);
  await reverts(vault.claim(...e3.claimOf(account(1))), vault, 'NotActive', [3]);
  await reverts(vault.claim(...e1.claimOf(account(1))), vault, 'OverTotal', [140]); // 130 are paid, 90 of them to the thief
  await reverts(vault.connect(who.bob).writeOff(90), vault, 'AccessControlUnauthorizedAccount');
  await reverts(vault.writeOff(131), vault, 'WrongValue');
  await ok(vault.writeOff(90));
  assert.deepEqual([await vault.writtenOff(), await vault.funded()], [90n, 210n]);
  await ok(vault.claim(...e1.claimOf(account(1)))); // whole: the vault holds 300 - 130
  await fund(300n);
  assert.deepEqual([await vault.funded(), await vault.held(), await vault.surplus()], [300n, 160n, 0n]);
  const e4 = await makeEpoch(vault, { epoch: 4, prevRoot: e1.h.root, paid: batches.list[2], cum: cumOf([[account(1), 200], [account(2), 100]]) });
  await ok(propose(e4));
  await chain.pass(WINDOW);
  for (const a of [account(1), account(2)]) await ok(vault.claim(...e4.claimOf(a)));
  assert.equal(await vault.held(), 0n);
});

test('a batch that an epoch pays is locked; a vetoed epoch lets it go', async () => {
  await ok(ledger.setVault(await vault.getAddress()));
  const drop = () => {
    const b = batches.list.at(-1), p = batches.list.at(-2) ?? b;
    return ledger.connect(who.guardian).dropBatch(headerTuple(b.h), b.lanes.map(laneTuple), headerTuple(p.h), p.lanesHash);
  };
  assert.equal(await vault.lockedSeq(), 0n);
  await epoch(1, null, cumOf([[account(1), 100]]), { activate: false });
  assert.equal(await vault.lockedSeq(), 1n);
  await reverts(drop(), ledger, 'BatchPaid', [1]);
  await ok(vault.connect(who.guardian).veto(1));
  await ok(drop());
  const again = batches.list.pop();
  await ok(batches.send(again)); // committed again as it was
  assert.equal(await ledger.batchHash(1), again.hash);
  await setVault();
  assert.equal(await vault.lockedSeq(), 1n); // a later vault starts behind it
});

test('cap of a day: the floor or a week of growth; vetoed growth does not count; a new day begins at 0', async () => {
  const day = 86_400n, start = async () => {
    const now = await chain.now();
    await chain.pass(day - (now % day) + 10n);
  };
  await setVault({ capFloor: 50n });
  await start();
  const many = Array.from({ length: 8 }, (_, i) => account('day' + i)), e1 = await epoch(1, null, cumOf(many.map((a) => [a, 30])));
  assert.deepEqual([await vault.dailyCap(), await vault.paidToday()], [240n, 0n]);
  for (let i = 0; i < 8; i++) await chain.pass(day); // the growth is a week old: the floor holds
  assert.equal(await vault.dailyCap(), 50n);
  await ok(vault.claim(...e1.claimOf(many[0])));
  assert.deepEqual([await vault.dailyCap(), await vault.paidToday()], [50n, 30n]);
  const part = await ok(vault.claim(...e1.claimOf(many[1]))); // as much as the day lets: nobody's claim is ever too large
  assert.deepEqual(logsOf(part, vault, 'Claimed').map((x) => [x.amount, x.cumulative]), [[20n, 20n]]);
  assert.deepEqual([await vault.claimed(many[1]), await chain.provider.getBalance(many[1])], [20n, 20n]);
  await reverts(vault.claim(...e1.claimOf(many[1])), vault, 'OverDailyCap', [0]);
  const skipped = await ok(vault.claimMany([e1.claimOf(many[1])]));
  assert.deepEqual(logsOf(skipped, vault, 'ClaimSkipped').map((x) => Number(x.reason)), [6]);
  assert.equal(await vault.claimed(many[1]), 20n);
  // growth of this day lifts it by so much, and its veto takes it back
  const e2 = await epoch(2, e1, cumOf(many.map((a) => [a, 45])), { activate: false });
  assert.deepEqual([await vault.dailyCap(), await vault.paidToday()], [120n, 50n]);
  for (const i of [1, 2, 3]) await ok(vault.claim(...e1.claimOf(many[i])));
  assert.equal(await vault.paidToday(), 120n);
  await reverts(vault.claim(...e1.claimOf(many[4])), vault, 'OverDailyCap', [0]);
  await ok(vault.connect(who.guardian).veto(2));
  assert.deepEqual([await vault.dailyCap(), (await vault.paidToday()) >= 50n], [50n, true]);
  await reverts(vault.claim(...e1.claimOf(many[4])), vault, 'OverDailyCap', [0]);
  await start();
  assert.equal(await vault.paidToday(), 0n);
  await ok(vault.claim(...e1.claimOf(many[4])));
  await reverts(vault.setCapFloor(0), vault, 'WrongValue'); // with a floor of 0 the claims of a quiet week would never go out
  await reverts(vault.connect(who.bob).setCapFloor(1), vault, 'AccessControlUnauthorizedAccount');
  await ok(vault.setCapFloor(100));
  await reverts(vault.setCapFloor(200), vault, 'ChangePending');
  await chain.pass(NOTICE);
  assert.equal(await vault.dailyCap(), 50n); // not before a day begins
  await start();
  assert.equal(await vault.dailyCap(), 100n);
  void e2;
});

test('setPayout redirects; only the account sets it', async () => {
  const e = await epoch(1, null, cumOf([[who.alice, 100], [account(1), 5]]));
  const cold = account('cold');
  await ok(vault.connect(who.alice).setPayout(cold));
  await ok(vault.connect(who.bob).claim(...e.claimOf(who.alice.address)));
  assert.equal(await chain.provider.getBalance(cold), 100n);
});

test('a refusing recipient: its claim fails whole, others are paid, it can redirect', async () => {
  const refuser = await make(chain, 'Refuser'), burner = await make(chain, 'Burner');
  const at = await refuser.getAddress(), fire = await burner.getAddress();
  const e = await epoch(1, null, cumOf([[at, 100], [fire, 10], [account(1), 5]]));
  await reverts(vault.claim(...e.claimOf(at)), vault, 'PaymentRefused', [at]);
  assert.deepEqual([await vault.claimed(at), await vault.totalClaimed()], [0n, 0n]);
  const wrong = [...e.claimOf(account(1))];
  wrong[3] += 1n;
  const receipt = await ok(vault.claimMany([e.claimOf(at), e.claimOf(fire), wrong, [2, ...e.claimOf(account(1)).slice(1)], e.claimOf(account(1)), e.claimOf(account(1))]));
  assert.deepEqual(logsOf(receipt, vault, 'ClaimSkipped').map((x) => Number(x.reason)), [4, 4, 2, 1, 3]);
  assert.equal(await vault.totalClaimed(), 5n);
  assert.ok(receipt.gasUsed < 500_000n, `${receipt.gasUsed}`);
  await ok(refuser.payoutTo(await vault.getAddress(), account(9)));
  const had = await chain.provider.getBalance(account(9));
  await ok(vault.claim(...e.claimOf(at)));
  assert.equal((await chain.provider.getBalance(account(9))) - had, 100n);
});

test('a recipient that calls back gets nothing more', async () => {
  const thief = await make(chain, 'Reentrant', await vault.getAddress()), at = await thief.getAddress();
  const e = await epoch(1, null, cumOf([[at, 100], [account(1), 900]]));
  for (const call of ['claim', 'claimMany', 'fundTo']) {
    const data = call === 'claim' ? vault.interface.encodeFunctionData('claim', e.claimOf(at)) : call === 'claimMany' ? vault.interface.encodeFunctionData('claimMany', [[e.claimOf(at)]]) : vault.interface.encodeFunctionData('fundTo', [0]);
    await ok(thief.set(data));
    const snap = await chain.rpc('evm_snapshot');
    await ok(vault.claim(...e.claimOf(at)));
    assert.deepEqual([await thief.tried(), await thief.entered(), await chain.provider.getBalance(at)], [true, false, 100n], call);
    await chain.rpc('evm_revert', snap);
  }
});

test('fundTo: absolute, repeatable, gives back what is too much, refuses too little', async () => {
  const balance = () => chain.provider.getBalance(who.dave.address), from = vault.connect(who.dave);
  await ok(from.fundTo(100, { value: 150 }));
  assert.deepEqual([await vault.held(), await vault.funded()], [100n, 100n]);
  const had = await balance(), receipt = await ok(from.fundTo(100, { value: 100 }));
  assert.equal(await balance(), had - receipt.gasUsed * receipt.gasPrice); // a replay costs its gas only
  assert.equal(await vault.held(), 100n);
  await ok(from.fundTo(40, { value: 0 }));
  await reverts(from.fundTo(160, { value: 59 }), vault, 'WrongValue');
  await ok(from.fundTo(160, { value: 60 }));
  assert.deepEqual([await vault.held(), await vault.funded()], [160n, 160n]);
  await assert.rejects(who.dave.sendTransaction({ to: await vault.getAddress(), value: 1 })); // no bare transfers
});

test('surplus: neither promised nor committed money leaves', async () => {
  const e = await epoch(1, null, cumOf([[account(1), 100]]));
  await fund(100n);
  assert.equal(await vault.surplus(), 0n);
  await make(chain, 'Forcer', await vault.getAddress(), { value: 30n });
  assert.equal(await vault.surplus(), 30n);
  await batches.commit([[1, 1]], 20n); // committed, in no epoch yet
  assert.equal(await vault.surplus(), 10n);
  await reverts(vault.withdrawSurplus(account(8), 11), vault, 'NotSurplus', [10]);
  await reverts(vault.connect(who.proposer).withdrawSurplus(who.proposer.address, 1), vault, 'AccessControlUnauthorizedAccount');
  await ok(vault.withdrawSurplus(account(8), 10));
  await ok(vault.claim(...e.claimOf(account(1))));
  assert.equal(await vault.surplus(), 0n);
  assert.equal(await vault.funded(), 100n);
});

test('u128 edges: the largest of everything is refused, or does nothing, and nothing wraps', async () => {
  const top = (1n << 128n) - 1n, e = await epoch(1, null, cumOf([[account(1), 100]]));
  await reverts(vault.fundTo(top, { value: 1 }), vault, 'WrongValue');
  await reverts(vault.withdrawSurplus(account(8), top), vault, 'NotSurplus', [0]);
  await reverts(vault.writeOff(top), vault, 'WrongValue');
  await reverts(vault.claim(1, 0, account(1), top, [], []), vault, 'BadProof');
  await reverts(vault.claim(1, 0xffffffff, account(1), 100, [], []), vault, 'BadProof');
  await reverts(vault.claim((1n << 64n) - 1n, 0, account(1), 100, [], []), vault, 'NotActive', [(1n << 64n) - 1n]);
  await reverts(vault.connect(who.guardian).veto((1n << 64n) - 1n), vault, 'NotPending', [(1n << 64n) - 1n]);
  await reverts(propose({ ...e, args: [[2, e.h.root, h32('r'), top, 1, 1, 1, h32('m')], ...e.args.slice(1)] }, []), vault, 'WrongBatch', [1]);
  await ok(vault.setCapFloor(top));
  await chain.pass(86_400n * 2n);
  assert.equal(await vault.dailyCap(), top);
  await ok(vault.claim(...e.claimOf(account(1))));
  assert.deepEqual([await vault.paidToday(), await vault.totalClaimed()], [0n, 100n]); // so large a cap is no cap, and counts nothing
});

test('surplus taken from prefunding lowers what counts as funded', async () => {
  await fund(500n);
  await ok(vault.withdrawSurplus(account(8), 200));
  assert.equal(await vault.funded(), 300n);
  await ok(vault.fundTo(500, { value: 200 }));
  assert.equal(await vault.held(), 500n);
});

test('pause: claim pause ends by itself and cannot be renewed at once; propose pause is lifted by the admin', async () => {
  const e = await epoch(1, null, cumOf([[account(1), 100], [account(2), 1]]));
  const g = vault.connect(who.guardian);
  await reverts(vault.pause(3), vault, 'AccessControlUnauthorizedAccount');
  await ok(g.pause(3));
  await reverts(vault.claim(...e.claimOf(account(1))), vault, 'Paused');
  await reverts(vault.claimMany([]), vault, 'Paused');
  await reverts(propose(e), vault, 'Paused');
  await chain.pass(72n * 3600n);
  await ok(vault.claim(...e.claimOf(account(1))));
  await reverts(g.pause(2), vault, 'TooEarly');
  await reverts(propose(e), vault, 'Paused');
  await ok(vault.unpause(1));
  await reverts(propose(e), vault, 'NotNext');
  await chain.pass(7n * 24n * 3600n);
  await ok(g.pause(2));
  await ok(vault.unpause(2));
  await ok(vault.claim(...e.claimOf(account(2))));
});

test('a vault that starts later pays only what comes after', async () => {
  await batches.commit([[1, 3]], 1000n);
  await setVault();
  assert.deepEqual([await vault.startSeq(), await vault.startCumFee()], [1n, 1000n]);
  const paid = await batches.commit([[1, 1]], 40n);
  await chain.pass(WAIT);
  await ok(vault.fundTo(1040, { value: 40 }));
  await reverts(propose(await makeEpoch(vault, { epoch: 1, paid: batches.list[0], cum: cumOf([[account(1), 1000]]) })), vault, 'WrongBatch', [1]);
  const e = await makeEpoch(vault, { epoch: 1, paid, cum: cumOf([[account(1), 40]]) });
  await ok(propose(e));
  await chain.pass(WINDOW);
  await ok(vault.claim(...e.claimOf(account(1))));
});

test('ERC-20: same life, blocked recipients skipped, fee-on-transfer refused', async () => {
  const token = await make(chain, 'Token', 0), taxed = await make(chain, 'Token', 100);
  await setVault({ token: await taxed.getAddress() });
  await ok(taxed.approve(await vault.getAddress(), 1000));
  await reverts(vault.fundTo(100), vault, 'WrongValue');
  await setVault({ token: await token.getAddress() });
  await ok(token.approve(await vault.getAddress(), 1000));
  await reverts(vault.fundTo(100, { value: 1 }), vault, 'WrongValue');
  const paid = await batches.commit([[1, 1]], 100n);
  await ok(vault.fundTo(100));
  await ok(vault.fundTo(100));
  assert.equal(await token.balanceOf(await vault.getAddress()), 100n);
  await chain.pass(WAIT);
  const e = await makeEpoch(vault, { epoch: 1, paid, cum: cumOf([[account(1), 60], [account(2), 40]]) });
  await ok(propose(e));
  await chain.pass(WINDOW);
  await ok(token.setBlocked(account(1), true));
  const receipt = await ok(vault.claimMany([e.claimOf(account(1)), e.claimOf(account(2))]));
  assert.deepEqual(logsOf(receipt, vault, 'ClaimSkipped').map((x) => Number(x.reason)), [4]);
  assert.deepEqual([await token.balanceOf(account(1)), await token.balanceOf(account(2))], [0n, 40n]);
  await assert.rejects(vault.claim(...e.claimOf(account(1))));
  await ok(token.setBlocked(account(1), false));
  await ok(vault.claim(...e.claimOf(account(1))));
  assert.equal(await vault.held(), 0n);
});

test('gas: propose and claim', async () => {
  const list = Array.from({ length: 1024 }, (_, i) => [account('g' + i), 1000 + i]);
  let e = await epoch(1, null, cumOf(list.slice(0, 1000)));
  await ok(vault.claim(...e.claimOf(list[3][0])));
  const total = list.slice(0, 1000).reduce((n, [, v]) => n + BigInt(v), 0n);
  const paid = await batches.commit([[1, 1]], 1000n);
  await fund(total + 1000n);
  await chain.pass(WAIT);
  const next = await makeEpoch(vault, { epoch: 2, prevRoot: e.h.root, paid, cum: cumOf(list.slice(0, 1000).map(([a, v]) => [a, v + 1])) });
  const p = await ok(propose(next));
  await chain.pass(WINDOW);
  await ok(vault.claim(...next.claimOf(list[5][0])));
  const again = await ok(vault.claim(...next.claimOf(list[3][0])));
  const many = await ok(vault.claimMany(list.slice(10, 60).map(([a]) => next.claimOf(a))));
  console.log(`propose ${p.gasUsed}, repeat claim depth 10 ${again.gasUsed}, claimMany x50 ${many.gasUsed / 50n} each`);
  assert.ok(p.gasUsed < 172_000n && again.gasUsed < 67_000n && many.gasUsed / 50n < 77_000n);
});

// AttributionLedger: continuity, replays, lanes, keys, rate, roles.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { Wallet } from 'ethers';
import { ZERO32 } from '../js/canon.mjs';
import { headerTuple, laneTuple } from '../js/abi.mjs';
import { Batches, NOTICE, change, golden, h32, ledgerConfig, logsOf, make, makeLedger, ok, reverts, role, startChain } from './setup.mjs';

let chain, ledger, lanes, batches, who;
const key = (n) => new Wallet(h32('lane key ' + n)).address;
before(async () => {
  chain = await startChain();
  who = chain.who;
  ledger = await makeLedger(chain);
  lanes = ledger.connect(who.laneAdmin);
  for (const lane of [0, 1, 3, 4, 9, 0xffffffff]) await ok(lanes.registerLane(lane, key(lane), who.alice.address));
  batches = new Batches(chain, ledger);
});
after(() => chain?.stop());

test('a batch over lanes in one and in several words; head, hash and event', async () => {
  const b = await batches.commit([[0, 3], [1, 1], [3, 7], [4, 2], [9, 1], [0xffffffff, 5]], 1000n);
  assert.deepEqual([...(await ledger.head())], [1n, b.h.closedAt, 1000n]);
  assert.equal(await ledger.batchHash(1), b.hash);
  assert.equal(await ledger.hashBatch(headerTuple(b.h), b.lanesHash), b.hash);
  const [e] = logsOf(b.receipt, ledger, 'BatchCommitted');
  assert.equal(e.hash, b.hash);
  assert.equal(e.lanes.length, 6);
  assert.equal(e.header.cumFee, 1000n);
  for (const [lane, next] of [[0, 4], [1, 2], [2, 0], [3, 8], [4, 3], [9, 2], [0xffffffff, 6]]) assert.equal(await ledger.laneNext(lane), BigInt(next));
});

test('replay: Already for the same bytes, Conflict for others, NotNext for a hole', async () => {
  const [b] = batches.list;
  await reverts(batches.send(b), ledger, 'Already', [1]);
  await reverts(batches.send({ ...b, h: { ...b.h, feeSum: 999n } }), ledger, 'Conflict', [1]);
  await reverts(batches.send({ ...b, lanes: b.lanes.slice(1) }), ledger, 'Conflict', [1]);
  await reverts(batches.send({ ...b, h: { ...b.h, seq: 3n } }), ledger, 'NotNext', [2]);
  await reverts(batches.send({ ...b, h: { ...b.h, seq: 0n } }), ledger, 'NotNext', [2]);
});

test('every header field is checked', async () => {
  const bad = async (over, error, args) => reverts(batches.send(await batches.build([[0, 2]], 5n, over)), ledger, error, args);
  await bad({ spec: 2 }, 'WrongSpec', [2]);
  await bad({ prevHash: ZERO32 }, 'WrongPrevious', [batches.list[0].hash]);
  await bad({ logRoot: ZERO32 }, 'ZeroRoot');
  await bad({ cumFee: 1004n }, 'WrongCumFee', [1000]);
  await bad({ leafCount: 3 }, 'WrongCount');
  await bad({ inferences: 3 }, 'WrongCount');
  await bad({ closedAt: 1n }, 'WrongTime');
  await bad({ closedAt: (await chain.now()) + 1000n }, 'WrongTime');
  await bad({ feeSum: 1n << 112n, cumFee: (1n << 112n) + 1000n }, 'FeeTooLarge');
  await bad({ feeSum: (1n << 128n) - 1n, cumFee: (1n << 128n) - 1n }, 'WrongCumFee');
});

test('lanes: order, gaps, repeats, unknown, empty, too many leaves', async () => {
  const send = async (lanes, leafCount) => {
    const b = await batches.build([[0, 1]], 0n);
    return batches.send({ ...b, h: { ...b.h, leafCount, inferences: 0 }, lanes });
  };
  await reverts(send([{ lane: 0, first: 5n, last: 5n }], 1), ledger, 'LaneGap', [0, 4]);
  await reverts(send([{ lane: 0, first: 3n, last: 4n }], 2), ledger, 'LaneGap', [0, 4]);
  await reverts(send([{ lane: 0, first: 4n, last: 3n }], 0), ledger, 'LaneOrder', [0]);
  await reverts(send([{ lane: 1, first: 2n, last: 2n }, { lane: 0, first: 4n, last: 4n }], 2), ledger, 'LaneOrder', [0]);
  await reverts(send([{ lane: 0, first: 4n, last: 4n }, { lane: 0, first: 5n, last: 5n }], 2), ledger, 'LaneOrder', [0]);
  await reverts(send([{ lane: 2, first: 1n, last: 1n }], 1), ledger, 'LaneUnknown', [2]);
  await reverts(send([], 0), ledger, 'WrongCount');
  await reverts(send([{ lane: 0, first: 4n, last: (1n << 17n) + 4n }], (1 << 17) + 1), ledger, 'WrongCount');
  await reverts(send([{ lane: 0, first: 4n, last: 1n << 62n }], 1), ledger, 'LaneOrder', [0]);
});

test('2^17 leaves fit, and the next batch follows', async () => {
  await batches.commit([[1, (1 << 17) - 1], [3, 1]], 7n);
  await batches.commit([[1, 1]], 0n);
  assert.equal((await ledger.head()).cumFee, 1007n);
  assert.equal(await ledger.laneNext(1), (1n << 17n) + 2n);
});

test('a reverted commit moves no lane', async () => {
  const b = await batches.build([[0, 1], [2, 1]], 0n);
  await reverts(batches.send(b), ledger, 'LaneUnknown', [2]);
  assert.equal(await ledger.laneNext(0), 4n);
});

test('roles: nobody else commits, registers, rotates, pauses', async () => {
  const b = await batches.build([[0, 1]], 0n);
  const denied = (p) => reverts(p, ledger, 'AccessControlUnauthorizedAccount');
  await denied(ledger.connect(who.admin).commit(headerTuple(b.h), b.lanes.map(laneTuple)));
  await denied(ledger.connect(who.committer).registerLane(50, key(50), who.bob.address));
  await denied(ledger.connect(who.committer).rotateLaneKey(0, key(51), 100));
  await denied(ledger.connect(who.committer).sealLane(0, 100));
  await denied(ledger.connect(who.committer).setRate(1));
  await denied(ledger.connect(who.committer).pauseCommit());
  await denied(ledger.connect(who.guardian).unpauseCommit());
  await denied(ledger.connect(who.committer).grantRole(role('LANE_ADMIN'), who.committer.address));
  await denied(ledger.connect(who.committer).setVault(await ledger.getAddress()));
  await denied(ledger.dropBatch(headerTuple(b.h), b.lanes.map(laneTuple), headerTuple(b.h), ZERO32));
});

test('pause stops commits, but a replay still says what it is', async () => {
  await ok(ledger.connect(who.guardian).pauseCommit());
  await reverts(batches.send(await batches.build([[0, 1]], 0n)), ledger, 'Paused');
  await reverts(batches.send(batches.list[0]), ledger, 'Already', [1]);
  await ok(ledger.unpauseCommit());
  await batches.commit([[0, 1]], 1n);
});

test('a lane and a key are registered once', async () => {
  await reverts(lanes.registerLane(0, key('x'), who.bob.address), ledger, 'LaneTaken', [0]);
  await reverts(lanes.registerLane(60, key(0), who.bob.address), ledger, 'KeyTaken', [key(0)]);
  await reverts(lanes.registerLane(60, key('y'), '0x' + '00'.repeat(20)), ledger, 'BadValue');
});

test('rotation: old key until the notice ends, no record of the new key before it', async () => {
  await ok(lanes.registerLane(70, key(70), who.alice.address));
  await batches.commit([[70, 10]], 0n);
  await reverts(lanes.rotateLaneKey(70, key('70b'), 10), ledger, 'BadValue'); // already committed
  await ok(lanes.rotateLaneKey(70, key('70b'), 21));
  await reverts(lanes.rotateLaneKey(70, key('70c'), 30), ledger, 'LaneKeyPending', [70, 21]);
  const t = await chain.now();
  await batches.commit([[70, 10]], 0n); // 11..20
  await reverts(batches.send(await batches.build([[70, 1]], 0n)), ledger, 'LaneKeyPending', [70, 21]);
  assert.equal(await ledger.laneKeyAt(70, 25, t), key(70));
  await chain.pass(NOTICE + 1n);
  assert.equal(await ledger.laneKeyAt(70, 25, t), key(70));
  assert.equal(await ledger.laneKeyAt(70, 25, await chain.now()), key('70b'));
  assert.equal(await ledger.laneKey(70, 20), key(70));
  assert.equal(await ledger.laneKey(70, 21), key('70b'));
  await batches.commit([[70, 5]], 0n);
  assert.equal(await ledger.laneNext(70), 26n);
  await ok(lanes.rotateLaneKey(70, key('70c'), 26));
});

test('seal: nothing after lastSeq once the notice ends, and no rotation', async () => {
  await ok(lanes.registerLane(71, key(71), who.alice.address));
  await batches.commit([[71, 4]], 0n);
  await reverts(lanes.sealLane(71, 3), ledger, 'BadValue');
  await ok(lanes.sealLane(71, 6));
  await reverts(lanes.sealLane(71, 8), ledger, 'LaneIsSealed', [71, 6]);
  await reverts(lanes.rotateLaneKey(71, key('71b'), 100), ledger, 'LaneIsSealed', [71, 6]);
  await chain.pass(NOTICE + 1n);
  await reverts(batches.send(await batches.build([[71, 3]], 0n)), ledger, 'LaneIsSealed', [71, 6]);
  await batches.commit([[71, 2]], 0n);
});

test('operator and rate: as of any second', async () => {
  const before_ = await chain.now();
  await reverts(ledger.connect(who.bob).setLaneOperator(9, who.bob.address), ledger, 'NotOperator', [9]);
  await ok(ledger.connect(who.alice).setLaneOperator(9, who.carol.address));
  await ok(ledger.setRate(250_000_000));
  const pending = (await chain.now()) + NOTICE;
  await reverts(ledger.setRate(1), ledger, 'ChangePending', [pending]); // one at a time
  await reverts(ledger.connect(who.alice).setLaneOperator(9, who.dave.address), ledger, 'ChangePending');
  await reverts(ledger.setRate(1_000_000_001), ledger, 'BadValue');
  await chain.pass(NOTICE + 1n);
  const after_ = await chain.now();
  assert.equal(await ledger.laneOperatorAt(9, before_), who.alice.address);
  assert.equal(await ledger.laneOperatorAt(9, after_), who.carol.address);
  assert.equal(await ledger.laneOperatorAt(1234, after_), '0x' + '00'.repeat(20));
  assert.equal(await ledger.rateAt(before_), 1_000_000_000n);
  assert.equal(await ledger.rateAt(after_), 250_000_000n);
  await reverts(ledger.rateAt(1), ledger, 'NothingActive', [1]);
});

test('histories: each of many changes is found at each of its seconds', async () => {
  const fresh = await makeLedger(chain, { notice: 10n }), alice = fresh.connect(who.alice), times = [await chain.now()];
  await ok(fresh.connect(who.laneAdmin).registerLane(5, key('h'), who.alice.address));
  for (let i = 1; i <= 20; i++) {
    await ok(fresh.setRate(i));
    await ok(alice.setLaneOperator(5, who.alice.address));
    await chain.pass(10n);
    times.push(await chain.now());
  }
  for (const [i, t] of times.entries()) assert.equal(await fresh.rateAt(t), i === 0 ? 1_000_000_000n : BigInt(i));
  const [e] = await fresh.queryFilter(fresh.filters.RateSet, 0); // the first: its own second, and the one before
  assert.equal(await fresh.rateAt(e.args.activeAt), 1_000_000_000n);
  await reverts(fresh.rateAt(e.args.activeAt - 1n), fresh, 'NothingActive', [e.args.activeAt - 1n]);
});

test('dropBatch: the newest, by the guardian, and all is as before it', async () => {
  const fresh = await makeLedger(chain), guard = fresh.connect(who.guardian), b = new Batches(chain, fresh);
  for (const l of [1, 2]) await ok(fresh.connect(who.laneAdmin).registerLane(l, key('drop' + l), who.alice.address));
  await ok(fresh.connect(who.laneAdmin).rotateLaneKey(2, key('drop2b'), 100)); // a watched cursor stays watched
  const drop = (x, previous) => guard.dropBatch(headerTuple(x.h), x.lanes.map(laneTuple), headerTuple((previous ?? x).h), (previous ?? x).lanesHash);
  const one = await b.commit([[1, 3]], 10n), two = await b.commit([[1, 2], [2, 4]], 5n);
  await reverts(drop(one), fresh, 'NotHead', [2]);
  await reverts(drop({ ...two, h: { ...two.h, feeSum: 6n } }, one), fresh, 'NotHead', [2]);
  await reverts(drop(two, two), fresh, 'WrongPrevious', [one.hash]);
  await reverts(drop(two, { ...one, h: { ...one.h, cumFee: 0n } }), fresh, 'WrongPrevious', [one.hash]);
  const receipt = await ok(drop(two, one));
  assert.deepEqual([...logsOf(receipt, fresh, 'BatchDropped')[0]], [2n, two.hash]);
  assert.deepEqual([...(await fresh.head())], [1n, one.h.closedAt, 10n]);
  assert.deepEqual([await fresh.batchHash(2), await fresh.laneNext(1), await fresh.laneNext(2)], [ZERO32, 4n, 1n]);
  await reverts(drop(two, one), fresh, 'NotHead', [1]);
  await ok(b.send(two)); // an honest batch comes back as it was
  assert.equal(await fresh.batchHash(2), two.hash);
  await ok(drop(two, one));
  await ok(drop(one));
  assert.deepEqual([...(await fresh.head())], [0n, 0n, 0n]);
  assert.equal(await fresh.laneNext(1), 1n);
  await reverts(drop({ ...one, h: { ...one.h, seq: 0n } }), fresh, 'NotHead', [0]);
  await ok(b.send(one));
  const late = await b.build([[2, 100]], 0n, { seq: 2n, prevHash: one.hash, cumFee: 10n });
  await reverts(b.send({ ...late, lanes: [{ lane: 2, first: 1n, last: 100n }], h: { ...late.h, leafCount: 100 } }), fresh, 'LaneKeyPending', [2, 100]);
});

test('dropBatch: not what a vault pays; vaults are kept, at most 8', async () => {
  const fresh = await makeLedger(chain), guard = fresh.connect(who.guardian), b = new Batches(chain, fresh);
  await ok(fresh.connect(who.laneAdmin).registerLane(1, key('locked'), who.alice.address));
  const vaults = [];
  for (let i = 0; i < 9; i++) vaults.push(await make(chain, 'LockedVault'));
  const at = await Promise.all(vaults.map((v) => v.getAddress()));
  await reverts(fresh.setVault(who.alice.address), fresh, 'BadValue'); // no contract
  for (const a of at.slice(0, 8)) await ok(fresh.setVault(a));
  await reverts(fresh.setVault(at[8]), fresh, 'BadValue');
  assert.equal(await fresh.vaults(7), at[7]);
  const one = await b.commit([[1, 3]], 10n);
  const drop = () => guard.dropBatch(headerTuple(one.h), one.lanes.map(laneTuple), headerTuple(one.h), ZERO32);
  await ok(vaults[7].lock(1));
  await reverts(drop(), fresh, 'BatchPaid', [1]);
  await ok(vaults[7].lock(0));
  await ok(drop());
  const other = await makeLedger(chain);
  await ok(other.setVault(at[0]));
  await reverts(other.setVault(at[0]), other, 'BadValue'); // twice
});

test('roles: announced, waited for, done; cancelled; given up at once; committer and guardian apart', async () => {
  const fresh = await makeLedger(chain), COMMITTER = role('COMMITTER'), carol = who.carol.address;
  assert.deepEqual([await fresh.hasRole(COMMITTER, who.committer.address), await fresh.hasRole(role('GUARDIAN'), who.guardian.address)], [true, true]);
  const told = await ok(fresh.grantRole(COMMITTER, carol)), readyAt = (await chain.now()) + NOTICE;
  assert.deepEqual([...logsOf(told, fresh, 'RoleAnnounced')[0]], [COMMITTER, carol, true, readyAt]);
  assert.equal(await fresh.roleReadyAt(COMMITTER, carol, true), readyAt);
  await reverts(fresh.grantRole(COMMITTER, carol), fresh, 'RoleTooEarly', [readyAt]);
  assert.equal(await fresh.hasRole(COMMITTER, carol), false);
  await chain.pass(NOTICE);
  await ok(fresh.grantRole(COMMITTER, carol));
  assert.equal(await fresh.hasRole(COMMITTER, carol), true);
  assert.equal(await fresh.roleReadyAt(COMMITTER, carol, true), 0n); // used up
  await ok(fresh.revokeRole(COMMITTER, carol));
  assert.equal(await fresh.hasRole(COMMITTER, carol), true);
  await ok(fresh.cancelRole(COMMITTER, carol));
  await chain.pass(NOTICE);
  await ok(fresh.revokeRole(COMMITTER, carol)); // announced anew
  assert.equal(await fresh.hasRole(COMMITTER, carol), true);
  await chain.pass(NOTICE);
  await ok(fresh.revokeRole(COMMITTER, carol));
  assert.equal(await fresh.hasRole(COMMITTER, carol), false);
  await reverts(fresh.connect(who.bob).cancelRole(COMMITTER, carol), fresh, 'AccessControlUnauthorizedAccount');
  await ok(fresh.connect(who.committer).renounceRole(COMMITTER, who.committer.address));
  assert.equal(await fresh.hasRole(COMMITTER, who.committer.address), false);
  await ok(fresh.grantRole(COMMITTER, who.guardian.address));
  await chain.pass(NOTICE);
  await reverts(fresh.grantRole(COMMITTER, who.guardian.address), fresh, 'RoleConflict', [who.guardian.address]);
  await assert.rejects(makeLedger(chain, { guardian: who.committer.address }));
  await assert.rejects(makeLedger(chain, { committer: '0x' + '00'.repeat(20) }));
});

test('the golden batches commit on a fresh ledger only with its own hashes', async () => {
  const other = await makeLedger(chain);
  const b = golden().batches[0];
  assert.notEqual(await other.hashBatch(headerTuple(b.header), b.lanesHash), b.batchHash); // chain id and ledger are in the hash
});

test('gas: 1, 4, 16 and 64 lanes', async () => {
  const fresh = await makeLedger(chain);
  const list = Array.from({ length: 64 }, (_, i) => i);
  for (const i of list) await ok(fresh.connect(who.laneAdmin).registerLane(i, key('g' + i), who.alice.address));
  const b = new Batches(chain, fresh);
  await b.commit(list.map((i) => [i, 1]), 1n);
  for (const [n, most] of [[1, 78_000], [4, 85_000], [16, 136_000], [64, 340_000]]) {
    const { receipt } = await b.commit(list.slice(0, n).map((i) => [i, 10]), 1n);
    assert.ok(receipt.gasUsed < most, `${n} lanes: ${receipt.gasUsed}`);
    console.log(`commit, ${n} lanes: ${receipt.gasUsed} gas`);
  }
});

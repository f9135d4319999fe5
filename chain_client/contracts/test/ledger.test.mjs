// AttributionLedger: continuity, replays, lanes, keys, rate, roles.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { Wallet } from 'ethers';
import { ZERO32 } from '../js/canon.mjs';
import { headerTuple, laneTuple } from '../js/abi.mjs';
import { Batches, NOTICE, golden, h32, logsOf, make, makeLedger, ok, reverts, role, startChain } from './setup.mjs';

let chain, ledger, batches, who;
const key = (n) => new Wallet(h32('lane key ' + n)).address;
before(async () => {
  chain = await startChain();
  who = chain.who;
  ledger = await makeLedger(chain);
  for (const lane of [0, 1, 3, 4, 9, 0xffffffff]) await ok(ledger.registerLane(lane, key(lane), who.alice.address));
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
  await denied(ledger.connect(who.poster).registerLane(50, key(50), who.bob.address));
  await denied(ledger.connect(who.poster).rotateLaneKey(0, key(51), 100));
  await denied(ledger.connect(who.poster).sealLane(0, 100));
  await denied(ledger.connect(who.poster).setRate(1));
  await denied(ledger.connect(who.poster).pauseCommit());
  await denied(ledger.connect(who.guardian).unpauseCommit());
  await denied(ledger.connect(who.poster).grantRole(role('LANE_ADMIN'), who.poster.address));
});

test('pause stops commits, but a replay still says what it is', async () => {
  await ok(ledger.connect(who.guardian).pauseCommit());
  await reverts(batches.send(await batches.build([[0, 1]], 0n)), ledger, 'Paused');
  await reverts(batches.send(batches.list[0]), ledger, 'Already', [1]);
  await ok(ledger.unpauseCommit());
  await batches.commit([[0, 1]], 1n);
});

test('a lane and a key are registered once', async () => {
  await reverts(ledger.registerLane(0, key('x'), who.bob.address), ledger, 'LaneTaken', [0]);
  await reverts(ledger.registerLane(60, key(0), who.bob.address), ledger, 'KeyTaken', [key(0)]);
  await reverts(ledger.registerLane(60, key('y'), '0x' + '00'.repeat(20)), ledger, 'BadValue');
});

test('rotation: old key until the notice ends, no record of the new key before it', async () => {
  await ok(ledger.registerLane(70, key(70), who.alice.address));
  await batches.commit([[70, 10]], 0n);
  await reverts(ledger.rotateLaneKey(70, key('70b'), 10), ledger, 'BadValue'); // already committed
  await ok(ledger.rotateLaneKey(70, key('70b'), 21));
  await reverts(ledger.rotateLaneKey(70, key('70c'), 30), ledger, 'LaneKeyPending', [70, 21]);
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
  await ok(ledger.rotateLaneKey(70, key('70c'), 26));
});

test('seal: nothing after lastSeq once the notice ends, and no rotation', async () => {
  await ok(ledger.registerLane(71, key(71), who.alice.address));
  await batches.commit([[71, 4]], 0n);
  await reverts(ledger.sealLane(71, 3), ledger, 'BadValue');
  await ok(ledger.sealLane(71, 6));
  await reverts(ledger.sealLane(71, 8), ledger, 'LaneIsSealed', [71, 6]);
  await reverts(ledger.rotateLaneKey(71, key('71b'), 100), ledger, 'LaneIsSealed', [71, 6]);
  await chain.pass(NOTICE + 1n);
  await reverts(batches.send(await batches.build([[71, 3]], 0n)), ledger, 'LaneIsSealed', [71, 6]);
  await batches.commit([[71, 2]], 0n);
});

test('operator and rate: as of any second', async () => {
  const before_ = await chain.now();
  await reverts(ledger.connect(who.bob).setLaneOperator(9, who.bob.address), ledger, 'NotOperator', [9]);
  await ok(ledger.connect(who.alice).setLaneOperator(9, who.carol.address));
  await ok(ledger.setRate(250_000_000));
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

test('the golden batches commit on a fresh ledger only with its own hashes', async () => {
  const other = await make(chain, 'AttributionLedger', who.admin.address, 0, 0);
  const b = golden().batches[0];
  assert.notEqual(await other.hashBatch(headerTuple(b.header), b.lanesHash), b.batchHash); // chain id and ledger are in the hash
});

test('gas: 1, 4, 16 and 64 lanes', async () => {
  const fresh = await makeLedger(chain);
  const list = Array.from({ length: 64 }, (_, i) => i);
  for (const i of list) await ok(fresh.registerLane(i, key('g' + i), who.alice.address));
  const b = new Batches(chain, fresh);
  await b.commit(list.map((i) => [i, 1]), 1n);
  for (const [n, most] of [[1, 90_000], [4, 100_000], [16, 150_000], [64, 400_000]]) {
    const { receipt } = await b.commit(list.slice(0, n).map((i) => [i, 10]), 1n);
    assert.ok(receipt.gasUsed < most, `${n} lanes: ${receipt.gasUsed}`);
    console.log(`commit, ${n} lanes: ${receipt.gasUsed} gas`);
  }
});

// Registry: policy, bases, adapters with commit and reveal, datanets, and answers as of any second.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import * as c from '../js/canon.mjs';
import { entryTuple, publishTuple } from '../js/abi.mjs';
import { POLICY, h32, logsOf, make, ok, reverts, role, startChain, treasury } from './setup.mjs';

const NOTICE = 1000n, AGE = 60n, SALT = h32('salt');
let chain, reg, at, who;
before(async () => {
  chain = await startChain();
  who = chain.who;
  reg = await make(chain, 'Registry', who.admin.address, NOTICE, AGE, 300, POLICY);
  at = await reg.getAddress();
  await ok(reg.grantRole(role('REGISTRAR'), who.admin.address));
});
after(() => chain?.stop());

const split = (...list) => list.map(([payee, r, bps]) => ({ payee: payee.address ?? payee, role: r, bps })).sort((a, b) => a.role - b.role || (BigInt(a.payee) < BigInt(b.payee) ? -1 : 1));
const tuples = (s) => s.map(entryTuple);
const plain = (entries) => entries.map((e) => [e.payee, Number(e.role), Number(e.bps)]);
const publish = (o) => ({ adapterId: h32('adapter'), modelId: h32('model'), datanetId: c.ZERO32, owner: who.alice.address, priceIn: 1000n, priceOut: 5000n, version: 1n, split: split([who.alice, 1, 4000], [who.bob, 2, 6000]), ...o });
const register = (m, from, { salt = SALT, signature = '0x' } = {}) => reg.connect(from).register(publishTuple(m), tuples(m.split), salt, signature);
const sign = (m, name) => c.sign(c.publishDigest(m, 31337, at), chain.keyOf(name));
const commit = async (m, salt = SALT) => {
  await ok(reg.connect(who.carol).commitAdapter(c.adapterCommitment(m.adapterId, m.owner, salt)));
  await chain.pass(AGE);
};

test('policy: sum, minimum, treasury, notice, past', async () => {
  const start = await chain.now();
  await reverts(reg.setPolicy([2000, 6000, 1500, 501, treasury, 0]), reg, 'BadPolicy');
  await reverts(reg.setPolicy([2201, 6000, 1500, 299, treasury, 0]), reg, 'BadPolicy');
  await reverts(reg.setPolicy([2000, 6000, 1500, 500, '0x' + '00'.repeat(20), 0]), reg, 'BadPolicy');
  await reverts(reg.connect(who.bob).setPolicy(POLICY), reg, 'AccessControlUnauthorizedAccount');
  await ok(reg.setPolicy([1000, 7000, 1500, 500, treasury, 1])); // the given activeAt is not used
  assert.equal((await reg.policyAt(await chain.now())).adapters, 6000n);
  await chain.pass(NOTICE + 1n);
  assert.equal((await reg.policyAt(await chain.now())).adapters, 7000n);
  assert.equal((await reg.policyAt(start)).adapters, 6000n);
  await reverts(reg.policyAt(5), reg, 'NothingActive', [5]);
});

test('the constructor keeps the minimum too', async () => {
  await assert.rejects(make(chain, 'Registry', who.admin.address, 0, 0, 600, POLICY));
});

test('register: only after the commitment has aged, once, by the owner or with its signature', async () => {
  const m = publish();
  await reverts(register(m, who.alice), reg, 'CommitmentUnknown');
  await ok(reg.commitAdapter(c.adapterCommitment(m.adapterId, m.owner, SALT)));
  await reverts(register(m, who.alice), reg, 'CommitmentTooYoung');
  await reverts(reg.commitAdapter(c.adapterCommitment(m.adapterId, m.owner, SALT)), reg, 'AlreadyRegistered'); // its age cannot be reset
  await chain.pass(AGE);
  await reverts(register(m, who.alice, { salt: h32('other') }), reg, 'CommitmentUnknown');
  await reverts(register({ ...m, owner: who.bob.address }, who.bob), reg, 'CommitmentUnknown'); // a thief of the reveal
  await reverts(register(m, who.bob), reg, 'BadOwnerSignature');
  await reverts(register(m, who.bob, { signature: sign({ ...m, priceIn: 1n }, 'alice') }), reg, 'BadOwnerSignature');
  await reverts(register(m, who.bob, { signature: sign(m, 'bob') }), reg, 'BadOwnerSignature');
  const before_ = await chain.now();
  const receipt = await ok(register(m, who.bob, { signature: sign(m, 'alice') }));
  const [e] = logsOf(receipt, reg, 'AdapterRegistered');
  assert.equal(e.manifestHash, c.publishDigest(m, 31337, at));
  assert.equal(await reg.hashPublish(publishTuple(m), tuples(m.split)), e.manifestHash);
  await reverts(register(m, who.alice), reg, 'AlreadyRegistered', [m.adapterId]);
  const a = await reg.adapterAt(m.adapterId, await chain.now());
  assert.deepEqual([a.registered, a.modelId, a.datanetId, plain(a.list)], [true, m.modelId, c.ZERO32, tuples(m.split)]);
  assert.deepEqual([...(await reg.adapterAt(m.adapterId, before_ - 1n))].slice(0, 2), [false, c.ZERO32]);
});

test('splits that are refused', async () => {
  const m = publish({ adapterId: h32('bad splits') });
  await commit(m);
  const [lo, hi] = [who.alice.address, who.bob.address].sort((a, b) => (BigInt(a) < BigInt(b) ? -1 : 1));
  for (const [entries, where] of [
    [[], 0], [[[lo, 1, 9999]], 1], [[[lo, 1, 10000], [hi, 2, 1]], 2], [[[lo, 1, 0], [hi, 2, 10000]], 0], [[[hi, 1, 5000], [lo, 1, 5000]], 1], [[[lo, 2, 5000], [lo, 2, 5000]], 1],
    [[[lo, 2, 5000], [hi, 1, 5000]], 1], [[['0x' + '00'.repeat(20), 1, 10000]], 0], [[[lo, 0, 10000]], 0], [[[lo, 4, 10000]], 0], [Array.from({ length: 33 }, () => [lo, 1, 303]), 33]])
    await reverts(reg.connect(who.alice).register(publishTuple(m), entries, SALT, '0x'), reg, 'BadSplit', [where]);
  await reverts(register({ ...m, priceIn: 1n << 80n }, who.alice), reg, 'BadValue');
  await reverts(register({ ...m, version: 0n }, who.alice), reg, 'VersionNotRising');
  await reverts(register({ ...m, datanetId: h32('nothing') }, who.alice), reg, 'Unknown');
});

test('setSplit and update: notice, rising version, fixed model; the past stays', async () => {
  const m = publish({ adapterId: h32('changing') });
  await commit(m);
  await ok(register(m, who.alice));
  const t0 = await chain.now(), two = split([who.carol, 1, 10000]);
  await reverts(reg.connect(who.bob).setSplit(m.adapterId, tuples(two)), reg, 'NotOwner');
  await ok(reg.connect(who.alice).setSplit(m.adapterId, tuples(two)));
  assert.deepEqual(plain((await reg.adapterAt(m.adapterId, await chain.now())).list), tuples(m.split));
  await chain.pass(NOTICE + 1n);
  const t1 = await chain.now();
  assert.deepEqual(plain((await reg.adapterAt(m.adapterId, t1)).list), tuples(two));
  const next = { ...m, version: 3n, split: split([who.dave, 2, 10000]) };
  const update = (x, from, sig = '0x') => reg.connect(from).update(publishTuple(x), tuples(x.split), sig);
  await reverts(update({ ...next, version: 1n }, who.alice), reg, 'VersionNotRising', [1]);
  await reverts(update({ ...next, modelId: h32('x') }, who.alice), reg, 'BadValue');
  await reverts(update({ ...next, owner: who.bob.address }, who.bob), reg, 'NotOwner');
  await reverts(update(next, who.bob), reg, 'BadOwnerSignature');
  await ok(update(next, who.bob, sign(next, 'alice')));
  await reverts(update(next, who.bob, sign(next, 'alice')), reg, 'VersionNotRising', [3]);
  await chain.pass(NOTICE + 1n);
  assert.deepEqual(plain((await reg.adapterAt(m.adapterId, await chain.now())).list), tuples(next.split));
  assert.deepEqual(plain((await reg.adapterAt(m.adapterId, t1)).list), tuples(two));
  assert.deepEqual(plain((await reg.adapterAt(m.adapterId, t0)).list), tuples(m.split));
});

test('ownership moves in two steps', async () => {
  const id = h32('adapter');
  await reverts(reg.connect(who.bob).offerAdapter(id, who.bob.address), reg, 'NotOwner');
  await ok(reg.connect(who.alice).offerAdapter(id, who.carol.address));
  await reverts(reg.connect(who.bob).acceptAdapter(id), reg, 'NotOffered');
  await ok(reg.connect(who.carol).acceptAdapter(id));
  await reverts(reg.connect(who.carol).acceptAdapter(id), reg, 'NotOffered');
  await reverts(reg.connect(who.alice).setSplit(id, tuples(split([who.alice, 1, 10000]))), reg, 'NotOwner');
  await ok(reg.connect(who.carol).setSplit(id, tuples(split([who.carol, 1, 10000]))));
});

test('bases', async () => {
  const id = h32('base'), s = tuples(split([who.alice, 1, 10000]));
  await reverts(reg.connect(who.bob).registerBase(id, who.bob.address, s), reg, 'AccessControlUnauthorizedAccount');
  const t0 = await chain.now();
  await ok(reg.registerBase(id, who.alice.address, s));
  await reverts(reg.registerBase(id, who.alice.address, s), reg, 'AlreadyRegistered', [id]);
  assert.equal((await reg.baseAt(id, t0 - 1n)).registered, false);
  await reverts(reg.connect(who.bob).setBaseSplit(id, s), reg, 'NotOwner');
  await ok(reg.connect(who.alice).setBaseSplit(id, tuples(split([who.bob, 3, 10000]))));
  assert.deepEqual(plain((await reg.baseAt(id, await chain.now())).list), s);
  await ok(reg.connect(who.alice).offerBase(id, who.bob.address));
  await ok(reg.connect(who.bob).acceptBase(id));
  assert.equal((await reg.bases(id)).owner, who.bob.address);
});

test('datanets: id binds the owner, versions rise, earliest root is kept', async () => {
  const d = reg.connect(who.dave), root = h32('documents');
  const id = await reg.datanetIdOf(who.dave.address, SALT);
  assert.equal(id, c.datanetIdOf(31337, at, who.dave.address, SALT));
  await reverts(d.registerDatanet(SALT, c.ZERO32, h32('o'), h32('t')), reg, 'BadValue');
  await ok(d.registerDatanet(SALT, root, h32('owners'), h32('tok')));
  await reverts(d.registerDatanet(SALT, root, h32('owners'), h32('tok')), reg, 'AlreadyRegistered', [id]);
  const first = await reg.rootRegisteredAt(root);
  await chain.pass(10);
  await ok(reg.connect(who.bob).registerDatanet(SALT, root, h32('owners'), h32('tok'))); // a copy: another id, the same root
  assert.equal(await reg.rootRegisteredAt(root), first);
  await reverts(reg.connect(who.bob).setDatanet(id, 2, h32('d2'), h32('o2'), h32('tok')), reg, 'NotOwner');
  await reverts(d.setDatanet(id, 1, h32('d2'), h32('o2'), h32('tok')), reg, 'VersionNotRising', [1]);
  await ok(d.setDatanet(id, 2, h32('d2'), h32('o2'), h32('tok')));
  const t = await chain.now();
  assert.equal((await reg.datanetAt(id, t)).d.documentRoot, root);
  await chain.pass(NOTICE + 1n);
  assert.equal((await reg.datanetAt(id, await chain.now())).d.ownerRoot, h32('o2'));
  assert.equal((await reg.datanetAt(id, t)).d.version, 1n);
  assert.equal((await reg.datanetAt(h32('none'), t)).registered, false);
  const m = publish({ adapterId: h32('with datanet'), datanetId: id });
  await commit(m);
  await ok(register(m, who.alice));
  assert.equal((await reg.adapterAt(m.adapterId, await chain.now())).datanetId, id);
});

test('methods', async () => {
  assert.equal(await reg.methodRegisteredAt(h32('S0')), 0n);
  await reverts(reg.connect(who.bob).registerMethod(h32('S0')), reg, 'AccessControlUnauthorizedAccount');
  await ok(reg.registerMethod(h32('S0')));
  await reverts(reg.registerMethod(h32('S0')), reg, 'AlreadyRegistered');
  assert.notEqual(await reg.methodRegisteredAt(h32('S0')), 0n);
});

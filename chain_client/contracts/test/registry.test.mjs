// Registry: policy, bases, tariffs, adapters with commit and reveal, parents, datanets and consent, and answers as of any second.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import * as c from '../js/canon.mjs';
import { entryTuple, parentTuple, publishTuple } from '../js/abi.mjs';
import { LEAD, NOTICE, POLICY, h32, logsOf, make, makeLedger, makeRegistry, ok, reverts, startChain, treasury } from './setup.mjs';

const AGE = 60n, SALT = h32('salt');
let chain, ledger, reg, at, who;
before(async () => {
  chain = await startChain();
  who = chain.who;
  ledger = await makeLedger(chain);
  reg = await makeRegistry(chain, ledger);
  at = await reg.getAddress();
});
after(() => chain?.stop());

const split = (...list) => list.map(([payee, r, bps]) => ({ payee: payee.address ?? payee, role: r, bps })).sort((a, b) => a.role - b.role || (BigInt(a.payee) < BigInt(b.payee) ? -1 : 1));
const tuples = (s) => s.map(entryTuple);
const plain = (entries) => entries.map((e) => [e.payee, Number(e.role), Number(e.bps)]);
const publish = (o) => ({ adapterId: h32('adapter'), modelId: h32('model'), datanetId: c.ZERO32, datanetVersion: 0n, parents: [], owner: who.alice.address, priceIn: 1000n, priceOut: 5000n, version: 1n, split: split([who.alice, 1, 4000], [who.bob, 2, 6000]), ...o });
const register = (m, from, { salt = SALT, signature = '0x', consent = '0x' } = {}) => reg.connect(from).register(publishTuple(m), tuples(m.split), m.parents.map(parentTuple), salt, signature, consent);
const update = (m, from, signature = '0x', consent = '0x') => reg.connect(from).update(publishTuple(m), tuples(m.split), m.parents.map(parentTuple), signature, consent);
const consentOf = (m, name) => c.sign(c.consentDigest(m, 31337, at), chain.keyOf(name));
const sign = (m, name) => c.sign(c.publishDigest(m, 31337, at), chain.keyOf(name));
const commit = async (m, salt = SALT) => {
  await ok(reg.connect(who.carol).commitAdapter(c.adapterCommitment(m.adapterId, m.owner, salt)));
  await chain.pass(AGE);
};
// registered and active
const publishNow = async (over) => {
  const m = publish(over);
  await commit(m);
  await ok(register(m, who[over.by ?? 'alice']));
  await chain.pass(LEAD);
  return m;
};
const terms = async (id, t) => reg.adapterAt(id, t ?? (await chain.now()));

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
  await assert.rejects(makeRegistry(chain, ledger, { protocolBpsMin: 600 }));
  for (const field of ['admin', 'registrar']) await assert.rejects(makeRegistry(chain, ledger, { [field]: '0x' + '00'.repeat(20) }));
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
  const receipt = await ok(register(m, who.bob, { signature: sign(m, 'alice') }));
  const [e] = logsOf(receipt, reg, 'AdapterRegistered');
  assert.equal(e.manifestHash, c.publishDigest(m, 31337, at));
  assert.equal(await reg.hashPublish(publishTuple(m), tuples(m.split), []), e.manifestHash);
  await reverts(register(m, who.alice), reg, 'AlreadyRegistered', [m.adapterId]);
  const since = (await chain.now()) + LEAD; // every server has read it by then
  assert.deepEqual([...(await terms(m.adapterId, since - 1n))].map(String), ['false', '0', c.ZERO32, c.ZERO32, '0', '0', '0', '', '']);
  const a = await terms(m.adapterId, since);
  assert.deepEqual([a.registered, a.activeAt, a.modelId, a.datanetId, a.datanetVersion, a.priceIn, a.priceOut, plain(a.split), a.parents.length],
    [true, since, m.modelId, c.ZERO32, 0n, 1000n, 5000n, tuples(m.split), 0]);
  await reverts(reg.connect(who.alice).setSplit(m.adapterId, tuples(m.split)), reg, 'ChangePending', [since]);
  await chain.pass(LEAD);
});

test('splits that are refused', async () => {
  const m = publish({ adapterId: h32('bad splits') });
  await commit(m);
  const [lo, hi] = [who.alice.address, who.bob.address].sort((a, b) => (BigInt(a) < BigInt(b) ? -1 : 1));
  for (const [entries, where] of [
    [[], 0], [[[lo, 1, 9999]], 1], [[[lo, 1, 10000], [hi, 2, 1]], 2], [[[lo, 1, 0], [hi, 2, 10000]], 0], [[[hi, 1, 5000], [lo, 1, 5000]], 1], [[[lo, 2, 5000], [lo, 2, 5000]], 1],
    [[[lo, 2, 5000], [hi, 1, 5000]], 1], [[['0x' + '00'.repeat(20), 1, 10000]], 0], [[[lo, 0, 10000]], 0], [[[lo, 4, 10000]], 0], [Array.from({ length: 33 }, () => [lo, 1, 303]), 33]])
    await reverts(reg.connect(who.alice).register(publishTuple(m), entries, [], SALT, '0x', '0x'), reg, 'BadSplit', [where]);
  await reverts(register({ ...m, priceIn: 1n << 80n }, who.alice), reg, 'BadValue');
  await reverts(register({ ...m, version: 0n }, who.alice), reg, 'VersionNotRising');
  await reverts(register({ ...m, datanetId: h32('nothing'), datanetVersion: 1n }, who.alice), reg, 'Unknown');
  await reverts(register({ ...m, datanetVersion: 1n }, who.alice), reg, 'BadValue'); // a version of no datanet
});

test('setSplit, setPrice and update: one at a time, notice, rising version, fixed model; the past stays', async () => {
  const m = await publishNow({ adapterId: h32('changing') }), alice = reg.connect(who.alice);
  const t0 = await chain.now(), two = split([who.carol, 1, 10000]);
  await reverts(reg.connect(who.bob).setSplit(m.adapterId, tuples(two)), reg, 'NotOwner');
  await reverts(reg.connect(who.bob).setPrice(m.adapterId, 1, 2), reg, 'NotOwner');
  await ok(alice.setSplit(m.adapterId, tuples(two)));
  const pending = (await chain.now()) + NOTICE;
  for (const second of [() => alice.setSplit(m.adapterId, tuples(two)), () => alice.setPrice(m.adapterId, 1, 2), () => update({ ...m, version: 2n }, who.alice)])
    await reverts(second(), reg, 'ChangePending', [pending]);
  assert.deepEqual(plain((await terms(m.adapterId)).split), tuples(m.split));
  await chain.pass(NOTICE + 1n);
  const t1 = await chain.now();
  assert.deepEqual(plain((await terms(m.adapterId, t1)).split), tuples(two));
  assert.equal((await terms(m.adapterId, t1)).priceOut, 5000n);
  await reverts(alice.setPrice(m.adapterId, 1, 1n << 80n), reg, 'BadValue');
  await ok(alice.setPrice(m.adapterId, 7, (1n << 80n) - 1n));
  await chain.pass(NOTICE + 1n);
  const t2 = await chain.now(), priced = await terms(m.adapterId, t2);
  assert.deepEqual([priced.priceIn, priced.priceOut, plain(priced.split)], [7n, (1n << 80n) - 1n, tuples(two)]);
  assert.equal((await terms(m.adapterId, priced.activeAt - 1n)).priceIn, 1000n); // walked backwards
  const next = { ...m, version: 3n, split: split([who.dave, 2, 10000]) };
  await reverts(update({ ...next, version: 1n }, who.alice), reg, 'VersionNotRising', [1]);
  await reverts(update({ ...next, modelId: h32('x') }, who.alice), reg, 'BadValue');
  await reverts(update({ ...next, datanetId: h32('x') }, who.alice), reg, 'BadValue');
  await reverts(update({ ...next, datanetVersion: 1n }, who.alice), reg, 'BadValue');
  await reverts(update({ ...next, owner: who.bob.address }, who.bob), reg, 'NotOwner');
  await reverts(update(next, who.bob), reg, 'BadOwnerSignature');
  await ok(update(next, who.bob, sign(next, 'alice')));
  await reverts(update(next, who.bob, sign(next, 'alice')), reg, 'VersionNotRising', [3]); // a replay
  await chain.pass(NOTICE + 1n);
  const last = await terms(m.adapterId);
  assert.deepEqual([last.priceIn, plain(last.split)], [1000n, tuples(next.split)]);
  assert.deepEqual(plain((await terms(m.adapterId, t1)).split), tuples(two));
  assert.deepEqual(plain((await terms(m.adapterId, t0)).split), tuples(m.split));
});

test('parents: registered before, ascending, at most 4, 5 000 bps and depth 4, never itself', async () => {
  const ids = Array.from({ length: 7 }, (_, i) => h32('parent ' + i)).sort((p, q) => (BigInt(p) < BigInt(q) ? -1 : 1));
  const of = (...list) => list.map(([adapterId, bps]) => ({ adapterId, bps })).sort((p, q) => (BigInt(p.adapterId) < BigInt(q.adapterId) ? -1 : 1));
  for (const id of ids.slice(0, 5)) await publishNow({ adapterId: id });
  const m = publish({ adapterId: h32('child') });
  await commit(m);
  const bad = (parents, where) => reverts(register({ ...m, parents }, who.alice), reg, 'BadParent', [where]);
  await bad([{ adapterId: m.adapterId, bps: 1 }], 0); // its own child
  await bad([{ adapterId: h32('nobody'), bps: 1 }], 0);
  await bad([{ adapterId: ids[0], bps: 0 }], 0);
  await bad([{ adapterId: ids[1], bps: 1 }, { adapterId: ids[0], bps: 1 }], 1);
  await bad([{ adapterId: ids[1], bps: 1 }, { adapterId: ids[1], bps: 1 }], 1);
  await bad(ids.slice(0, 5).map((adapterId) => ({ adapterId, bps: 1 })), 5);
  await bad([{ adapterId: ids[0], bps: 2500 }, { adapterId: ids[1], bps: 2501 }], 2);
  const parents = of([ids[0], 2500], [ids[1], 2500]);
  await ok(register({ ...m, parents }, who.alice, { signature: sign({ ...m, parents }, 'alice') }));
  await chain.pass(LEAD);
  assert.deepEqual((await terms(m.adapterId)).parents.map((p) => [p.adapterId, Number(p.bps)]), parents.map(parentTuple));
  // a chain: 0 <- child <- 5 <- 6 <- e is depth 4; one more is too deep
  let above = m.adapterId;
  const chainOf = [ids[5], ids[6], h32('e')];
  for (const id of chainOf) {
    await publishNow({ adapterId: id, parents: of([above, 1]) });
    above = id;
  }
  assert.equal((await reg.adapters(above)).depth, 4n);
  const deep = publish({ adapterId: h32('too deep'), parents: of([above, 1]) });
  await commit(deep);
  await reverts(register(deep, who.alice), reg, 'BadParent', [1]);
  // whoever is named keeps its parents; whoever is not may change them, and its depth never falls
  await reverts(update({ ...m, version: 2n, parents: [] }, who.alice), reg, 'ParentsFixed');
  await ok(update({ ...m, version: 2n, parents, priceIn: 9n }, who.alice)); // the same parents
  await ok(update({ ...publish({ adapterId: above }), version: 2n, parents: [] }, who.alice));
  await chain.pass(NOTICE);
  assert.equal((await terms(above)).parents.length, 0);
  assert.equal((await terms(m.adapterId)).parents.length, 2);
  await reverts(register(deep, who.alice), reg, 'BadParent', [1]); // while it was pending the chain was that deep
  // setSplit and setPrice keep them
  await ok(reg.connect(who.alice).setPrice(m.adapterId, 3, 4));
  await chain.pass(NOTICE);
  assert.deepEqual((await terms(m.adapterId)).parents.map((p) => [p.adapterId, Number(p.bps)]), parents.map(parentTuple));
});

test('a datanet needs its owner: sent by it, or signed by it for this version and adapter', async () => {
  const dave = reg.connect(who.dave), salt = h32('consent net'), id = await reg.datanetIdOf(who.dave.address, salt);
  await ok(dave.registerDatanet(salt, h32('d'), h32('o'), 5, 2, h32('tok')));
  const m = publish({ adapterId: h32('with datanet'), datanetId: id, datanetVersion: 1n });
  await commit(m);
  const refused = (x, consent) => reverts(register(x, who.alice, { consent }), reg, 'BadDatanetConsent');
  await refused(m, '0x');
  await refused(m, consentOf(m, 'alice')); // not the owner's
  await refused(m, consentOf({ ...m, datanetVersion: 2n }, 'dave'));
  await refused(m, consentOf({ ...m, adapterId: h32('another') }, 'dave')); // a replay of what another adapter got
  await refused(m, consentOf({ ...m, datanetId: h32('x') }, 'dave'));
  await refused(m, c.sign(c.consentDigest(m, 31337, who.bob.address), chain.keyOf('dave'))); // of another registry
  await reverts(register({ ...m, datanetVersion: 2n }, who.alice, { consent: consentOf({ ...m, datanetVersion: 2n }, 'dave') }), reg, 'Unknown', [id]);
  await reverts(register({ ...m, datanetVersion: 0n }, who.alice), reg, 'Unknown', [id]);
  await ok(register(m, who.alice, { consent: consentOf(m, 'dave') }));
  await chain.pass(LEAD);
  assert.deepEqual([(await terms(m.adapterId)).datanetId, (await terms(m.adapterId)).datanetVersion], [id, 1n]);
  // sent by the datanet's owner, with the adapter owner's signature
  const second = publish({ adapterId: h32('second with datanet'), datanetId: id, datanetVersion: 1n });
  await commit(second);
  await ok(register(second, who.dave, { signature: sign(second, 'alice') }));
  // a new version takes a new consent, the same one none
  await ok(dave.setDatanet(id, 2, h32('d2'), h32('o2'), 6, 3, h32('tok')));
  await ok(update({ ...m, version: 2n }, who.alice));
  await chain.pass(NOTICE);
  const moved = { ...m, version: 3n, datanetVersion: 2n };
  await reverts(update(moved, who.alice), reg, 'BadDatanetConsent');
  await reverts(update(moved, who.alice, '0x', consentOf(m, 'dave')), reg, 'BadDatanetConsent');
  await ok(update(moved, who.alice, '0x', consentOf(moved, 'dave')));
});

test('owners that are contracts sign by EIP-1271', async () => {
  const wallet = await make(chain, 'ContractOwner', who.bob.address), at_ = await wallet.getAddress();
  const m = publish({ adapterId: h32('of a contract'), owner: at_ });
  await commit(m);
  await reverts(register(m, who.alice, { signature: sign(m, 'alice') }), reg, 'BadOwnerSignature');
  await ok(register(m, who.alice, { signature: sign(m, 'bob') }));
  const salt = h32('net of a contract'), id = await reg.datanetIdOf(at_, salt);
  await ok(wallet.run(at, reg.interface.encodeFunctionData('registerDatanet', [salt, h32('cd'), h32('co'), 1, 1, h32('tok')])));
  const with_ = publish({ adapterId: h32('with its datanet'), datanetId: id, datanetVersion: 1n });
  await commit(with_);
  await reverts(register(with_, who.alice, { consent: consentOf(with_, 'alice') }), reg, 'BadDatanetConsent');
  await ok(register(with_, who.alice, { consent: consentOf(with_, 'bob') }));
});

test('tariffs: by the lane operator, per base, lead then notice', async () => {
  await ok(ledger.connect(who.laneAdmin).registerLane(7, who.dave.address, who.bob.address));
  const base = h32('tariff base'), bob = reg.connect(who.bob), at7 = async (t) => [...(await reg.tariffAt(7, base, t ?? (await chain.now())))];
  await reverts(reg.connect(who.alice).setTariff(7, base, 1, 2), reg, 'NotOperator', [7]);
  await reverts(bob.setTariff(8, base, 1, 2), reg, 'NotOperator', [8]); // no such lane
  await reverts(bob.setTariff(7, c.ZERO32, 1, 2), reg, 'BadValue');
  await reverts(bob.setTariff(7, base, 1n << 80n, 2), reg, 'BadValue');
  await ok(bob.setTariff(7, base, 1, 2));
  const since = (await chain.now()) + LEAD;
  assert.deepEqual(await at7(since - 1n), [0n, 0n, 0n]);
  await reverts(bob.setTariff(7, base, 3, 4), reg, 'ChangePending', [since]);
  await chain.pass(LEAD);
  assert.deepEqual(await at7(), [since, 1n, 2n]);
  await ok(bob.setTariff(7, base, 3, 4));
  const next = (await chain.now()) + NOTICE;
  assert.deepEqual(await at7(next - 1n), [since, 1n, 2n]);
  assert.deepEqual(await at7(next), [next, 3n, 4n]);
  assert.deepEqual([...(await reg.tariffAt(7, h32('other base'), next))], [0n, 0n, 0n]);
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
  await ok(reg.connect(who.registrar).registerBase(id, who.alice.address, s));
  await reverts(reg.connect(who.registrar).registerBase(id, who.alice.address, s), reg, 'AlreadyRegistered', [id]);
  const since = (await chain.now()) + LEAD;
  assert.equal((await reg.baseAt(id, since - 1n)).registered, false);
  assert.equal((await reg.baseAt(id, since)).registered, true);
  await reverts(reg.connect(who.alice).setBaseSplit(id, s), reg, 'ChangePending', [since]);
  await chain.pass(LEAD);
  await reverts(reg.connect(who.bob).setBaseSplit(id, s), reg, 'NotOwner');
  await ok(reg.connect(who.alice).setBaseSplit(id, tuples(split([who.bob, 3, 10000]))));
  assert.deepEqual(plain((await reg.baseAt(id, await chain.now())).list), s);
  await ok(reg.connect(who.alice).offerBase(id, who.bob.address));
  await ok(reg.connect(who.bob).acceptBase(id));
  assert.equal((await reg.bases(id)).owner, who.bob.address);
});

test('datanets: id binds the owner, versions rise, earliest root is kept', async () => {
  const d = reg.connect(who.dave), root = h32('documents'), rest = [9, 4, h32('tok')];
  const id = await reg.datanetIdOf(who.dave.address, SALT);
  assert.equal(id, c.datanetIdOf(31337, at, who.dave.address, SALT));
  for (const [documentRoot, ownerRoot, documents, owners] of [[c.ZERO32, h32('o'), 1, 1], [root, c.ZERO32, 1, 1], [root, h32('o'), 1, 0], [root, h32('o'), 1, 2], [root, h32('o'), (1 << 20) + 1, 1]])
    await reverts(d.registerDatanet(SALT, documentRoot, ownerRoot, documents, owners, h32('t')), reg, 'BadValue');
  await ok(d.registerDatanet(SALT, root, h32('owners'), ...rest));
  const since = (await chain.now()) + LEAD;
  await reverts(d.registerDatanet(SALT, root, h32('owners'), ...rest), reg, 'AlreadyRegistered', [id]);
  await reverts(d.setDatanet(id, 2, h32('d2'), h32('o2'), ...rest), reg, 'ChangePending', [since]);
  const first = await reg.rootRegisteredAt(root);
  await chain.pass(LEAD);
  await ok(reg.connect(who.bob).registerDatanet(SALT, root, h32('owners'), ...rest)); // a copy: another id, the same root
  assert.equal(await reg.rootRegisteredAt(root), first);
  await reverts(reg.connect(who.bob).setDatanet(id, 2, h32('d2'), h32('o2'), ...rest), reg, 'NotOwner');
  await reverts(d.setDatanet(id, 1, h32('d2'), h32('o2'), ...rest), reg, 'VersionNotRising', [1]);
  await ok(d.setDatanet(id, 5, h32('d2'), h32('o2'), 3, 3, h32('tok2')));
  const t = await chain.now();
  assert.deepEqual([...(await reg.datanetAt(id, t)).d], [since, 1n, root, h32('owners'), 9n, 4n, h32('tok')]);
  assert.equal((await reg.datanetAt(id, since - 1n)).registered, false);
  assert.deepEqual([...(await reg.datanetVersion(id, 5)).d], [t + NOTICE, 5n, h32('d2'), h32('o2'), 3n, 3n, h32('tok2')]);
  assert.deepEqual([(await reg.datanetVersion(id, 1)).d.documentRoot, (await reg.datanetVersion(id, 2)).registered], [root, false]);
  await chain.pass(NOTICE + 1n);
  assert.equal((await reg.datanetAt(id, await chain.now())).d.ownerRoot, h32('o2'));
  assert.equal((await reg.datanetAt(id, t)).d.version, 1n);
  assert.equal((await reg.datanetAt(h32('none'), t)).registered, false);
});

test('methods', async () => {
  assert.equal(await reg.methodRegisteredAt(h32('S0')), 0n);
  await reverts(reg.connect(who.bob).registerMethod(h32('S0')), reg, 'AccessControlUnauthorizedAccount');
  await ok(reg.registerMethod(h32('S0')));
  await reverts(reg.registerMethod(h32('S0')), reg, 'AlreadyRegistered');
  assert.notEqual(await reg.methodRegisteredAt(h32('S0')), 0n);
});

// The golden vectors against the Solidity library, against ethers where it knows the same thing, and against themselves.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { readFileSync } from 'node:fs';
import { AbiCoder, Transaction, TypedDataEncoder, ZeroAddress, keccak256, solidityPackedKeccak256, verifyTypedData } from 'ethers';
import * as c from '../js/canon.mjs';
import { golden as regenerate } from '../js/golden.mjs';
import { epochTuple, headerTuple, laneTuple, parentTuple, publishTuple, entryTuple } from '../js/abi.mjs';
import { golden, make, makeLedger, makeRegistry, makeVault, startChain } from './setup.mjs';

const g = golden();
let chain, sol;
before(async () => {
  chain = await startChain();
  sol = await make(chain, 'CanonHarness');
});
after(() => chain?.stop());

const struct = (r) => c.RECORDS[r.fields.type].fields.filter(([n]) => n !== 'type').map(([n]) => r.fields[n]);

test('the vector file is what the formats produce', () => {
  assert.deepEqual(JSON.parse(JSON.stringify(regenerate())), g);
  assert.deepEqual(JSON.parse(JSON.stringify(c.fieldTable())), JSON.parse(readFileSync(new URL('../../../tests/data/fields.json', import.meta.url), 'utf8')));
});

test('record digests: Solidity, ethers, JavaScript', async () => {
  const of = { 1: 'inference', 2: 'attribution', 3: 'void_' };
  for (const r of g.records) {
    assert.equal(await sol[of[r.fields.type]](r.chainId, r.ledger, struct(r)), r.digest, r.name);
    const domain = { name: 'residual', version: '1', chainId: r.chainId, verifyingContract: r.ledger };
    const { struct: name, fields } = c.RECORDS[r.fields.type];
    const types = { [name]: fields.filter(([n]) => n !== 'type').map(([n, type]) => ({ name: n, type })) };
    assert.equal(TypedDataEncoder.hash(domain, types, r.fields), r.digest, r.name);
    assert.equal(verifyTypedData(domain, types, r.fields, r.signature), r.signer, r.name);
    assert.equal(c.recover(r.digest, r.signature), r.signer);
    const back = c.decodeRecord(r.encoded);
    assert.equal(c.recordDigest(back, r.chainId, r.ledger), r.digest);
    assert.equal(c.hex(c.encodeRecord(back)), r.encoded);
  }
});

test('one flipped byte of a record never passes', () => {
  const r = g.records[2], whole = c.bytes(r.encoded);
  for (let i = 0; i < whole.length; i++) {
    const bad = whole.slice();
    bad[i] ^= 1;
    let good = false;
    try {
      const back = c.decodeRecord(bad);
      good = c.recover(c.recordDigest(back, r.chainId, r.ledger), back.signature) === r.signer && bad[0] === 1;
    } catch { /* refused */ }
    assert.ok(!good, `byte ${i}`);
  }
});

test('leaves, pads, nodes and roots: Solidity', async () => {
  const t = g.trees;
  assert.equal(await sol.logDomain(g.chainId, g.ledger), t.logDomain);
  assert.equal(await sol.rewardDomain(g.chainId, g.vault, ZeroAddress), t.rewardDomain);
  assert.equal(await sol.rewardDomain(g.chainId, g.vault, g.token), t.rewardDomainToken);
  assert.equal(t.logDomain, keccak256(AbiCoder.defaultAbiCoder().encode(['string', 'uint256', 'address'], ['residual.log.1', g.chainId, g.ledger])));
  for (const r of g.records.filter((x) => x.ledger === g.ledger && x.chainId === g.chainId)) {
    const { lane, seq, type, fee } = r.fields;
    assert.equal(type === 1 ? await sol.logLeafInference(t.logDomain, lane, seq, r.digest, fee) : await sol.logLeafOther(t.logDomain, lane, seq, r.digest), r.leaf, r.name);
  }
  for (const kind of [0, 1])
    for (const x of [t.log, t.reward][kind].filter((y) => y.count <= 129)) {
      const leaves = Array.from({ length: x.count }, (_, i) => {
        if (kind === 1) return c.rewardLeaf(t.rewardDomain, i, c.hex(c.uint(BigInt(i + 1) << 96n, 20)), BigInt(i + 1) * 10n ** 18n + BigInt(i));
        const type = i % 3 === 2 ? 3 : 1, digest = solidityPackedKeccak256(['uint32'], [i]);
        return c.logLeaf(t.logDomain, { type, lane: 1 + (i >> 6), seq: BigInt((i & 63) + 1), fee: BigInt(i) * 1_000_003n }, digest);
      });
      const [root, sum] = await sol.root(kind, kind ? t.rewardDomain : t.logDomain, leaves.map((l) => l.hash), leaves.map((l) => l.sum));
      assert.deepEqual([root, String(sum)], [x.root, x.sum], `${kind} ${x.count}`);
      assert.equal(await sol.depthOf(x.count), BigInt(x.depth));
      for (const p of x.proofs) {
        assert.deepEqual([...(await sol.fold(kind ? 0x01 : 0x11, p.leaf, p.sum, p.index, p.hashes, p.sums))].map(String), [x.root, x.sum]);
        assert.equal(p.hashes.length, x.depth);
      }
    }
});

test('sums above 2^128 do not wrap', async () => {
  const big = (1n << 128n) - 1n;
  assert.equal((await sol.fold(1, c.ZERO32, big, 0, [c.ZERO32], [1]))[1], 1n << 128n); // exact: equal to no total
  assert.throws(() => c.REWARD_TREE.node({ hash: c.ZERO32, sum: big + 1n }, { hash: c.ZERO32, sum: 0n }));
});

test('batches: lanesHash and batchHash in Solidity and by the ABI coder', async () => {
  for (const b of [...g.batches, ...g.world.batches]) {
    assert.equal(await sol.lanesHash(b.lanes.map(laneTuple)), b.lanesHash);
    assert.equal(await sol.batchHash(headerTuple(b.header), b.lanesHash, g.chainId, g.ledger), b.batchHash);
    assert.equal(keccak256(AbiCoder.defaultAbiCoder().encode(['tuple(uint32,uint64,uint64)[]'], [b.lanes.map(laneTuple)])), b.lanesHash);
  }
  assert.equal(g.batches[1].header.prevHash, g.batches[0].batchHash);
});

test('manifests and epochs: digests of the contracts', async () => {
  const ledger = await makeLedger(chain), registry = await makeRegistry(chain, ledger);
  const at = await registry.getAddress(), m = g.manifests.publish.manifest;
  assert.equal(await registry.hashPublish(publishTuple(m), m.split.map(entryTuple), m.parents.map(parentTuple)), c.publishDigest(m, 31337, at));
  assert.equal(await registry.hashConsent(m.datanetId, m.datanetVersion, m.adapterId), c.consentDigest(m, 31337, at));
  assert.equal(await registry.datanetIdOf(m.owner, g.manifests.datanetSalt), c.datanetIdOf(31337, at, m.owner, g.manifests.datanetSalt));
  assert.equal(c.recover(g.manifests.publish.digest, g.manifests.publish.signature).toLowerCase(), m.owner);
  const vault = await makeVault(chain, ledger);
  for (const e of g.world.epochs) assert.equal(await vault.hashEpoch(epochTuple(e.header)), c.epochDigest(e.header, 31337, await vault.getAddress()));
});

test('transactions: ethers reads back what the vectors say', () => {
  assert.equal(g.ethereum.transactions.length, 50);
  for (const t of g.ethereum.transactions) {
    const back = Transaction.from(t.raw);
    assert.equal(back.from, t.from);
    assert.equal(back.hash, t.hash);
    assert.equal(String(back.maxFeePerGas), t.maxFeePerGas);
    assert.equal(keccak256(back.unsignedSerialized), t.signHash);
  }
});

test('known answers', () => {
  const k = Object.fromEntries(g.ethereum.keccak.map((x) => [x.input, x.hash]));
  assert.equal(k['0x'], '0xc5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470');
  assert.equal(k['0x616263'], '0x4e03657aea45a94fc7d47ba826c8d667c0d1e6e33a64a036ec44f58fa12d6c45');
  assert.equal(g.ethereum.keys[0].address, '0x7E5F4552091A69125d5DfCb7b8C2659029395Bdf');
  assert.match(g.ethereum.signatures[0].signature, /^0x934b1ea1.*d9e5(1b|1c)$/);
  const mail = c.typedDigest('0xf2cee375fa42b42143804025fc449deafd50cc031ca257e0b194a650a912090f', '0xc52c0ee5d84264471806290a3f2c4cecfc5490626bf912d01f240d7a274b371e');
  assert.equal(mail, '0xbe609aee343fb3c4b28e1df9e632fca64fcfaede20f02e86244efddf30957bd2');
});

test('largest remainder: sums, order, bounds', () => {
  for (const { x, weights, parts } of g.remainders) {
    assert.equal(parts.reduce((a, b) => a + BigInt(b), 0n), BigInt(x));
    const W = weights.reduce((a, b) => a + BigInt(b), 0n);
    parts.forEach((p, i) => {
      const floor = (BigInt(x) * BigInt(weights[i])) / W;
      assert.ok(BigInt(p) === floor || BigInt(p) === floor + 1n);
    });
  }
  assert.deepEqual(c.largestRemainder(2, [1, 1, 1]), [1n, 1n, 0n]);
});

test('the golden epochs keep every identity', () => {
  const w = g.world;
  let cum = new Map(), last = 0;
  for (const e of w.epochs) {
    const s = Object.fromEntries(Object.entries(e.stats).map(([k, v]) => [k, BigInt(v)]));
    assert.equal(s.required, s.scored + s.missing);
    assert.equal(s.feeRequired, s.feeScored + s.feeMissing);
    assert.ok(s.missing > 0n && s.scored > 0n);
    const fees = w.batches.slice(last, Number(e.header.batchPaid)).reduce((n, b) => n + BigInt(b.header.feeSum), 0n);
    assert.equal(e.sums.reduce((n, x) => n + BigInt(x.amount), 0n), fees);
    const next = new Map(e.cumulative.map((x) => [x.account, BigInt(x.amount)]));
    for (const [a, v] of cum) assert.ok(next.get(a) >= v, 'cum never falls');
    assert.equal([...next.values()].reduce((x, y) => x + y, 0n), BigInt(e.header.total));
    cum = next;
    last = Number(e.header.batchPaid);
  }
});

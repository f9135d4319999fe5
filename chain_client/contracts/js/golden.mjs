// Writes tests/data/golden.json (every format, as vectors) and tests/data/fields.json (the field table); `--check` compares
// instead and exits 1 when they differ. Deterministic: all data comes from keccak of fixed strings.
// Integers of more than 32 bits are decimal strings. Keys in the file are test keys and hold nothing.
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { Transaction, Wallet, getAddress, keccak256 as ethersKeccak, sha256 } from 'ethers';
import { abi, entryTuple, epochTuple, headerTuple, laneTuple, parentTuple, publishTuple } from './abi.mjs';
import * as c from './canon.mjs';

const DATA = new URL('../../../tests/data/', import.meta.url);
const CHAIN = 31337;
const text = c.text;
const h32 = (...parts) => c.keccak(...parts.map((p) => (typeof p === 'string' && !p.startsWith('0x') ? text(p) : typeof p === 'number' ? c.u32(p) : p)));
const addr = (...parts) => '0x' + h32('address', ...parts).slice(26);
const key = (name) => h32('residual test key', name);
const s = (v) => BigInt(v).toString();
const LEDGER = addr('ledger'), VAULT = addr('vault'), REGISTRY = addr('registry'), TOKEN = addr('token');

// keccak counter stream
function stream(seed) {
  let n = 0;
  const next = () => BigInt(h32(seed, n++));
  return { below: (m) => next() % BigInt(m), int: (m) => Number(next() % BigInt(m)), bits: (b) => next() >> BigInt(256 - b) };
}

// ---------------------------------------------------------------- records

const params = (over = {}) => ({
  n: 1, maxTokens: 128, minTokens: 0, temperature: 0.7, topP: 0.95, topK: 40, minP: 0, presencePenalty: 0, frequencyPenalty: 0,
  repetitionPenalty: 1, seed: 42n, flags: 2, stopHash: c.stopHash([], []), biasHash: c.biasHash([]), templateDigest: c.ZERO32, ...over });

function finish(r, signer, chainId, ledger) {
  const digest = c.recordDigest(r, chainId, ledger);
  r.signature = c.sign(digest, signer);
  return { record: r, digest };
}

function inference(o, signer, chainId = CHAIN, ledger = LEDGER) {
  const set = [...o.set].sort((a, b) => (a.id < b.id ? -1 : 1));
  const tails = { set: c.encodeSet(set), tariff: c.encodeTariff(o.tariff), params: c.encodeParams(o.params ?? params()) };
  const r = {
    spec: 1, type: 1, lane: o.lane, seq: BigInt(o.seq), requestId: o.requestId ?? h32('request', o.lane, Number(o.seq & 0xffffffffn)),
    appCommit: o.appCommit ?? h32('app', o.lane), modelId: o.modelId, adapterSetHash: c.keccak(tails.set), tokensIn: o.tokensIn,
    tokensOut: o.tokensOut, fee: o.status === 3 ? 0n : c.feeOf(o.tokensIn, o.tokensOut, o.tariff), tariffHash: c.keccak(tails.tariff),
    paramsHash: c.keccak(tails.params), engineId: h32('engine'), startMs: o.startMs ?? 1_700_000_000_000n, endMs: o.endMs ?? 1_700_000_000_250n,
    status: o.status ?? 1, promptCommit: o.promptCommit ?? h32('prompt', o.lane), outputCommit: o.outputCommit ?? h32('output', o.lane), tails };
  return finish(r, signer, chainId, ledger);
}

function attribution(o, signer, chainId = CHAIN, ledger = LEDGER) {
  const tails = { influence: o.outcome ? new Uint8Array() : c.encodeInfluence(o.influence) };
  return finish({
    spec: 1, type: 2, lane: o.lane, seq: BigInt(o.seq), infSeq: BigInt(o.infSeq), infDigest: o.infDigest, methodHash: o.methodHash ?? h32('method S0'),
    indexHash: o.indexHash ?? c.ZERO32, inputsDigest: o.inputsDigest ?? h32('inputs', o.lane), outcome: o.outcome ?? 0,
    influenceHash: c.keccak(tails.influence), tails }, signer, chainId, ledger);
}

const voidRecord = (o, signer, chainId = CHAIN, ledger = LEDGER) =>
  finish({ spec: 1, type: 3, lane: o.lane, seq: BigInt(o.seq), reason: o.reason, tails: {} }, signer, chainId, ledger);

function recordVector(name, { record: r, digest }, signer, chainId, ledger) {
  const fields = {};
  for (const [n, , w] of c.RECORDS[r.type].fields) fields[n] = typeof r[n] === 'string' ? r[n] : w <= 4 ? Number(r[n]) : s(r[n]);
  const leaf = c.logLeaf(c.logDomain(chainId, ledger), r, digest);
  return {
    name, chainId, ledger, fields, tails: Object.fromEntries(Object.entries(r.tails).map(([k, v]) => [k, c.hex(v)])),
    structHash: c.structHash(r), digest, key: signer, signer: c.addressOf(signer), signature: r.signature,
    leaf: leaf.hash, leafSum: s(leaf.sum), encoded: c.hex(c.encodeRecord(r)) };
}

const E = Number(c.E9);
const set = (...w) => w.map((weight, i) => ({ id: h32('adapter', i), weight }));
const tariff = (k, scale = 1n) => Array.from({ length: k + 1 }, (_, i) => ({ in: 1_000_003n * scale * BigInt(i + 1), out: 5_000_011n * scale * BigInt(i + 1) }));

function records() {
  const k1 = key('lane 1'), out = [];
  const put = (name, make, o, signer = k1, chainId = CHAIN, ledger = LEDGER) => {
    const made = make(o, signer, chainId, ledger);
    out.push(recordVector(name, made, signer, chainId, ledger));
    return made;
  };
  const m = h32('model');
  const one = put('one adapter', inference, { lane: 1, seq: 1n, modelId: m, set: set(65536), tariff: tariff(1), tokensIn: 128, tokensOut: 77 });
  put('base only', inference, { lane: 1, seq: 2n, modelId: m, set: [], tariff: tariff(0), tokensIn: 7, tokensOut: 1 });
  const mix = put('mix of three, one negative weight', inference,
    { lane: 1, seq: 3n, modelId: m, set: set(65536, -32768, 1), tariff: tariff(3), tokensIn: 4096, tokensOut: 512, params: params({ n: 3, temperature: 0, flags: 3, stopHash: c.stopHash(['\n\n', 'é'], [2]), biasHash: c.biasHash([[3, -1.5], [900, 100]]) }) });
  put('mix of eight, largest prices', inference,
    { lane: 0xffffffff, seq: (1n << 62n) - 1n, modelId: m, set: set(...Array(8).fill(2147483647)), tariff: Array(9).fill({ in: (1n << 80n) - 1n, out: (1n << 80n) - 1n }), tokensIn: 0xffffffff, tokensOut: 0xffffffff, startMs: (1n << 64n) - 1n, endMs: (1n << 64n) - 1n, params: params({ n: 65535, maxTokens: 0xffffffff, seed: (1n << 64n) - 1n, flags: 255 }) });
  put('client left', inference, { lane: 2, seq: 1n, modelId: m, set: set(65536), tariff: tariff(1), tokensIn: 5, tokensOut: 3, status: 2 }, key('lane 2'));
  put('failed after output began: fee 0', inference, { lane: 2, seq: 2n, modelId: m, set: set(65536), tariff: tariff(1), tokensIn: 5, tokensOut: 3, status: 3 }, key('lane 2'));
  put('unbound lane', inference, { lane: 1, seq: 1n, modelId: m, set: set(65536), tariff: tariff(1), tokensIn: 128, tokensOut: 77 }, k1, 0, c.ZERO20);
  const payees = (n, base = 0) => {
    const list = Array.from({ length: n }, (_, i) => addr('payee', base + i)).sort();
    return list.map((payee, i) => ({ payee, ppb: Math.floor(E / n) + (i === 0 ? E % n : 0) }));
  };
  put('scored, one adapter, three payees', attribution, { lane: 1, seq: 4n, infSeq: 1n, infDigest: one.digest, influence: [{ gain: E, payees: payees(3) }] });
  put('scored, all to TREASURY', attribution, { lane: 1, seq: 5n, infSeq: 1n, infDigest: one.digest, influence: [{ gain: E, payees: [{ payee: c.ZERO20, ppb: E }] }] });
  put('scored mix: gain 0, no datanet, 64 payees', attribution,
    { lane: 1, seq: 6n, infSeq: 3n, infDigest: mix.digest, indexHash: h32('index'), influence: [{ gain: 0, payees: payees(2, 10) }, { gain: 250_000_000, payees: [] }, { gain: 750_000_000, payees: payees(64, 100) }] });
  put('inputs lost', attribution, { lane: 1, seq: 7n, infSeq: 3n, infDigest: mix.digest, outcome: 1, inputsDigest: c.ZERO32 });
  put('void', voidRecord, { lane: 1, seq: 8n, reason: 1 });
  put('void, largest numbers, another chain', voidRecord, { lane: 0xffffffff, seq: (1n << 64n) - 1n, reason: 255 }, key('lane 9'), 10, addr('another ledger'));
  return out;
}

// ---------------------------------------------------------------- trees

// leaf i of the formula trees, as README of the vectors says
const formulaLeaf = (i) => ({ type: i % 3 === 2 ? 3 : 1, lane: 1 + (i >> 6), seq: BigInt((i & 63) + 1), digest: h32(i), fee: BigInt(i) * 1_000_003n });
const SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 1023, 1024, 1025];
const some = (n) => [...new Set([0, 1, n >> 1, n - 1])].filter((i) => i < n);
const proof = (tree, i) => {
  const p = c.proofOf(tree, i);
  return { index: i, leaf: tree.levels[0][i].hash, sum: s(tree.levels[0][i].sum), hashes: p.hashes, sums: p.sums.map(s) };
};

function trees() {
  const dom = c.logDomain(CHAIN, LEDGER), rdom = c.rewardDomain(CHAIN, VAULT, c.ZERO20);
  const log = [], reward = [];
  for (const n of SIZES) {
    const leaves = Array.from({ length: n }, (_, i) => c.logLeaf(dom, formulaLeaf(i), formulaLeaf(i).digest));
    const t = c.buildTree(c.LOG_TREE, dom, leaves);
    log.push({ count: n, depth: t.depth, root: t.root.hash, sum: s(t.root.sum), proofs: n <= 33 ? some(n).map((i) => proof(t, i)) : [] });
    const cum = new Map(Array.from({ length: n }, (_, i) => [c.hex(c.uint(BigInt(i + 1) << 96n, 20)), BigInt(i + 1) * 10n ** 18n + BigInt(i)]));
    const r = c.rewardTree(rdom, cum);
    reward.push({ count: n, depth: r.depth, root: r.root.hash, sum: s(r.root.sum), proofs: n <= 33 ? some(n).map((i) => ({ ...proof(r, i), account: r.accounts[i][0], cumulative: s(r.accounts[i][1]) })) : [] });
  }
  const l = formulaLeaf(1), v = formulaLeaf(2);
  return {
    about: 'log leaf i: type i%3==2 ? 3 : 1, lane 1+(i>>6), seq (i&63)+1, digest keccak(u32 i), fee i*1000003. reward leaf i: account (i+1)<<96, cumulative (i+1)*10^18+i',
    logDomain: dom, rewardDomain: rdom, rewardDomainToken: c.rewardDomain(CHAIN, VAULT, TOKEN), logPad: c.LOG_TREE.pad(dom).hash, rewardPad: c.REWARD_TREE.pad(rdom).hash,
    logLeaf1: c.logLeaf(dom, l, l.digest).hash, logLeaf2: c.logLeaf(dom, v, v.digest).hash, log, reward };
}

// ---------------------------------------------------------------- batches

const headerVector = (h, lanes, chainId, ledger) => ({
  header: { seq: s(h.seq), spec: h.spec, prevHash: h.prevHash, logRoot: h.logRoot, manifest: h.manifest, leafCount: h.leafCount, inferences: h.inferences, feeSum: s(h.feeSum), cumFee: s(h.cumFee), closedAt: s(h.closedAt) },
  lanes: lanes.map((l) => ({ lane: l.lane, first: s(l.first), last: s(l.last) })), lanesHash: c.lanesHash(lanes), batchHash: c.batchHash(h, c.lanesHash(lanes), chainId, ledger) });

function batches() {
  const out = [];
  let prevHash = c.ZERO32, cumFee = 0n;
  for (let i = 1; i <= 4; i++) {
    const lanes = Array.from({ length: [1, 4, 5, 64][i - 1] }, (_, k) => ({ lane: k * 3 + i, first: BigInt(i), last: BigInt(i + k * 100) }));
    const leafCount = lanes.reduce((n, l) => n + Number(l.last - l.first) + 1, 0);
    const feeSum = 10n ** 18n * BigInt(i) + 7n;
    cumFee += feeSum;
    const h = { seq: BigInt(i), spec: 1, prevHash, logRoot: h32('log root', i), manifest: h32('manifest', i), leafCount, inferences: leafCount - i + 1, feeSum, cumFee, closedAt: 1_700_000_000n + BigInt(i) * 1800n };
    const v = headerVector(h, lanes, CHAIN, LEDGER);
    prevHash = v.batchHash;
    out.push(v);
  }
  return out;
}

// ---------------------------------------------------------------- largest remainder

function remainders() {
  const cases = [[100, [1, 1, 1]], [2, [1, 1, 1]], [0, [5, 5]], [1, [0, 1]], [10, [0, 0, 7]], [1n << 111n, [1n << 140n, (1n << 141n) + 1n]],
    [(1n << 112n) - 1n, [3, 3, 3, 3, 3, 3, 3]], [10_000, [7000, 2500, 500]], [9_999, [3333, 3333, 3334]]];
  const r = stream('remainders');
  for (let i = 0; i < 40; i++) cases.push([r.bits(1 + r.int(112)), Array.from({ length: 1 + r.int(9) }, () => 1n + r.bits(1 + r.int(120)))]);
  return cases.map(([x, w]) => ({ x: s(x), weights: w.map(s), parts: c.largestRemainder(x, w).map(s) }));
}

// ---------------------------------------------------------------- epochs

const stateVector = (st) => ({
  policy: st.policy, operators: [...st.operators].map(([lane, account]) => ({ lane, account })),
  bases: [...st.bases].map(([modelId, entries]) => ({ modelId, entries })),
  adapters: [...st.adapters].map(([adapterId, a]) => ({ adapterId, ...a })),
  tariffs: [...st.tariffs].map(([of, terms]) => ({ lane: Number(of.split('/')[0]), modelId: of.split('/')[1], terms })),
  owners: [...st.owners].map(([of, list]) => ({ datanetId: of.split('/')[0], version: of.split('/')[1], owners: list })),
  methods: [...st.methods].map(([hash, registeredAt]) => ({ hash, registeredAt })) });

const byRolePayee = (a, b) => a.role - b.role || (a.payee < b.payee ? -1 : 1);

const histories = (...list) => list.map(([activeAt, priceIn, priceOut, datanetVersion = 0]) => ({ activeAt, datanetVersion, priceIn: s(priceIn), priceOut: s(priceOut) }));
const AT = 1_700_000_000; // batch n closes 600 n seconds later

// A small world: 2 lanes, 2 models (one unregistered), 5 adapters: with datanet (0, 1), without (2, child of both), unregistered (3),
// registered on the way, with a datanet but no data role (4, child of 2); mixes, missing, lost, invalid and late evidence, payees who own
// nothing, methods of another day, tariffs that change and ones that are refused, status 3, base-only, fee 0.
function epochs() {
  const model = [h32('model'), h32('model nobody registered')];
  const ids = [0, 1, 2, 3, 4].map((i) => h32('adapter', i));
  const owners = [0, 1, 2, 3].map((i) => addr('owner', i)).sort();
  const split = (...e) => e.sort(byRolePayee), parents = (...list) => list.map(([i, bps]) => ({ id: ids[i], bps })).sort((p, q) => (p.id < q.id ? -1 : 1));
  const state = {
    methods: new Map([[h32('method S0'), AT - 5], [h32('method of tomorrow'), AT + 1_000_000]]),
    tariffs: new Map([
      [`1/${model[0]}`, histories([AT - 900_000, 1_000_003, 5_000_011], [AT + 700, 1_000_033, 5_000_111])],
      [`2/${model[0]}`, histories([AT - 900_000, 999_983, 2])], [`1/${model[1]}`, histories([AT - 900_000, 31, 7_000_003])]]),
    owners: new Map([[`${h32('datanet', 0)}/1`, owners], [`${h32('datanet', 0)}/2`, owners.slice(1)], [`${h32('datanet', 1)}/1`, owners], [`${h32('datanet', 4)}/3`, owners.slice(0, 3)]]),
    policy: { base: 2000, adapters: 6000, operator: 1500, protocol: 500, treasury: addr('treasury') },
    operators: new Map([[1, addr('operator', 1)], [2, addr('operator', 2)]]),
    bases: new Map([[model[0], split({ payee: addr('base owner'), role: 1, bps: 9001 }, { payee: addr('base lab'), role: 3, bps: 999 })]]),
    adapters: new Map([
      [ids[0], { datanetId: h32('datanet', 0), parents: [], terms: histories([AT - 800_000, 2_000_003, 7_000_001, 1], [AT + 1_000, 2_000_033, 7_000_111, 2]), entries: split({ payee: addr('author', 0), role: 1, bps: 3333 }, { payee: owners[0], role: 2, bps: 3334 }, { payee: owners[1], role: 2, bps: 3333 }) }],
      [ids[1], { datanetId: h32('datanet', 1), parents: [], terms: histories([AT - 700_000, 3_000_017, 11, 1]), entries: split({ payee: addr('author', 1), role: 1, bps: 5000 }, { payee: owners[2], role: 2, bps: 5000 }) }],
      [ids[2], { datanetId: c.ZERO32, parents: parents([0, 2000], [1, 501]), terms: histories([AT - 600_000, 4_000_037, 9_000_011]), entries: split({ payee: addr('author', 2), role: 1, bps: 7001 }, { payee: owners[0], role: 2, bps: 999 }, { payee: owners[3], role: 2, bps: 2000 }) }],
      [ids[4], { datanetId: h32('datanet', 4), parents: parents([2, 1500]), terms: histories([AT + 900, 5_000_011, 13_000_003, 3]), entries: split({ payee: addr('author', 4), role: 1, bps: 10000 }) }]]) };
  const laneKey = { 1: key('lane 1'), 2: key('lane 2') };
  const dom = c.logDomain(CHAIN, LEDGER), rdom = c.rewardDomain(CHAIN, VAULT, c.ZERO20);
  const r = stream('epoch world'), seq = { 1: 0n, 2: 0n };
  const log = []; // all records with the batch they fall in
  const add = (batch, made) => (log.push({ batch, ...made }), made);
  let second = AT - 500;
  // the price of one of the named entries, mostly the newest
  const priceOf = (history) => {
    const list = c.named(history ?? [], BigInt(second)), e = list[r.int(3) ? list.length - 1 : 0];
    return { in: BigInt(e.priceIn), out: BigInt(e.priceOut) };
  };
  const infer = (batch, lane, which, o = {}) => {
    second = Math.max(second + 37, AT + 600 * (batch - 1) - 60);
    const modelId = model[o.model ?? 0], set = which.map(([i, w]) => ({ id: ids[i], weight: w ?? 65536 })).sort((p, q) => (p.id < q.id ? -1 : 1));
    const tariff = [state.tariffs.get(`${lane}/${modelId}`), ...set.map((a) => state.adapters.get(a.id)?.terms)].map(priceOf);
    if (o.overcharge !== undefined) tariff[o.overcharge].out += 1n;
    const startMs = BigInt(second) * 1000n + 999n;
    return add(batch, inference({ lane, seq: ++seq[lane], modelId, set, tariff, tokensIn: 1 + r.int(2000), tokensOut: r.int(500), startMs, endMs: startMs + 250n, ...o }, laneKey[lane]));
  };
  const gains = (n) => {
    const cut = Array.from({ length: n - 1 }, () => r.int(E + 1)).sort((a, b) => a - b);
    return [...cut, E].map((v, i) => v - (i ? cut[i - 1] : 0));
  };
  const shares = (list) => gains(list.length).map((ppb, i) => ({ payee: list[i], ppb }));
  const payeesOf = (id) => (BigInt(state.adapters.get(id)?.datanetId ?? 0) === 0n ? [] : r.int(5) === 0 ? [{ payee: c.ZERO20, ppb: E }] : shares([c.ZERO20, ...owners].slice(r.int(2), 3 + r.int(3))));
  const score = (batch, inf, o = {}) => {
    const list = c.decodeSet(inf.record.tails.set), g = gains(list.length);
    return add(batch, attribution({ lane: inf.record.lane, seq: ++seq[inf.record.lane], infSeq: inf.record.seq, infDigest: inf.digest, influence: list.map((a, i) => ({ gain: g[i], payees: payeesOf(a.id) })), ...o }, laneKey[inf.record.lane]));
  };

  // batch 1
  const a = infer(1, 1, [[0]]), b = infer(1, 1, [[0, 65536], [1, -32768]]), d = infer(1, 2, [[2]]), e = infer(1, 2, [[3]]);
  infer(1, 1, []);
  infer(1, 2, [], { model: 1 });
  const f = infer(1, 1, [[0, 30000], [2, 20000], [3, 10001]]), g = infer(1, 2, [[4]]), lost = infer(1, 1, [[1]]), never = infer(1, 1, [[0]]);
  infer(1, 2, [[0]], { status: 3 });
  infer(1, 2, [[1]], { tokensIn: 0, tokensOut: 0 });
  score(1, a);
  score(1, b);
  score(1, g);
  score(1, lost, { outcome: 1 });
  score(1, lost); // too late: the first valid one counts
  void d;
  void e;
  void never;
  score(1, infer(1, 1, [[0]], { overcharge: 0 })); // refused, with evidence
  infer(1, 2, [[0], [2]], { overcharge: 2 });
  infer(1, 2, [], { overcharge: 0 });
  score(1, infer(1, 1, [[0]]), { influence: [{ gain: E, payees: [{ payee: addr('thief'), ppb: E }] }] }); // owns nothing: missing
  score(1, infer(1, 1, [[1]]), { methodHash: h32('method of tomorrow') });
  const again = infer(1, 1, [[1]]);
  score(1, again, { methodHash: h32('method nobody registered') });
  score(1, again); // the first valid one
  add(1, voidRecord({ lane: 2, seq: ++seq[2], reason: 1 }, laneKey[2]));
  // batch 2: more of the first, evidence for batch 1, invalid evidence
  score(2, f, { infDigest: h32('wrong digest') }); // not valid: skipped
  score(2, f, { influence: [{ gain: E, payees: [] }] }); // not valid: one adapter of three
  score(2, f);
  for (let i = 0; i < 6; i++) {
    const x = infer(2, 1 + (i & 1), [[i % 5], ...(i % 2 ? [[(i + 1) % 5, -1 - i]] : [])], { model: i === 4 ? 1 : 0 });
    if (i % 3) score(2, x);
  }
  const late = infer(2, 1, [[0, 1], [1, 2], [2, 3], [3, 4], [4, 5]]);
  // batch 3: evidence for batch 2 (named by epoch 1), own records paid in epoch 2
  score(3, late);
  const y = infer(3, 1, [[1]]);
  infer(3, 2, [[0], [1]]);
  // batch 4
  score(4, y);
  for (let i = 0; i < 8; i++) {
    const x = infer(4, 2, [[i % 5, 1000 + i]]);
    if (i !== 3) score(4, x);
  }

  const built = [], mix = [c.ZERO32, h32('mix hash 2'), c.ZERO32, h32('mix hash 4')];
  const rate = [E, E, E, 500_000_000];
  let prevHash = c.ZERO32, cumFee = 0n;
  const done = { 1: 0n, 2: 0n };
  for (let n = 1; n <= 4; n++) {
    const mine = log.filter((x) => x.batch === n).sort((p, q) => p.record.lane - q.record.lane || Number(p.record.seq - q.record.seq));
    const t = c.buildTree(c.LOG_TREE, dom, mine.map((x) => c.logLeaf(dom, x.record, x.digest)));
    const lanes = [1, 2].map((lane) => ({ lane, first: done[lane] + 1n, last: mine.filter((x) => x.record.lane === lane).at(-1)?.record.seq ?? 0n })).filter((l) => l.last >= l.first);
    for (const l of lanes) done[l.lane] = l.last;
    cumFee += t.root.sum;
    const h = { seq: BigInt(n), spec: 1, prevHash, logRoot: t.root.hash, manifest: h32('manifest', n), leafCount: mine.length, inferences: mine.filter((x) => x.record.type === 1).length, feeSum: t.root.sum, cumFee, closedAt: 1_700_000_000n + BigInt(n * 600) };
    const v = headerVector(h, lanes, CHAIN, LEDGER);
    prevHash = v.batchHash;
    built.push({ ...v, mixHash: mix[n - 1], ratePpb: rate[n - 1], seed: c.sampleSeed(v.batchHash, mix[n - 1]), records: mine.map((x) => ({ digest: x.digest, encoded: c.hex(c.encodeRecord(x.record)) })), mine });
  }

  const cum = new Map(), out = [];
  let prevRoot = c.ZERO32;
  for (const [epoch, from, paidTo, evidenceTo] of [[1, 1, 2, 3], [2, 3, 4, 4]]) {
    const inRange = (lo, hi) => built.slice(lo - 1, hi).flatMap((x) => x.mine.map((m) => ({ ...m, seed: x.seed, rate: x.ratePpb, closedAt: x.header.closedAt })));
    const sorted = inRange(1, evidenceTo).filter((m) => m.record.type === 2).sort((p, q) => p.record.lane - q.record.lane || Number(p.record.seq - q.record.seq)).map((m) => m.record);
    state.at = Number(built[paidTo - 1].header.closedAt);
    const { sums, stats } = c.reward(inRange(from, paidTo).filter((m) => m.record.type === 1), sorted, state);
    for (const [account, v] of sums) cum.set(account, (cum.get(account) ?? 0n) + v);
    const tree = c.rewardTree(rdom, cum);
    const total = BigInt(built[paidTo - 1].header.cumFee);
    if (tree.root.sum !== total) throw new Error(`epoch ${epoch}: ${tree.root.sum} paid of ${total}`);
    const h = { epoch, prevRoot, root: tree.root.hash, total: s(total), leaves: tree.count, batchPaid: String(paidTo), batchEvidence: String(evidenceTo), manifest: h32('epoch manifest', epoch) };
    out.push({
      paidAfter: from - 1, header: h, digest: c.epochDigest(h, CHAIN, VAULT), stats: Object.fromEntries(Object.entries(stats).map(([k, v]) => [k, s(v)])),
      sums: [...sums].map(([account, amount]) => ({ account, amount: s(amount) })),
      cumulative: tree.accounts.map(([account, amount], index) => ({ index, account, amount: s(amount) })),
      proofs: tree.accounts.map((_, i) => ({ ...proof(tree, i), account: tree.accounts[i][0] })).slice(0, 3) });
    prevRoot = tree.root.hash;
  }
  return { chainId: CHAIN, ledger: LEDGER, vault: VAULT, token: c.ZERO20, state: stateVector(state), batches: built.map(({ mine, ...rest }) => rest), epochs: out };
}

// ---------------------------------------------------------------- identities, commitments, sampling, manifests

function identities() {
  const bytesOf = (seed, n) => c.bytes(c.hex(...Array.from({ length: Math.ceil(n / 32) }, (_, i) => h32(seed, i)))).slice(0, n);
  const mat = (seed, dtype, rows, columns) => ({ dtype, rows, columns, bytes: bytesOf(seed, rows * columns * { F32: 4, F16: 2, BF16: 2 }[dtype]) });
  const module = (path, rank, scale, dtype) => ({ path, rank, scale, a: mat(path + 'a', dtype, rank, 6), b: mat(path + 'b', dtype, 5, rank) });
  const adapters = [
    [module('model.layers.0.self_attn.q_proj', 4, 2, 'F32')],
    [module('model.layers.10.self_attn.v_proj', 8, 16 / Math.sqrt(8), 'BF16'), module('model.layers.2.self_attn.v_proj', 2, 0.5, 'F16'), module('model.layers.2.mlp.down_proj', 3, 4 / 3, 'BF16')]];
  const model = {
    config: text('{"model_type":"llama"}'), tokenizer: text('{"version":"1.0"}'), template: text('{{ messages }}'),
    tensors: [{ name: 'model.norm.weight', dtype: 'BF16', dims: [8], bytes: bytesOf('norm', 16) }, { name: 'lm_head.weight', dtype: 'F32', dims: [4, 8], bytes: bytesOf('head', 128) }] };
  const hx = (o) => JSON.parse(JSON.stringify(o, (k, v) => (v instanceof Uint8Array ? c.hex(v) : v)));
  const hexModel = { ...model, config: c.hex(model.config), tokenizer: c.hex(model.tokenizer), template: c.hex(model.template), tensors: model.tensors.map((t) => ({ ...t, bytes: c.hex(t.bytes) })) };
  return {
    blake: [0, 1, 31, 128, 129, 300].map((n) => ({ input: c.hex(bytesOf('blake', n)), hash: c.blake(bytesOf('blake', n)) })),
    adapters: adapters.map((modules) => ({ modules: modules.map((m) => ({ ...m, a: { ...m.a, bytes: c.hex(m.a.bytes) }, b: { ...m.b, bytes: c.hex(m.b.bytes) } })), id: c.adapterIdOf(modules) })),
    model: { ...hx(hexModel), id: c.modelIdOf(model) },
    compositions: [[], [65536], [65536, -32768], [1, -2147483648, 2147483647], Array(8).fill(8192)].map((w) => {
      const list = set(...w).sort((p, q) => (p.id < q.id ? -1 : 1));
      return { set: list, encoded: c.hex(c.encodeSet(list)), id: c.compositionIdOf(list), setHash: c.keccak(c.encodeSet(list)) };
    }) };
}

function commitments() {
  const salt = h32('salt'), payer = addr('payer');
  const choices = [[1, 2, 3], [], [4294967295]], ids = [5, 0, 65536, 4294967295];
  return {
    salt, payer, promptIds: ids, choices, inputs: c.hex(h32('inputs'), '0x0102'), subSalts: [1, 2, 3, 4].map((k) => c.subSalt(salt, k)), appCommit: c.appCommit(salt, payer),
    promptCommit: c.promptCommit(salt, ids), promptCommitEmpty: c.promptCommit(salt, []), outputCommit: c.outputCommit(salt, choices), outputCommitOne: c.outputCommit(salt, [[9]]),
    inputsDigest: c.inputsDigest(salt, c.hex(h32('inputs'), '0x0102')),
    stop: { strings: ['\n\n', 'é', ''], tokenIds: [2, 128001], hash: c.stopHash(['\n\n', 'é', ''], [2, 128001]), empty: c.stopHash([], []) },
    bias: { entries: [[3, -1.5], [900, 100]], hash: c.biasHash([[3, -1.5], [900, 100]]), empty: c.biasHash([]) } };
}

function sampling() {
  const seed = c.sampleSeed(h32('batch'), h32('mix'));
  const rates = [0, 1, 1_000_000, 250_000_000, 999_999_999, E];
  const draws = Array.from({ length: 24 }, (_, i) => ({ lane: 1 + (i % 3), seq: String(1 + i * 7), ratePpb: rates[i % rates.length] }));
  return { batchHash: h32('batch'), mixHash: h32('mix'), seed, draws: draws.map((x) => ({ ...x, drawn: c.drawn(seed, x.lane, BigInt(x.seq), x.ratePpb) })) };
}

const entries = [{ payee: addr('author', 0), role: 1, bps: 4000 }, { payee: addr('data', 1), role: 2, bps: 3500 }, { payee: addr('data', 2), role: 2, bps: 2500 }].sort(byRolePayee);
const manifest = (() => {
  const owner = c.addressOf(key('adapter owner')).toLowerCase();
  return { adapterId: h32('adapter', 0), modelId: h32('model'), datanetId: c.datanetIdOf(CHAIN, REGISTRY, owner, h32('datanet salt')), datanetVersion: '3', owner, priceIn: '1000003', priceOut: '5000011', split: entries, version: '1',
    parents: [{ adapterId: h32('parent', 1), bps: 1500 }, { adapterId: h32('parent', 2), bps: 3500 }].sort((p, q) => (p.adapterId < q.adapterId ? -1 : 1)) };
})();

function manifests() {
  const k = key('adapter owner'), salt = h32('register salt'), digest = c.publishDigest(manifest, CHAIN, REGISTRY);
  const doc = { datanetId: manifest.datanetId, digest: h32('document'), licence: 'CC-BY-4.0', terms: 'https://example.org/terms', display: true };
  return {
    registry: REGISTRY, publish: { manifest, splitHash: c.splitHash(entries), parentsHash: c.parentsHash(manifest.parents), digest, key: k, signature: c.sign(digest, k) }, salt,
    commitment: c.adapterCommitment(manifest.adapterId, manifest.owner, salt), datanetSalt: h32('datanet salt'),
    consent: { key: k, signDigest: c.consentDigest(manifest, CHAIN, REGISTRY) },
    licence: { ...doc, typeString: c.LICENCE_TYPE, contract: REGISTRY, signDigest: c.licenceDigest(doc, CHAIN, REGISTRY) },
    types: { publish: c.PUBLISH_TYPE, epoch: c.EPOCH_TYPE, licence: c.LICENCE_TYPE, consent: c.CONSENT_TYPE } };
}

// rising, as a reader has to hold them
function datanets() {
  const licences = ['CC0-1.0', 'CC-BY-4.0', '', 'Ünïcode'];
  return [1, 2, 3, 4, 5, 8, 9, 33].map((n) => {
    const owners = Array.from({ length: n }, (_, i) => ({ owner: addr('document owner', i), documents: i % 3 === 0 ? 4294967295 : i + 1 })).sort((p, q) => (p.owner < q.owner ? -1 : 1));
    const documents = Array.from({ length: n }, (_, i) => ({ digest: h32('document', i), owner: owners[i % owners.length].owner, bytes: s(i === 1 ? (1n << 64n) - 1n : BigInt(i) * 1009n), licence: licences[i % 4] }))
      .sort((p, q) => (p.digest < q.digest ? -1 : 1));
    return { owners, ownerRoot: c.ownerRoot(owners), documents, documentRoot: c.documentRoot(documents) };
  });
}

// ---------------------------------------------------------------- Ethereum

function ethereum(world) {
  const pattern = (n) => Uint8Array.from({ length: n }, (_, i) => (i * 7 + 3) & 255);
  const keccak = [0, 1, 3, 55, 135, 136, 137, 200, 271, 272, 273, 500].map((n) => ({ input: c.hex(pattern(n)), hash: ethersKeccak(pattern(n)) }));
  keccak.push({ input: c.hex(text('abc')), hash: ethersKeccak(text('abc')) });
  const checksums = [...Array.from({ length: 12 }, (_, i) => addr('eip55', i)), '0x5aaeb6053f3e94c9b9a09f33669435e7ef1beaed', '0xfb6916095ca1df60bb79ce92ce3ea74c37c5d359', '0x52908400098527886e0f7030069857d2e4169ee7', c.ZERO20].map((a) => ({ address: a, checksummed: getAddress(a) }));
  const one = c.hex(c.uint(1, 32)), top = c.hex(c.uint(0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364140n, 32));
  const keys = [one, c.hex(c.uint(2, 32)), top, key('lane 1'), key('poster')].map((k) => ({ key: k, address: c.addressOf(k) }));
  const signatures = [[one, sha256(text('Satoshi Nakamoto'))], [top, h32('message')], [key('poster'), c.ZERO32.replace(/0$/, '1')], ...Array.from({ length: 8 }, (_, i) => [key('signer ' + i), h32('message', i)])].map(([k, digest]) => ({ key: k, digest, signature: c.sign(digest, k), signer: c.addressOf(k) }));
  return { keccak, eip55: checksums, keys, signatures, transactions: transactions(), calls: calls(world) };
}

function transactions() {
  const r = stream('transactions'), out = [];
  for (let i = 0; i < 50; i++) {
    const k = key('poster ' + (i % 5));
    const dataLen = [0, 1, 4, 31, 36, 55, 56, 255, 300, 68][i % 10];
    const data = c.hex(Uint8Array.from({ length: dataLen }, () => (r.int(3) ? r.int(256) : r.int(2) ? 0 : 1 + r.int(127))));
    const f = {
      chainId: i % 4 ? CHAIN : Number(r.bits(1 + r.int(31))) + 1, nonce: i < 3 ? i : Number(r.bits(1 + r.int(40))), maxPriorityFeePerGas: i % 7 ? r.bits(1 + r.int(60)) : 0n, maxFeePerGas: 0n,
      gasLimit: 21000n + r.bits(1 + r.int(24)), to: i % 9 === 8 ? null : addr('to', i), value: i % 3 ? 0n : r.bits(1 + r.int(100)), data };
    f.maxFeePerGas = f.maxPriorityFeePerGas + r.bits(1 + r.int(60));
    const t = Transaction.from({ type: 2, accessList: [], ...f });
    const unsignedHash = t.unsignedHash;
    t.signature = c.sign(unsignedHash, k);
    out.push({ key: k, from: c.addressOf(k), ...f, nonce: String(f.nonce), chainId: String(f.chainId), maxPriorityFeePerGas: s(f.maxPriorityFeePerGas), maxFeePerGas: s(f.maxFeePerGas), gasLimit: s(f.gasLimit), value: s(f.value), signHash: unsignedHash, raw: t.serialized, hash: t.hash });
    if (new Wallet(k).address !== t.from) throw new Error('signature does not recover');
  }
  return out;
}

function calls(world) {
  const reg = abi('Registry'), led = abi('AttributionLedger'), vau = abi('RewardVault'), out = [];
  const put = (contract, iface, name, args) => out.push({
    contract, function: iface.getFunction(name).format('sighash'), args: JSON.parse(JSON.stringify(args, (_, v) => (typeof v === 'bigint' ? s(v) : v instanceof Uint8Array ? c.hex(v) : v))), data: iface.encodeFunctionData(name, args) });
  const b = world.batches[1], m = world.epochs[0], p = m.proofs[1], p0 = m.proofs[0], b4 = batches()[3];
  const man = manifests();
  const claim = (x) => ['1', x.index, x.account, x.sum, x.hashes, x.sums];
  put('ledger', led, 'registerLane', [7, c.addressOf(key('lane 1')), addr('operator', 1)]);
  put('ledger', led, 'rotateLaneKey', [7, c.addressOf(key('lane 2')), '1000']);
  put('ledger', led, 'sealLane', [7, '2000']);
  put('ledger', led, 'setLaneOperator', [7, addr('operator', 2)]);
  put('ledger', led, 'commit', [headerTuple(b.header), b.lanes.map(laneTuple)]);
  put('ledger', led, 'commit', [headerTuple(b4.header), b4.lanes.map(laneTuple)]);
  put('ledger', led, 'dropBatch', [headerTuple(b.header), b.lanes.map(laneTuple), headerTuple(world.batches[0].header), world.batches[0].lanesHash]);
  for (const v of ['beaconDelay', 'wait', 'notice']) put('ledger', led, v, []);
  put('ledger', led, 'setRate', [500_000_000]);
  put('ledger', led, 'head', []);
  put('ledger', led, 'batchHash', ['7']);
  put('ledger', led, 'laneNext', [7]);
  put('ledger', led, 'laneKey', [7, '12']);
  put('ledger', led, 'laneOperatorAt', [7, '1700000000']);
  put('ledger', led, 'rateAt', ['1700000000']);
  put('vault', vau, 'propose', [epochTuple(m.header), headerTuple(b.header), b.lanesHash, []]);
  put('vault', vau, 'propose', [epochTuple(m.header), headerTuple(b.header), b.lanesHash, [man.publish.signature, c.sign(m.digest, key('attestor'))]]);
  put('vault', vau, 'claim', claim(p));
  put('vault', vau, 'claimMany', [[claim(p0), claim(p)]]);
  put('vault', vau, 'setPayout', [addr('cold')]);
  put('vault', vau, 'veto', ['2']);
  put('vault', vau, 'retireEpoch', ['2']);
  put('vault', vau, 'disableByProof', ['1', 3, [claim(p0), claim(p)]]);
  put('vault', vau, 'fundTo', [b.header.cumFee]);
  put('vault', vau, 'withdrawSurplus', [addr('cold'), '5']);
  for (const v of ['lastEpoch', 'lastLive', 'totalClaimed', 'funded', 'startSeq', 'startCumFee', 'activeEpoch', 'held', 'window', 'wait', 'dailyCap', 'paidToday', 'lockedSeq', 'attestorsMin', 'token']) put('vault', vau, v, []);
  put('vault', vau, 'epochs', ['1']);
  put('vault', vau, 'claimed', [addr('payee', 0)]);
  put('vault', vau, 'payoutOf', [addr('payee', 0)]);
  const parents = manifest.parents.map(parentTuple), consent = c.sign(man.consent.signDigest, man.consent.key);
  put('registry', reg, 'commitAdapter', [man.commitment]);
  put('registry', reg, 'register', [publishTuple(manifest), entries.map(entryTuple), parents, man.salt, man.publish.signature, consent]);
  put('registry', reg, 'register', [publishTuple(manifest), entries.map(entryTuple), [], man.salt, '0x', '0x']);
  put('registry', reg, 'update', [publishTuple({ ...manifest, version: '2' }), entries.map(entryTuple), parents, '0x', '0x']);
  put('registry', reg, 'setSplit', [manifest.adapterId, entries.map(entryTuple)]);
  put('registry', reg, 'registerBase', [manifest.modelId, addr('base owner'), entries.map(entryTuple)]);
  put('registry', reg, 'registerDatanet', [man.datanetSalt, h32('doc root'), h32('owner root'), 9, 4, h32('tokenizer')]);
  put('registry', reg, 'setDatanet', [manifest.datanetId, '3', h32('doc root'), h32('owner root'), 9, 4, h32('tokenizer')]);
  put('registry', reg, 'setPrice', [manifest.adapterId, manifest.priceIn, manifest.priceOut]);
  put('registry', reg, 'setTariff', [7, manifest.modelId, '100', '200']);
  put('registry', reg, 'tariffAt', [7, manifest.modelId, '1700000000']);
  put('registry', reg, 'datanetVersion', [manifest.datanetId, '3']);
  put('registry', reg, 'registerMethod', [h32('method S0')]);
  put('registry', reg, 'committedAt', [man.commitment]);
  put('registry', reg, 'policyAt', ['1700000000']);
  put('registry', reg, 'baseAt', [manifest.modelId, '1700000000']);
  put('registry', reg, 'adapterAt', [manifest.adapterId, '1700000000']);
  put('registry', reg, 'datanetAt', [manifest.datanetId, '1700000000']);
  const topics = [];
  for (const [contract, iface] of [['registry', reg], ['ledger', led], ['vault', vau]])
    iface.forEachEvent((e) => topics.push({ contract, event: e.format('sighash'), topic: e.topicHash }));
  const errors = [];
  for (const [contract, iface] of [['registry', reg], ['ledger', led], ['vault', vau]])
    iface.forEachError((e) => errors.push({ contract, error: e.format('sighash'), selector: e.selector }));
  const answers = [
    ['registry', reg, 'policyAt', [[2000, 6000, 1500, 500, addr('treasury'), 1700000000]]], ['registry', reg, 'baseAt', [true, entries.map(entryTuple)]], ['registry', reg, 'baseAt', [false, []]],
    ['registry', reg, 'adapterAt', [[true, 1700000000, manifest.modelId, manifest.datanetId, 3, 1000003, 5000011, entries.map(entryTuple), parents]]],
    ['registry', reg, 'adapterAt', [[false, 0, c.ZERO32, c.ZERO32, 0, 0, 0, [], []]]], ['registry', reg, 'tariffAt', [1700000000, 100, 200]],
    ['registry', reg, 'datanetAt', [true, [1700000000, 3, h32('doc root'), h32('owner root'), 9, 4, h32('tokenizer')]]],
    ['ledger', led, 'head', [2, 1700001200, b.header.cumFee]], ['vault', vau, 'epochs', [m.header.root, m.header.total, 1700003600, m.header.leaves, false, 2, 3, 0]]];
  return { calls: out, topics, errors, answers: answers.map(([contract, iface, name, values]) => ({ contract, function: iface.getFunction(name).format('sighash'), values, data: iface.encodeFunctionResult(name, values) })) };
}

// ---------------------------------------------------------------- file

export function golden() {
  const world = epochs();
  return {
    about: 'Vectors of every format; produced by chain_client/contracts/js/golden.mjs. Integers above 32 bits are decimal strings; all keys are test keys.',
    chainId: CHAIN, ledger: LEDGER, vault: VAULT, registry: REGISTRY, token: TOKEN,
    types: { inference: c.structType(1), attribution: c.structType(2), void: c.structType(3), batchType: c.BATCH_TYPE, domainSeparator: c.domainSeparator(CHAIN, LEDGER), domainSeparatorUnbound: c.domainSeparator(0, c.ZERO20) },
    records: records(), commitments: commitments(), identities: identities(), trees: trees(), batches: batches(), remainders: remainders(), sampling: sampling(), manifests: manifests(), datanets: datanets(), world, ethereum: ethereum(world) };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await import('../build.mjs');
  const files = { 'golden.json': JSON.stringify(golden(), null, 1) + '\n', 'fields.json': JSON.stringify(c.fieldTable(), null, 1) + '\n' };
  let differ = 0;
  for (const [name, body] of Object.entries(files)) {
    const url = new URL(name, DATA), same = existsSync(url) && readFileSync(url, 'utf8') === body;
    if (process.argv.includes('--check')) {
      if (!same) console.error(`tests/data/${name} differs from what the formats produce`);
      differ += !same;
    } else if (!same) writeFileSync(url, body);
    console.log(`tests/data/${name}: ${body.length} bytes${same ? ', unchanged' : ''}`);
  }
  process.exit(differ ? 1 : 0);
}

// Every format of the specification, in JavaScript: records, digests, commitments, trees, batches, ids and Reward(e).
// It shares no code with the C or the Solidity, so that the golden vectors compare three readings of one page.
// Values: bytes are Uint8Array or 0x-hex on the way in and 0x-hex on the way out; integers are BigInt or safe Number
// on the way in and BigInt on the way out. Nothing here does I/O and nothing is random.
import { blake2b } from '@noble/hashes/blake2b';
import { SigningKey, computeAddress, getBytes, hexlify, keccak256, toUtf8Bytes } from 'ethers';

export const SPEC = 1;
export const E9 = 1_000_000_000n;
export const ZERO32 = '0x' + '00'.repeat(32);
export const ZERO20 = '0x' + '00'.repeat(20);
export const CUM_FEE_MAX = 1n << 112n;
export const LEAVES_MAX = 1 << 17;
export const ADAPTERS_MAX = 8;
export const PAYEES_MAX = 64;
export const ROLE_DATA = 2;

// ---------------------------------------------------------------- bytes

export const bytes = (v) => (v instanceof Uint8Array ? v : getBytes(v));
export const text = (s) => toUtf8Bytes(s);

export function join(...parts) {
  const all = parts.flat().map(bytes);
  const out = new Uint8Array(all.reduce((n, p) => n + p.length, 0));
  let at = 0;
  for (const p of all) {
    out.set(p, at);
    at += p.length;
  }
  return out;
}

export const hex = (...parts) => hexlify(join(...parts));
export const keccak = (...parts) => keccak256(join(...parts));

// width-byte big-endian integer; refuses what does not fit
export function uint(v, width) {
  let x = BigInt(v);
  if (x < 0n || x >> BigInt(8 * width)) throw new RangeError(`${v} does not fit in ${width} bytes`);
  const out = new Uint8Array(width);
  for (let i = width - 1; i >= 0; i--) {
    out[i] = Number(x & 255n);
    x >>= 8n;
  }
  return out;
}

export const u8 = (v) => uint(v, 1);
export const u16 = (v) => uint(v, 2);
export const u32 = (v) => uint(v, 4);
export const u64 = (v) => uint(v, 8);
export const u128 = (v) => uint(v, 16);
export const word = (v) => (typeof v === 'string' || v instanceof Uint8Array ? pad32(bytes(v)) : uint(v, 32));

export function i32(v) {
  const x = BigInt(v);
  if (x < -(1n << 31n) || x >= 1n << 31n) throw new RangeError(`${v} does not fit in i32`);
  return uint(x < 0n ? x + (1n << 32n) : x, 4);
}

export function f32(v) {
  const b = new Uint8Array(4);
  new DataView(b.buffer).setFloat32(0, v);
  return b;
}

export function f64(v) {
  const b = new Uint8Array(8);
  new DataView(b.buffer).setFloat64(0, v);
  return b;
}

function pad32(b) {
  if (b.length > 32) throw new RangeError('more than 32 bytes in a word');
  return join(new Uint8Array(32 - b.length), b); // addresses and integers: padded on the left
}

export const toInt = (b) => bytes(b).reduce((x, y) => (x << 8n) | BigInt(y), 0n);
const compareBytes = (a, b) => {
  const x = bytes(a), y = bytes(b);
  for (let i = 0; i < Math.min(x.length, y.length); i++) if (x[i] !== y[i]) return x[i] - y[i];
  return x.length - y.length;
};

// ---------------------------------------------------------------- records

// [name, Solidity type, width]; the prefix is the same for all
const PREFIX = [['spec', 'uint8', 1], ['type', 'uint8', 1], ['lane', 'uint32', 4], ['seq', 'uint64', 8]];
export const RECORDS = {
  1: {
    struct: 'Inference',
    fields: [...PREFIX, ['requestId', 'bytes32', 32], ['appCommit', 'bytes32', 32], ['modelId', 'bytes32', 32],
      ['adapterSetHash', 'bytes32', 32], ['tokensIn', 'uint32', 4], ['tokensOut', 'uint32', 4], ['fee', 'uint128', 16],
      ['tariffHash', 'bytes32', 32], ['paramsHash', 'bytes32', 32], ['engineId', 'bytes32', 32], ['startMs', 'uint64', 8],
      ['endMs', 'uint64', 8], ['status', 'uint8', 1], ['promptCommit', 'bytes32', 32], ['outputCommit', 'bytes32', 32]],
    tails: [['set', 'adapterSetHash'], ['tariff', 'tariffHash'], ['params', 'paramsHash']],
  },
  2: {
    struct: 'Attribution',
    fields: [...PREFIX, ['infSeq', 'uint64', 8], ['infDigest', 'bytes32', 32], ['methodHash', 'bytes32', 32],
      ['indexHash', 'bytes32', 32], ['inputsDigest', 'bytes32', 32], ['outcome', 'uint8', 1], ['influenceHash', 'bytes32', 32]],
    tails: [['influence', 'influenceHash']],
  },
  3: { struct: 'Void', fields: [...PREFIX, ['reason', 'uint8', 1]], tails: [] },
};

export const PARAMS = [['n', 'uint16', 2], ['maxTokens', 'uint32', 4], ['minTokens', 'uint32', 4], ['temperature', 'f32', 4],
  ['topP', 'f32', 4], ['topK', 'uint32', 4], ['minP', 'f32', 4], ['presencePenalty', 'f32', 4], ['frequencyPenalty', 'f32', 4],
  ['repetitionPenalty', 'f32', 4], ['seed', 'uint64', 8], ['flags', 'uint8', 1], ['stopHash', 'bytes32', 32],
  ['biasHash', 'bytes32', 32], ['templateDigest', 'bytes32', 32]];

function field(type, width, v) {
  if (type === 'f32') return f32(v);
  if (type === 'bytes32') {
    if (bytes(v).length !== 32) throw new RangeError('bytes32 expected');
    return bytes(v);
  }
  return uint(v, width);
}

const offsets = (fields) => {
  let at = 0;
  return fields.map(([name, type, width]) => ({ name, type, width, offset: (at += width) - width }));
};

// the table for machines: tests/data/fields.json
export function fieldTable() {
  const out = {};
  for (const [type, r] of Object.entries(RECORDS)) {
    const fields = offsets(r.fields);
    out[r.struct.toLowerCase()] = {
      type: Number(type), fixed_bytes: fields.at(-1).offset + fields.at(-1).width, fields,
      tails: r.tails.map(([name, hash]) => ({ name, hash })), eip712: structType(Number(type)),
    };
  }
  const p = offsets(PARAMS);
  out.params = { fixed_bytes: p.at(-1).offset + p.at(-1).width, fields: p };
  return out;
}

export const encodeSet = (set) => {
  if (set.length > ADAPTERS_MAX) throw new RangeError('more than 8 adapters');
  set.forEach((a, i) => {
    if (BigInt(a.weight) === 0n) throw new RangeError('weight 0');
    if (i && compareBytes(set[i - 1].id, a.id) >= 0) throw new RangeError('set not strictly ascending');
  });
  return join(set.flatMap((a) => [bytes(a.id), i32(a.weight)]));
};

export const encodeTariff = (tariff) => {
  for (const t of tariff) if (BigInt(t.in) >> 80n || BigInt(t.out) >> 80n) throw new RangeError('price is 2^80 or more');
  return join(tariff.flatMap((t) => [u128(t.in), u128(t.out)]));
};

export const encodeParams = (p) => join(PARAMS.map(([name, type, width]) => field(type, width, p[name])));

export const stopHash = (strings, tokenIds) =>
  keccak(u32(strings.length), strings.flatMap((s) => [u32(text(s).length), text(s)]), u32(tokenIds.length), tokenIds.map(u32));
export const biasHash = (entries) => keccak(entries.flatMap(([id, bias]) => [u32(id), f32(bias)]));

export const encodeInfluence = (influence) =>
  join(influence.flatMap((a) => [u32(a.gain), u8(a.payees.length), ...a.payees.flatMap((p) => [bytes(p.payee), u32(p.ppb)])]));

export function decodeSet(b) {
  b = bytes(b);
  if (b.length % 36 || b.length / 36 > ADAPTERS_MAX) return null;
  const set = [];
  for (let at = 0; at < b.length; at += 36) {
    set.push({ id: hexlify(b.slice(at, at + 32)), weight: BigInt.asIntN(32, toInt(b.slice(at + 32, at + 36))) });
    if (set.at(-1).weight === 0n || (at && compareBytes(set.at(-2).id, set.at(-1).id) >= 0)) return null;
  }
  return set;
}

export function decodeTariff(b) {
  const out = [];
  for (let i = 0; i < bytes(b).length; i += 32) out.push({ in: toInt(bytes(b).slice(i, i + 16)), out: toInt(bytes(b).slice(i + 16, i + 32)) });
  return out;
}

// null unless the tail is exactly k adapters with all sums and orders right
export function decodeInfluence(b, k) {
  b = bytes(b);
  const out = [];
  let at = 0, gains = 0n;
  for (let i = 0; i < k; i++) {
    if (at + 5 > b.length) return null;
    const gain = toInt(b.slice(at, at + 4)), n = b[at + 4];
    at += 5;
    if (n > PAYEES_MAX || at + 24 * n > b.length) return null;
    const payees = [];
    let sum = 0n;
    for (let j = 0; j < n; j++, at += 24) {
      payees.push({ payee: hexlify(b.slice(at, at + 20)), ppb: toInt(b.slice(at + 20, at + 24)) });
      if (j && compareBytes(payees[j - 1].payee, payees[j].payee) >= 0) return null;
      sum += payees[j].ppb;
    }
    if (n && sum !== E9) return null;
    gains += gain;
    out.push({ gain, payees });
  }
  return at === b.length && gains === E9 ? out : null;
}

// fixed part (prefix included) of a record whose hash fields are already there
export const encodeFixed = (r) => join(RECORDS[r.type].fields.map(([name, type, width]) => field(type, width, r[name])));

// r.tails = {name: bytes}; r.signature 65 bytes
export const encodeRecord = (r) =>
  join(encodeFixed(r), RECORDS[r.type].tails.flatMap(([name]) => [u32(bytes(r.tails[name]).length), bytes(r.tails[name])]), bytes(r.signature));

export function decodeRecord(b) {
  b = bytes(b);
  const table = RECORDS[b[1]];
  if (!table) throw new Error(`record type ${b[1]} is unknown`);
  const r = { tails: {} };
  let at = 0;
  for (const [name, type, width] of table.fields) {
    const raw = b.slice(at, (at += width));
    if (raw.length !== width) throw new Error(`record ends inside ${name}`);
    r[name] = type === 'bytes32' ? hexlify(raw) : width <= 4 ? Number(toInt(raw)) : toInt(raw);
  }
  for (const [name, hash] of table.tails) {
    const n = Number(toInt(b.slice(at, at + 4)));
    r.tails[name] = hexlify(b.slice(at + 4, at + 4 + n));
    at += 4 + n;
    if (at > b.length) throw new Error(`record ends inside ${name}`);
    if (keccak(r.tails[name]) !== r[hash]) throw new Error(`${name} does not hash to ${hash}`);
  }
  r.signature = hexlify(b.slice(at));
  if (b.length - at !== 65) throw new Error('a record ends with a signature of 65 bytes');
  return r;
}

export function feeOf(tokensIn, tokensOut, tariff) {
  const sum = (k) => tariff.reduce((x, t) => x + BigInt(t[k]), 0n);
  return (BigInt(tokensIn) * sum('in') + BigInt(tokensOut) * sum('out')) / 1000n;
}

// ---------------------------------------------------------------- EIP-712

export function structType(type) {
  const r = RECORDS[type];
  return `${r.struct}(${r.fields.filter(([n]) => n !== 'type').map(([n, t]) => `${t} ${n}`).join(',')})`;
}

const DOMAIN_TYPE = 'EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)';
export const domainSeparator = (chainId, contract) =>
  keccak(keccak(text(DOMAIN_TYPE)), keccak(text('residual')), keccak(text('1')), word(BigInt(chainId)), word(contract));

export const typedDigest = (domain, structHash) => keccak('0x1901', domain, structHash);

export const structHash = (r) =>
  keccak(keccak(text(structType(r.type))),
    RECORDS[r.type].fields.filter(([n]) => n !== 'type').map(([n, t, w]) => pad32(field(t, w, r[n]))));

export const recordDigest = (r, chainId, ledger) => typedDigest(domainSeparator(chainId, ledger), structHash(r));

// r ‖ s ‖ v, RFC 6979, low s, v 27 or 28
export const sign = (digest, key) => new SigningKey(hexlify(bytes(key))).sign(digest).serialized;
export const recover = (digest, signature) => computeAddress(SigningKey.recoverPublicKey(digest, hexlify(bytes(signature))));
export const addressOf = (key) => computeAddress(new SigningKey(hexlify(bytes(key))).publicKey);

export const PUBLISH_TYPE = 'Publish(bytes32 adapterId,bytes32 modelId,bytes32 datanetId,uint64 datanetVersion,address owner,uint128 priceIn,uint128 priceOut,bytes32 splitHash,bytes32 parentsHash,uint64 version)';
export const CONSENT_TYPE = 'DatanetConsent(bytes32 datanetId,uint64 datanetVersion,bytes32 adapterId)';
export const LICENCE_TYPE = 'DocumentLicence(bytes32 datanetId,bytes32 digest,string licence,string terms,bool display,address registry)';
export const EPOCH_TYPE = 'Epoch(uint64 epoch,bytes32 prevRoot,bytes32 root,uint128 total,uint32 leaves,uint64 batchPaid,uint64 batchEvidence,bytes32 manifest)';

// keccak(abi.encode(SplitEntry[]))
export const splitHash = (entries) =>
  keccak(word(32), word(BigInt(entries.length)), entries.flatMap((e) => [word(e.payee), word(BigInt(e.role)), word(BigInt(e.bps))]));

// keccak(abi.encode(Parent[]))
export const parentsHash = (parents) => keccak(word(32), word(BigInt(parents.length)), parents.flatMap((p) => [word(p.adapterId), word(BigInt(p.bps))]));

export const publishHash = (m) =>
  keccak(keccak(text(PUBLISH_TYPE)), word(m.adapterId), word(m.modelId), word(m.datanetId), word(BigInt(m.datanetVersion)), word(m.owner),
    word(BigInt(m.priceIn)), word(BigInt(m.priceOut)), splitHash(m.split), parentsHash(m.parents), word(BigInt(m.version)));
export const publishDigest = (m, chainId, registry) => typedDigest(domainSeparator(chainId, registry), publishHash(m));

export const consentDigest = (m, chainId, registry) =>
  typedDigest(domainSeparator(chainId, registry), keccak(keccak(text(CONSENT_TYPE)), word(m.datanetId), word(BigInt(m.datanetVersion)), word(m.adapterId)));

export const licenceDigest = (d, chainId, registry) =>
  typedDigest(domainSeparator(chainId, registry),
    keccak(keccak(text(LICENCE_TYPE)), word(d.datanetId), word(d.digest), keccak(text(d.licence)), keccak(text(d.terms)), word(d.display ? 1n : 0n), word(registry)));

export const epochDigest = (h, chainId, vault) =>
  typedDigest(domainSeparator(chainId, vault),
    keccak(keccak(text(EPOCH_TYPE)), word(BigInt(h.epoch)), word(h.prevRoot), word(h.root), word(BigInt(h.total)), word(BigInt(h.leaves)),
      word(BigInt(h.batchPaid)), word(BigInt(h.batchEvidence)), word(h.manifest)));

// ---------------------------------------------------------------- roots of a datanet version

function contentRoot(domain, leaves) {
  const dom = keccak(text(domain)), pad = keccak(u8(0x22), dom);
  let level = leaves.map((leaf) => leaf(dom));
  while (level.length & (level.length - 1)) level.push(pad);
  while (level.length > 1) level = Array.from({ length: level.length / 2 }, (_, i) => keccak(u8(0x21), level[2 * i], level[2 * i + 1]));
  return level[0];
}

const rising = (list, key) => [...list].sort((p, q) => (key(p) < key(q) ? -1 : 1));

// of {owner, documents}
export const ownerRoot = (owners) =>
  contentRoot('residual.owners.1', rising(owners, (o) => BigInt(o.owner)).map((o, i) => (dom) => keccak(u8(0x20), dom, u32(i), o.owner, u32(o.documents))));

// of {digest, owner, bytes, licence}
export const documentRoot = (documents) =>
  contentRoot('residual.documents.1', rising(documents, (d) => BigInt(d.digest)).map((d, i) => (dom) =>
    keccak(u8(0x23), dom, u32(i), d.digest, d.owner, uint(BigInt(d.bytes), 8), keccak(text(d.licence)))));

// ---------------------------------------------------------------- commitments

export const subSalt = (salt, k) => keccak(salt, u8(k));
export const appCommit = (salt, payer) => keccak(subSalt(salt, 1), payer);
export const promptCommit = (salt, ids) => keccak(subSalt(salt, 2), ids.map(u32));
export const outputCommit = (salt, choices) => keccak(subSalt(salt, 3), choices.flatMap((ids) => [u32(ids.length), ...ids.map(u32)]));
export const inputsDigest = (salt, inputs) => keccak(subSalt(salt, 4), inputs);

// abi.encode(string, uint256, address[, address]) for a string of at most 32 bytes
function abiString(s, ...words) {
  const b = text(s);
  if (b.length > 32) throw new RangeError('string too long');
  return join(word(BigInt(32 * (words.length + 1))), words.map(word), word(BigInt(b.length)), b, new Uint8Array(32 - b.length));
}

export const adapterCommitment = (adapterId, owner, salt) => keccak(word(adapterId), word(owner), word(salt));
export const datanetIdOf = (chainId, registry, owner, salt) => keccak(abiString('residual.datanet.1', BigInt(chainId), registry, owner, salt));

// ---------------------------------------------------------------- sum trees

export const logDomain = (chainId, ledger) => keccak(abiString('residual.log.1', BigInt(chainId), ledger));
export const rewardDomain = (chainId, vault, token) => keccak(abiString('residual.reward.1', BigInt(chainId), vault, token));

const node = (tag) => (l, r) => ({ hash: keccak(u8(tag), l.hash, u128(l.sum), r.hash, u128(r.sum)), sum: l.sum + r.sum });
export const LOG_TREE = { node: node(0x11), pad: (dom) => ({ hash: keccak('0x12', dom), sum: 0n }) };
export const REWARD_TREE = { node: node(0x01), pad: (dom) => ({ hash: keccak('0x02', dom), sum: 0n }) };

export const logLeaf = (dom, r, digest) =>
  r.type === 1
    ? { hash: keccak('0x10', dom, u32(r.lane), u64(r.seq), digest, u128(r.fee)), sum: BigInt(r.fee) }
    : { hash: keccak('0x13', dom, u32(r.lane), u64(r.seq), digest), sum: 0n };

export const rewardLeaf = (dom, index, account, cumulative) =>
  ({ hash: keccak('0x00', dom, u32(index), account, u128(cumulative)), sum: BigInt(cumulative) });

export const depthOf = (count) => {
  let d = 0;
  while (2 ** d < count) d++;
  return d;
};

// levels[0] = padded leaves ... levels[depth] = [root]
export function buildTree(kind, dom, leaves) {
  if (!leaves.length) throw new RangeError('a tree has at least one leaf');
  const depth = depthOf(leaves.length);
  const levels = [[...leaves]];
  while (levels[0].length < 2 ** depth) levels[0].push(kind.pad(dom));
  for (let d = 0; d < depth; d++) {
    const below = levels[d], up = [];
    for (let i = 0; i < below.length; i += 2) up.push(kind.node(below[i], below[i + 1]));
    levels.push(up);
  }
  return { root: levels[depth][0], levels, depth, count: leaves.length };
}

export function proofOf(tree, index) {
  const hashes = [], sums = [];
  for (let d = 0; d < tree.depth; d++) {
    const s = tree.levels[d][(index >> d) ^ 1];
    hashes.push(s.hash);
    sums.push(s.sum);
  }
  return { hashes, sums };
}

export function foldProof(kind, leaf, index, proof) {
  let at = leaf;
  proof.hashes.forEach((hash, d) => {
    const side = { hash, sum: BigInt(proof.sums[d]) };
    at = (index >> d) & 1 ? kind.node(side, at) : kind.node(at, side);
  });
  return at;
}

export function rewardTree(dom, cum) {
  const accounts = [...cum].filter(([, v]) => v > 0n).sort(([a], [b]) => compareBytes(a, b));
  const tree = buildTree(REWARD_TREE, dom, accounts.map(([a, v], i) => rewardLeaf(dom, i, a, v)));
  return { ...tree, accounts };
}

// ---------------------------------------------------------------- batches

export const BATCH_TYPE = keccak(text('residual.batch.1'));
const HEADER = ['seq', 'spec', 'prevHash', 'logRoot', 'manifest', 'leafCount', 'inferences', 'feeSum', 'cumFee', 'closedAt'];
const headerWords = (h) => HEADER.map((k) => word(typeof h[k] === 'string' ? h[k] : BigInt(h[k])));

export const lanesHash = (lanes) =>
  keccak(word(32), word(BigInt(lanes.length)), lanes.flatMap((l) => [word(BigInt(l.lane)), word(BigInt(l.first)), word(BigInt(l.last))]));
export const batchHash = (h, lanesDigest, chainId, ledger) =>
  keccak(BATCH_TYPE, word(BigInt(chainId)), word(ledger), headerWords(h), lanesDigest);

// ---------------------------------------------------------------- sampling

export const sampleSeed = (batch, mixHash) => keccak(text('residual.sample.1'), batch, mixHash);
export const drawn = (seed, lane, seq, rate) =>
  toInt(bytes(keccak(seed, u32(lane), u64(seq))).slice(0, 4)) * E9 < BigInt(rate) << 32n;

// ---------------------------------------------------------------- Reward(e)

// floors of x*w/W, leftover units to the largest remainders, ties to the lower index
export function largestRemainder(x, weights) {
  x = BigInt(x);
  const w = weights.map(BigInt), W = w.reduce((a, b) => a + b, 0n);
  if (W === 0n) throw new RangeError('weights sum to 0');
  const part = w.map((v) => (x * v) / W), rem = w.map((v) => (x * v) % W);
  const order = w.map((_, i) => i).sort((i, j) => (rem[i] === rem[j] ? i - j : rem[i] > rem[j] ? -1 : 1));
  let left = x - part.reduce((a, b) => a + b, 0n);
  for (const i of order) {
    if (left === 0n) break;
    part[i] += 1n;
    left -= 1n;
  }
  return part;
}

const abs = (v) => (v < 0n ? -v : v);
const add = (map, key, v) => map.set(key, (map.get(key) ?? 0n) + v);

// What is named at t0 of a history, entries ascending by activeAt: those active at some second of [t0 - 600, t0], and a price of 0
// when none was yet at the first of them
export const NAMED_SECONDS = 600n;
export function named(history, t0) {
  const from = t0 > NAMED_SECONDS ? t0 - NAMED_SECONDS : 0n;
  const list = history.filter((e, i) => BigInt(e.activeAt) <= t0 && (i + 1 === history.length || BigInt(history[i + 1].activeAt) > from));
  return history.some((e) => BigInt(e.activeAt) <= from) ? list : [{ activeAt: 0n, datanetVersion: 0n, priceIn: 0n, priceOut: 0n }, ...list];
}
export const startOf = (record, closedAt) => (BigInt(record.startMs) / 1000n < BigInt(closedAt) ? BigInt(record.startMs) / 1000n : BigInt(closedAt));

// paid: type 1 records of (M', M], each {record, digest, seed, rate, closedAt}, where the last three are of its batch; tails in record.tails
// evidence: type 2 records of the batches <= E in (lane, seq) order
// state: what the chain says at T: {at: T, policy: {base, adapters, operator, protocol, treasury}, operators: Map lane -> account,
//   bases: Map modelId -> entries, tariffs: Map `${lane}/${modelId}` -> [{activeAt, priceIn, priceOut}], methods: Map hash -> registeredAt,
//   adapters: Map id -> {datanetId, entries, parents: [{id, bps}], terms: [{activeAt, datanetVersion, priceIn, priceOut}]},
//   owners: Map `${datanetId}/${version}` -> [address]}
export function reward(paid, evidence, state) {
  const out = new Map();
  const stats = { required: 0n, scored: 0n, missing: 0n, feeRequired: 0n, feeScored: 0n, feeMissing: 0n, refused: 0n, feeRefused: 0n };
  const treasury = state.policy.treasury.toLowerCase();
  const pay = (account, v) => v > 0n && add(out, account.toLowerCase(), v);
  const hasDatanet = (id) => BigInt(state.adapters.get(id)?.datanetId ?? 0) !== 0n;

  const terms = (id) => state.adapters.get(id)?.terms ?? [];
  const isRefused = ({ record: r, t0 }) => {
    const histories = [state.tariffs.get(`${r.lane}/${r.modelId}`) ?? [], ...decodeSet(r.tails.set).map((a) => terms(a.id))];
    return !decodeTariff(r.tails.tariff).every((p, i) => named(histories[i], t0).some((e) => BigInt(e.priceIn) === p.in && BigInt(e.priceOut) === p.out));
  };
  const isOwner = (payee, id, t0) => payee === ZERO20 ||
    named(terms(id), t0).some((e) => state.owners.get(`${state.adapters.get(id)?.datanetId}/${e.datanetVersion}`)?.includes(payee));

  // step 0
  paid = paid.map((p) => ({ ...p, t0: startOf(p.record, p.closedAt) }));
  const refused = new Set(paid.filter(isRefused)), taken = paid.filter((p) => !refused.has(p));
  for (const { record } of refused) stats.refused++, (stats.feeRefused += BigInt(record.fee)), pay(treasury, BigInt(record.fee));

  const found = new Map(); // `${lane}/${infSeq}` -> first valid type 2
  const byKey = new Map(paid.map((p) => [`${p.record.lane}/${p.record.seq}`, p]));
  for (const r of evidence) {
    const key = `${r.lane}/${r.infSeq}`, p = byKey.get(key);
    if (!p || found.has(key) || BigInt(r.infSeq) >= BigInt(r.seq) || r.infDigest !== p.digest) continue;
    const method = BigInt(state.methods.get(r.methodHash) ?? 0);
    if (method === 0n || method > BigInt(state.at)) continue;
    const list = decodeSet(p.record.tails.set);
    const influence = r.outcome === 0 ? decodeInfluence(r.tails.influence, list.length) : [];
    if (influence?.every((a, i) => a.payees.every((c) => isOwner(c.payee, list[i].id, p.t0)))) found.set(key, { outcome: r.outcome, influence });
  }

  // step 1
  const group = new Map();
  for (const p of taken) {
    const r = p.record, key = `${r.lane}/${r.modelId}/${r.adapterSetHash}`;
    const g = group.get(key) ?? { lane: r.lane, modelId: r.modelId, setHash: r.adapterSetHash, set: decodeSet(r.tails.set), fee: 0n };
    g.fee += BigInt(r.fee);
    group.set(key, g);
  }
  const basePool = new Map(), setPool = new Map();
  const { base, adapters, operator, protocol } = state.policy;
  for (const g of group.values()) {
    const empty = g.set.length === 0;
    const part = largestRemainder(g.fee, empty ? [base + adapters, 0, operator, protocol] : [base, adapters, operator, protocol]);
    add(basePool, g.modelId, part[0]);
    if (!empty) {
      const s = setPool.get(g.setHash) ?? { set: g.set, pool: 0n, x: g.set.map(() => 0n) };
      s.pool += part[1];
      setPool.set(g.setHash, s);
    }
    pay(state.operators.get(g.lane) ?? treasury, part[2]);
    pay(treasury, part[3]);
  }
  for (const [modelId, pool] of basePool) {
    const entries = state.bases.get(modelId);
    if (!entries) pay(treasury, pool);
    else largestRemainder(pool, entries.map((e) => e.bps)).forEach((v, i) => pay(entries[i].payee, v));
  }

  // step 2 and the weights of step 4
  const y = new Map(); // adapterId -> Map payee -> weight
  for (const p of taken) {
    const r = p.record, set = decodeSet(r.tails.set), fee = BigInt(r.fee);
    const known = (id) => hasDatanet(id) && terms(id).some((e) => BigInt(e.activeAt) <= p.t0);
    const wants = fee > 0n && (set.length >= 2 || (set.length === 1 && known(set[0].id)));
    if (!wants || (BigInt(p.rate) !== E9 && !drawn(p.seed, r.lane, r.seq, p.rate))) continue;
    const f = found.get(`${r.lane}/${r.seq}`), scored = f?.outcome === 0;
    stats.required++, (stats.feeRequired += fee);
    if (scored) stats.scored++, (stats.feeScored += fee);
    else stats.missing++, (stats.feeMissing += fee);
    const gains = scored ? f.influence.map((a) => a.gain) : largestRemainder(E9, set.map((a) => abs(a.weight)));
    set.forEach((a, i) => {
      setPool.get(r.adapterSetHash).x[i] += fee * gains[i];
      const mine = y.get(a.id) ?? new Map(), part = (fee * gains[i]) / E9;
      if (scored) for (const c of f.influence[i].payees) add(mine, c.payee, part * c.ppb);
      else add(mine, ZERO20, part * E9);
      y.set(a.id, mine);
    });
  }
  // the adapters' parts, parents first
  const parentsOf = (id) => state.adapters.get(id)?.parents ?? [];
  const depth = (id) => parentsOf(id).reduce((d, p) => Math.max(d, 1 + depth(p.id)), 0);
  const adapterPool = new Map();
  for (const s of setPool.values()) {
    const weights = s.x.some((v) => v > 0n) ? s.x : s.set.map((a) => abs(a.weight)), part = new Map();
    largestRemainder(s.pool, weights).forEach((v, i) => add(part, s.set[i].id, v));
    while (part.size) {
      const [id, v] = [...part].sort(([p], [q]) => depth(q) - depth(p) || compareBytes(p, q))[0];
      const parents = parentsOf(id), bps = parents.map((p) => p.bps);
      const shares = largestRemainder(v, [...bps, 10_000 - bps.reduce((a, b) => a + b, 0)]);
      part.delete(id);
      parents.forEach((p, i) => add(part, p.id, shares[i]));
      add(adapterPool, id, shares.at(-1));
    }
  }

  // steps 3 and 4
  for (const [id, pool] of adapterPool) {
    const a = state.adapters.get(id);
    if (!a) {
      pay(treasury, pool);
      continue;
    }
    const part = largestRemainder(pool, a.entries.map((e) => e.bps));
    const data = a.entries.filter((e) => e.role === ROLE_DATA);
    a.entries.forEach((e, i) => e.role !== ROLE_DATA && pay(e.payee, part[i]));
    const dataPool = a.entries.reduce((sum, e, i) => (e.role === ROLE_DATA ? sum + part[i] : sum), 0n);
    if (!data.length) continue;
    const weights = [...(y.get(id) ?? [])].sort(([p], [q]) => compareBytes(p, q));
    if (hasDatanet(id) && weights.some(([, v]) => v > 0n))
      largestRemainder(dataPool, weights.map(([, v]) => v)).forEach((v, i) => pay(weights[i][0] === ZERO20 ? treasury : weights[i][0], v));
    else largestRemainder(dataPool, data.map((e) => e.bps)).forEach((v, i) => pay(data[i].payee, v));
  }
  return { sums: new Map([...out].sort(([p], [q]) => compareBytes(p, q))), stats };
}

// ---------------------------------------------------------------- identities

export const blake = (...parts) => hexlify(blake2b(join(...parts), { dkLen: 32 }));
export const DTYPE = Object.fromEntries(['BOOL', 'U8', 'I8', 'F8_E5M2', 'F8_E4M3', 'I16', 'U16', 'F16', 'BF16', 'I32', 'U32', 'F32',
  'F64', 'I64', 'U64'].map((n, i) => [n, i]));

const tensor = (t) => [u8(DTYPE[t.dtype]), u32(t.rows), u32(t.columns), bytes(t.bytes)];
const byName = (key) => (a, b) => compareBytes(text(a[key]), text(b[key]));

// modules: [{path, rank, scale, a: {dtype, rows, columns, bytes}, b}]
export const adapterIdOf = (modules) =>
  blake(text('residual.adapter.1'), [...modules].sort(byName('path')).flatMap((m) =>
    [u32(text(m.path).length), text(m.path), u32(m.rank), f64(m.scale), ...tensor(m.a), ...tensor(m.b)]));

export const modelIdOf = (m) =>
  blake(text('residual.base.1'), blake(m.config), blake(m.tokenizer), blake(m.template),
    blake([...m.tensors].sort(byName('name')).flatMap((t) =>
      [u32(text(t.name).length), text(t.name), u8(DTYPE[t.dtype]), u8(t.dims.length), ...t.dims.map(u64), blake(t.bytes)])));

export const compositionIdOf = (set) => blake(text('residual.set.1'), encodeSet(set));

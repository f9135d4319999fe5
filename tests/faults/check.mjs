// Judges an archive by the receipts that clients hold, with the JavaScript reading of every format (it shares no code with the worker).
//   node check.mjs --archive DIR --deployment FILE --rpc URL --receipts FILE --epoch N
// Every batch of the chain is rebuilt from its records; every receipt must be settled exactly once, with what its holder was given;
// every required answer up to what epoch N pays was scored in time or is listed missing by the epoch that pays it. Prints a summary,
// or what is wrong and exits 1.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import * as c from '../../chain_client/contracts/js/canon.mjs';

const require = createRequire(new URL('../../chain_client/contracts/package.json', import.meta.url));
const { Contract, JsonRpcProvider, keccak256 } = require('ethers');
const { values: args } = parseArgs({ options: Object.fromEntries(['archive', 'deployment', 'rpc', 'receipts', 'epoch'].map((k) => [k, { type: 'string' }])) });
const json = (...path) => JSON.parse(readFileSync(join(...path), 'utf8'));
const wrong = [];
const must = (good, what) => good || wrong.push(what);
const SIGNATURES_CHECKED = 64; // recovery in JavaScript is slow; the audit checks every one

const d = json(args.deployment), chainId = d.chain_id;
const provider = new JsonRpcProvider(args.rpc, undefined, { staticNetwork: true, batchMaxCount: 1 });
const abi = (name) => json(new URL('../../chain_client/contracts/build/', import.meta.url).pathname, name + '.json').abi;
const ledger = new Contract(d.ledger, abi('AttributionLedger'), provider);
const vault = new Contract(d.vault, abi('RewardVault'), provider);

function* recordsOf(raw) {
  for (let at = 0; at < raw.length;) {
    const n = raw.readUInt32BE(at);
    yield c.decodeRecord(raw.subarray(at + 4, at + 4 + n));
    at += 4 + n;
  }
}

const next = new Map(), bySeq = new Map(), byRequest = new Map(), evidence = new Map();
const count = { batches: 0, records: 0, inferences: 0, attributions: 0, voids: 0 };
let prevHash = c.ZERO32, cumFee = 0n;

function takeRecord(r, batch) {
  const digest = c.recordDigest(r, chainId, d.ledger), key = `${r.lane}/${r.seq}`;
  must(!bySeq.has(key), `record ${key} stands in batch ${batch} and in batch ${bySeq.get(key)?.batch}`);
  bySeq.set(key, { ...r, digest, batch });
  count.records++;
  if (r.type === 1) {
    count.inferences++;
    must(!byRequest.has(r.requestId), `request ${r.requestId} has two records`);
    byRequest.set(r.requestId, key);
  } else if (r.type === 2) {
    count.attributions++;
    const inf = bySeq.get(`${r.lane}/${r.infSeq}`), of = `${r.lane}/${r.infSeq}`;
    must(inf?.type === 1 && inf.digest === r.infDigest && r.infSeq < r.seq, `attribution ${key} does not belong to inference ${of}`);
    must(!evidence.has(of), `inference ${of} has two attribution records`);
    evidence.set(of, { ...r, batch });
    if (inf && r.outcome === 0) must(c.decodeInfluence(r.tails.influence, c.decodeSet(inf.tails.set).length), `attribution ${key}: bad tail`);
  } else {
    count.voids++;
  }
  return c.logLeaf(c.logDomain(chainId, d.ledger), r, digest);
}

async function takeBatch(seq) {
  const dir = join(args.archive, `batch-${String(seq).padStart(8, '0')}`);
  const header = json(dir, 'header.json'), raw = readFileSync(join(dir, 'records.bin')), manifest = readFileSync(join(dir, 'manifest.json'));
  const leaves = [], lanes = new Map();
  let fees = 0n, inferences = 0n;
  for (const r of recordsOf(raw)) {
    leaves.push(takeRecord(r, seq));
    const range = lanes.get(r.lane) ?? { lane: r.lane, first: r.seq, last: r.seq - 1n };
    must(r.seq === range.last + 1n, `batch ${seq}: lane ${r.lane} goes from ${range.last} to ${r.seq}`);
    lanes.set(r.lane, { ...range, last: r.seq });
    if (r.type === 1) [fees, inferences] = [fees + r.fee, inferences + 1n];
  }
  for (const range of lanes.values()) {
    must(range.first === (next.get(range.lane) ?? 1n), `batch ${seq}: lane ${range.lane} begins at ${range.first}, not at ${next.get(range.lane) ?? 1}`);
    next.set(range.lane, range.last + 1n);
  }
  const tree = c.buildTree(c.LOG_TREE, c.logDomain(chainId, d.ledger), leaves);
  cumFee += fees;
  must(tree.root.sum === fees, `batch ${seq}: fees ${fees}, tree ${tree.root.sum}`);
  const own = {
    seq: BigInt(seq), spec: 1n, prevHash, logRoot: tree.root.hash, manifest: keccak256(manifest), leafCount: BigInt(leaves.length),
    inferences, feeSum: fees, cumFee, closedAt: BigInt(header.closed_at),
  };
  const hash = c.batchHash(own, c.lanesHash([...lanes.values()]), chainId, d.ledger);
  must(hash === await ledger.batchHash(seq), `batch ${seq}: its files give ${hash}, the chain has another`);
  must(JSON.parse(manifest).records.keccak === keccak256(raw), `batch ${seq}: records.bin is not what manifest.json names`);
  prevHash = hash;
  count.batches++;
}

function takeReceipt(r) {
  const key = `${r.lane}/${r.seq}`, rec = bySeq.get(key), who = `receipt ${key} (${r.request_id})`;
  must(rec?.type === 1, `${who} is not settled`);
  if (rec?.type !== 1) return;
  must(rec.requestId === '0x' + r.request_id && byRequest.get(rec.requestId) === key, `${who}: settled under another number`);
  must(rec.digest === r.record_digest, `${who}: the settled record has digest ${rec.digest}`);
  must(rec.signature === r.receipt, `${who}: the settled record has another signature`);
  must(rec.fee === BigInt(r.fee), `${who}: fee ${rec.fee}, the client was told ${r.fee}`);
  must(rec.promptCommit === c.promptCommit(r.salt, r.prompt), `${who}: promptCommit does not open with the holder's salt and ids`);
  must(!r.ids || rec.outputCommit === c.outputCommit(r.salt, r.ids), `${who}: outputCommit does not open with the holder's salt and ids`);
  must(!r.tokens || (rec.tokensIn === r.tokens[0] && rec.tokensOut === r.tokens[1]), `${who}: tokens ${rec.tokensIn}/${rec.tokensOut}`);
  const set = c.decodeSet(rec.tails.set);
  must(set.length === r.adapters.length && r.adapters.every(([id, w]) => set.some((a) => a.id === id && a.weight === BigInt(w * 65536))),
    `${who}: another composition`);
  count.receipts++;
}

async function takeSignatures() {
  const all = [...bySeq.values()], step = Math.max(1, Math.floor(all.length / SIGNATURES_CHECKED));
  for (let i = 0; i < all.length; i += step)
    must(c.recover(all[i].digest, all[i].signature) === await ledger.laneKey(all[i].lane, all[i].seq), `record ${all[i].seq}: not signed by the lane's key`);
}

// What every epoch up to N pays and takes as evidence, and what it lists as missing: [{ paid, until, missing }], ascending.
async function epochsUpTo(last) {
  const out = [];
  for (let e = Number(last); e > 0; ) {
    const { batchPaid, batchEvidence, previous } = await vault.epochs(e);
    const name = `epoch-${String(e).padStart(8, '0')}`;
    out.unshift({ paid: Number(batchPaid), until: Number(batchEvidence), missing: json(args.archive, name, 'missing.json').missing });
    e = Number(previous);
  }
  return out;
}

// the demo's adapters all have a datanet, and its rate is 1: required is every answer with a fee and an adapter. Evidence counts when it
// stands in a batch up to the `until` of the epoch that pays the answer; what comes later, or says that nothing was scored, pays nothing.
async function takeRequired() {
  const epochs = await epochsUpTo(args.epoch), missing = new Map();
  epochs.forEach((e, i) => e.missing.forEach((m) => {
    must(!missing.has(`${m.lane}/${m.seq}`), `${m.lane}/${m.seq} is listed missing twice`);
    missing.set(`${m.lane}/${m.seq}`, i);
  }));
  count.required = count.scored = count.missing = count.late = 0;
  for (const [key, r] of bySeq) {
    const required = r.type === 1 && r.fee > 0n && r.tails.set !== '0x';
    if (!required) {
      must(!evidence.has(key) && !missing.has(key), `${key} is not required, but has an attribution record or is listed missing`);
      continue;
    }
    const payer = epochs.findIndex((e) => r.batch <= e.paid), found = evidence.get(key);
    if (payer < 0) continue;
    const inTime = found && found.batch <= epochs[payer].until, scored = inTime && found.outcome === 0;
    count.required++;
    count[scored ? 'scored' : 'missing']++;
    if (found && !inTime) count.late++;
    must(!!scored === !missing.has(key) && (scored || missing.get(key) === payer),
      `inference ${key} is ${scored ? 'scored, but listed missing' : 'required and not scored, and the epoch that pays it does not list it missing'}`);
  }
}

const head = Number((await ledger.head()).seq);
for (let seq = 1; seq <= head; seq++) await takeBatch(seq);
count.receipts = 0;
json(args.receipts).forEach(takeReceipt);
await takeSignatures();
await takeRequired();
if (wrong.length) {
  console.error(wrong.slice(0, 20).join('\n') + `\n${wrong.length} findings`);
  process.exit(1);
}
console.log(JSON.stringify(count));
process.exit(0);

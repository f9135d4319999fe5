// What a thief can do with stolen keys: the trials that the attestors and the watcher are there for. deploy/demo.py and the tests run it
// against a local chain; it knows only keys and public facts.
//   node deploy/thief.mjs commit  --rpc URL --deployment FILE --key-file COMMITTER [--lane N]
//   node deploy/thief.mjs propose --rpc URL --deployment FILE --key-file PROPOSER [--attestor-key-file FILE] --funder-key-file FILE --to ADDRESS
//        [--archive DIR]   the worker's machine is the thief's too: the archive shows the forged accounts
//   node deploy/thief.mjs claim   --rpc URL --deployment FILE --key-file ANY --to ADDRESS
//   node deploy/thief.mjs unpause --rpc URL --deployment FILE --key-file ADMIN       (the owner, afterwards)
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { parseArgs } from 'node:util';
import * as canon from '../chain_client/contracts/js/canon.mjs';
import { artifact } from '../chain_client/contracts/js/abi.mjs';

const require = createRequire(new URL('../chain_client/contracts/package.json', import.meta.url));
const { Contract, JsonRpcProvider, Wallet, ZeroHash, keccak256, toUtf8Bytes } = require('ethers');
const text = { type: 'string' };
const { values: args, positionals: [verb] } = parseArgs({
  allowPositionals: true,
  options: { rpc: text, deployment: text, 'key-file': text, 'attestor-key-file': text, 'funder-key-file': text, lane: text, to: text, archive: text } });
const d = JSON.parse(readFileSync(args.deployment, 'utf8'));
const provider = new JsonRpcProvider(args.rpc, d.chain_id, { staticNetwork: true, cacheTimeout: -1, pollingInterval: 100 });
const wallet = (file) => new Wallet('0x' + readFileSync(file, 'utf8').trim(), provider);
const me = wallet(args['key-file']);
const ledger = new Contract(d.ledger, artifact('AttributionLedger').abi, me), vault = new Contract(d.vault, artifact('RewardVault').abi, me);

const nameOf = (e) => e.revert?.name ?? (e.data && vault.interface.parseError(e.data)?.name) ?? e.shortMessage ?? e.message;

async function headerOf(seq) {
  const hash = await ledger.batchHash(seq);
  const found = (await ledger.queryFilter(ledger.filters.BatchCommitted(seq), d.start_block)).filter((e) => e.args.hash === hash);
  return found.at(-1).args;
}

// one record that nobody signed, worth 1 wei, dated back so that W is over at once
async function commit() {
  const lane = Number(args.lane ?? 1), head = await ledger.head(), next = await ledger.laneNext(lane);
  const lanes = [[lane, next, next]];
  const header = [head.seq + 1n, 1, head.seq === 0n ? ZeroHash : await ledger.batchHash(head.seq), keccak256(toUtf8Bytes('forged')),
    keccak256(toUtf8Bytes('no manifest')), 1, 1, 1n, head.cumFee + 1n, head.closedAt];
  const receipt = await (await ledger.commit(header, lanes)).wait();
  return { batch: Number(head.seq + 1n), tx: receipt.hash };
}

async function plan() {
  const head = await ledger.head(), { header, lanes } = await headerOf(head.seq);
  const total = header.cumFee - (await vault.startCumFee());
  const tree = canon.rewardTree(canon.rewardDomain(d.chain_id, d.vault, d.token), new Map([[args.to.toLowerCase(), total]]));
  return { header, lanes, total, root: tree.root.hash };
}

// everything that was ever earned, to the thief
async function propose() {
  const p = await plan(), last = await vault.lastEpoch(), live = await vault.epochs(await vault.lastLive());
  const lacks = p.total - (await vault.funded());
  if (lacks > 0n) await (await vault.connect(wallet(args['funder-key-file'])).fundTo(p.header.cumFee, { value: lacks })).wait();
  const epoch = [last + 1n, live.root, p.root, p.total, 1, p.header.seq, p.header.seq, ZeroHash];
  const signed = args['attestor-key-file'] ? [wallet(args['attestor-key-file']).signingKey.sign(await vault.hashEpoch(epoch)).serialized] : [];
  if (args.archive) {
    const folder = `${args.archive}/epoch-${String(epoch[0]).padStart(8, '0')}`;
    mkdirSync(folder, { recursive: true });
    writeFileSync(`${folder}/accounts.json`, `{"accounts":[{"account":"${args.to.toLowerCase()}","cumulative":"${p.total}"}],"epoch":${epoch[0]},"format":"residual.accounts.1"}\n`);
  }
  const receipt = await (await vault.propose(epoch, [...p.header], await ledger.hashLanes(p.lanes.map((l) => [...l])), signed)).wait();
  return { epoch: Number(last + 1n), total: String(p.total), paid_in: String(lacks > 0n ? lacks : 0n), tx: receipt.hash };
}

async function claim() {
  const epoch = await vault.lastEpoch(), { total } = await vault.epochs(epoch);
  const before = await provider.getBalance(args.to);
  try {
    await (await vault.claim(epoch, 0, args.to, total, [], [])).wait();
  } catch (e) {
    return { refused: nameOf(e), got: '0' };
  }
  return { got: String((await provider.getBalance(args.to)) - before) };
}

async function unpause() {
  return { tx: (await (await ledger.unpauseCommit()).wait()).hash };
}

try {
  console.log(JSON.stringify(await { commit, propose, claim, unpause }[verb]()));
} catch (e) {
  console.error(`thief: ${nameOf(e)}`);
  process.exitCode = 1;
} finally {
  provider.destroy();
}

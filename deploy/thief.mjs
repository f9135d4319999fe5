// What a thief can do with stolen keys: the trials that the attestors and the watcher are there for. deploy/demo.py and the tests run it
// against a local chain; it knows only keys and public facts.
//   node deploy/thief.mjs steal   --rpc URL --deployment FILE --key-file COMMITTER --proposer-key-file FILE --attestor-key-file FILE
//                                 --funder-key-file FILE --to ADDRESS [--lane N]
//   node deploy/thief.mjs propose --rpc URL --deployment FILE --key-file PROPOSER [--attestor-key-file FILE] --funder-key-file FILE --to ADDRESS
//        [--archive DIR]   the worker's machine is the thief's too: the archive shows the forged accounts
//   node deploy/thief.mjs claim   --rpc URL --deployment FILE --key-file ANY --to ADDRESS
//   node deploy/thief.mjs announce --rpc URL --deployment FILE --key-file ADMIN --to ADDRESS     (PROPOSER of the vault to ADDRESS)
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
  options: { rpc: text, deployment: text, 'key-file': text, 'proposer-key-file': text, 'attestor-key-file': text, 'funder-key-file': text, lane: text, to: text, archive: text } });
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

async function epochOver(header) {
  const last = await vault.lastEpoch(), live = await vault.epochs(await vault.lastLive()), total = header.cumFee - (await vault.startCumFee());
  const tree = canon.rewardTree(canon.rewardDomain(d.chain_id, d.vault, d.token), new Map([[args.to.toLowerCase(), total]]));
  const epoch = [last + 1n, live.root, tree.root.hash, total, 1, header.seq, header.seq, ZeroHash];
  const signed = args['attestor-key-file'] ? [wallet(args['attestor-key-file']).signingKey.sign(await vault.hashEpoch(epoch)).serialized] : [];
  const lacks = total - (await vault.funded());
  return { epoch, total, signed, lacks: lacks > 0n ? lacks : 0n };
}

// One record that nobody signed, worth 1 wei, dated back so that W is over at once, and in the same breath everything that was ever earned
// to the thief: three transactions on their way before the first is mined, in the order of their tips.
async function steal() {
  const lane = Number(args.lane ?? 1), head = await ledger.head(), next = await ledger.laneNext(lane), lanes = [[lane, next, next]];
  const header = { seq: head.seq + 1n, spec: 1, prevHash: head.seq === 0n ? ZeroHash : await ledger.batchHash(head.seq), logRoot: keccak256(toUtf8Bytes('forged')),
    manifest: keccak256(toUtf8Bytes('no manifest')), leafCount: 1, inferences: 1, feeSum: 1n, cumFee: head.cumFee + 1n, closedAt: head.closedAt };
  const p = await epochOver(header), tuple = Object.values(header), gwei = 10n ** 9n, base = (await provider.getBlock('latest')).baseFeePerGas;
  const send = async (file, tip, make) => {
    const from = wallet(file), nonce = await provider.getTransactionCount(from.address, 'latest');
    return from.signTransaction({ ...(await make.populateTransaction()), type: 2, chainId: d.chain_id, nonce, gasLimit: 1_000_000, maxPriorityFeePerGas: tip * gwei, maxFeePerGas: 4n * base + tip * gwei });
  };
  const bind = (f, ...words) => ({ populateTransaction: () => f.populateTransaction(...words) });
  const raw = [
    await send(args['key-file'], 30n, bind(ledger.commit, tuple, lanes)),
    await send(args['funder-key-file'], 20n, bind(vault.fundTo, header.cumFee, { value: p.lacks })),
    await send(args['proposer-key-file'], 10n, bind(vault.propose, p.epoch, tuple, await ledger.hashLanes(lanes), p.signed))];
  const sent = await Promise.all(raw.map((x) => provider.broadcastTransaction(x)));
  const [, , receipt] = await Promise.all(sent.map((x) => x.wait()));
  return { batch: Number(header.seq), epoch: Number(p.epoch[0]), total: String(p.total), paid_in: String(p.lacks), tx: receipt.hash };
}

// the same over the batches that are there
async function propose() {
  const { header, lanes } = await headerOf((await ledger.head()).seq), p = await epochOver(header);
  if (p.lacks > 0n) await (await vault.connect(wallet(args['funder-key-file'])).fundTo(header.cumFee, { value: p.lacks })).wait();
  if (args.archive) {
    const folder = `${args.archive}/epoch-${String(p.epoch[0]).padStart(8, '0')}`;
    mkdirSync(folder, { recursive: true });
    writeFileSync(`${folder}/accounts.json`, `{"accounts":[{"account":"${args.to.toLowerCase()}","cumulative":"${p.total}"}],"epoch":${p.epoch[0]},"format":"residual.accounts.1"}\n`);
  }
  const receipt = await (await vault.propose(p.epoch, [...header], await ledger.hashLanes(lanes.map((l) => [...l])), p.signed)).wait();
  return { epoch: Number(p.epoch[0]), total: String(p.total), paid_in: String(p.lacks), tx: receipt.hash };
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

async function announce() {
  return { tx: (await (await vault.grantRole(await vault.PROPOSER(), args.to)).wait()).hash };
}

async function unpause() {
  return { tx: (await (await ledger.unpauseCommit()).wait()).hash };
}

try {
  console.log(JSON.stringify(await { steal, propose, claim, announce, unpause }[verb]()));
} catch (e) {
  console.error(`thief: ${nameOf(e)}`);
  process.exitCode = 1;
} finally {
  provider.destroy();
}

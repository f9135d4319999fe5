// Gas of what a year does over and over, on a private chain: `npm run bench`. Each line says what is counted and the most it may be;
// a figure above it ends with exit code 1. Slots are cold, as in a transaction of their own.
import { Wallet } from 'ethers';
import './build.mjs';
import { headerTuple, laneTuple, publishTuple } from './js/abi.mjs';
import * as c from './js/canon.mjs';
import { Batches, LEAD, WAIT, WINDOW, attest, h32, make, makeEpoch, makeLedger, makeRegistry, makeVault, ok, startChain } from './test/setup.mjs';

const RECORDS = 1 << 17, DEPTH = 14, CHANGES = 10_000, BATCHES = 16;
let missed = 0;
function say(what, gas, most) {
  const over = most !== undefined && gas > most;
  missed += over;
  console.log(`${what.padEnd(86)} ${String(gas).padStart(8)}${most === undefined ? '' : `  (at most ${most})${over ? '  MISSED' : ''}`}`);
}

const chain = await startChain(['--gas-limit', '1000000000']);
const { who } = chain, gasOf = async (call) => Number((await ok(call)).gasUsed);

async function commits() {
  const ledger = await makeLedger(chain), vault = await makeVault(chain, ledger);
  for (const lane of [4, 5, 6, 7, 8]) await ok(ledger.connect(who.laneAdmin).registerLane(lane, new Wallet(h32('bench lane ' + lane)).address, who.alice.address));
  await ok(ledger.setVault(await vault.getAddress()));
  const batches = new Batches(chain, ledger), fee = 123_456_789_012_345_678_901n; // about 123 coins of 18 digits
  const commit = async (lanes) => Number((await batches.commit(lanes.map((l) => [l, RECORDS / lanes.length]), fee)).receipt.gasUsed);
  await commit([5, 6, 7, 8]);
  let all = 0;
  for (let i = 0; i < BATCHES; i++) {
    const used = await commit([4, 5, 6, 7]);
    all += used;
    if (i === 1) say(`commit of ${RECORDS} records, 4 lanes of one word`, used, 85_000);
  }
  say(`commit of ${RECORDS} records, 4 lanes of two words`, await commit([5, 6, 7, 8]));
  await chain.pass(WAIT);
  const paid = batches.list.at(-1), funding = await gasOf(vault.fundTo(batches.cumFee, { value: batches.cumFee }));
  const e = await makeEpoch(vault, { epoch: 1, paid, cum: new Map([[who.alice.address, batches.cumFee]]) });
  const propose = await gasOf(vault.connect(who.proposer).propose(...e.args, await attest(chain, vault, e)));
  await chain.pass(WINDOW);
  const one = await batches.commit([[4, 1]], fee), more = await gasOf(vault.fundTo(batches.cumFee, { value: fee }));
  await chain.pass(WAIT);
  const next = await makeEpoch(vault, { epoch: 2, prevRoot: e.h.root, paid: one, cum: new Map([[who.alice.address, batches.cumFee]]) });
  const again = await gasOf(vault.connect(who.proposer).propose(...next.args, await attest(chain, vault, next)));
  say('propose, 1 attestor: the first; a later one', `${propose}, ${again}`);
  say('fundTo: the first; a later one', `${funding}, ${more}`);
  const requests = (RECORDS / 2) * BATCHES, each = (all + again + more) / requests;
  say(`a request in all: ${BATCHES} commits, 1 propose, 1 fundTo over ${requests} requests with an attribution each`, each.toFixed(3), 1.5);
  const last = await batches.commit([[4, 100], [5, 100], [6, 100], [7, 100]], fee), before = batches.list.at(-2);
  say('dropBatch, 4 lanes, 1 vault', await gasOf(ledger.connect(who.guardian).dropBatch(headerTuple(last.h), last.lanes.map(laneTuple), headerTuple(before.h), before.lanesHash)));
}

async function claims() {
  const ledger = await makeLedger(chain), vault = await makeVault(chain, ledger);
  await ok(ledger.connect(who.laneAdmin).registerLane(1, new Wallet(h32('bench lane')).address, who.alice.address));
  const batches = new Batches(chain, ledger), list = Array.from({ length: 1 << DEPTH }, (_, i) => c.hex(c.uint((BigInt(h32('bench account ' + i)) >> 96n) | 1n, 20)));
  const epoch = async (n, prev, of) => {
    const cum = new Map(list.map((a, i) => [a, of(i)])), total = [...cum.values()].reduce((p, q) => p + q, 0n);
    const paid = await batches.commit([[1, 1]], total - batches.cumFee);
    await ok(vault.fundTo(total, { value: total }));
    await chain.pass(WAIT);
    const e = await makeEpoch(vault, { epoch: n, prevRoot: prev?.h.root, paid, cum });
    await ok(vault.connect(who.proposer).propose(...e.args, await attest(chain, vault, e)));
    await chain.pass(WINDOW);
    return e;
  };
  const amount = (i) => 1_234_567_890_123_456_789n + BigInt(i) * 1_000_000_007n;
  const e1 = await epoch(1, null, amount), hundred = list.slice(100, 200);
  say(`first claim of an account, depth ${DEPTH} (it was never paid before)`, await gasOf(vault.claim(...e1.claimOf(list[0]))));
  for (const a of [list[1], list[2]]) await ok(vault.claim(...e1.claimOf(a)));
  for (let i = 0; i < hundred.length; i += 20) await ok(vault.claimMany(hundred.slice(i, i + 20).map((a) => e1.claimOf(a))));
  await chain.pass(86_400n);
  const e2 = await epoch(2, e1, (i) => 2n * amount(i));
  say(`repeat claim, depth ${DEPTH}, the first of a day`, await gasOf(vault.claim(...e2.claimOf(list[0]))));
  say(`repeat claim, depth ${DEPTH}`, await gasOf(vault.claim(...e2.claimOf(list[1]))), 72_000);
  const many = await gasOf(vault.claimMany(hundred.map((a) => e2.claimOf(a))));
  say(`repeat claims relayed in a hundred, depth ${DEPTH}, each`, Math.round(many / 100), 38_000);
}

async function histories() {
  const registry = await makeRegistry(chain, await makeLedger(chain), { notice: 0n, commitAgeMin: 0n });
  const writer = await make(chain, 'HistoryWriter', await registry.getAddress()), at = await writer.getAddress(), salt = h32('salt');
  const up = (p, q) => (BigInt(p[0]) < BigInt(q[0]) ? -1 : 1), data = [who.bob, who.carol, who.dave].map((w) => [w.address, 2, 2000]).sort(up);
  const m = { adapterId: h32('bench adapter'), modelId: h32('model'), datanetId: c.ZERO32, datanetVersion: 0n, owner: at, priceIn: 0n, priceOut: 1n, version: 1n };
  await ok(writer.commitAdapter(m.adapterId, salt));
  await ok(writer.register(publishTuple(m), [[who.alice.address, 1, 4000], ...data], salt));
  await chain.pass(LEAD);
  const times = [];
  for (let n = 0; n < CHANGES; n += 250) {
    await ok(writer.reprice(m.adapterId, n + 1, 250));
    times.push(await chain.now());
    await chain.pass(100n);
  }
  let worst = 0;
  for (const [i, t] of times.entries()) {
    const [used, price] = await writer.gasOfAdapterAt(m.adapterId, t + 1n);
    if (price !== BigInt(250 * (i + 1))) throw new Error(`adapterAt found price ${price} at change ${i}`);
    worst = Math.max(worst, Number(used));
  }
  say(`adapterAt after ${CHANGES} changes, 4 split entries: the dearest of ${times.length} past seconds`, worst, 60_000);
}

try {
  await commits();
  await claims();
  await histories();
} finally {
  await chain.stop();
}
process.exit(missed ? 1 : 0);

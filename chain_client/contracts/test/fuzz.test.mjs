// Random lives of a ledger, a vault and a history against a model of the rules, seeded: every call is expected to pass or to fail with one error,
// and after each the invariants hold. Attestors may collude, windows pass unseen, a thief's epoch may go active. RS_FULL=1 runs longer;
// RS_SEED=N runs one life again.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { Wallet, toBeHex } from 'ethers';
import * as c from '../js/canon.mjs';
import { abi, epochTuple, headerTuple, laneTuple } from '../js/abi.mjs';
import { WAIT, WINDOW, attest, h32, makeEpoch, makeLedger, makeRegistry, makeVault, ok, startChain } from './setup.mjs';

const DAY = 86_400n, FLOOR = 700n, LANES = [1, 2, 9];
const ledgerAbi = abi('AttributionLedger'), vaultAbi = abi('RewardVault');
const full = process.env.RS_FULL === '1', seeds = process.env.RS_SEED ? [Number(process.env.RS_SEED)] : Array.from({ length: full ? 12 : 4 }, (_, i) => i + 1);
const STEPS = full ? 300 : 230;
let chain;
before(async () => {
  chain = await startChain();
  await chain.rpc('anvil_autoImpersonateAccount', true);
});
after(() => chain?.stop());

async function post(calls) {
  const body = JSON.stringify(calls.map(([method, params], id) => ({ jsonrpc: '2.0', id, method, params })));
  const replies = await (await fetch(chain.url, { method: 'POST', headers: { 'content-type': 'application/json' }, body })).json();
  return replies.sort((p, q) => p.id - q.id);
}

async function mined(tx) {
  const [sent] = await post([['eth_sendTransaction', [tx]]]);
  assert.ok(sent.result, sent.error?.message);
  for (;;) {
    const [{ result }] = await post([['eth_getTransactionReceipt', [sent.result]]]);
    if (result) return result;
  }
}

class Life {
  constructor(seed) {
    this.state = seed >>> 0;
    this.batches = []; // committed, oldest first
    this.gone = []; // dropped: an honest one comes back with the same hash
    this.next = new Map(LANES.map((l) => [l, 1n]));
    this.epochs = [null]; // by number
    this.live = 0;
    this.claimed = new Map();
    this.paid = { day: 0n, sum: 0n };
    this.total = this.writtenOff = 0n;
    this.growth = []; // [day, amount] of live epochs
    this.outcomes = new Map();
  }
  rnd(n) {
    this.state = (Math.imul(this.state ^ (this.state >>> 15), 0x2c1b3c6d) + 0x9e3779b9) >>> 0;
    return ((this.state ^ (this.state >>> 13)) >>> 4) % n;
  }
  pick(list) {
    return list[this.rnd(list.length)];
  }
  async begin() {
    this.ledger = await makeLedger(chain);
    for (const l of LANES) await ok(this.ledger.connect(chain.who.laneAdmin).registerLane(l, new Wallet(h32('fuzz lane ' + l)).address, chain.who.alice.address));
    this.vault = await makeVault(chain, this.ledger, { capFloor: FLOOR, attestorsMin: 2, attestors: ['attestor1', 'attestor2', 'attestor3'].map((n) => chain.who[n].address) });
    this.at = { ledger: await this.ledger.getAddress(), vault: await this.vault.getAddress() };
    await ok(this.ledger.setVault(this.at.vault));
    this.holders = Array.from({ length: 7 }, (_, i) => c.hex(c.uint((BigInt(h32(`fuzz ${this.at.vault} ${i}`)) >> 96n) | 1n, 20)));
    this.thief = this.holders.at(-1);
    this.now = await chain.now();
  }

  // ---- one call: it passes, or fails with exactly the error that the model names

  async call(who, where, fn, args, { error = null, value = 0n } = {}) {
    const face = where === 'vault' ? vaultAbi : ledgerAbi;
    const tx = { from: chain.who[who].address, to: this.at[where], data: face.encodeFunctionData(fn, args), value: toBeHex(value), gas: '0x1000000' };
    await chain.rpc('evm_setNextBlockTimestamp', Number(++this.now)); // the model's second is the block's
    const receipt = await mined(tx);
    if (receipt.status === '0x1') assert.equal(error, null, `${fn}: passed, expected ${error}`);
    else {
      const [{ error: why }] = await post([['eth_call', [tx, toBeHex(BigInt(receipt.blockNumber) - 1n), {}, { time: toBeHex(this.now) }]]]);
      const found = why?.data ? (face.parseError(why.data)?.name ?? why.data) : why?.message;
      assert.equal(found, error, `${fn}`);
    }
    this.outcomes.set(`${fn} ${error ?? 'ok'}`, (this.outcomes.get(`${fn} ${error ?? 'ok'}`) ?? 0) + 1);
    return error === null;
  }

  // ---- the model

  get cumFee() {
    return this.batches.at(-1)?.h.cumFee ?? 0n;
  }
  get locked() {
    return this.live ? this.epochs[this.live].h.batchEvidence : 0n;
  }
  active(e) {
    return e && !e.disabled && this.now + 1n >= e.activeAt;
  }
  newestActive() {
    for (let n = this.live; n; n = this.epochs[n].previous) if (this.active(this.epochs[n])) return this.epochs[n];
    return null;
  }
  cap(at = this.now + 1n) {
    const today = at / DAY, grown = this.growth.filter(([day]) => day + 7n > today && day <= today).reduce((n, [, x]) => n + x, 0n);
    return grown > FLOOR ? grown : FLOOR;
  }
  build(sizes, fee) {
    const lanes = sizes.map(([lane, n]) => ({ lane, first: this.next.get(lane), last: this.next.get(lane) + BigInt(n) - 1n }));
    const count = sizes.reduce((n, [, k]) => n + k, 0);
    const h = {
      seq: BigInt(this.batches.length + 1), spec: 1, prevHash: this.batches.at(-1)?.hash ?? c.ZERO32, logRoot: h32('root' + this.rnd(1e9)), manifest: h32('m'), leafCount: count, inferences: count,
      feeSum: fee, cumFee: this.cumFee + fee, closedAt: this.now };
    return this.seal({ h, lanes });
  }
  seal(b) {
    b.lanesHash = c.lanesHash(b.lanes);
    b.hash = c.batchHash(b.h, b.lanesHash, 31337, this.at.ledger);
    return b;
  }

  // ---- steps

  async commit() {
    const sizes = LANES.filter(() => this.rnd(3)).map((l) => [l, 1 + this.rnd(5)]);
    const back = this.gone.at(-1), b = this.rnd(2) && back?.h.prevHash === (this.batches.at(-1)?.hash ?? c.ZERO32) ? back : sizes.length ? this.build(sizes, BigInt(this.rnd(4) * this.rnd(900))) : null;
    if (!b) return;
    const send = (x, error, who = 'committer') => this.call(who, 'ledger', 'commit', [headerTuple(x.h), x.lanes.map(laneTuple)], { error });
    const bad = (over, error, lanes = b.lanes) => send({ h: { ...b.h, ...over }, lanes }, error);
    const [l] = b.lanes, shifted = (by) => [{ ...l, first: l.first + by, last: l.last + by }, ...b.lanes.slice(1)];
    await [
      () => bad({ prevHash: h32('x') }, 'WrongPrevious'), () => bad({ cumFee: b.h.cumFee + 1n }, 'WrongCumFee'), () => bad({ leafCount: b.h.leafCount + 1 }, 'WrongCount'),
      () => bad({ seq: b.h.seq + 1n }, 'NotNext'), () => bad({ closedAt: this.now + 1000n }, 'WrongTime'), () => bad({ logRoot: c.ZERO32 }, 'ZeroRoot'),
      () => bad({}, 'LaneGap', shifted(1n)), () => l.first > 1n && bad({}, 'LaneGap', shifted(-1n)), () => bad({}, 'LaneOrder', [l, ...b.lanes]), // once more: a gap or a repeat
      () => this.batches.length && send(this.pick(this.batches), 'Already'), () => send(b, 'AccessControlUnauthorizedAccount', this.pick(['proposer', 'guardian', 'admin', 'bob'])), () => {}, () => {},
    ][this.rnd(13)]();
    await send(b, null);
    this.batches.push(b);
    for (const x of b.lanes) this.next.set(x.lane, x.last + 1n);
    this.gone = this.gone.filter((x) => x !== b);
  }

  async drop() {
    const b = this.batches.at(-1), before_ = this.batches.at(-2) ?? b;
    if (!b) return;
    const send = (x, error, who = 'guardian') => this.call(who, 'ledger', 'dropBatch', [headerTuple(x.h), x.lanes.map(laneTuple), headerTuple(before_.h), before_.lanesHash], { error });
    if (!this.rnd(3)) await send(b, 'AccessControlUnauthorizedAccount', this.pick(['committer', 'admin']));
    if (this.batches.length > 1 && !this.rnd(3)) await send(before_, 'NotHead');
    if (!(await send(b, this.locked >= b.h.seq ? 'BatchPaid' : null))) return;
    this.batches.pop();
    this.gone.push(b);
    for (const x of b.lanes) this.next.set(x.lane, x.first);
  }

  async fund() {
    const target = this.cumFee, funded = await this.vault.funded();
    await this.call('bob', 'vault', 'fundTo', [target], { value: target > funded ? target - funded + BigInt(this.rnd(5)) : 0n });
  }

  // who gets what: as the previous epoch, and the growth to anybody; or not so
  share(kind, total) {
    const was = this.live ? this.epochs[this.live].cum : new Map(), cum = new Map(was);
    let left = total - [...was.values()].reduce((p, q) => p + q, 0n), broken = null;
    const give = (a, x) => x > 0n && cum.set(a, (cum.get(a) ?? 0n) + x);
    const victims = [...was].filter(([a, v]) => a !== this.thief && v > 1n);
    if (kind !== 'honest' && victims.length) {
      const [victim, v] = this.pick(victims), takes = kind === 'missing' ? v : 1n + BigInt(this.rnd(Number(v - 1n)));
      if (takes === v) cum.delete(victim);
      else cum.set(victim, v - takes);
      give(this.thief, left + takes);
      broken = { victim };
      left = 0n;
    }
    while (left > 0n) {
      const x = left < 50n ? left : 1n + BigInt(this.rnd(Number(left)));
      give(this.pick(this.holders.slice(0, -1)), x);
      left -= x;
    }
    return { cum, broken };
  }

  async propose() {
    const from = this.live ? this.epochs[this.live].h.batchPaid : 0n, able = this.batches.filter((b) => b.h.seq > from && b.h.closedAt + WAIT <= this.now);
    if (!able.length) return;
    const paid = this.pick(able), total = paid.h.cumFee, before_ = this.live ? this.epochs[this.live].h.total : 0n;
    const { cum, broken } = this.share(this.pick(['honest', 'honest', 'lowered', 'missing']), total);
    const n = this.epochs.length, evidence = this.batches.find((b) => b.h.seq >= paid.h.seq && !this.rnd(2)) ?? this.batches.at(-1);
    if (!cum.size) return;
    const e = await makeEpoch(this.vault, { epoch: n, prevRoot: this.live ? this.epochs[this.live].h.root : c.ZERO32, paid, evidence: evidence.h.seq >= paid.h.seq ? evidence : paid, cum });
    const two = this.pick([['attestor1', 'attestor2'], ['attestor2', 'attestor3'], ['attestor1', 'attestor3'], ['attestor1', 'attestor2', 'attestor3']]);
    const sigs = await attest(chain, this.vault, e, two);
    const send = (error, { h = e.h, list = sigs, who = 'proposer' } = {}) => this.call(who, 'vault', 'propose', [epochTuple(h), ...e.args.slice(1), list], { error });
    const held = await this.vault.held(), settled = this.total - this.writtenOff, funded = total <= settled || total - settled <= held;
    const stranger = await attest(chain, this.vault, e, ['attestor1', 'bob']);
    await [
      () => send('AccessControlUnauthorizedAccount', { who: this.pick(['committer', 'guardian', 'admin', 'bob']) }), () => send(funded ? 'AttestorsMissing' : 'Underfunded', { list: [sigs[0]] }),
      () => send(funded ? 'BadAttestation' : 'Underfunded', { list: [sigs[0], sigs[0]] }), () => send(funded ? 'BadAttestation' : 'Underfunded', { list: stranger }), // nobody below k
      () => send('WrongTotal', { h: { ...e.h, total: e.h.total + 1n } }), () => send('NotNext', { h: { ...e.h, epoch: n + 1 } }), () => send('WrongPrevious', { h: { ...e.h, prevRoot: h32('y') } }), () => {},
    ][this.rnd(8)]();
    if (!(await send(funded ? null : 'Underfunded'))) return;
    this.epochs.push({ ...e, n, cum, broken, previous: this.live, activeAt: this.now + WINDOW, day: this.now / DAY, grew: total - before_, disabled: false });
    this.live = n;
    this.growth.push([this.now / DAY, total - before_, n]);
  }

  disableFrom(n) {
    this.live = this.epochs[n].previous;
    for (let i = n; i < this.epochs.length; i++) this.epochs[i].disabled = true;
    this.growth = this.growth.filter(([, , i]) => i < n);
  }
  pending(e) {
    return e && !e.disabled && this.now + 1n < e.activeAt;
  }

  async veto() {
    const e = this.rnd(3) ? this.epochs.at(-1) : this.pick(this.epochs.slice(1));
    if (!e) return;
    if (!this.rnd(3)) await this.call(this.pick(['proposer', 'committer', 'bob', 'attestor1']), 'vault', 'veto', [e.n], { error: 'AccessControlUnauthorizedAccount' });
    if (await this.call('guardian', 'vault', 'veto', [e.n], { error: this.pending(e) ? null : 'NotPending' })) this.disableFrom(e.n);
  }

  async prove() {
    const able = this.epochs.slice(1).filter((x) => x.previous), e = this.rnd(3) ? able.at(-1) : this.pick(able);
    if (!e) return;
    const was = this.epochs[e.previous], victim = e.broken?.victim ?? this.pick([...was.cum.keys()]);
    const at = victim.toLowerCase(), there = e.tree.accounts.map(([a]) => a);
    const right = there.findIndex((a) => BigInt(a) > BigInt(at)), left = right < 0 ? there.length - 1 : right - 1;
    const gone = !there.includes(at), proofs = [was.claimOf(victim)];
    if (gone) proofs.push(...[left, right].filter((i) => i >= 0).map((i) => e.claimOf(there[i])));
    else proofs.push(e.claimOf(victim));
    const truly = e.broken && (gone || e.cum.get(victim) < was.cum.get(victim));
    const error = !this.pending(e) ? 'NotPending' : truly ? null : 'BadProof';
    if (await this.call('bob', 'vault', 'disableByProof', [e.n, gone ? 2 : 1, proofs], { error })) this.disableFrom(e.n);
  }

  async retire() {
    const e = this.epochs.slice(1).find((x) => x.broken && this.active(x)) ?? null;
    if (!e) return;
    await this.call('guardian', 'vault', 'retireEpoch', [e.n], { error: 'AccessControlUnauthorizedAccount' });
    await this.call('admin', 'vault', 'retireEpoch', [e.n]);
    this.disableFrom(e.n);
    const now = this.live ? this.epochs[this.live].cum : new Map(); // paid beyond what the last good epoch grants
    let lost = 0n;
    for (const [a, v] of this.claimed) lost += v > (now.get(a) ?? 0n) ? v - (now.get(a) ?? 0n) : 0n;
    if (lost <= this.writtenOff) return;
    await this.call('admin', 'vault', 'writeOff', [lost - this.writtenOff]);
    this.writtenOff = lost;
  }

  async claim() {
    const e = this.rnd(5) ? this.newestActive() : this.pick(this.epochs.slice(1));
    if (!e) return;
    const owed = [...e.cum].filter(([x, v]) => v > (this.claimed.get(x) ?? 0n)), [a, cum] = this.pick(owed.length && this.rnd(6) ? owed : [...e.cum]), had = this.claimed.get(a) ?? 0n, args = e.claimOf(a), [n, i, ...rest] = args;
    const forged = [[n, i + 1, ...rest], [n, i ^ 1, ...rest], [n, i, a, cum + 1n, ...rest.slice(2)], [n, i, this.thief, cum, ...rest.slice(2)]][this.rnd(4)];
    if (this.active(e) && !this.rnd(4) && String(forged) !== String(args)) await this.call('bob', 'vault', 'claim', forged, { error: 'BadProof' });
    const all = cum - had, paid = this.paid.day === (this.now + 1n) / DAY ? this.paid.sum : 0n;
    const left = this.cap() - paid, pay = all < left ? all : left, total = this.total + all; // no more than the day lets
    const error = !this.active(e) ? 'NotActive' : cum <= had ? 'NothingToClaim' : total > e.h.total && total > this.newestActive().h.total + this.writtenOff ? 'OverTotal'
      : left <= 0n ? 'OverDailyCap' : (await this.vault.held()) < pay ? 'PaymentRefused' : null;
    const many = !this.rnd(2) && error === null;
    if (!(await this.call(this.pick(['bob', 'alice']), 'vault', many ? 'claimMany' : 'claim', many ? [[args]] : args, { error }))) return;
    this.claimed.set(a, had + pay);
    this.paid = { day: this.now / DAY, sum: paid + pay };
    this.total += pay;
  }

  async pass() {
    this.now += this.pick([1n, WAIT, WAIT, WAIT, WINDOW, WINDOW, WINDOW, WINDOW, DAY / 2n, 5n * DAY]);
    await chain.rpc('evm_setNextBlockTimestamp', Number(this.now));
    await chain.rpc('evm_mine');
  }

  async surplus() {
    const most = await this.vault.surplus();
    await this.call('admin', 'vault', 'withdrawSurplus', [chain.who.dave.address, most + 1n], { error: 'NotSurplus' });
    if (most) await this.call('admin', 'vault', 'withdrawSurplus', [chain.who.dave.address, most]);
  }

  // ---- what always holds

  async invariants(was) {
    const { ledger, vault } = this.at, view = (to, face, fn, args = []) => ['eth_call', [{ to, data: face.encodeFunctionData(fn, args) }, 'latest']];
    const L = (fn, ...a) => view(ledger, ledgerAbi, fn, a), V = (fn, ...a) => view(vault, vaultAbi, fn, a);
    const calls = [L('head'), ...LANES.map((l) => L('laneNext', l)), V('totalClaimed'), V('held'), V('lastLive'), V('dailyCap'), V('paidToday'), V('funded'), V('lockedSeq'),
      ...this.batches.map((b) => L('batchHash', b.h.seq)), L('batchHash', this.batches.length + 1), ...this.holders.map((h) => V('claimed', h)), ...this.holders.map((h) => ['eth_getBalance', [h, 'latest']])];
    const words = (await post(calls)).map((r) => r.result.slice(2).match(/.{1,64}/g).map((w) => BigInt('0x' + w)));
    const head = words.shift(), next = words.splice(0, LANES.length).map(([x]) => x);
    const [[total], [held], [live], [cap], [paid], [funded], [locked]] = words.splice(0, 7), hashes = words.splice(0, this.batches.length + 1).map(([x]) => x);
    const claimed = words.splice(0, this.holders.length).map(([x]) => x), balance = words.map(([x]) => x);
    // I5: ranges are contiguous, each batch names the one before, the head is their sum
    assert.deepEqual([head[0], head[2]], [BigInt(this.batches.length), this.cumFee]);
    assert.deepEqual(next, LANES.map((l) => this.batches.reduce((n, b) => n + b.lanes.filter((x) => x.lane === l).reduce((k, x) => k + x.last - x.first + 1n, 0n), 1n)));
    assert.deepEqual(hashes, [...this.batches.map((b) => BigInt(b.hash)), 0n]);
    for (const [i, b] of this.batches.entries()) assert.equal(b.h.prevHash, i ? this.batches[i - 1].hash : c.ZERO32);
    // I6: nobody is paid twice or beyond what an active epoch granted; a claim never falls; the sum is the sum
    assert.deepEqual(claimed, balance);
    assert.deepEqual(claimed, this.holders.map((h) => this.claimed.get(h.toLowerCase()) ?? 0n));
    assert.equal(claimed.reduce((p, q) => p + q, 0n), total);
    if (was) for (const [i, v] of claimed.entries()) assert.ok(v >= was.claimed[i], 'a claim fell');
    const most = this.epochs.slice(1).filter((e) => this.now >= e.activeAt && (!e.disabled || e.wasActive)).reduce((n, e) => (e.h.total > n ? e.h.total : n), 0n);
    assert.ok(total <= most + this.writtenOff, 'more was claimed than the largest active epoch grants');
    assert.ok(total === 0n || this.epochs.some((e) => e && this.now >= e.activeAt), 'paid before any window ended');
    if (live) {
      const promised = this.epochs[Number(live)].h.total;
      const refilled = this.writtenOff === 0n || funded >= promised; // a theft that was written off is to be funded again first
      assert.ok(!refilled || promised <= held + total - this.writtenOff, 'an epoch promises what is not here');
    }
    assert.deepEqual([Number(live), locked], [this.live, this.locked]);
    const day = this.now / DAY;
    assert.equal(cap, this.cap(this.now));
    assert.equal(paid, this.paid.day === day ? this.paid.sum : 0n);
    for (const e of this.epochs.slice(1)) e.wasActive ||= this.active({ ...e, disabled: e.disabled });
    return { claimed };
  }

  async run(steps) {
    const moves = ['commit', 'commit', 'commit', 'fund', 'fund', 'propose', 'propose', 'claim', 'claim', 'claim', 'claim', 'claim', 'claim', 'pass', 'pass', 'pass', 'veto', 'prove', 'prove', 'retire', 'drop', 'surplus'];
    let was = null;
    for (let i = 0; i < steps; i++) {
      const move = this.pick(moves);
      try {
        await this[move]();
        was = await this.invariants(was);
      } catch (e) {
        e.message = `step ${i}, ${move}: ${e.message}`;
        throw e;
      }
    }
  }
}

test('lives of a ledger and a vault keep every invariant', async () => {
  const seen = new Map();
  for (const seed of seeds) {
    const life = new Life(seed);
    await life.begin();
    await life.run(STEPS).catch((e) => {
      e.message = `RS_SEED=${seed}: ${e.message}`;
      throw e;
    });
    for (const [k, n] of life.outcomes) seen.set(k, (seen.get(k) ?? 0) + n);
  }
  const rare = ['claim OverTotal', 'claim OverDailyCap', 'claim BadProof', 'claim NothingToClaim', 'claimMany ok', 'disableByProof ok', 'disableByProof BadProof', 'propose BadAttestation',
    'propose AttestorsMissing', 'propose Underfunded', 'veto ok', 'retireEpoch ok', 'writeOff ok', 'dropBatch BatchPaid', 'dropBatch ok', 'withdrawSurplus ok', 'commit Already', 'commit LaneGap'];
  if (!process.env.RS_SEED) assert.deepEqual(rare.filter((k) => !seen.get(k)), [], 'never happened');
  console.log([...seen].sort().map(([k, n]) => `${k} ${n}`).join(', '));
});

test('a history answers every second as a walk over its entries does', async () => {
  const ledger = await makeLedger(chain), notice = 7n;
  const registry = await makeRegistry(chain, ledger, { notice, lead: 3n }), where = await registry.getAddress(), face = abi('Registry'), base = h32('history');
  await ok(ledger.connect(chain.who.laneAdmin).registerLane(1, new Wallet(h32('history lane')).address, chain.who.bob.address));
  const life = new Life(11), entries = [];
  life.now = await chain.now();
  for (let i = 1; i <= (full ? 400 : 60); i++) {
    life.now += BigInt(life.rnd(12));
    const data = face.encodeFunctionData('setTariff', [1, base, i, i]), late = entries.at(-1)?.[0] ?? 0n, tx = { from: chain.who.bob.address, to: where, data, gas: '0x100000' };
    await chain.rpc('evm_setNextBlockTimestamp', Number(++life.now));
    const { status } = await mined(tx);
    assert.equal(status, late > life.now ? '0x0' : '0x1', 'one pending change at most');
    if (status === '0x1') entries.push([life.now + (entries.length ? notice : 3n), BigInt(i)]);
  }
  const times = [...entries.flatMap(([t]) => [t - 1n, t, t + 1n]), 0n, (1n << 64n) - 1n];
  const found = await post(times.map((t) => ['eth_call', [{ to: where, data: face.encodeFunctionData('tariffAt', [1, base, t]) }, 'latest']]));
  for (const [i, t] of times.entries()) {
    const [activeAt, price] = entries.findLast(([since]) => since <= t) ?? [0n, 0n];
    assert.deepEqual([...face.decodeFunctionResult('tariffAt', found[i].result)], [activeAt, price, price], `second ${t}`);
  }
});

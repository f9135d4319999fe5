// The page: asks the worker at its own origin, writes text and never markup (no innerHTML anywhere), and leaves money to money.js.
// One account is shown at a time; its address stands in the URL's fragment, so that a page can be linked.
import * as money from './money.js';
import * as wallets from './wallet.js';
import { drawEarnings } from './chart.js';
import { $, code, facts, follow, make, say, short } from './dom.js';

const WAIT_S = 180, WAITING_MAX = 4, LOOK_MS = 2000, LOOK_MS_MAX = 10000;
const page = { d: null, account: null, rewards: null, history: [], wallet: null, from: null, busy: false, all: [] };

// ---- small pieces ----

const shown = (v) => money.amountText(v, page.d.coin_symbol);

// Gas is paid in the chain's own coin, also where the vault holds a token.
const native = (v) => money.amountText(v, /^0x0+$/.test(page.d.token) ? page.d.coin_symbol : "of the chain's coin");

function amount(text) {
  const v = money.amountOf(text), e = make('data', shown(v));
  e.value = String(v);
  return e;
}

// http(s) only, whatever the worker was told.
function explorer(kind, hex) {
  const base = page.d.explorer_url;
  if (!base || !/^https?:\/\//.test(base)) return null;
  return `${base.replace(/\/+$/, '')}/${kind}/${encodeURIComponent(hex)}`;
}

// What another worker or a stranger sent has no transaction in this one's books.
function transaction(hash, state) {
  if (!/^0x[0-9a-f]{64}$/.test(hash ?? '') || /^0x0+$/.test(hash))
    return make('span', ['final', 'active', 'vetoed'].includes(state) ? "not this worker's" : 'none yet', { class: 'quiet' });
  const to = explorer('tx', hash), inner = make('code', short(hash), { title: hash });
  if (!to) return inner;
  const a = make('a', undefined, { href: to, rel: 'noreferrer noopener', 'aria-label': `transaction ${hash}` });
  a.append(inner);
  return a;
}

function time(seconds) {
  if (!seconds) return make('span', '–');
  const at = new Date(seconds * 1000);
  return make('time', at.toISOString().replace('T', ' ').slice(0, 16) + ' UTC', { datetime: at.toISOString() });
}

// A row for `table`'s headings; cells are nodes or text.
function rowOf(table, cells) {
  const heads = [...$(table).querySelectorAll('thead th')], tr = make('tr');
  cells.forEach((cell, i) => {
    const td = make('td', undefined, { 'data-label': heads[i].textContent }), span = make('span');
    span.append(cell);
    td.append(span);
    tr.append(td);
  });
  return tr;
}

const row = (table, cells) => $(table).tBodies[0].append(rowOf(table, cells));

// The worker's answer; null for "no such thing". Its own sentence where it has one.
async function ask(path) {
  let reply, body;
  try {
    reply = await fetch(path, { cache: 'no-store' });
    body = await reply.json();
  } catch {
    throw new Error('The settlement worker does not answer. Is it running? Try again in a moment.');
  }
  if (reply.status === 404) return null;
  if (!reply.ok) throw new Error(`The worker says: ${body?.error?.message ?? 'HTTP ' + reply.status}`);
  return body;
}

// ---- epochs and batches ----

const epochStates = {
  planned: 'planned', computed: 'computed, waits for attestors', attested: 'attested, waits to be paid in', funded: 'paid in, to be proposed',
  proposed: 'being proposed', final: 'in its window: not claimable yet',
  active: 'can be claimed', vetoed: 'vetoed: pays nothing' };

function stateOf(e) {
  const span = make('span', epochStates[e.state] ?? String(e.state));
  if (e.state === 'final' && e.active_at) span.append(', until ', time(e.active_at));
  return span;
}

function epochCells(e) {
  const scored = e.required ? `${e.required - e.missing} of ${e.required}` : 'none required';
  return [String(e.epoch), stateOf(e), `${e.batch_paid_before + 1} to ${e.batch_paid}`, e.total ? amount(e.total) : '–', scored, transaction(e.tx, e.state)];
}

function batchCells(b) {
  return [String(b.batch), String(b.state), time(b.closed_at), String(b.inferences ?? ''), b.fee_sum ? amount(b.fee_sum) : '–', transaction(b.tx, b.state)];
}

const lists = { epochs: { number: 'epoch', cells: epochCells }, batches: { number: 'batch', cells: batchCells } };

// The item's row in its place, newest first; true where it is new or says something new.
function put(key, item) {
  const body = $(key).tBodies[0], number = Number(item[lists[key].number]), said = JSON.stringify(item);
  const rows = [...body.rows], old = rows.find((tr) => tr.number === number);
  if (old?.said === said) return false;
  const tr = Object.assign(rowOf(key, lists[key].cells(item)), { number, said });
  if (old) old.replaceWith(tr);
  else body.insertBefore(tr, rows.find((r) => r.number < number) ?? null);
  rows.find((r) => r.number === undefined)?.remove(); // "none yet"
  return true;
}

// A list that grows downwards: key is both the answer's field and the table's id.
async function more(key) {
  const last = [...$(key).tBodies[0].rows].at(-1)?.number, list = (await ask(`/v1/${key}` + (last ? `?before=${last}` : '')))?.[key] ?? [];
  list.forEach((item) => put(key, item));
  $(`${key}-more`).hidden = list.length < 100;
  if (!$(key).tBodies[0].rows.length) row(key, ['none yet']);
}

// What has happened since: the newest of both lists, and the account where they have news.
async function refresh() {
  if (waiting) return true;
  try {
    const news = await Promise.all(Object.keys(lists).map(async (key) => ((await ask(`/v1/${key}`))?.[key] ?? []).map((item) => put(key, item)).includes(true)));
    $('stale').textContent = '';
    if (news.includes(true) && page.account) act(() => show(page.account, true));
  } catch (e) {
    $('stale').textContent = `Not up to date. ${e.message}`;
  }
  return true;
}

// ---- an account ----

function showAmounts(r) {
  const earned = money.amountOf(r.cumulative), paid = money.amountOf(r.claimed), due = earned > paid ? earned - paid : 0n;
  const rows = [['Account', code(r.account)], ['Earned', amount(r.cumulative)], ['Paid so far', amount(r.claimed)], ['To be claimed', amount(String(due))]];
  if (r.pending) {
    const dd = make('span');
    dd.append(amount(r.pending.amount), ` in epoch ${r.pending.epoch}, `, stateOf(r.pending));
    rows.push(['Pending', dd]);
  }
  facts('amounts', rows);
  page.due = due;
}

function showProof(r) {
  if (!r.proof) return facts('proof', [['Proof', 'none: the account is in no epoch that can be claimed from']]);
  const steps = make('ol');
  r.proof.hashes.forEach((h, i) => {
    const li = make('li');
    li.append(code(h), ' ', amount(r.proof.sums[i]));
    steps.append(li);
  });
  facts('proof', [['Epoch', String(r.epoch)], ['Leaf', `${r.index} of ${r.leaves}`], ['Cumulative', amount(r.cumulative)], ['Root', code(r.root)], ['Total', amount(r.total)], ['Siblings', r.proof.hashes.length ? steps : 'none: the only leaf']]);
}

function note(...parts) {
  const li = make('li');
  li.append(...parts);
  $('notes').append(li);
}

async function moreSources(after = '') {
  const list = await ask(`/v1/rewards/${page.account}/sources` + (after ? `?after=${encodeURIComponent(after)}` : ''));
  let known = 0n;
  for (const s of list?.sources ?? []) {
    row('sources', [s.adapter ? code(s.adapter) : 'none', s.datanet ? code(s.datanet) : 'none', String(s.source), amount(s.earned), amount(s.pending)]);
    known += money.amountOf(s.earned);
    if (s.source === 'unpaid')
      note('Answers of adapter ', code(s.adapter ?? ''), ' rest on this account\'s documents, but its split has no share for data: it pays nothing for them. Its owner can change that.');
  }
  $('sources-more').hidden = !list?.next;
  $('sources-more').onclick = () => act(() => moreSources(list.next));
  if (!after && !list?.next && known < money.amountOf(page.rewards.cumulative))
    note(`${shown(money.amountOf(page.rewards.cumulative) - known)} was earned in epochs whose breakdown this worker does not hold.`);
}

async function moreHistory(before = '') {
  const list = await ask(`/v1/rewards/${page.account}/history` + (before ? `?before=${encodeURIComponent(before)}` : ''));
  for (const e of list?.epochs ?? []) row('history', [String(e.epoch), time(e.at), amount(e.earned), stateOf(e)]);
  page.history.push(...(list?.epochs ?? []));
  $('history-more').hidden = !list?.next;
  $('history-more').onclick = () => act(() => moreHistory(list.next));
  drawEarnings($('chart'), page.history, shown, short);
}

// again: the account that is shown already, for its news; nothing is said.
async function show(account, again = false) {
  if (!money.isAddress(account)) throw new Error('That is not an address: 0x and 40 hexadecimal digits are expected.');
  if (!again) say('Asking the worker …');
  const r = await ask(`/v1/rewards/${account}`);
  if (again && (account !== page.account || JSON.stringify(r) === JSON.stringify(page.rewards))) return;
  Object.assign(page, { account, rewards: r, history: [], due: 0n });
  if (!again) $('account').value = account;
  $('rewards').hidden = !r;
  for (const id of ['history', 'sources']) $(id).tBodies[0].replaceChildren();
  $('notes').replaceChildren();
  if (location.hash.slice(1) !== account) history.replaceState(null, '', '#' + account);
  if (r) {
    showAmounts(r);
    showProof(r);
    if (money.amountOf(r.undivided.fee_sum))
      note(`${shown(money.amountOf(r.undivided.fee_sum))} of fees are committed and not divided yet, of all accounts together.`);
    await moreSources();
    await moreHistory();
  }
  if (!again) say(r ? '' : 'This account has earned nothing so far.');
}

// ---- the wallet ----

function buttons() {
  const provable = page.rewards?.proof, why = !page.wallet ? 'Connect a wallet first.' : !provable ? 'Nothing of this account can be claimed yet.' : '';
  $('check').disabled = page.busy || !!why;
  $('check-why').textContent = why;
  $('claim').disabled = page.busy || !!why || !page.due;
  $('claim').textContent = page.due ? `Claim ${shown(page.due)}` : 'Claim';
  $('claim-why').textContent = why || (page.due ? `${short(page.from)} sends it and pays the gas; the account is paid.` : 'Everything is paid.');
}

function showWallets(list) {
  page.all = list;
  $('wallets').replaceChildren(...list.map((w) => {
    const b = make('button', undefined, { type: 'button' });
    if (w.icon) b.append(make('img', undefined, { src: w.icon, alt: '' }));
    b.append(w === page.wallet || w.provider === page.wallet?.provider ? `${w.name}: ${short(page.from)}` : `Connect ${w.name}`);
    b.onclick = () => act(() => connect(w));
    return b;
  }));
  if (!list.length) $('wallets').replaceChildren(make('span', 'No wallet in this browser: amounts can be seen, a claim needs one (or residual claim).', { class: 'quiet' }));
}

async function connect(w) {
  const from = await wallets.connect(w);
  if (!money.isAddress(from)) throw new Error('The wallet named an account that is no address.');
  Object.assign(page, { wallet: w, from });
  const again = [...$('wallets').children].indexOf(document.activeElement);
  showWallets(page.all);
  $('wallets').children[again]?.focus();
  await show(page.account ?? from);
}

// The root that the proof leads to is the one on the chain; else a reason is thrown.
async function checkProof() {
  const r = page.rewards, own = money.rewardRoot(page.d, r);
  await wallets.onChain(page.wallet, page.d);
  const e = money.readEpoch(await wallets.call(page.wallet, page.d.vault, money.epochCall(r.epoch)));
  if (e.disabled) throw new Error(`Epoch ${r.epoch} was disabled on the chain: refresh the page.`);
  if (e.root !== own.hash || e.total !== own.sum || e.leaves !== r.leaves)
    throw new Error(`The worker's proof does not lead to the root of epoch ${r.epoch} on the chain. Do not trust this page; take the proof from another source.`);
  return `The proof leads to the root of epoch ${r.epoch} that the vault holds on the chain: ${e.root}.`;
}

async function claim() {
  const r = page.rewards, due = page.due, tx = { from: page.from, to: page.d.vault, data: money.claimCall(r) };
  say('Checking the proof against the chain …');
  await checkProof();
  const gas = await wallets.gasOf(page.wallet, tx);
  if (gas.balance < gas.needed)
    throw new Error(`${page.from} holds ${native(gas.balance)} and needs about ${native(gas.needed)} for gas. Send it that much, or let anyone with coins claim for ${r.account}: open this page there, or run residual claim --account ${r.account}. The account is paid whoever sends it.`);
  say('Confirm in your wallet …');
  const hash = await wallets.send(page.wallet, tx);
  say(`Sent as ${hash}; waiting for a block …`);
  const receipt = await wallets.mined(page.wallet, hash, WAIT_S);
  if (!receipt) return say(`Transaction ${hash} is not in a block yet; it may still come. Refresh later.`);
  if (BigInt(receipt.status) !== 1n) throw new Error(`Transaction ${hash} failed on the chain. Nothing was paid by it.`);
  const paid = money.paidIn(receipt, page.d.vault), left = due > paid ? due - paid : 0n;
  await show(page.account);
  say(`Paid ${shown(paid)} to ${r.account}, in transaction ${hash}.${left ? ` The vault pays no more today: claim the other ${shown(left)} tomorrow.` : ''}`, 'good');
}

// ---- one thing at a time; errors are sentences ----

function sentence(e) {
  const reason = page.d && money.reasonOf(wallets.revertOf(e));
  if (reason) return reason;
  if (e?.code === 4001) return 'You declined in the wallet; nothing was sent.';
  if (e?.code === -32002) return 'The wallet already asks you something: open it and answer there.';
  return String(e?.message || e);
}

async function one(work) {
  page.busy = true;
  const focus = document.activeElement;
  buttons();
  try {
    await work();
  } catch (e) {
    say(sentence(e), 'bad');
  } finally {
    page.busy = false;
    buttons();
    if (focus?.isConnected && document.activeElement === document.body) focus.focus();
  }
}

// A press while something is under way comes after it; the buttons of money are disabled meanwhile.
let waiting = 0, last = Promise.resolve();
function act(work) {
  if (waiting >= WAITING_MAX) return;
  waiting++;
  last = last.then(() => one(work)).then(() => waiting--);
}

async function start() {
  page.d = await ask('/v1/deployment');
  const vault = explorer('address', page.d.vault), at = vault ? make('a', undefined, { href: vault, rel: 'noreferrer noopener' }) : make('span');
  at.append(code(page.d.vault));
  $('chain').replaceChildren(`${page.d.chain_name ?? 'Chain ' + page.d.chain_id}, vault `, at);
  wallets.discover(showWallets);
  await Promise.all(Object.keys(lists).map(more));
  follow(refresh, LOOK_MS, LOOK_MS_MAX);
  const linked = decodeURIComponent(location.hash.slice(1));
  if (linked && linked !== 'main') await show(linked);
}

$('ask').addEventListener('submit', (event) => {
  event.preventDefault();
  act(() => show($('account').value.trim()));
});
$('check').onclick = () => act(async () => say(await checkProof(), 'good'));
$('claim').onclick = () => act(claim);
$('epochs-more').onclick = () => act(() => more('epochs'));
$('batches-more').onclick = () => act(() => more('batches'));
window.addEventListener('hashchange', () => {
  const linked = decodeURIComponent(location.hash.slice(1));
  if (linked && linked !== 'main' && linked !== page.account) act(() => show(linked));
});
act(start);

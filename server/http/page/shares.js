// Who made the answer: contributors as bars with their interval, what the index is trusted with, the signals, the sources.
import { code, make, shape, short } from './dom.js';

const E9 = 1e9, COLOURS = 6;
let settle = null; // the worker's address: an account's earnings are there

export const linkAccounts = (url) => (settle = url);

export function percent(ppb) {
  const p = ppb / 1e7;
  return p > 0 && p < 0.1 ? '< 0.1 %' : `${p.toFixed(1)} %`;
}

export function nameOf(payee) {
  if (/^0x0*$/.test(payee ?? '0x')) return make('span', 'nobody (the treasury)');
  const inner = make('code', short(payee), { title: payee });
  if (!settle) return inner;
  const a = make('a', undefined, { href: `${settle}/#${encodeURIComponent(payee)}`, rel: 'noreferrer noopener', target: '_blank', 'aria-label': `earnings of ${payee}` });
  a.append(inner);
  return a;
}

// payee -> {ppb of the whole answer, colour}, the largest first.
export function ownersOf(a) {
  const sums = new Map();
  for (const k of a.adapters ?? []) for (const c of k.contributors ?? []) sums.set(c.payee, (sums.get(c.payee) ?? 0) + (k.gain_ppb / E9) * c.ppb);
  const ranked = [...sums].sort((x, y) => y[1] - x[1]);
  return new Map(ranked.map(([payee, ppb], i) => [payee, { ppb, colour: i < COLOURS ? `s${i}` : 'rest' }]));
}

function trust(index) {
  const l = index.lambda_ppb / E9, rest = percent((1 - l) * E9), begin = `Trust λ ${l.toFixed(2)}: `;
  if (l >= 0.95) return `${begin}held-out sentences find their own owner practically always, so the shares follow what was found in this answer.`;
  if (l >= 0.5) return `${begin}held-out sentences mostly find their own owner. The shares follow what was found in this answer, but for ${rest}: that is divided by number of documents.`;
  if (l > 0.05) return `${begin}held-out sentences seldom find their own owner. Only ${percent(l * E9)} follows what was found in this answer; ${rest} is divided by number of documents.`;
  return `${begin}what this index finds cannot be told from chance. The shares go by number of documents.`;
}

function aboutIndex(index, contributors) {
  if (!index) return '';
  if (index.state === 'ready' && contributors.some((c) => c.signals) && contributors.every((c) => (c.signals?.events ?? null) === null))
    return `None of its ${index.rows} sentences was found in this answer: its shares go by number of documents.`;
  if (index.state === 'ready') return `${trust(index)} ${index.rows} sentences are indexed.`;
  const states = { none: 'No index of its sentences', waiting: 'Its index waits to be built', building: 'Its index is being built', failed: 'Its index could not be built' };
  return `${states[index.state] ?? String(index.state)}${index.reason ? `: ${index.reason}` : ''}.`;
}

// Solid for a record, hollow for a preview (page.css); the line is the interval.
function bar(c, colour) {
  const svg = shape('svg', { viewBox: '0 0 100 10', preserveAspectRatio: 'none', 'aria-hidden': 'true', class: 'bar' });
  svg.append(shape('rect', { x: 0, y: 1, width: Math.max(0.5, c.ppb / 1e7), height: 8, class: colour }));
  if (c.interval && c.interval[0] < c.interval[1]) for (const [x1, x2, y1, y2] of [[c.interval[0], c.interval[1], 5, 5], [c.interval[0], c.interval[0], 2, 8], [c.interval[1], c.interval[1], 2, 8]])
    svg.append(shape('line', { x1: x1 / 1e7, x2: x2 / 1e7, y1, y2, class: 'whisker' }));
  return svg;
}

export function table(caption, heads, rows) {
  const t = make('table'), head = make('tr'), body = make('tbody');
  for (const h of heads) head.append(make('th', h, { scope: 'col' }));
  for (const cells of rows) {
    const tr = make('tr');
    cells.forEach((cell, i) => {
      const td = make('td', undefined, { 'data-label': heads[i] });
      td.append(cell);
      tr.append(td);
    });
    body.append(tr);
  }
  t.append(make('caption', caption), make('thead'), body);
  t.tHead.append(head);
  return t;
}

function contributor(c, owners) {
  const who = make('span'), share = make('span', percent(c.ppb));
  who.append(make('span', undefined, { class: `dot ${owners.get(c.payee)?.colour ?? 'rest'}`, 'aria-hidden': 'true' }), nameOf(c.payee));
  if (c.interval && percent(c.interval[0]) !== percent(c.interval[1])) share.append(make('span', ` ${percent(c.interval[0])} to ${percent(c.interval[1])}`, { class: 'quiet interval' }));
  share.append(bar(c, owners.get(c.payee)?.colour ?? 'rest'));
  return [who, share];
}

const signal = (v) => (v === null || v === undefined ? '–' : percent(v));

function signals(list) {
  const d = make('details');
  d.append(make('summary', 'Signals'), table('What each signal alone would divide', ['Contributor', 'Events', 'Spans', 'Documents', 'Share'],
    list.map((c) => [nameOf(c.payee), signal(c.signals?.events), signal(c.signals?.spans), signal(c.signals?.prior), percent(c.ppb)])),
  make('p', 'Events: training sentences whose words come to the answer the way this one did. Spans: word for word. Documents: how many each brought.', { class: 'quiet' }));
  return d;
}

// The strongest sentences; each leads to its word of the answer.
function sources(adapter, answer) {
  const list = make('ol', undefined, { class: 'rows' });
  for (const r of adapter.rows ?? []) {
    const li = make('li'), at = make('button', 'Show it at its word', { type: 'button', 'aria-label': `Show it at its word: document ${r.docId}` });
    at.onclick = () => answer.move(r.token);
    li.append(answer.source(r, `${percent(r.ppb)} of what was found`));
    if (answer.el[r.token] && (r.choice ?? 0) === 0) li.append(at);
    list.append(li);
  }
  return list.childElementCount ? [make('h4', 'Strongest sentences'), list] : [];
}

function credit(adapter, answer, owners, many) {
  const box = make('section', undefined, { class: 'credit' }), list = [...(adapter.contributors ?? [])].sort((x, y) => y.ppb - x.ppb);
  const head = make('h3', adapter.name ?? short(adapter.id));
  box.setAttribute('aria-label', adapter.name ?? adapter.id);
  if (many || adapter.weight !== 1) head.append(make('span', ` weight ${adapter.weight}`, { class: 'quiet' }));
  box.append(head, make('p', `${many ? `${percent(adapter.gain_ppb)} of what the adapters changed, ` : ''}${(adapter.gain_nats ?? 0).toFixed(2)} nats over the base.`, { class: 'quiet' }),
    make('p', aboutIndex(adapter.index, list), { class: 'trust' }));
  if (list.length) box.append(table('Shares of its data money', ['Contributor', 'Share'], list.map((c) => contributor(c, owners))));
  else box.append(make('p', 'No contributor has a share: its data money goes as its registered split says.', { class: 'quiet' }));
  if (list.some((c) => c.signals)) box.append(signals(list));
  box.append(...sources(adapter, answer));
  return box;
}

export function drawCredits(container, answer) {
  const adapters = [...(answer.attribution.adapters ?? [])].sort((x, y) => y.gain_ppb - x.gain_ppb);
  container.replaceChildren(...adapters.map((k) => credit(k, answer, answer.owners, adapters.length > 1)));
  if (!adapters.length) container.replaceChildren(make('p', 'No adapter took part: the base alone answered.', { class: 'quiet' }));
}

export function recordFacts(answer) {
  const a = answer.attribution, r = answer.residual ?? {}, pairs = [];
  const put = (name, value) => value !== undefined && value !== null && value !== '' && pairs.push([name, /^0x/.test(value) ? code(value) : String(value)]);
  put('Request', r.request_id);
  put('Receipt of the answer', r.receipt);
  put('Record digest', r.record_digest);
  put('Method', a?.method);
  put('Attribution digest', a?.record_digest);
  put('Attribution signature', a?.signature);
  put('Signed by', a?.signer);
  for (const k of a?.adapters ?? []) put(`Index of ${k.name ?? short(k.id)}`, k.index?.root);
  return pairs;
}

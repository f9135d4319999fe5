// What datanets and contributors are worth: their publishers' measured claims, the largest first. #ROOT shows one datanet.
import { ask } from './api.js';
import { $, code, facts, make, say, shape } from './dom.js';
import { linkAccounts, nameOf, table } from './shares.js';

const nats = (v) => `${v < 0 ? '−' : '+'}${Math.abs(v).toFixed(4)}`;
const gainOf = (d) => d.value.gain.nats_per_token;
const JUDGES = { eval: 'rows that stand in no datanet of its own', rows: 'parts of its own rows, each held out once' };

// From zero in the middle; the line is the interval.
function bar(f, most) {
  const x = (v) => 50 + 50 * Math.max(-1, Math.min(1, most ? v / most : 0)), svg = shape('svg', { viewBox: '0 0 100 10', preserveAspectRatio: 'none', 'aria-hidden': 'true', class: 'bar' });
  const [a, b] = [50, x(f.nats_per_token)].sort((p, q) => p - q);
  svg.append(shape('rect', { x: a, y: 1, width: Math.max(0.3, b - a), height: 8, class: f.nats_per_token < 0 ? 'loss' : 's0' }),
    shape('line', { x1: 50, x2: 50, y1: 0, y2: 10 }), shape('line', { x1: x(f.low), x2: x(f.high), y1: 5, y2: 5, class: 'whisker' }));
  return svg;
}

function figure(f, most) {
  const cell = make('span', nats(f.nats_per_token));
  if (f.nats_per_token < 0) cell.className = 'bad';
  cell.append(make('span', ` ${nats(f.low)} to ${nats(f.high)}`, { class: 'quiet interval' }), bar(f, most));
  return cell;
}

const largest = (figures) => Math.max(0, ...figures.flatMap((f) => [Math.abs(f.nats_per_token), Math.abs(f.low), Math.abs(f.high)]));
const titled = (d) => `${d.name} version ${d.version}`;

function linked(d) {
  const a = make('a', titled(d), { href: `#${d.document_root}` });
  const cell = make('span');
  cell.append(a);
  return cell;
}

function drawAll(list) {
  const measured = list.filter((d) => d.value).sort((x, y) => gainOf(y) - gainOf(x)), rest = list.filter((d) => !d.value);
  const people = measured.flatMap((d) => d.value.contributors.map((c) => ({ ...c, d }))).sort((x, y) => y.worth.nats_per_token - x.worth.nats_per_token);
  const most = largest(measured.map((d) => d.value.gain)), top = largest(people.map((c) => c.worth));
  $('datanets').replaceChildren(measured.length ? table('Datanets: what the adapter of all rows gains over the base', ['Datanet', 'Gain', 'Judged by', 'Measured by'],
    measured.map((d) => [linked(d), figure(d.value.gain, most), JUDGES[d.value.judged_by] ?? d.value.judged_by, d.value.measured_by || 'its publisher']))
    : make('p', 'No publisher has measured a datanet that is held here.', { class: 'quiet' }));
  $('people').replaceChildren(...(people.length ? [table('Contributors: what others\' rows cost more without theirs', ['Contributor', 'Worth', 'Of'],
    people.map((c) => [nameOf(c.owner), figure(c.worth, top), linked(c.d)]))] : []));
  $('unmeasured').replaceChildren(...(rest.length ? [make('h3', 'Not measured'), ...rest.map((d) => {
    const p = make('p');
    p.append(linked(d));
    return p;
  })] : []));
}

function drawOne(d) {
  const v = d.value, most = v ? largest([v.gain, ...v.contributors.map((c) => c.worth)]) : 0;
  $('h-one').textContent = titled(d);
  const pairs = [['Documents', `${d.documents}, ${d.bytes} bytes`], ['Document root', code(d.document_root)]];
  if (d.datanet) pairs.push(['Datanet', code(d.datanet)]);
  if (!v) {
    facts('about', pairs);
    $('worth').replaceChildren(make('p', 'Nobody has measured what it is worth on this server\'s base: residual datanet value does.', { class: 'quiet' }));
    return;
  }
  const recipe = make('a', 'the recipe, to compute it again', { href: `/v1/datanets/${encodeURIComponent(d.document_root)}/value` }), claim = make('span', `${v.measured_by || 'its publisher'}, whose claim it is; `);
  claim.append(recipe);
  pairs.push(['Measured by', claim], ['Judged by', `${JUDGES[v.judged_by] ?? v.judged_by}: ${v.gain.tokens} tokens, ${v.seeds} ${v.seeds === 1 ? 'seed' : 'seeds'}`],
    ['On the base', code(v.base)], ['Digest', code(v.digest)]);
  facts('about', pairs);
  $('worth').replaceChildren(table('In nats a held-out token', ['Without', 'Worth', 'In all', 'Rows'], [
    [make('strong', 'all: the base alone'), figure(v.gain, most), v.gain.nats.toFixed(1), ''],
    ...v.contributors.map((c) => [nameOf(c.owner), figure(c.worth, most), c.worth.nats.toFixed(1), c.repeated ? `${c.rows}, and ${c.repeated} that others said before` : String(c.rows)])]));
}

async function show() {
  const root = location.hash.slice(1);
  try {
    if (root) drawOne(await ask(`/v1/datanets/${encodeURIComponent(root)}?first=0&last=0`));
    else drawAll((await ask('/v1/datanets')).data);
    $('one').hidden = !root;
    $('all').hidden = !!root;
    say('');
  } catch (e) {
    $('one').hidden = $('all').hidden = true;
    say(e.message || String(e), 'bad');
  }
}

async function start() {
  linkAccounts((await ask('/page/settings')).settle_url?.replace(/\/+$/, '') ?? null);
  await show();
}

window.addEventListener('hashchange', show);
start().catch((e) => say(e.message || String(e), 'bad'));

// What an account earned in each epoch as stacked bars, one colour an adapter: the same numbers as the table below it, which is
// where a screen reader is sent.
import { make, shape } from './dom.js';

const COLOURS = 6, WIDTH = 600, HEIGHT = 140;

const sourceOf = (s) => s.adapter ?? s.source;

// [[source, sum]] of all epochs, largest first.
function ranking(epochs) {
  const sums = new Map();
  for (const e of epochs) for (const s of e.shares) sums.set(sourceOf(s), (sums.get(sourceOf(s)) ?? 0n) + BigInt(s.amount));
  return [...sums].filter(([, v]) => v > 0n).sort((a, b) => (a[1] < b[1] ? 1 : a[1] > b[1] ? -1 : a[0] < b[0] ? -1 : 1));
}

// [class, amount] from the bottom up; what no share explains is the rest.
function stack(e, colour) {
  const parts = new Map();
  let left = BigInt(e.earned);
  for (const s of e.shares) {
    const c = colour.get(sourceOf(s)) ?? 'rest';
    if (c !== 'rest') left -= BigInt(s.amount);
    if (c !== 'rest') parts.set(c, (parts.get(c) ?? 0n) + BigInt(s.amount));
  }
  if (left > 0n) parts.set('rest', left);
  return [...parts].sort();
}

function key(colour, short, name, text) {
  const li = make('li'), box = shape('svg', { viewBox: '0 0 1 1', 'aria-hidden': 'true' });
  box.append(shape('rect', { width: 1, height: 1, class: colour }));
  li.append(box, `${/^0x/.test(name) ? 'adapter ' + short(name) : name}${text}`);
  return li;
}

export function drawEarnings(figure, newestFirst, amountText, short) {
  const epochs = newestFirst.filter((e) => e.state !== 'vetoed').reverse();
  const most = epochs.reduce((m, e) => (BigInt(e.earned) > m ? BigInt(e.earned) : m), 0n);
  figure.replaceChildren();
  if (!most) return;
  const ranked = ranking(epochs), colour = new Map(ranked.slice(0, COLOURS).map(([name], i) => [name, `s${i}`]));
  const first = epochs[0].epoch, last = epochs.at(-1).epoch;
  const svg = shape('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: 'none', role: 'img',
    'aria-label': `Earned per epoch, ${first} to ${last}; at most ${amountText(most)} in one. The table below has the numbers.` });
  const step = WIDTH / epochs.length, width = Math.max(1, Math.min(step * 0.8, 60));
  epochs.forEach((e, i) => {
    let y = HEIGHT;
    for (const [c, v] of stack(e, colour)) {
      const h = Number((v * BigInt(HEIGHT - 8) * 1000n) / most) / 1000;
      svg.append(shape('rect', { x: (i * step + (step - width) / 2).toFixed(2), y: (y -= h).toFixed(2), width: width.toFixed(2), height: h.toFixed(2), class: c }));
    }
  });
  const caption = make('figcaption', `Epochs ${first} to ${last}; the highest bar is ${amountText(most)}.`), list = make('ul', undefined, { class: 'key' });
  for (const [name, sum] of ranked.slice(0, COLOURS)) list.append(key(colour.get(name), short, name, `: ${amountText(sum)}`));
  if (svg.querySelector('.rest')) list.append(key('rest', short, 'everything else', ''));
  figure.append(svg, caption, list);
}

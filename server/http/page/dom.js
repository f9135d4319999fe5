// Small pieces of a page: elements of text, never of markup.
const SVG = 'http://www.w3.org/2000/svg';

export const $ = (id) => document.getElementById(id);

export function make(tag, text, attributes = {}) {
  const e = document.createElement(tag);
  if (text !== undefined) e.textContent = text;
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
  return e;
}

export function shape(tag, attributes) {
  const e = document.createElementNS(SVG, tag);
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
  return e;
}

export const short = (hex) => (hex.length > 16 ? `${hex.slice(0, 8)}…${hex.slice(-6)}` : hex);
export const code = (hex) => make('code', hex);

// The definition list of this id; values are nodes or text.
export function facts(id, pairs) {
  $(id).replaceChildren(...pairs.flatMap(([name, value]) => {
    const dd = make('dd');
    dd.append(value);
    return [make('dt', name), dd];
  }));
}

// What is said of something under way, or went wrong.
export function say(text, kind = '') {
  $('said').textContent = text;
  $('said').className = kind;
}

// Calls `look` after each of growing waits while it returns true; a page that nobody sees does not ask.
export function follow(look, first_ms, most_ms) {
  let over = false, wait = first_ms, timer = 0;
  const turn = async () => {
    if (over) return;
    if (!document.hidden && !(await look())) return stop();
    wait = Math.min(wait * 1.5, most_ms);
    if (!over) timer = setTimeout(turn, wait);
  };
  const stop = () => {
    over = true;
    clearTimeout(timer);
  };
  timer = setTimeout(turn, wait);
  return stop;
}

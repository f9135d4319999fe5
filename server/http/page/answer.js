// One answer: its text while it comes; then its tokens, shaded by what the adapters added and underlined where the words stand in
// somebody's document; and the card that names a token's source. One token at a time can be reached by Tab, arrows move on.
import { make, short } from './dom.js';
import { nameOf, percent } from './shares.js';

const CARD_ROWS_MAX = 2;
const SHADES_NATS = [0.1, 0.5, 1, 2, 4]; // a token is of shade n from its nth on

const shade = (nats) => SHADES_NATS.filter((least) => nats >= least).length;

// The token's part of the content, from `at` on; '' where it does not show (an end token, a cut stop string).
function partOf(content, at, text) {
  if (content.startsWith(text, at)) return text;
  return at === 0 && text.startsWith(' ') && content.startsWith(text.slice(1)) ? text.slice(1) : '';
}

function effect(nats) {
  if (nats === undefined) return '';
  if (nats < SHADES_NATS[0]) return 'The base alone would have said it as well.';
  const times = Math.exp(nats);
  return `The adapters made it ${times > 9999 ? 'over 9999' : times < 10 ? times.toFixed(1) : times.toFixed(0)} times likelier (${nats.toFixed(2)} nats).`;
}

// A sentence, the words that the answer has of it marked.
function quote(text, words) {
  const box = make('blockquote'), at = words ? text.indexOf(words) : -1;
  if (at < 0) box.append(text);
  else box.append(text.slice(0, at), make('mark', words), text.slice(at + words.length));
  return box;
}

export class Answer {
  constructor(question, onSelect) {
    Object.assign(this, { question, content: '', tokens: [], el: [], residual: null, attribution: null, current: -1, pending: '', frame: 0 });
    this.text = make('div', undefined, { class: 'answer', role: 'group', 'aria-label': 'Answer', 'aria-busy': 'true' });
    this.badge = make('p', 'Answering …', { class: 'badge' });
    this.card = make('aside', undefined, { class: 'card', 'aria-label': 'Source of the word', 'aria-live': 'polite', hidden: '' });
    this.article = make('article', undefined, { class: 'turn' });
    this.article.append(make('p', question, { class: 'asked' }), this.text, this.badge, this.card);
    this.live = this.text.appendChild(document.createTextNode(''));
    this.article.addEventListener('pointerdown', () => onSelect(this));
    this.article.addEventListener('focusin', () => onSelect(this));
    this.text.addEventListener('pointerover', (e) => this.look(this.indexOf(e.target)));
    this.text.addEventListener('click', (e) => this.move(this.indexOf(e.target)));
    this.text.addEventListener('keydown', (e) => this.press(e));
  }

  // ---- while it comes: once a frame, however fast the tokens are ----

  // A choice of a chat's chunk, or of a completion's.
  take(choice) {
    const said = choice.logprobs, text = choice.delta?.content ?? choice.text ?? '';
    this.tokens.push(...(said?.content ?? said?.tokens?.map((token, i) => ({ token, at: said.text_offset[i] })) ?? []));
    this.content += text;
    this.pending += text;
    if (!this.frame) this.frame = requestAnimationFrame(() => this.flush());
  }

  flush() {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    this.live.appendData(this.pending);
    this.pending = '';
  }

  // ---- when it is here: one element a token ----

  end() {
    this.flush();
    this.text.setAttribute('aria-busy', 'false');
    const decoder = new TextDecoder(), all = document.createDocumentFragment(), characters = Array.from(this.content);
    const given = (t, i) => characters.slice(t.at, this.tokens[i + 1]?.at ?? characters.length).join('');
    let at = 0;
    this.el = this.tokens.map((t, i) => {
      const text = t.bytes ? decoder.decode(new Uint8Array(t.bytes), { stream: true }) : t.token;
      const part = t.at === undefined ? partOf(this.content, at, text) : given(t, i);
      const ends = !part && i === this.tokens.length - 1 && text;
      at += part.length;
      if (!part && !ends) return null;
      const e = make('span', ends ? 'end' : part, { class: ends ? 't ends' : 't' });
      e.index = i;
      all.append(e);
      return e;
    });
    if (at < this.content.length) all.append(this.content.slice(at));
    this.text.replaceChildren(all);
  }

  // ---- when it is attributed ----

  attribute(a, owners) {
    const last = this.el.findLastIndex((e) => e), tokens = a.choices?.find((c) => c.index === 0)?.tokens ?? [];
    Object.assign(this, { attribution: a, owners, gains: tokens, spans: [], rows: [], mixed: a.adapters?.length > 1 });
    for (const adapter of a.adapters ?? []) {
      for (const r of adapter.rows ?? []) if ((r.choice ?? 0) === 0) this.rows.push({ ...r, adapter });
      for (const s of adapter.spans ?? []) {
        const from = Math.max(0, s.output_begin), to = Math.min(last, s.output_begin + s.tokens - 1);
        if ((s.choice ?? 0) === 0 && from <= to) this.spans.push({ ...s, from, to, adapter });
      }
    }
    this.el.forEach((e, i) => e && this.paint(e, i));
    if (this.current < 0) this.point(this.el[this.next(-1, 1, true)] ? this.next(-1, 1, true) : this.next(-1, 1));
    if (this.looked !== undefined && !this.card.hidden) this.look(this.looked);
  }

  paint(e, i) {
    const span = this.spansAt(i)[0], owner = span && this.owners.get(span.sources?.[0]?.owner);
    e.className = `${e.classList.contains('ends') ? 't ends' : 't'} g${shade(this.gains[i]?.gain_nats ?? 0)}${span ? ` u ${owner?.colour ?? 'rest'}` : ''}`;
  }

  // The longest first.
  spansAt(i) {
    return this.spans.filter((s) => s.from <= i && i <= s.to).sort((a, b) => b.tokens - a.tokens);
  }

  tells(i) {
    return shade(this.gains?.[i]?.gain_nats ?? 0) > 0 || this.rows?.some((r) => r.token === i) || this.spansAt(i).length > 0;
  }

  // ---- one token at a time ----

  indexOf(target) {
    return target.index ?? -1;
  }

  // The next visible token from i on, or the next that has something to tell; i where there is none.
  next(i, step, telling = false) {
    for (let k = i + step; k >= 0 && k < this.el.length; k += step) if (this.el[k] && (!telling || this.tells(k))) return k;
    return i;
  }

  press(e) {
    const to = {
      ArrowRight: () => this.next(this.current, 1), ArrowLeft: () => this.next(this.current, -1),
      ArrowDown: () => this.next(this.current, 1, true), ArrowUp: () => this.next(this.current, -1, true),
      Home: () => this.next(-1, 1), End: () => this.next(this.el.length, -1),
    }[e.key];
    if (e.key === 'Escape') this.card.hidden = true;
    if (e.key === 'Enter' || e.key === ' ') this.look(this.current);
    if (to) this.move(to());
    if (to || e.key === ' ') e.preventDefault();
  }

  // Tab comes here.
  point(i) {
    if (!this.el[i]) return;
    for (const name of ['tabindex', 'role', 'aria-description']) this.el[this.current]?.removeAttribute(name);
    this.current = i;
    this.el[i].setAttribute('tabindex', '0');
    this.el[i].setAttribute('role', 'button');
    this.el[i].setAttribute('aria-description', 'a word of the answer: arrow keys move on');
    this.el[i].onfocus = () => this.look(i);
  }

  move(i) {
    if (!this.el[i] || !this.attribution) return;
    this.point(i);
    this.el[i].focus({ preventScroll: false });
    this.look(i);
  }

  look(i) {
    if (!this.el[i] || !this.attribution) return;
    this.el[this.looked]?.classList.remove('looked');
    this.looked = i;
    this.el[i].classList.add('looked');
    const [from, to] = this.wordAt(i), rows = this.rows.filter((r) => from <= r.token && r.token <= to), more = rows.splice(CARD_ROWS_MAX).length;
    const spans = this.spansAt(i), head = make('p', undefined, { class: 'word' });
    head.append(this.inItsWord(i), ' ', effect(this.gains[i]?.gain_nats));
    this.card.replaceChildren(head, ...rows.map((r) => this.source(r, `${percent(r.ppb)} of what was found`, spans[0] && this.words(spans[0]))),
      ...(more ? [make('p', `${more} more at this word: see the strongest sentences.`, { class: 'quiet' })] : []),
      ...spans.map((s) => this.verbatim(s, rows)));
    if (!rows.length && !spans.length) this.card.append(make('p', this.nothing(), { class: 'quiet' }));
    this.card.hidden = false;
  }

  nothing() {
    if (!this.attribution.choices) return 'What was found at each word is no longer kept for this answer; the shares are.';
    return this.rows.length ? 'No sentence of its own: it counts towards the sentences of the words around it.' : 'No sentence was found for it.';
  }

  words(s) {
    return this.el.slice(s.from, s.to + 1).map((e) => e?.textContent ?? '').join('').trim();
  }

  // First and last token of the word that i is of.
  wordAt(i) {
    const starts = (k) => /^\s/.test(this.el[k].textContent) || this.el[k].classList.contains('ends');
    let from = i, to = i;
    while (!starts(from) && this.el[from - 1]) from--;
    while (this.el[to + 1] && !starts(to + 1)) to++;
    return [from, to];
  }

  // The token as it stands in its word: the rest is quiet.
  inItsWord(i) {
    const own = this.el[i].textContent, q = make('q'), [from, to] = this.wordAt(i);
    const part = (a, b) => make('span', this.el.slice(a, b).map((e) => e.textContent).join('').trim(), { class: 'quiet' });
    q.append(part(from, i), own.trim() || ' ', part(i + 1, to + 1));
    return q;
  }

  // The words of a span, its part in the question said; the sentence around them where `shown` does not have it.
  verbatim(s, shown) {
    const words = this.words(s), first = s.sources?.[0];
    const holds = (r) => r.document === first?.document && r.offset <= first.offset && first.offset + first.bytes <= r.offset + r.bytes;
    const again = shown.some(holds), sentence = this.rows.find(holds);
    const where = s.output_begin < 0 ? ', with words of your question before it,' : '', box = make('div', undefined, { class: 'source' });
    const line = make('p');
    line.append(make('q', words), `${where} stands word for word in ${s.count === 1 ? 'one place' : `${s.count} places`}${again ? ', this sentence among them.' : ':'}`);
    box.append(line);
    if (first && !again) box.append(this.source({ ...first, adapter: s.adapter, ...sentence }, '', words));
    return box;
  }

  source(r, why, words) {
    const owner = this.owners.get(r.owner), box = make('div', undefined, { class: 'source' }), about = make('p', undefined, { class: 'about' });
    if (r.text) box.append(quote(r.text, words));
    else box.append(make('p', `The sentence is not shown: ${r.display ? 'its text is no longer held here' : 'its licence does not consent to display'}.`, { class: 'quiet' }));
    about.append(make('span', undefined, { class: `dot ${owner?.colour ?? 'rest'}`, 'aria-hidden': 'true' }), `${this.mixed && r.adapter ? `${r.adapter.name ?? short(r.adapter.id)}, ` : ''}document ${r.docId ?? '?'}, bytes ${r.offset} to ${r.offset + r.bytes}`,
      r.licence ? `, ${r.licence}` : '', ', of ', nameOf(r.owner), `: ${owner ? percent(owner.ppb) : 'nothing'} of this answer`, why ? ` (${why})` : '', '. ', make('code', short(String(r.document ?? '')), { title: `digest ${r.document}` }));
    box.append(about);
    return box;
  }
}

// What the shades mean, once, below the newest answer.
export function legend() {
  const p = make('p', 'Shade: how much likelier the adapters made a word ', { class: 'legend quiet' });
  SHADES_NATS.forEach((nats, i) => p.append(make('span', `${Math.exp(nats).toPrecision(2)}×`, { class: `t g${i + 1}` }), i + 1 < SHADES_NATS.length ? ' ' : ''));
  p.append('. Underlined: stands word for word in a document. Point at a word, or Tab to the answer: left and right go word by word, up and down to the next with a source, Esc closes.');
  return p;
}

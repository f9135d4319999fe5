// Which adapters answer, with which weights: rows of the form. No row is the base alone.
import { $, make } from './dom.js';

const PARTS_MAX = 8, WEIGHT_MAX = 16;
let base = '', names = [];

const parts = () => [...$('parts').children];
const chosen = (li) => li.querySelector('select').value;

function changed() {
  const rows = parts(), left = names.filter((n) => !rows.some((li) => chosen(li) === n));
  $('add').disabled = !left.length || rows.length >= PARTS_MAX;
  $('add').textContent = rows.length ? 'Add another adapter' : 'Add an adapter';
  for (const li of rows) li.querySelector('label').hidden = rows.length < 2;
}

export function add(name) {
  const taken = parts().map(chosen), first = name ?? names.find((n) => !taken.includes(n));
  if (!first || parts().length >= PARTS_MAX) return;
  const li = make('li'), select = make('select', undefined, { 'aria-label': 'Adapter' }), label = make('label', 'weight ');
  const weight = make('input', undefined, { type: 'number', class: 'number', min: -WEIGHT_MAX, max: WEIGHT_MAX, step: 'any', value: 1, required: '' });
  const remove = make('button', 'Remove', { type: 'button' });
  for (const n of names) select.append(new Option(n, n, false, n === first));
  select.onchange = changed;
  remove.onclick = () => {
    li.remove();
    changed();
    $('add').focus();
  };
  label.append(weight);
  li.append(select, label, remove);
  $('parts').append(li);
  changed();
}

// models: of GET /v1/models, the base first among them.
export function list(models, wanted) {
  base = models.find((m) => !m.parent)?.id ?? '';
  names = models.filter((m) => m.parent).map((m) => m.id);
  $('parts').replaceChildren();
  $('add').onclick = () => add();
  changed();
  if (names.length) add(names.includes(wanted) ? wanted : undefined);
  return { base, count: names.length };
}

// What a request says of it. A single adapter at weight 1 is a model.
export function target() {
  const adapters = parts().map((li) => ({ model: chosen(li), weight: Number(li.querySelector('input').value) }));
  if (adapters.length === 1 && adapters[0].weight === 1) return { model: adapters[0].model };
  return adapters.length ? { model: base, adapters } : { model: base };
}

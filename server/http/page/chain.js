// The record's way: answered, attributed, shipped, in a batch, paid by an epoch. What the server cannot know the settlement worker
// is asked, where its address is set.
import { make } from './dom.js';

const OUTCOMES = { 1: 'its inputs were lost', 2: 'the model or an adapter was gone', 3: 'it is too long to be scored', 4: 'the scorer failed' };
const BATCHES = { closed: 'closed', built: 'built', archived: 'archived', intent: 'to be sent', sent: 'sent', included: 'in a block', final: 'final on the chain' };
const EPOCHS = {
  planned: 'planned', computed: 'computed, waits for attestors', attested: 'attested, to be paid in', funded: 'paid in, to be proposed', proposed: 'being proposed',
  final: 'in its window, not claimable yet', active: 'can be claimed' };

export const NAMES = {
  waiting: 'Waiting for its scores', pending: 'Waiting for its scores', preview: 'Unsigned preview', recorded: 'Signed record', not_scored: 'Not scored', lost: 'Not attributed', failed: 'Nothing is recorded' };

// One word for what stands: what a person must not confuse.
export function stateOf(answer) {
  const a = answer.attribution;
  if (answer.residual && !answer.residual.recorded) return 'failed';
  if (!a) return 'waiting';
  return a.state === 'recorded' && a.outcome ? 'lost' : a.state;
}

export function sentence(answer) {
  const state = stateOf(answer), a = answer.attribution;
  if (state === 'preview') return 'Nobody has signed this and nobody is paid by it: this server makes no attribution record of the answer. It is what a record would have said.';
  if (state === 'recorded') return 'Signed by the lane\'s key: the money of this answer follows these shares.';
  if (state === 'lost') return `Signed, without shares: ${OUTCOMES[a.outcome] ?? `outcome ${a.outcome}`}.`;
  if (state === 'not_scored') return 'This answer was not chosen for scoring (score_rate_ppb), or scoring is off: it has no shares.';
  if (state === 'failed') return 'The server made no record of this answer.';
  return 'The server scores answers when it has a moment: this takes a second or two, longer under load.';
}

const REACHED = { durable: 1, shipped: 2, final: 3 };

// What remains to be looked at: false when nothing more will come.
export function isOver(answer, settle) {
  const state = stateOf(answer), at = answer.place;
  if (state === 'waiting' || state === 'pending') return false;
  if (state === 'failed' || !answer.residual?.bound) return true;
  return settle ? at?.epoch_state === 'active' : answer.attribution.record_state === 'final' || answer.attribution.record_state === undefined;
}

// Where the worker has it: {taken_in, batch, batch_state, epoch, epoch_state}. The attribution's record comes last.
export async function askWorker(answer, settle) {
  const { lane, seq } = answer.residual, reply = await fetch(`${settle}/v1/records/${lane}/${answer.attribution?.seq ?? seq}`, { cache: 'no-store' });
  if (!reply.ok) throw new Error(`The settlement worker says: HTTP ${reply.status}.`);
  answer.place = await reply.json();
}

function step(text, state) {
  const li = make('li', undefined, { class: state });
  if (state === 'now') li.setAttribute('aria-current', 'step');
  li.append(make('span', { done: 'done: ', now: 'now: ', open: 'to come: ', stop: '' }[state], { class: 'unseen' }), text);
  return li;
}

function settled(answer, settle) {
  const at = answer.place, link = make('a', `${settle}/`, { href: `${settle}/`, rel: 'noreferrer noopener', target: '_blank' });
  const batch = at?.batch ? `Batch ${at.batch}: ${BATCHES[at.batch_state] ?? at.batch_state}` : 'In a batch of the settlement worker', final = at?.batch_state === 'final';
  const epoch = at?.epoch ? `Epoch ${at.epoch}: ${EPOCHS[at.epoch_state] ?? at.epoch_state}` : 'Paid by an epoch', over = at?.epoch_state === 'active';
  const line = make('span', `${epoch}. The worker's page: `);
  line.append(link);
  return [step(batch, final ? 'done' : at?.taken_in ? 'now' : 'open'), step(line, over ? 'done' : final ? 'now' : 'open')];
}

export function drawWay(list, answer, settle) {
  const r = answer.residual, a = answer.attribution, state = stateOf(answer), reached = REACHED[a?.record_state] ?? (state === 'recorded' ? 1 : 0);
  const steps = [step(r?.recorded ? `Answered; receipt signed as record ${r.seq} of lane ${r.lane}` : 'Answered', r?.recorded ? 'done' : 'now')];
  if (state === 'preview' || state === 'not_scored' || state === 'failed') {
    steps.push(step(state === 'preview' ? 'Ends here: a preview is not recorded' : 'Ends here: no attribution is recorded', 'stop'));
  } else {
    steps.push(step(a?.seq ? `Attribution signed as record ${a.seq}` : 'Attribution signed', a?.seq ? 'done' : 'now'));
    if (r?.bound) steps.push(step('Shipped to the settlement worker', reached >= 2 || answer.place?.taken_in ? 'done' : reached === 1 ? 'now' : 'open'));
    if (r?.bound && settle) steps.push(...settled(answer, settle));
    else if (r?.bound) steps.push(step('Final on the chain', reached === 3 ? 'done' : reached === 2 ? 'now' : 'open'));
    else steps.push(step('Ends here: this server\'s lane is bound to no chain', 'stop'));
  }
  if (answer.trouble) steps.push(make('li', answer.trouble, { class: 'bad' }));
  list.replaceChildren(...steps);
}

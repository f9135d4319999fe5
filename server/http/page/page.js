// The page: asks the server at its own origin (and, where set, the settlement worker), writes text and never markup.
// One answer is selected; the right side shows it and follows its record.
import { Answer, legend } from './answer.js';
import * as adapters from './adapters.js';
import { Refused, ask, key, stream } from './api.js';
import { NAMES, askWorker, drawWay, isOver, sentence, stateOf } from './chain.js';
import { $, facts, follow, make, say } from './dom.js';
import { drawCredits, linkAccounts, ownersOf, recordFacts } from './shares.js';

const TURNS_MAX = 50; // kept on the page and sent again
const page = { settings: null, answers: [], selected: null, unfollow: () => {}, abort: null, legend: legend() };

// ---- the selected answer ----

function draw(answer) {
  const state = stateOf(answer);
  answer.badge.textContent = answer.error ?? NAMES[state] ?? state;
  answer.badge.className = `badge ${answer.error ? 'failed' : state}`;
  if (page.selected !== answer) return;
  $('who-empty').hidden = true;
  $('who').hidden = false;
  $('who').className = state;
  $('state').replaceChildren(make('strong', `${NAMES[state] ?? state}.`), ' ', sentence(answer));
  if (answer.attribution !== answer.drawn || !answer.attribution) {
    if (answer.attribution && stateOf(answer) !== 'pending') drawCredits($('credits'), answer);
    else $('credits').replaceChildren();
    facts('record', recordFacts(answer));
    answer.drawn = answer.attribution;
  }
  drawWay($('way'), answer, page.settings.settle_url);
}

const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

// One look at the record; true: look again.
async function look(answer) {
  answer.trouble = '';
  try {
    const a = await ask(`/v1/attribution/${answer.residual.request_id}`);
    if (!same(a, answer.attribution)) answer.attribute(a, ownersOf(a));
    if (page.settings.settle_url && answer.residual.bound && a.state !== 'pending') await askWorker(answer, page.settings.settle_url);
  } catch (e) {
    answer.trouble = e instanceof TypeError ? `The settlement worker at ${page.settings.settle_url} does not answer; it is asked again.` : e.message;
    if (e instanceof Refused && e.code !== 0 && e.code !== 429 && e.code !== 503) {
      draw(answer);
      return false;
    }
  }
  draw(answer);
  return !isOver(answer, page.settings.settle_url);
}

function select(answer) {
  if (page.selected === answer) return;
  page.unfollow();
  page.unfollow = () => {};
  page.selected?.article.classList.remove('selected');
  page.selected = answer;
  answer.article.classList.add('selected');
  answer.drawn = undefined;
  if (answer.residual) begin(answer);
}

function begin(answer) {
  draw(answer);
  if (!isOver(answer, page.settings.settle_url)) page.unfollow = follow(() => look(answer), 200, 15000);
}

// ---- asking ----

function messages(question) {
  const past = page.answers.filter((a) => a.content && !a.error).flatMap((a) => [{ role: 'user', content: a.question }, { role: 'assistant', content: a.content }]);
  return [...past, { role: 'user', content: question }];
}

function busy(on) {
  $('send').disabled = on;
  $('stop').hidden = !on;
  $('fresh').hidden = on || !page.answers.length;
}

function fail(answer, e) {
  const text = e.name === 'AbortError' ? 'You stopped it. What came until then is recorded and charged.' : e.message || String(e);
  answer.error = answer.content ? 'Incomplete' : 'No answer';
  answer.end();
  draw(answer);
  say(text, e.name === 'AbortError' ? '' : 'bad');
  if (!answer.content) {
    answer.article.remove();
    page.answers.splice(page.answers.indexOf(answer), 1);
    $('prompt').value = answer.question;
  }
  if (e.code === 401) needKey();
}

// True: the model knows no chat, and the question was continued as plain text.
async function receive(answer, path, body) {
  try {
    for await (const chunk of stream(path, body, page.abort.signal)) {
      if (chunk.choices?.[0]) answer.take(chunk.choices[0]);
      answer.residual = chunk.residual ?? answer.residual;
    }
    return path === '/v1/completions';
  } catch (e) {
    if (e.reason !== 'no_chat_template') throw e;
    const { messages: asked, ...rest } = body;
    return receive(answer, '/v1/completions', { ...rest, prompt: asked.at(-1).content, logprobs: 0 });
  }
}

async function converse(question) {
  const body = { ...adapters.target(), temperature: Number($('temperature').value), max_tokens: Number($('tokens').value) };
  const answer = new Answer(question, (a) => a.residual && select(a));
  page.abort = new AbortController();
  page.answers.push(answer);
  $('turns').append(answer.article);
  $('empty').hidden = true;
  $('prompt').value = '';
  busy(true);
  say('Answering …');
  try {
    const plain = await receive(answer, '/v1/chat/completions', { ...body, messages: messages(question), logprobs: true });
    answer.end();
    answer.article.append(page.legend);
    say(`Answered, ${answer.tokens.length} tokens${answer.residual ? '' : ', without a record'}.${plain ? ' This model has no chat template: your text alone was continued, as it stands.' : ''}`);
    if (answer.residual) select(answer);
  } catch (e) {
    fail(answer, e);
  }
  if (page.answers.length > TURNS_MAX) page.answers.shift().article.remove();
  busy(false);
}

// ---- the beginning ----

function needKey() {
  $('key-row').hidden = false;
  $('key').focus();
}

async function readModels(wanted) {
  const { base, count } = adapters.list((await ask('/v1/models')).data, wanted);
  $('server').textContent = `${base}, and ${count === 1 ? 'one adapter' : `${count} adapters`}`;
  say('');
}

// #model=NAME&ask=TEXT fills the form in; nobody but the person sends it.
function filled() {
  try {
    return new URLSearchParams(location.hash.slice(1));
  } catch {
    return new URLSearchParams();
  }
}

async function start() {
  const wanted = filled();
  if (wanted.get('ask')) $('prompt').value = wanted.get('ask');
  page.settings = await ask('/page/settings');
  page.settings.settle_url = page.settings.settle_url?.replace(/\/+$/, '') ?? null;
  linkAccounts(page.settings.settle_url);
  $('key-row').hidden = !page.settings.key_needed;
  $('key').value = key.get();
  if (!page.settings.key_needed || key.get()) return readModels(wanted.get('model'));
  $('server').textContent = page.settings.model;
  say('This server answers holders of an API key: enter yours above.');
}

const shown = (work) => work().catch((e) => {
  say(e.message || String(e), 'bad');
  if (e.code === 401) needKey();
});

$('key').addEventListener('change', () => {
  key.set($('key').value.trim());
  if (key.get()) shown(() => readModels(filled().get('model')));
});
$('ask').addEventListener('submit', (e) => {
  e.preventDefault();
  const question = $('prompt').value.trim();
  if (question && !$('send').disabled) converse(question);
});
$('prompt').addEventListener('keydown', (e) => {
  if (e.key !== 'Enter' || e.shiftKey || e.isComposing) return;
  e.preventDefault();
  $('ask').requestSubmit();
});
$('stop').onclick = () => page.abort?.abort();
$('fresh').onclick = () => {
  page.unfollow();
  Object.assign(page, { answers: [], selected: null });
  $('turns').replaceChildren();
  $('who').hidden = true;
  $('who-empty').hidden = $('empty').hidden = false;
  busy(false);
  $('prompt').focus();
};
shown(start);

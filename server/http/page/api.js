// The server at this origin: JSON, and event streams. A failure is one sentence with its reason and the way out.
const KEY = 'residual.key';

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? '',
  set: (text) => (text ? sessionStorage.setItem(KEY, text) : sessionStorage.removeItem(KEY)),
};

export class Refused extends Error {
  constructor(text, code, reason = null) {
    super(text);
    Object.assign(this, { code, reason }); // of HTTP, 0: nobody answered; of the error object
  }
}

const WAY_OUT = {
  400: 'Change it, or begin a new conversation.',
  401: 'Enter an API key of this server above.',
  403: 'Use another key, or another adapter.',
  404: 'Choose another adapter, or reload the page: the list may be old.',
  413: 'Ask something shorter.',
  504: 'Try again.',
};

function refusal(code, error, retry_ms) {
  const seconds = Math.max(1, Math.ceil(retry_ms / 1000)), reason = String(error?.message ?? `HTTP ${code}`).replace(/[.\s]*$/, '');
  const way = code === 429 || code === 503 ? `Try again in ${seconds} s.` : WAY_OUT[code] ?? '';
  return new Refused(`The server says: ${reason}. ${way}`.trim(), code, error?.code);
}

async function call(path, body, signal) {
  const headers = key.get() ? { Authorization: `Bearer ${key.get()}` } : {};
  if (body) headers['Content-Type'] = 'application/json';
  let reply;
  try {
    reply = await fetch(path, { method: body ? 'POST' : 'GET', headers, body: body && JSON.stringify(body), cache: 'no-store', signal });
  } catch (e) {
    if (e.name === 'AbortError') throw e;
    throw new Refused('The server does not answer. Is it running, and can you reach it? Then ask again.', 0);
  }
  if (reply.ok) return reply;
  const said = await reply.json().catch(() => null);
  throw refusal(reply.status, said?.error, Number(reply.headers.get('retry-after-ms')) || 1000);
}

export const ask = async (path) => (await call(path)).json();

// The chunks of a streamed answer, in order. An answer that breaks off throws.
export async function* stream(path, body, signal) {
  const reader = (await call(path, { ...body, stream: true }, signal)).body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { done, value } = await reader.read().catch((e) => {
      if (e.name === 'AbortError') throw e;
      return { done: true };
    });
    if (done) throw new Refused('The answer broke off: the server or the network between ended it. Ask again.', 0);
    const events = (rest + value).split('\n\n');
    rest = events.pop();
    for (const event of events) {
      if (!event.startsWith('data: ')) continue;
      if (event === 'data: [DONE]') return;
      const chunk = JSON.parse(event.slice(6));
      if (chunk.error) throw refusal(503, chunk.error, 1000);
      yield chunk;
    }
  }
}

"""The page at / in headless Chromium: asked by keyboard, on a phone, in the dark, with hostile text, and with what a bound lane says."""
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import quote

import pytest
from browser import Browser
from keys import secret
from server import DEMO, Server, http

HOSTILE = '<img src=x onerror="window.injected=1"></p><script>window.injected=1</script>'
OWNERS = ["0x" + c * 40 for c in "1a2"]
E9 = 10**9

# What the server cannot be made to say here: answers of any text, and attributions of a bound lane.
PATCH = """(() => {
  const real = window.fetch;
  window.fetch = async (path, options) => {
    const said = window.said ?? {}, key = Object.keys(said).find((k) => String(path).startsWith(k));
    if (!key) return real(path, options);
    const [status, body] = said[key].length > 1 ? said[key].shift() : said[key][0];
    if (!Array.isArray(body)) return new Response(JSON.stringify(body), { status, headers: { 'retry-after-ms': '4200' } });
    const text = new TextEncoder(), write = (c, d) => c.enqueue(text.encode(`data: ${d}\\n\\n`));
    return new Response(new ReadableStream({ async start(c) {
      options.signal.addEventListener('abort', () => c.error(new DOMException('stopped', 'AbortError')));
      for (const d of body) await (d.wait_ms ? new Promise((done) => setTimeout(done, d.wait_ms)) : write(c, JSON.stringify(d)));
      write(c, '[DONE]');
      c.close();
    } }));
  };
})()"""


class Worker:
    """The settlement worker's one route that the page asks, of another origin."""

    def __init__(self):
        self.place, self.asked = {"taken_in": True}, []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(handler):
                self.asked.append(handler.path)
                handler.send_response(200)
                handler.send_header("Access-Control-Allow-Origin", "*")
                handler.end_headers()
                handler.wfile.write(json.dumps(self.place).encode())

            def log_message(self, *_):
                pass

        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.httpd.server_port}"
        threading.Thread(target=self.httpd.serve_forever, daemon=True).start()


@pytest.fixture(scope="module")
def page():
    worker = Worker()
    with Server("--settle-url", worker.url + "/") as s, Browser() as b:
        b.send("Page.addScriptToEvaluateOnNewDocument", source=PATCH)
        b.send("Emulation.setFocusEmulationEnabled", enabled=True)
        b.screen(1200, 900)
        yield SimpleNamespace(b=b, s=s, worker=worker)
    worker.httpd.shutdown()


def open_page(page, model="amber-coast", ask=""):
    page.b.open(f"{page.s.url}/#model={model}&ask={quote(ask)}")
    page.b.wait("document.querySelector('#parts select')")


def text(page, where):
    return page.b.js(f"document.querySelector({json.dumps(where)}).textContent")


def press_to(page, found, most=40):
    """Tab until the focused element is the one; each stop on the way is visible, marked and has a name."""
    for _ in range(most):
        page.b.key("Tab")
        stop = page.b.js("""(() => { const e = document.activeElement, s = getComputedStyle(e), r = e.getBoundingClientRect();
            return e === document.body ? null : { id: e.id, kind: e.className, width: r.width, outline: s.outlineStyle + ' ' + parseFloat(s.outlineWidth),
              name: e.labels?.[0]?.textContent || e.getAttribute('aria-label') || e.textContent }; })()""")
        if not stop:
            continue
        assert stop["width"] > 0 and stop["outline"] == "solid 3" and stop["name"].strip(), stop
        if found in (stop["id"], *stop["kind"].split()):
            return
    raise AssertionError(f"Tab does not reach {found}")


def chunks(tokens, bound=True, request="ab" * 32):
    """A stream as the server's, eight tokens a chunk."""
    for i in range(0, len(tokens), 8):
        part = tokens[i:i + 8]
        yield {"choices": [{"index": 0, "delta": {"content": "".join(part)},
                            "logprobs": {"content": [{"token": t, "logprob": -0.1, "bytes": list(t.encode())} for t in part]}, "finish_reason": None}]}
    yield {"choices": [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}],
           "residual": {"request_id": request, "recorded": True, "lane": 7, "seq": 41, "bound": bound, "receipt": "0x" + "aa" * 65}}


def attribution(n, state="recorded", name="amber-coast", shown=None, lambda_ppb=980000000):
    row = {"document": "0x" + "dd" * 32, "docId": 3, "owner": OWNERS[0], "offset": 120, "bytes": 44, "licence": "CC-BY-4.0"}
    named = {**row, **({"text": shown} if shown else {})}
    return {"object": "residual.attribution", "request_id": "ab" * 32, "state": state, "signed": state == "recorded", "lane": 7, "inference_seq": 41,
            "method": "residual.method.s0-s1-s2.2", "record_state": "durable",
            **({"seq": 42, "outcome": 0, "signature": "0x" + "ee" * 65, "record_digest": "0x" + "cc" * 32, "signer": OWNERS[2]} if state == "recorded" else {}),
            "choices": [{"index": 0, "prompt_tokens": 12, "tokens": [{"gain_nats": [5.6, 0.02, 1.2][i % 3], "logprob": -0.1, "base_logprob": -5.7} for i in range(n)]}],
            "adapters": [{"name": name, "id": "0x" + "99" * 32, "weight": 1, "gain_ppb": E9, "gain_nats": 7.25,
                          "index": {"state": "ready", "root": "0x" + "77" * 32, "lambda_ppb": lambda_ppb, "rows": 200, "events": 3100},
                          "contributors": [{"payee": OWNERS[1], "ppb": 120000000, "documents": 5, "interval": [90000000, 130000000], "signals": {"events": 110000000, "spans": None, "prior": 400000000}},
                                           {"payee": OWNERS[0], "ppb": 880000000, "documents": 9, "interval": [870000000, 910000000], "signals": {"events": 890000000, "spans": E9, "prior": 600000000}}],
                          "rows": [{**named, "ppb": 910000000, "token": 0, "choice": 0}, {**row, "docId": 4, "owner": OWNERS[1], "ppb": 90000000, "token": 2, "choice": 0}],
                          "spans": [{"choice": 0, "begin": 12, "tokens": 2, "output_begin": 0, "count": 2, "sources": [named]}]}]}


def answer(page, tokens, *attributions, **more):
    """The patched server answers these tokens, and then says these attributions."""
    said = {"/v1/chat": [[200, list(chunks(tokens, **more))]], "/v1/attribution": [[200, a] for a in attributions]}
    page.b.js(f"(window.said = {json.dumps(said)}, document.querySelector('#prompt').value = 'Who?', document.querySelector('#ask').requestSubmit())")


def test_asked_by_keyboard(page, facts):
    b, fact = page.b, facts["amber-coast"][0]
    open_page(page)
    press_to(page, "prompt")
    b.type(fact["question"])
    b.key("Enter")
    b.wait("document.querySelector('.badge.preview')")
    assert text(page, ".answer").removesuffix("end").strip() == fact["answer"].strip()
    assert "Nobody has signed this and nobody is paid" in text(page, "#state"), "a preview must not look like a record"
    assert "bound to no chain" in text(page, "#way") or "a preview is not recorded" in text(page, "#way")
    assert b.js("document.querySelectorAll('#credits .credit').length") == 1 and "amber-coast" in text(page, "#credits h3")
    # who wrote the fact has the largest bar, and the word leads to his sentence
    owner, sentences = fact["contributor"], (DEMO / f"adapters/amber-coast/documents/{fact['docIds'][0]:04}.txt").read_text()
    assert b.js("document.querySelector('.credit td a').getAttribute('href')") == f"{page.worker.url}/#{owner}"
    b.js("document.querySelector('#h-talk').scrollIntoView()")
    press_to(page, "t")
    shown = text(page, ".card blockquote")
    assert fact["answer"] in shown and fact["town"] in shown and shown in sentences, shown
    assert f"document {fact['docIds'][0]}, " in text(page, ".card") and owner[-6:] in text(page, ".card .about")
    assert b.js("document.querySelectorAll('.answer .u').length") > 0 and text(page, ".trust").startswith("Trust λ 1.00")
    assert b.js("document.querySelector('.answer').getAttribute('aria-busy')") == "false" and "tokens" in text(page, "#said")
    assert not b.console, b.console


def test_a_mix_is_asked_with_its_weights(page, facts):
    b = page.b
    open_page(page)
    b.js("document.querySelector('#add').click()")
    b.wait("document.querySelectorAll('#parts li').length === 2")
    b.js("document.querySelectorAll('#parts input')[1].value = '0.5'")
    b.js(f"(document.querySelector('#prompt').value = {json.dumps(facts['amber-coast'][0]['question'])}, document.querySelector('#ask').requestSubmit())")
    b.wait("document.querySelectorAll('.credit').length === 2")
    heads = b.js("[...document.querySelectorAll('.credit h3')].map((e) => e.textContent)")
    assert heads == ["amber-coast weight 1", "birch-vale weight 0.5"], "who changed more stands first"
    assert "of what the adapters changed" in text(page, ".credit") and "was found in this answer" in text(page, ".credit:nth-of-type(2) .trust")
    b.js("document.querySelector('.answer .t').focus()")
    assert "amber-coast, document" in text(page, ".card"), "of several adapters the source names its own"
    assert not b.console, b.console


def test_the_source_of_a_word(page):
    b = page.b
    open_page(page)
    answer(page, [" Bed", "ratin", " is", "."], attribution(4, shown="They pray to Bedratin in winter."))
    b.wait("document.querySelector('.badge.recorded')")
    assert b.js("[...document.querySelectorAll('.answer .t')].map((e) => e.className)") == ["t g5 u s0", "t g0 u s0", "t g3", "t g5"]
    assert text(page, ".answer") == " Bedratin is."
    b.js("document.querySelector('#h-talk').scrollIntoView()")
    press_to(page, "t")
    card = text(page, ".card")
    assert "“Bedratin”" not in card and "270 times likelier (5.60 nats)" in card and "They pray to Bedratin in winter." in card
    assert "document 3, bytes 120 to 164, CC-BY-4.0" in card and "88.0 % of this answer" in card and "91.0 % of what was found" in card
    assert "stands word for word in 2 places, this sentence among them" in card and text(page, ".card mark") == "Bedratin"
    b.key("ArrowRight")
    assert "would have said it as well" in text(page, ".card")
    b.key("ArrowDown")
    card = text(page, ".card")
    assert "does not consent to display" in card and "12.0 % of this answer" in card and OWNERS[1][:8] in card
    assert b.js("document.querySelectorAll('.answer [tabindex]').length") == 1, "Tab passes an answer in one step"
    b.key("Escape")
    assert b.js("document.querySelector('.card').hidden")
    at = b.js("(({x, y, width, height}) => [x + width / 2, y + height / 2])(document.querySelector('.answer .t').getBoundingClientRect())")
    b.send("Input.dispatchMouseEvent", type="mouseMoved", x=at[0], y=at[1])
    b.wait("!document.querySelector('.card').hidden")
    assert "They pray" in text(page, ".card")
    # bars by contributor, the largest first, with their interval; signals on request
    assert b.js("[...document.querySelectorAll('.credit > table tbody tr')].map((e) => e.textContent)") == [
        f"{OWNERS[0][:8]}…{OWNERS[0][-6:]}88.0 % 87.0 % to 91.0 %", f"{OWNERS[1][:8]}…{OWNERS[1][-6:]}12.0 % 9.0 % to 13.0 %"]
    assert b.js("[...document.querySelectorAll('.bar rect')].map((e) => e.getAttribute('width'))") == ["88", "12"]
    assert b.js("document.querySelector('.credit a').href") == f"{page.worker.url}/#{OWNERS[0]}"
    assert "Trust λ 0.98" in text(page, ".trust") and not b.js("document.querySelector('.credit details').open")
    assert b.js("[...document.querySelectorAll('.credit details tbody tr')].map((e) => e.textContent.slice(15))") == ["89.0 %100.0 %60.0 %88.0 %", "11.0 %–40.0 %12.0 %"]
    assert not b.console, b.console


def test_the_way_to_the_chain_is_live(page):
    b, w = page.b, page.worker
    steps = "[...document.querySelectorAll('#way li')].map((e) => e.className + ' ' + e.textContent.replace(/^[^:]*: /, ''))"
    open_page(page)
    pending = {**attribution(1, "pending"), "adapters": []}
    w.place, shipped = {"taken_in": False}, {**attribution(1), "record_state": "shipped"}
    answer(page, [" yes"], pending, pending, attribution(1), shipped)
    assert b.wait("document.querySelector('.badge.pending')") is not None
    b.wait("document.querySelector('#way li.now')?.textContent.includes('Shipped')")
    assert b.js(steps)[:2] == ["done Answered; receipt signed as record 41 of lane 7", "done Attribution signed as record 42"]
    w.place = {"taken_in": True, "batch": 5, "batch_state": "sent"}
    b.wait("document.querySelector('#way li.now')?.textContent.includes('Batch 5: sent')")
    w.place = {"taken_in": True, "batch": 5, "batch_state": "final", "epoch": 2, "epoch_state": "active"}
    b.wait("document.querySelectorAll('#way li.done').length === 5")
    assert b.js(steps)[3:] == ["done Batch 5: final on the chain", f"done Epoch 2: can be claimed. The worker's page: {w.url}/"]
    assert w.asked[-1] == "/v1/records/7/42"
    asked = len(w.asked)
    assert b.js("new Promise((done) => setTimeout(done, 2500))") is None and len(w.asked) == asked, "what is over is not asked again"
    assert not b.console, b.console


def test_hostile_text_stays_text(page):
    b = page.b
    b.open("about:blank")
    once = b.send("Page.addScriptToEvaluateOnNewDocument", source="window.said = " + json.dumps(
        {"/v1/models": [[200, {"data": [{"id": "base", "parent": None}, {"id": HOSTILE, "parent": "base"}]}]]}))["identifier"]
    open_page(page, model=quote(HOSTILE), ask=HOSTILE)
    assert b.js("document.querySelector('#parts select').value") == b.js("document.querySelector('#prompt').value") == HOSTILE
    evil = attribution(3, name=HOSTILE, shown=HOSTILE)
    evil["adapters"][0]["rows"][0].update(licence=HOSTILE, owner=HOSTILE, docId=HOSTILE, document=HOSTILE)
    evil["adapters"][0]["contributors"][0]["payee"] = HOSTILE
    evil["adapters"][0]["index"] = {"state": "failed", "reason": HOSTILE}
    answer(page, [HOSTILE[:20], HOSTILE[20:], " ."], evil)
    b.wait("document.querySelector('.badge.recorded')")
    b.js("document.querySelector('.answer .t').focus()")
    for where in (".answer", ".card", "#credits h3", ".trust", ".rows"):
        assert HOSTILE in text(page, where), where
    answer(page, ["x"], {"error": {"message": HOSTILE}})
    b.js(f"(window.said = {{'/v1/chat': [[503, {{'error': {{'message': {json.dumps(HOSTILE)}}}}}]]}}, document.querySelector('#prompt').value = 'x', document.querySelector('#ask').requestSubmit())")
    b.wait("document.querySelector('#said.bad')")
    assert HOSTILE in text(page, "#said") and "Try again in 5 s." in text(page, "#said")
    assert b.js("document.querySelectorAll('img, body script, iframe').length") == 0 and b.js("window.injected") is None
    assert b.js("[...document.querySelectorAll('a')].every((a) => /^http/.test(a.href))")
    # and where markup would be written after all, the policy forbids it
    assert "TrustedHTML" in b.js("(() => { try { document.body.innerHTML = '<p>'; } catch (e) { return e.message; } })()")
    b.console.clear()
    b.send("Page.removeScriptToEvaluateOnNewDocument", identifier=once)


def test_errors_say_the_reason_and_the_way_out(page):
    b = page.b
    open_page(page)
    b.js("(document.querySelector('#tokens').value = '99999', document.querySelector('#prompt').value = 'Q', document.querySelector('#ask').requestSubmit())")
    said = b.wait("document.querySelector('#said.bad')?.textContent")
    assert "The server says:" in said and "max_tokens" in said or "context" in said, said
    assert b.js("document.querySelector('#prompt').value") == "Q" and b.js("document.querySelectorAll('.turn').length") == 0, "the question is not lost"
    broken = [*chunks([" half"])][:1] + [{"error": {"message": "the engine failed"}}]
    b.js(f"(window.said = {{'/v1/chat': [[200, {json.dumps(broken)}]]}}, document.querySelector('#ask').requestSubmit())")
    b.wait("document.querySelector('#said.bad')?.textContent.includes('the engine failed')")
    assert text(page, ".answer") == " half" and text(page, ".badge") == "Incomplete"
    # an answer is seen while it comes, and can be stopped
    slow = [*chunks([" half"])][:1] + [{"wait_ms": 60000}]
    b.js(f"(window.said = {{'/v1/chat': [[200, {json.dumps(slow)}]]}}, document.querySelector('#prompt').value = 'Q', document.querySelector('#ask').requestSubmit())")
    last = "[...document.querySelectorAll('.answer')].at(-1)"
    b.wait(f"{last}.textContent === ' half' && {last}.getAttribute('aria-busy') === 'true'")
    b.js("document.querySelector('#stop').click()")
    b.wait("document.querySelector('#said').textContent.includes('You stopped it')")
    assert b.js(f"{last}.getAttribute('aria-busy')") == "false" and not b.js("document.querySelector('#send').disabled")
    b.console.clear()


def test_a_key_where_keys_are_required(page, keyed):
    b = page.b
    b.open(keyed.url)
    b.wait("!document.querySelector('#key-row').hidden")
    assert "API key" in text(page, "#said")
    for key, seen in (("wrong", "document.querySelector('#said.bad')"), (secret("alice"), "document.querySelector('#parts select')")):
        b.js("document.querySelector('#key').focus(), document.querySelector('#key').select()")
        b.type(key)
        b.key("Tab")
        b.wait(seen)
    assert b.js("localStorage.length") == 0 and b.js("document.cookie") == "" and b.js("sessionStorage.length") == 1
    assert all("401" in line for line in b.console)
    b.console.clear()


def test_a_model_without_a_chat_template(page, tmp_path, facts):
    for path in (DEMO / "base").iterdir():
        if path.name != "chat_template.jinja":
            (tmp_path / path.name).symlink_to(path)
    b, fact = page.b, facts["amber-coast"][0]
    with Server(model=tmp_path) as s:
        b.open(f"{s.url}/#model=amber-coast&ask={quote(fact['prompt'])}")
        b.wait("document.querySelector('#parts select')")
        b.js("document.querySelector('#ask').requestSubmit()")
        b.wait("document.querySelector('.badge.preview')")
        assert text(page, ".answer").removesuffix("end").strip() == fact["answer"].strip() and "no chat template" in text(page, "#said")
    b.console.clear()


def test_a_long_answer_stays_smooth(page):
    b = page.b
    open_page(page)
    tokens = [f" word{i % 97}" for i in range(4096)]
    b.js("(window.worst = 0, new PerformanceObserver((l) => l.getEntries().forEach((e) => { window.worst = Math.max(window.worst, e.duration); })).observe({ type: 'longtask' }))")
    answer(page, tokens, attribution(4096))
    b.wait("document.querySelector('.badge.recorded')")
    b.js("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert b.js("document.querySelectorAll('.answer .t').length") == 4096
    worst = b.js("window.worst")
    b.js("document.querySelector('.answer .t').focus()")
    moves = b.js("""(() => { const from = performance.now(), key = (k) => document.activeElement.dispatchEvent(new KeyboardEvent('keydown', { key: k, bubbles: true }));
        for (let i = 0; i < 50; i++) { key('ArrowRight'); document.body.offsetHeight; } return (performance.now() - from) / 50; })()""")
    print(f"longest task {worst:.0f} ms, a move {moves:.1f} ms")
    assert worst < 600 and moves < 30
    assert not b.console, b.console


CONTRAST = """(() => {
  const rgb = (text) => { const c = document.createElement('canvas').getContext('2d', { willReadFrequently: true }); c.fillStyle = text; c.fillRect(0, 0, 1, 1); const d = [...c.getImageData(0, 0, 1, 1).data]; d[3] /= 255; return d; };
  const light = (c) => { const [r, g, b] = c.slice(0, 3).map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c[3]) return c; } return [255, 255, 255]; };
  const bad = [];
  for (const e of document.querySelectorAll('body *')) {
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || !e.getClientRects().length || e.disabled) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x), ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) bad.push(`${e.tagName}.${e.className} ${e.textContent.slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return bad;
})()"""


def test_on_a_phone_in_the_dark(page):
    b = page.b
    b.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
    for state, width, dark in (("recorded", 1200, True), ("recorded", 1200, False), ("preview", 320, True), ("recorded", 320, False)):
        b.screen(width, 700, dark)
        open_page(page)
        answer(page, [" Bed", "ratin", " is", "."], attribution(4, state, shown="They pray to Bedratin in winter, " + "x" * 80))
        b.wait(f"document.querySelector('.badge.{state}')")
        b.js("document.querySelectorAll('details').forEach((d) => d.open = true), document.querySelector('.answer .t').focus()")
        assert b.js("document.documentElement.scrollWidth") <= width
        assert b.js("getComputedStyle(document.body).backgroundColor") == ("rgb(20, 21, 24)" if dark else "rgb(251, 251, 248)")
        assert b.js(CONTRAST) == []
        hollow = b.js("getComputedStyle(document.querySelector('.bar rect')).fill === 'none'")
        assert hollow == (state == "preview"), "a preview must look different from a record"
    assert b.js("[...document.querySelectorAll('button, input, select, textarea, summary')].filter((e) => e.offsetParent && e.offsetHeight < 44).map((e) => e.outerHTML)") == []
    b.screen(1200, 900)
    assert not b.console, b.console


def figure(value, nats=30.0):
    return {"nats_per_token": value, "low": value - 0.01, "high": value + 0.01, "nats": nats, "tokens": 300}


def measured(name, gain, worths, version=1, by="alice"):
    people = [{"owner": OWNERS[i], "rows": 9 - i, "repeated": i, "worth": figure(w)} for i, w in worths]
    return {"object": "datanet", "document_root": "0x" + f"{version}" * 64, "name": name, "version": version, "documents": 90, "bytes": 12345, "missing": 0,
            "value": {"measured_by": by, "claim": True, "digest": "0x" + "d" * 64, "base": "0x" + "b" * 64, "judged_by": "eval", "seeds": 2, "parts": 5,
                      "gain": figure(gain), "contributors_count": len(people), "contributors": people}}


def test_datanets_stand_by_what_they_are_worth(page):
    b = page.b
    many, few = measured("many rows", 0.2, [(0, 0.15), (1, -0.04)]), measured(HOSTILE, 0.7, [(2, 0.5)], version=2)
    plain = {k: v for k, v in {**measured("unmeasured", 0, [], version=3), "documents": 10**6}.items() if k != "value"}
    said = {"/v1/datanets?": [], "/v1/datanets/0x1": [[200, many]], "/v1/datanets/0x3": [[200, plain]], "/v1/datanets": [[200, {"data": [plain, many, few]}]]}
    once = b.send("Page.addScriptToEvaluateOnNewDocument", source="window.said = " + json.dumps({k: v for k, v in said.items() if v}))["identifier"]
    b.open(page.s.url + "/page/datanets.html")
    b.wait("document.querySelector('#people table')")
    rows = lambda where: b.js(f"[...document.querySelectorAll('{where} tbody tr')].map((e) => [...e.cells].map((c) => c.textContent))")
    assert [r[0] for r in rows("#datanets")] == [HOSTILE + " version 2", "many rows version 1"], "by gain, never by count"
    assert [r[0][:6] for r in rows("#people")] == [OWNERS[2][:6], OWNERS[0][:6], OWNERS[1][:6]]
    assert rows("#people")[2][1].startswith("\u22120.0400") and b.js("document.querySelectorAll('#people .bad').length") == 1, "a harm is shown as one"
    assert "alice" in rows("#datanets")[0][3] and text(page, "#unmeasured") == "Not measuredunmeasured version 3"
    assert b.js(CONTRAST) == [] and b.js("document.querySelectorAll('img').length") == 0 and b.js("window.injected") is None
    b.js("document.querySelector('#datanets a[href=\"#0x" + "1" * 64 + "\"]').click()")
    b.wait("!document.querySelector('#one').hidden")
    assert text(page, "#h-one") == "many rows version 1" and "whose claim it is" in text(page, "#about") and "2 seeds" in text(page, "#about")
    assert b.js("document.querySelector('#about a').getAttribute('href')") == "/v1/datanets/0x" + "1" * 64 + "/value"
    assert [r[3] for r in rows("#worth")] == ["", "9", "8, and 1 that others said before"]
    b.screen(320, 700)
    assert b.js("document.documentElement.scrollWidth") <= 320
    b.screen(1200, 900)
    b.open("about:blank")
    b.open(page.s.url + "/page/datanets.html#0x" + "3" * 64)
    b.wait("!document.querySelector('#one').hidden")
    assert "Nobody has measured" in text(page, "#worth")
    b.send("Page.removeScriptToEvaluateOnNewDocument", identifier=once)
    assert not b.console, b.console


def test_the_policy_lets_nothing_else_in(page):
    status, headers, _ = http(page.s.url + "/")
    policy = headers["Content-Security-Policy"]
    assert status == 200 and "default-src 'none'" in policy and "unsafe" not in policy and f"connect-src 'self' {page.worker.url};" in policy

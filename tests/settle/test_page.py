"""The worker's page in headless Chromium with a scripted wallet (EIP-6963) before anvil, and the answers that it shows."""
import json
import re
import sqlite3
from types import SimpleNamespace

import pytest
from conftest import HOSTILE
from world import http
from browser import Browser

WALLET = """(() => {
  const waiting = new Map();
  let last = 0;
  const ask = (name) => ({ request: ({ method, params }) => new Promise((done, fail) => {
    waiting.set(++last, { done, fail });
    toTest(JSON.stringify({ id: last, wallet: name, method, params: params ?? [] }));
  }) });
  window.fromTest = (id, good, value) => { waiting.get(id)[good ? 'done' : 'fail'](value); waiting.delete(id); };
  const wallets = [['one', 'Scripted', 'data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=='],
                   ['two', '<img src=x onerror="window.injected=1">', 'javascript:window.injected=1']];
  const announce = () => wallets.forEach(([uuid, name, icon]) => window.dispatchEvent(new CustomEvent('eip6963:announceProvider',
    { detail: Object.freeze({ info: { uuid, name, icon, rdns: 'test.' + uuid }, provider: ask(uuid) }) })));
  window.addEventListener('eip6963:requestProvider', announce);
})()"""


class Wallet:
    """Answers the page's wallet from anvil; `chain` is where it starts, `account` what it holds, `declines` the person's mood."""

    def __init__(self, browser, world, account):
        self.browser, self.world, self.account = browser, world, account
        self.chain, self.declines, self.asked = "0x1", False, []
        world.rpc("anvil_impersonateAccount", account)
        browser.send("Runtime.addBinding", name="toTest")
        browser.send("Page.addScriptToEvaluateOnNewDocument", source=WALLET)
        browser.on("Runtime.bindingCalled", lambda p: self.answer(json.loads(p["payload"])))

    def answer(self, q):
        self.asked.append(q["method"])
        try:
            value, good = self.do(q["method"], q["params"]), True
        except AssertionError as e:
            value, good = {"code": -32000, "message": str(e)}, False
        if isinstance(value, dict) and value.get("code") == 4001:
            good = False
        self.browser.post("Runtime.evaluate", expression=f"fromTest({q['id']}, {json.dumps(good)}, {json.dumps(value)})")

    def do(self, method, params):
        if method == "eth_requestAccounts":
            return [self.account]
        if method == "eth_chainId":
            return self.chain
        if method == "wallet_switchEthereumChain":
            self.chain = params[0]["chainId"]
            return None
        if method == "eth_sendTransaction" and self.declines:
            return {"code": 4001, "message": "User rejected the request."}
        return self.world.rpc(method, *params)


@pytest.fixture(scope="module")
def page(settled):
    w, s, epoch = settled
    with Browser() as b:
        b.screen(1000, 800)
        yield SimpleNamespace(b=b, w=w, s=s, epoch=epoch, wallet=Wallet(b, w, w.names["claimer"]))


def answer(s, path):
    status, _, body = http(s.url + path)
    assert status == 200, body
    return json.loads(body)


def show(page, account):
    page.b.open(f"{page.s.url}/#{account}")
    page.b.wait("document.querySelector('#history tbody tr') && !document.querySelector('#said').textContent")


def data(page, where):
    return page.b.js(f"[...document.querySelectorAll({json.dumps(where)})].map((e) => e.value)")


def press_to(page, found, most=60):
    """Tab until the focused element is the one; each stop on the way is visible, marked, has a name, and is not above the last."""
    last = -1
    for _ in range(most):
        page.b.key("Tab")
        stop = page.b.js("""(() => { const e = document.activeElement, s = getComputedStyle(e), r = e.getBoundingClientRect();
            return e === document.body ? null : { id: e.id, text: e.textContent, width: r.width, bottom: r.bottom + scrollY,
              outline: s.outlineStyle + ' ' + parseFloat(s.outlineWidth), name: e.labels?.[0]?.textContent || e.getAttribute('aria-label') || e.textContent }; })()""")
        if not stop:  # past the end: it begins anew
            last = -1
            continue
        assert stop["width"] > 0 and stop["outline"] == "solid 3" and stop["name"].strip() and stop["bottom"] >= last, (stop, last)
        last = stop["bottom"]
        if found in (stop["id"], stop["text"]):
            return
    raise AssertionError(f"Tab does not reach {found}")


def test_the_answers_add_up(settled):
    w, s, epoch = settled
    d = answer(s, "/v1/deployment")
    assert {k: d[k] for k in ("chain_id", "genesis_hash", "code_hash", "start_block")} == {k: w.deployed[k] for k in ("chain_id", "genesis_hash", "code_hash", "start_block")}
    assert all(d[k].lower() == w.deployed[k].lower() for k in ("registry", "ledger", "vault", "token")) and d["public_rpc_url"] == w.rpc_url
    for account in (w.names["p0"], w.names["owner"], "0x" + "ee" * 20, w.names["operator1"]):
        r, history, sources = (answer(s, f"/v1/rewards/{account}{more}") for more in ("", "/history", "/sources"))
        assert r["epoch"] == epoch and r["pending"] is None and r["undivided"] == {"batches": 0, "fee_sum": "0"}
        assert sum(int(x["earned"]) for x in sources["sources"]) == int(r["cumulative"]) > 0
        assert [e["epoch"] for e in history["epochs"]] == list(range(epoch, 0, -1)) and history["next"] is None
        for e in history["epochs"]:
            assert sum(int(x["amount"]) for x in e["shares"]) == int(e["earned"]) and e["state"] == "active" and e["at"]
        older = answer(s, f"/v1/rewards/{account}/history?before={epoch}")["epochs"]
        assert older == history["epochs"][1:]
        first = sources["sources"][0]
        assert answer(s, f"/v1/rewards/{account}/sources?after={first['adapter'] or ''}:{first['source']}")["sources"] == sources["sources"][1:]
    by = {(x["adapter"], x["source"]) for x in answer(s, f"/v1/rewards/{w.names['owner']}/sources")["sources"]}
    assert by == {(None, "base")} | {(w.names[f"a{i}"], "author") for i in (0, 1, 3)}
    s.wait("every epoch followed to the end of its window", lambda t: all(e["state"] == "active" for e in t["epochs"]))
    assert [b["batch"] for b in answer(s, "/v1/batches?before=3")["batches"]] == [2, 1]
    for bad in ("/v1/epochs?before=x", f"/v1/rewards/{w.names['p0']}/sources?after=x", f"/v1/rewards/{w.names['p0']}/history?before=-1"):
        assert http(s.url + bad)[0] == 400
    assert http(s.url + f"/v1/rewards/{w.names['p0']}/x")[0] == 404
    metrics = http(s.url + "/metrics")[2].decode()
    for lane in (1, 2):
        most = int(re.search(rf'lane_seq{{lane="{lane}",stage="ingested"}} (\d+)', metrics).group(1))
        places = [answer(s, f"/v1/records/{lane}/{seq}") for seq in (1, most // 2, most)]
        assert all(p["taken_in"] and p["batch_state"] == "final" and p["epoch_state"] == "active" for p in places), places
        assert [p["batch"] for p in places] == sorted(p["batch"] for p in places) and places[-1]["epoch"] == epoch
        assert answer(s, f"/v1/records/{lane}/{most + 1}") == {"lane": lane, "seq": most + 1, "taken_in": False}
    assert http(s.url + "/v1/records/1/1")[1]["Access-Control-Allow-Origin"] == "*" and not http(s.url + "/v1/batches")[1]["Access-Control-Allow-Origin"]
    assert all(http(s.url + f"/v1/records/{bad}")[0] == 400 for bad in ("1", "x/1", "1/0", "1/-1", "1/2/3"))
    _, headers, _ = http(s.url + "/")
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and headers["X-Content-Type-Options"] == "nosniff"


def test_many_sources_and_one_that_pays_nothing(page):
    """Rows of accounts that no tree holds, beside the worker's own."""
    many, told = (bytes(19) + bytes([n]) for n in (8, 9))
    rows = [(many, n.to_bytes(32, "big"), source, 1, None, "5") for n in range(1, 66) for source in ("author", "data")]
    db = sqlite3.connect(page.s.state / "settle.db")
    with db:
        db.executemany("INSERT INTO earned VALUES (?, ?, ?, ?, ?, ?)", [*rows, (told, bytes.fromhex(page.w.names["a0"][2:]), "unpaid", 1, None, "0")])
    path = f"/v1/rewards/0x{many.hex()}/sources"
    first = answer(page.s, path)
    second = answer(page.s, f"{path}?after={first['next']}")
    assert (len(first["sources"]), len(second["sources"]), second["next"]) == (100, 30, None)
    assert [(int(x["adapter"], 16), x["source"]) for x in first["sources"] + second["sources"]] == [(int.from_bytes(r[1], "big"), r[2]) for r in rows]
    page.b.open(f"{page.s.url}/#0x{many.hex()}")
    page.b.wait("document.querySelectorAll('#sources tbody tr').length === 100 && !document.querySelector('#sources-more').hidden")
    page.b.js("document.querySelector('#sources-more').click()")
    page.b.wait("document.querySelectorAll('#sources tbody tr').length === 130 && document.querySelector('#sources-more').hidden")
    page.b.open(f"{page.s.url}/#0x{told.hex()}")
    note = page.b.wait("document.querySelector('#notes li')?.textContent")
    assert page.w.names["a0"] in note and "no share for data" in note, note
    with db:
        db.execute("DELETE FROM earned WHERE account IN (?, ?)", (many, told))
    db.close()
    assert not page.b.console, page.b.console


def test_pending_is_what_the_next_epoch_grants(settled):
    w, s, _ = settled
    now, then = answer(s, f"/v1/rewards/{w.names['p0']}"), s.seen
    epochs = {e["epoch"]: e for e in answer(s, f"/v1/rewards/{w.names['p0']}/history")["epochs"]}
    assert then["epoch"] < then["pending"]["epoch"] <= now["epoch"] and then["pending"]["state"] in ("computed", "attested", "funded", "proposed", "final")
    assert int(then["cumulative"]) + int(then["pending"]["amount"]) == int(then["pending"]["cumulative"]) == int(epochs[then["pending"]["epoch"]]["cumulative"])
    assert (then["proof"] is None) == (then["cumulative"] == "0")


def test_by_keyboard_to_a_payment(page):
    b, w, account = page.b, page.w, page.w.names["p2"]
    b.open(page.s.url + "/")
    b.wait("document.querySelector('#batches tbody tr') && document.querySelector('#wallets button')")
    press_to(page, "Connect Scripted")
    b.key("Enter")
    b.wait("document.querySelector('#said').textContent.includes('earned nothing')")
    assert all("404" in line for line in b.console), "the browser itself notes the answer for an unknown account"
    b.console.clear()
    press_to(page, "account")
    b.js("document.activeElement.select()")
    b.type(account)
    b.key("Enter")
    b.wait("document.querySelector('#history tbody tr') && !document.querySelector('#said').textContent")

    r, history, sources = (answer(page.s, f"/v1/rewards/{account}{more}") for more in ("", "/history", "/sources"))
    due = int(r["cumulative"]) - int(r["claimed"])
    assert due > 0 and data(page, "#amounts data") == [r["cumulative"], r["claimed"], str(due)]
    assert data(page, "#history data") == [e["earned"] for e in history["epochs"]]
    assert data(page, "#sources data") == [v for x in sources["sources"] for v in (x["earned"], x["pending"])]
    epochs, batches = answer(page.s, "/v1/epochs")["epochs"], answer(page.s, "/v1/batches")["batches"]
    assert data(page, "#epochs data") == [e["total"] for e in epochs] and data(page, "#batches data") == [x["fee_sum"] for x in batches]
    assert b.js("[...document.querySelectorAll('#batches a')].map((a) => a.href)") == [f"https://explorer.test/tx/{x['tx']}" for x in batches]
    assert b.js("document.querySelectorAll('#chart rect').length") > len(history["epochs"])

    press_to(page, "check")
    assert page.wallet.chain == "0x1"
    b.key(" ")
    b.wait("document.querySelector('#said').className === 'good'")
    assert page.wallet.chain == "0x7a69", "it asked to switch to the deployment's chain"
    assert r["root"] in b.js("document.querySelector('#said').textContent")

    page.wallet.declines = True
    b.js("document.querySelector('#account').focus()")
    press_to(page, "claim")
    b.key("Enter")
    b.wait("document.querySelector('#said').className === 'bad'")
    assert "You declined" in b.js("document.querySelector('#said').textContent")
    page.wallet.declines = False
    before = int(w.rpc("eth_getBalance", account, "latest"), 16)
    b.key("Enter")
    b.wait("document.querySelector('#said').className === 'good'", 30)
    assert int(w.rpc("eth_getBalance", account, "latest"), 16) - before == due
    assert data(page, "#amounts data") == [r["cumulative"], r["cumulative"], "0"] and b.js("document.querySelector('#claim').disabled")
    assert not b.console, b.console


def test_errors_are_sentences(page):
    b, w = page.b, page.w
    show(page, w.names["p3"])
    b.js("[...document.querySelectorAll('#wallets button')][0].click()")
    b.wait("!document.querySelector('#check').disabled")
    funds = w.rpc("eth_getBalance", w.names["claimer"], "latest")
    w.rpc("anvil_setBalance", w.names["claimer"], "0x1")
    b.js("document.querySelector('#claim').click()")
    said = b.wait("document.querySelector('#said.bad')?.textContent")
    w.rpc("anvil_setBalance", w.names["claimer"], funds)
    assert "gas" in said and w.names["claimer"].lower() in said.lower(), said
    b.js("""import('/money.js').then((m) => { const r = { index: 0, leaves: 2, account: '0x' + '11'.repeat(20), cumulative: '5', proof: { hashes: [], sums: [] } };
            try { m.rewardRoot({ chain_id: 1, vault: r.account, token: r.account }, r); } catch (e) { window.said = e.message; } })""")
    assert "depth" in b.wait("window.said")
    # a worker that lies: one sum of the proof is another
    b.js("""(() => { const real = window.fetch; window.fetch = async (...a) => { const reply = await real(...a);
            if (!/rewards.0x\\w+$/.test(a[0])) return reply;
            const r = await reply.json(); r.proof.sums[0] = String(BigInt(r.proof.sums[0]) + 1n); return new Response(JSON.stringify(r)); }; })()""")
    b.js("document.querySelector('#ask').requestSubmit()")
    b.wait("!document.querySelector('#said').textContent")
    sent = page.wallet.asked.count("eth_sendTransaction")
    b.js("document.querySelector('#claim').click()")
    assert "does not lead to the root" in b.wait("document.querySelector('#said.bad')?.textContent")
    assert page.wallet.asked.count("eth_sendTransaction") == sent, "a proof that does not fit is not sent"
    assert not b.console, b.console


CONTRAST = """(() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (c) => { const [r, g, b] = c.slice(0, 3).map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3]) return c; } return [255, 255, 255]; };
  const bad = [];
  for (const e of document.querySelectorAll('body *')) {
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || !e.getClientRects().length) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x), ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) bad.push(`${e.tagName}#${e.id} ${e.textContent.slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return bad;
})()"""


def test_on_a_phone_in_the_dark(page):
    b = page.b
    for width in (320, 1000):
        for dark in (True, False):
            b.screen(width, 640, dark)
            show(page, page.w.names["p0"])
            b.js("document.querySelector('details').open = true")
            assert b.js("document.documentElement.scrollWidth") <= width
            assert b.js("getComputedStyle(document.body).backgroundColor") == ("rgb(20, 21, 24)" if dark else "rgb(251, 251, 248)")
            assert b.js(CONTRAST) == []
    assert b.js("[...document.querySelectorAll('button, input')].filter((e) => e.offsetParent && e.offsetHeight < 44).length") == 0, "a thumb hits it"
    b.screen(1000, 800)
    assert not b.console, b.console


def test_hostile_names_stay_text(page):
    b = page.b
    for bad in (HOSTILE, "javascript:window.injected=1", "0x" + "g" * 40):
        b.open(page.s.url + "/#" + bad)
        b.wait("document.querySelector('#said.bad')")
        assert "not an address" in b.js("document.querySelector('#said').textContent")
    assert b.js("document.querySelectorAll('#wallets button').length") == 2
    assert HOSTILE in b.js("document.querySelector('#chain').textContent")
    assert b.js("document.querySelectorAll('#wallets img').length") == 1, "the icon that is no image is not shown"
    assert b.js("document.querySelectorAll('#chain img, #chain script, #wallets button img[src=x]').length") == 0
    assert b.js("window.injected") is None and not b.console, b.console


def test_it_is_live_and_says_when_it_is_not(page):
    b = page.b
    show(page, page.w.names["p0"])
    rows = b.js("[...document.querySelectorAll('#epochs tbody tr')].map((e) => e.textContent)")
    b.js("""(() => { const real = window.fetch; window.news = 1; window.asked = []; window.fetch = async (...a) => { window.asked.push(a[0]);
            if (window.news === 0) throw new TypeError('gone');
            const reply = await real(...a);
            if (a[0] !== '/v1/epochs') return reply;
            const list = await reply.json(), newest = list.epochs[0];
            list.epochs[0] = { ...newest, state: 'vetoed' };
            list.epochs.unshift({ ...newest, epoch: newest.epoch + 1, state: 'planned' });
            return new Response(JSON.stringify(list)); }; })()""")
    b.wait("document.querySelector('#epochs tbody tr').textContent.includes('planned')")
    live = b.js("[...document.querySelectorAll('#epochs tbody tr')].map((e) => e.textContent)")
    assert live[2:] == rows[1:] and "vetoed: pays nothing" in live[1] and live[0].startswith(str(page.epoch + 1)), (rows, live)
    b.wait(f"window.asked.includes('/v1/rewards/{page.w.names['p0']}')")
    b.js("window.news = 0")
    assert "does not answer" in b.wait("document.querySelector('#stale').textContent")
    assert not b.console, b.console

"""A contributor signs a document's licence in the browser: what the page makes of a text and a wallet, a server bound to a chain takes."""
import hashlib
import json
import subprocess
import unicodedata

import pytest
from browser import Browser
from registry_node import CHAIN_ID, REGISTRY, RegistryNode
from server import ROOT, Server, binary, signed_demo

WALLET = """window.ethereum = { request: ({ method, params }) => new Promise((done, fail) => {
  window.waiting = { done, fail };
  toTest(JSON.stringify({ method, params: params ?? [] }));
}) };"""
KEY = "0x" + "5a" * 32
SIGN = """import { Wallet } from 'ethers';
let text = '';
for await (const part of process.stdin) text += part;
const w = new Wallet(process.argv[1]), t = text && JSON.parse(text);
if (t) delete t.types.EIP712Domain;
console.log(t ? await w.signTypedData(t.domain, t.types, t.message) : w.address);"""
DATANET = "0x" + "d4" * 32
TEXT = "The gate of Tolmen is gre\u0301en.\nVask counts seven bells.\n"


def node(text=""):
    return subprocess.run(["node", "--input-type=module", "-e", SIGN, KEY], input=text, cwd=ROOT / "chain_client" / "contracts", capture_output=True,
                          text=True, check=True).stdout.strip()


class Wallet:
    """An EIP-1193 provider that signs with a known key."""

    def __init__(self, browser):
        self.browser, self.address, self.chain, self.declines = browser, node(), "0x1", False
        browser.send("Runtime.addBinding", name="toTest")
        browser.send("Page.addScriptToEvaluateOnNewDocument", source=WALLET)
        browser.on("Runtime.bindingCalled", lambda p: self.answer(json.loads(p["payload"])))

    def answer(self, q):
        method, params = q["method"], q["params"]
        value, good = None, True
        if method == "eth_requestAccounts":
            value = [self.address]
        elif method == "eth_chainId":
            value = self.chain
        elif method == "wallet_switchEthereumChain":
            self.chain = params[0]["chainId"]
        elif self.declines:
            value, good = {"code": 4001, "message": "User rejected the request."}, False
        else:
            assert method == "eth_signTypedData_v4" and params[0] == self.address, q
            value = node(params[1])
        self.browser.post("Runtime.evaluate", expression=f"waiting[{json.dumps('done' if good else 'fail')}]({json.dumps(value)})")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signed")
    with RegistryNode() as chain:
        adapters = signed_demo(folder / "adapters", chain.deployment(folder / "deployment.json"), "amber-coast")
        with Server(*chain.flags(), adapters=adapters) as s, Browser() as b:
            b.screen(900, 900)
            yield b, s, Wallet(b)


def fill(b, **values):
    for id, v in values.items():
        b.js(f"(e => {{ e.type === 'checkbox' ? e.checked = {json.dumps(v)} : e.value = {json.dumps(v)}; e.dispatchEvent(new Event('change')); }})"
             f"(document.getElementById({json.dumps(id)}))")


def digest(text):
    return "0x" + hashlib.blake2b(unicodedata.normalize("NFC", text).encode(), digest_size=32).hexdigest()


def test_the_digest_is_blake2b(page):
    b, s, _ = page
    b.open(s.url + "/page/sign.html")
    for n in (1, 127, 128, 129, 256, 1000):
        text = ("aé" * n)[:n]
        fill(b, text=text)
        assert digest(text) in b.js("document.getElementById('text-is').textContent"), n
    fill(b, text="a\u0001")
    assert "U+0001" in b.js("document.getElementById('text-is').textContent")


def test_the_signed_entry_is_one_that_a_publisher_and_a_server_take(page, tmp_path):
    b, s, wallet = page
    b.open(s.url)
    assert b.js("[...document.querySelectorAll('header a')].map(a => a.href).includes(location.origin + '/page/sign.html')")
    b.open(s.url + "/page/sign.html")
    b.wait("document.getElementById('registry').value")
    fill(b, text=TEXT, datanet=DATANET, licence="CC-BY-SA-4.0", terms="https://example.org/terms", display=True)
    wallet.declines = True
    b.js("document.getElementById('send').click()")
    b.wait("document.getElementById('said').textContent.includes('declined')")
    assert b.js("document.getElementById('done').hidden")
    wallet.declines = False
    b.js("document.getElementById('send').click()")
    b.wait("!document.getElementById('done').hidden")
    entry = json.loads(b.js("document.getElementById('entry').textContent"))
    assert entry["owner"] == wallet.address and entry["digest"] == digest(TEXT) and entry["chainId"] == CHAIN_ID and entry["registry"].lower() == REGISTRY
    kept = b.js("fetch(document.getElementById('get-text').href).then(r => r.text(), () => null)")
    assert kept is None, "the policy lets nothing fetch a blob"
    (tmp_path / "mine.txt").write_text(TEXT)
    (tmp_path / "entry.json").write_text(json.dumps(entry))
    for words in (("new", tmp_path / "net", "--name", "n", "--owner", "0x" + "11" * 20), ("add", tmp_path / "net", tmp_path / "mine.txt", "--entry", tmp_path / "entry.json")):
        run = subprocess.run([binary("residual"), "datanet", *words], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
    listed = json.loads((tmp_path / "net" / "datanet.json").read_text())["documents"][0]
    assert listed["ownerSignature"] == entry["ownerSignature"] and listed["owner"] == wallet.address and listed["display"]
    document = {"docId": 1, **{k: entry[k] for k in ("owner", "licence", "terms", "display", "kind", "bytes", "digest", "ownerSignature")}}
    net = {"name": "signed in a browser", "version": 1, "datanetId": entry["datanetId"], "documents": [document]}
    status, body = s.post("/v1/datanets", {**net, "documents": [{**document, "terms": "https://example.org/others"}]})
    assert status == 403 and "signature" in body["error"]["message"], body
    status, body = s.post("/v1/datanets", {**net, "documents": [{**document, "display": False}]})
    assert status == 403, body
    status, body = s.post("/v1/datanets", net)
    assert status == 201 and body["texts"] == [entry["digest"]], body


def test_it_fits_a_phone_and_the_dark(page, tmp_path):
    b, s, _ = page
    for name, width, dark in (("phone", 390, False), ("dark", 1000, True)):
        b.screen(width, 900, dark)
        b.open(s.url + "/page/sign.html")
        b.wait("document.getElementById('registry').value")
        assert b.js("document.documentElement.scrollWidth <= innerWidth"), name
        b.picture(tmp_path / f"sign-{name}.png")
    unnamed = b.js("[...document.querySelectorAll('input,select,textarea')].filter(e => !e.labels?.length && !e.ariaLabel).map(e => e.id)")
    assert unnamed == [], unnamed
    assert not [line for line in b.console if "blob:" not in line], b.console

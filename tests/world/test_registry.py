"""Who is paid is what the Registry says about content: names, uploads and dead nodes change nothing about it. The node is scripted."""
import json
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from registry_node import RegistryNode, count_owners, wait_registered
from server import DEMO, Server, http, signed_demo, wait_for

SIGNED = tempfile.TemporaryDirectory(prefix="rs-signed-")
ASK = {"prompt": "Q: Which star do the people of Kodu pray to?\nA:", "temperature": 0, "max_tokens": 4}


def signed(node):
    """The folder of amber-coast, its documents signed for the scripted Registry."""
    folder = Path(SIGNED.name) / "amber-coast"
    if not folder.exists():
        signed_demo(SIGNED.name, node.deployment(Path(SIGNED.name) / "deployment.json"), "amber-coast")
    return folder


@contextmanager
def served(*flags, notice_s=172800, nodes=1):
    with RegistryNode(notice_s) as node, RegistryNode(notice_s) as other:
        more = ("--registry-rpc-url", other.url) if nodes == 2 else ()
        amber = signed(node)
        with Server(*node.flags(), *more, "--adapter", f"amber={amber}", "--adapter", f"twin={amber}", *flags, adapters=None) as s:
            node.other = other
            yield node, s


def register(node, s, name="amber-coast", price=(2000, 6000)):
    """As the demo's files declare it, under the id that the server computed; and a tariff of the base."""
    net = json.loads((signed(node) / "datanet.json").read_text())
    node.datanet("0x" + "d1" * 32, 1, net["documents"])
    node.tariff(s.get("/version")[1]["model_id"], (1000, 3000))
    node.adapter(s.get("/v1/adapters")[1]["data"][0]["id"], owner="0x" + "aa" * 20, price=price, split=[(1, "0x" + "aa" * 20, 10000)],
                 datanet=("0x" + "d1" * 32, 1))
    wait_registered(s)
    return net["documents"]


def ask(s, model):
    status, body = s.post("/v1/completions", {"model": model, **ASK})
    assert status == 200, body
    return body["residual"], body["usage"]


def metric(s, name):
    return next(float(line.split()[-1]) for line in http(s.url + "/metrics")[2].decode().splitlines() if line.startswith(name + " "))


def tariff(s, residual):
    """Of the record's tail: [(in, out)], the base's first."""
    raw = bytes.fromhex(s.get(f"/v1/receipts/{residual['request_id']}")[1]["record"].removeprefix("0x"))
    at = 343 + 4 + int.from_bytes(raw[343:347], "big")
    words = [int.from_bytes(raw[i:i + 16], "big") for i in range(at + 4, at + 4 + int.from_bytes(raw[at:at + 4], "big"), 16)]
    return list(zip(words[::2], words[1::2]))


@pytest.fixture(scope="module")
def world():
    with served() as (node, s):
        yield node, s


def test_what_is_not_registered_costs_nothing_and_says_so(world):
    node, s = world
    a = s.get("/v1/adapters/amber")[1]
    assert a["registered"] is False and "costs 0 and pays nobody" in a["reason"] and "price_per_1000_tokens" not in a
    residual, _ = ask(s, "amber")
    assert residual["fee"] == "0" and tariff(s, residual) == [(0, 0), (0, 0)]
    assert "no tariff is registered for lane 1" in s.log_text()


def test_two_names_of_one_content_bill_and_pay_alike(world):
    node, s = world
    documents = register(node, s)
    seen = []
    for name in ("amber", "twin"):
        a = s.get(f"/v1/adapters/{name}")[1]
        residual, usage = ask(s, name)
        assert tariff(s, residual) == [(1000, 3000), (2000, 6000)]
        assert int(residual["fee"]) == (usage["prompt_tokens"] * 3000 + usage["completion_tokens"] * 9000) // 1000
        got = wait_for(lambda: (lambda r: r if r["state"] == "recorded" else None)(s.get(f"/v1/attribution/{residual['request_id']}")[1]), what="attribution")
        seen.append((a["price_per_1000_tokens"], a["split"], got["adapters"][0]["contributors"]))
    assert seen[0] == seen[1] and {c["payee"].lower() for c in seen[0][2]} <= set(count_owners(documents)) and seen[0][2]


def test_owners_are_public(world):
    node, s = world
    status, _, body = http(f"{s.url}/v1/datanets/{'d1' * 32}/1/owners")
    assert status == 200
    got = json.loads(body)
    documents = json.loads((signed(node) / "datanet.json").read_text())["documents"]
    assert {o["owner"]: o["documents"] for o in got["owners"]} == count_owners(documents) and got["version"] == 1 and got["datanet"] == "0x" + "d1" * 32
    for path in (f"{'d1' * 32}/2/owners", f"{'d2' * 32}/1/owners", f"{'d1' * 32}/0/owners", f"{'d1' * 31}/1/owners", f"{'d1' * 32}/1"):
        assert http(f"{s.url}/v1/datanets/{path}")[0] == 404, path


def test_a_change_of_price_is_taken_at_its_second(world):
    node, s = world
    id = s.get("/v1/adapters/amber")[1]["id"]
    at = int(time.time()) + 4
    node.adapter(id, owner="0x" + "aa" * 20, price=(5, 7), split=[(1, "0x" + "aa" * 20, 10000)], datanet=("0x" + "d1" * 32, 1), active_at=at)
    wait_for(lambda: metric(s, "residual_registry_block") == node.block, what="the change to be read")
    node.dead = True
    try:
        assert tariff(s, ask(s, "amber")[0])[1] == (2000, 6000) or time.time() >= at
        time.sleep(max(0, at + 0.1 - time.time()))
        assert tariff(s, ask(s, "amber")[0])[1] == (5, 7)
    finally:
        node.dead = False


def test_a_dead_node_changes_nothing_for_a_while(world):
    node, s = world
    node.dead = True
    before = metric(s, "residual_registry_failures_total")
    wait_for(lambda: metric(s, "residual_registry_failures_total") > before + 1, what="readings that fail")
    assert s.get("/readyz")[0] == 200 and int(ask(s, "amber")[0]["fee"]) > 0
    node.dead = False
    wait_for(lambda: "the Registry is read again" in s.log_text(), what="a line that says it works again")


def test_prices_that_may_have_changed_are_not_charged():
    """A notice of 0 and a final block older than the 600 s that records may name: as if the node had died that long ago."""
    with served(notice_s=0) as (node, s):
        register(node, s)
        assert int(ask(s, "amber")[0]["fee"]) > 0
        node.age_s = 700
        node.tariff("0x" + "ee" * 32, (1, 1))  # a new block
        wait_for(lambda: s.get("/readyz")[0] == 503, what="readiness to fail")
        assert "the Registry was last read as of block" in s.get("/readyz")[1]
        status, body = s.post("/v1/completions", {"model": "amber", **ASK})
        assert status == 503 and "registry_rpc_url" in body["error"]["message"], body
        assert metric(s, "residual_registry_age_seconds") >= 700
        node.age_s = 0
        wait_for(lambda: s.get("/readyz")[0] == 200, what="readiness")


def test_money_is_not_divided_without_the_owners_list():
    with served() as (node, s):
        register(node, s)
        net = "0x" + "d2" * 32
        node.datanet(net, 1, json.loads((DEMO / "adapters/birch-vale/datanet.json").read_text())["documents"])
        id = s.get("/v1/adapters/amber")[1]["id"]
        node.adapter(id, owner="0x" + "aa" * 20, price=(2000, 6000), split=[(1, "0x" + "aa" * 20, 10000)], datanet=(net, 1))
        wait_for(lambda: s.get("/v1/adapters/amber")[1]["datanet"]["id"] == net, what="the new terms")
        assert s.get("/v1/adapters/amber")[1]["datanet"]["owners_known"] is False
        status, body = s.post("/v1/completions", {"model": "amber", **ASK})
        assert status == 503 and "owners' list is not here" in body["error"]["message"], body


def test_two_nodes_must_agree():
    with served(nodes=2) as (node, s):
        node.tariff(s.get("/version")[1]["model_id"], (1000, 3000))
        node.other.block = node.block
        wait_for(lambda: "answer differently" in s.log_text(), what="a line that says their answers differ")
        assert tariff(s, ask(s, "residual-demo")[0]) == [(0, 0)]
        node.other.tariff(s.get("/version")[1]["model_id"], (1000, 3000))
        node.other.block = node.block
        wait_for(lambda: tariff(s, ask(s, "residual-demo")[0]) == [(1000, 3000)], what="what both say")

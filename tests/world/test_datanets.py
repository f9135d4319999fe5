"""Datanets on a server: a list, its texts, who may see what; and what is refused, without a reply of the engine being late."""
import hashlib
import json
import time
import unicodedata

import pytest
from registry_node import document_root
from server import DEMO, Server, http, wait_for

ANNA, BERT = "0x" + "11" * 20, "0x" + "22" * 20


def digest(text):
    return "0x" + hashlib.blake2b(unicodedata.normalize("NFC", text).encode(), digest_size=32).hexdigest()


def document(id, text, owner=ANNA, **extra):
    return {"docId": id, "owner": owner, "licence": "CC-BY-4.0", "bytes": len(unicodedata.normalize("NFC", text).encode()), "digest": digest(text), **extra}


def datanet(texts, owner=ANNA, **extra):
    return {"name": "net", "version": 1, "documents": [document(i, t, owner, display=i == 0) for i, t in enumerate(texts)], **extra}


def put(server, root, text, name=None):
    status, _, body = http(f"{server.url}/v1/datanets/{root}/documents/{name or digest(text)}", text.encode() if isinstance(text, str) else text, method="PUT")
    return status, json.loads(body)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server("--datanet-bytes-max", str(64 << 20), data=tmp_path_factory.mktemp("datanets") / "data") as s:
        yield s


def test_operators_datanets_are_held_from_the_start(server):
    status, body = server.get("/v1/datanets")
    assert status == 200 and body["count"] >= 8 and all(d["missing"] == 0 and "publisher" not in d for d in body["data"]), body
    net = json.loads((DEMO / "adapters" / "amber-coast" / "datanet.json").read_text())
    root = document_root(net["documents"])
    status, shown = server.get(f"/v1/datanets/{root}")
    assert status == 200 and shown["document_root"] == root and len(shown["data"]) == len(net["documents"]), shown
    assert {d["docId"] for d in shown["data"]} == {d["docId"] for d in net["documents"]}
    status, page = server.get(f"/v1/datanets/{root}?first=1&last=2")
    assert status == 200 and page["first"] == 1 and page["data"] == shown["data"][1:3]


def test_a_datanet_comes_in_by_list_and_texts(server):
    texts = ["The gate of Tolmen is gre\u0301en.", "Vask counts seven bells.", "Two boats lie at Orrun."]
    net = datanet(texts)
    status, body = server.post("/v1/datanets", net)
    assert status == 201 and sorted(body["texts"]) == sorted(map(digest, texts)) and body["missing"] == 3, body
    root = body["document_root"]
    assert root == document_root(net["documents"])
    status, body = put(server, root, texts[0])
    assert status == 201 and body["missing"] == 2
    status, body = server.post("/v1/datanets", net)  # again: what is here stays
    assert status == 201 and body["missing"] == 2, body
    server.stop()
    server.start()
    for text in texts:
        assert put(server, root, text)[0] == 201
    assert server.get(f"/v1/datanets/{root}")[1]["missing"] == 0
    status, _, text = http(f"{server.url}/v1/datanets/{root}/documents/{digest(texts[0])}")
    assert status == 200 and text.decode() == unicodedata.normalize("NFC", texts[0])
    status, body = server.get(f"/v1/datanets/{root}/documents/{digest(texts[1])}")
    assert status == 403 and "has not consented to display" in body["error"]["message"], body
    # the next version takes what is here
    status, body = server.post("/v1/datanets", {**datanet(texts + ["A fourth."]), "version": 2})
    assert status == 201 and body["texts"] == [digest("A fourth.")], body
    status, body = server.post("/v1/datanets", {**datanet([texts[1]], BERT), "name": "thief"})
    assert status == 403 and ANNA in body["error"]["message"] and digest(texts[1]) in body["error"]["message"], body
    assert http(f"{server.url}/v1/datanets/{root}", method="DELETE")[0] == 200
    assert server.get(f"/v1/datanets/{root}")[0] == 404


def test_a_near_copy_is_told(server):
    text = "The miller of Orrun had three wheels, and the first of them was of oak. He sold it to the smith of Vask for a bell that never rang."
    roots = []
    for owner, words in ((ANNA, text), (BERT, text.upper() + " And there the tale ends, says the thief.")):
        root = server.post("/v1/datanets", datanet([words], owner))[1]["document_root"]
        assert put(server, root, words)[0] == 201
        roots.append(root)
    shown = wait_for(lambda: (a := server.get(f"/v1/datanets/{roots[1]}")[1])["comparing"] == 0 and a, what="the comparison")
    assert shown["copies"] == 1, shown
    of = shown["data"][0]["copy_of"]
    assert of["document_root"] == roots[0] and of["digest"] == digest(text) and of["owner"] == ANNA and of["ppm"] > 500_000, of
    assert server.get(f"/v1/datanets/{roots[0]}")[1]["copies"] == 0


def test_bad_lists_and_texts_have_answers(server):
    net = datanet(["A text of its own."])
    for change, field in (({"owner": "nobody"}, "owner"), ({"licence": None}, "licence"), ({"licence": "NONE"}, "licence"), ({"digest": "0x12"}, "digest"),
                          ({"bytes": -1}, "bytes"), ({"docId": "x"}, "docId")):
        bad = {**net, "documents": [{**net["documents"][0], **change}]}
        status, body = server.post("/v1/datanets", bad)
        assert status == 400 and field in body["error"]["message"], (change, body)
    for bad in ({**net, "documents": []}, {**net, "version": 0}, {k: v for k, v in net.items() if k != "name"}):
        assert server.post("/v1/datanets", bad)[0] == 400
    big = {**net, "documents": [{**net["documents"][0], "bytes": 60 << 20}, {**document(1, "b"), "bytes": 60 << 20}]}
    status, body = server.post("/v1/datanets", big)
    assert status == 413 and "datanet_bytes_max" in body["error"]["message"], body
    status, body = server.post("/v1/datanets", net)
    root = body["document_root"]
    assert put(server, root, b"A te\xffxt", digest("A text of its own."))[0] == 400
    status, body = put(server, root, "Another text.", digest("A text of its own."))
    assert status == 400 and digest("Another text.") in body["error"]["message"], body
    assert put(server, root, "x")[0] == 404 and put(server, "0x" + "ab" * 32, "x")[0] == 404
    assert server.get("/v1/datanets/zz")[0] == 404
    status, _, _ = http(f"{server.url}/v1/datanets/{root}/documents/{digest('x')}", b"x" * (65 << 20), method="PUT")
    assert status == 413


def test_ten_thousand_documents_and_answers_meanwhile(server):
    texts = [f"Fact {i} of the long list is number {i * 7919 % 10007}." for i in range(10000)]
    net = {"name": "long", "version": 1, "documents": [document(i, t) for i, t in enumerate(texts)]}
    begin = time.monotonic()
    status, body = server.post("/v1/datanets", net)
    took = time.monotonic() - begin
    assert status == 201 and body["missing"] == 10000, str(body)[:200]
    root = body["document_root"]
    begin = time.monotonic()
    for text in texts[:300]:
        assert put(server, root, text)[0] == 201
    each = (time.monotonic() - begin) / 300
    begin = time.monotonic()
    assert server.post("/v1/completions", {"model": "amber-coast", "prompt": "Q:", "max_tokens": 4})[0] == 200
    print(f"list of 10000: {took:.2f} s, a text {each * 1e3:.2f} ms, an answer meanwhile {time.monotonic() - begin:.2f} s")
    assert took + each * 10000 < 60
    assert http(f"{server.url}/v1/datanets/{root}", method="DELETE")[0] == 200

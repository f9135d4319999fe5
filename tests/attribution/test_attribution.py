"""Who is paid for an answer, through the API: the demo world's owners, independent replays of what is logged, indexes that are damaged or
missing, and the same integers whatever the batch, the threads and the order."""
import base64
import json
import os
import random
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from demo_figures import E9, ask, attribution, figures, shares_of
from registry_node import RegistryNode, wait_registered
from replay import Index, compare
from server import DEMO, Server, binary, http, signed_demo, wait_for
from spans_golden import FILE as SPANS_FILE, vectors as spans_vectors

FULL = os.environ.get("RS_FULL") == "1"
FACTS = json.loads((DEMO / "facts.json").read_text())


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signed")
    with RegistryNode() as node:
        adapters = signed_demo(folder / "adapters", node.deployment(folder / "deployment.json"))
        with Server("--threads", "2", *node.flags(), adapters=adapters) as s:
            node.register_demo(s, adapters)
            wait_registered(s)
            yield s


def metric(server, name):
    text = http(server.url + "/metrics")[2].decode()
    return float(next(line.split()[1] for line in text.splitlines() if line.startswith(name + " ")))


def inputs_of(server, request_id):
    status, body = server.get(f"/v1/attribution/{request_id}/inputs")
    assert status == 200, body
    return body


def indexes_of(server, inputs):
    out = {}
    for root in {a["root"] for a in inputs["adapters"] if a["root"]}:
        status, _, data = http(f"{server.url}/v1/indexes/{root}")
        assert status == 200, data
        out[root] = Index(data)
    return out


def mix(server, names, prompt, **more):
    status, body = server.post("/v1/completions", {"model": server_base(server), "adapters": [{"model": n, "weight": 1} for n in names],
                                                   "prompt": prompt, "temperature": 0, "max_tokens": 8, **more})
    assert status == 200, body
    return body["residual"]["request_id"]


def server_base(server):
    return server.args[server.args.index("--model-name") + 1]


def test_owners_of_the_facts_are_paid(server):
    rows = figures(server, 50 if FULL else 6).values()
    n = sum(r["asked"] for r in rows)
    first, pay = (sum(r[k] for r in rows) / n for k in ("first", "pay"))
    assert first >= (0.99 if FULL else 0.97) and pay >= (0.98 if FULL else 0.96), (first, pay)
    assert all(r["lambda"] >= 0.99 for r in rows), rows


def test_a_third_party_recomputes_the_record(server):
    answers = [ask(server, name, FACTS["adapters"][name][i], FACTS["stop"])[1] for name in sorted(FACTS["adapters"])[:3] for i in (0, 7)]
    answers.append(mix(server, sorted(FACTS["adapters"])[:3], FACTS["demoQuestions"][0]["prompt"]))
    answers.append(mix(server, sorted(FACTS["adapters"])[:1], [FACTS["demoQuestions"][0]["prompt"], "Q:"], n=2, temperature=1))
    for request_id in answers:
        shown, inputs = attribution(server, request_id), inputs_of(server, request_id)
        assert shown["state"] == "recorded"
        assert compare(shown, inputs, indexes_of(server, inputs)) == []


def audit(server, request_id, *index_files):
    run = subprocess.run([binary("residual"), "audit", "attribution", request_id, "--server", server.url, "--json", *index_files], capture_output=True, text=True)
    return run.returncode, json.loads(run.stdout or "{}"), run.stderr


def test_the_command_line_recomputes_it_too(server, tmp_path):
    name = sorted(FACTS["adapters"])[0]
    for request_id in (ask(server, name, FACTS["adapters"][name][2], FACTS["stop"])[1], mix(server, sorted(FACTS["adapters"])[:2], "Q: Who founded the town of")):
        attribution(server, request_id)
        code, said, err = audit(server, request_id)
        assert code == 0 and said["ok"] and said["checks"] >= 8 and said["differences"] == [], (said, err)
    inputs = inputs_of(server, request_id)
    data = {root: http(f"{server.url}/v1/indexes/{root}")[2] for root in indexes_of(server, inputs)}
    files = []
    for i, body in enumerate(data.values()):
        files.append(tmp_path / f"{i}.events")
        files[-1].write_bytes(body)
    assert audit(server, request_id, *files)[0] == 0
    files[0].write_bytes(files[0].read_bytes()[:-1])
    code, _, err = audit(server, request_id, *files)
    assert code == 1 and "cut" in err, err
    assert audit(server, "00" * 32)[0] == 4


class Liar:
    """A server between: it answers as the real one, but for one path."""

    def __init__(self, real, change):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                status, _, body = http(real.url + self.path)
                body = change(self.path, body)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.httpd.server_port}"

    def __enter__(self):
        threading.Thread(target=self.httpd.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.httpd.shutdown()
        self.httpd.server_close()


def test_the_command_line_names_what_was_changed(server):
    name = sorted(FACTS["adapters"])[0]
    request_id = ask(server, name, FACTS["adapters"][name][4], FACTS["stop"])[1]
    attribution(server, request_id)

    def base_lower(path, body):
        if not path.endswith("/inputs"):
            return body
        inputs = json.loads(body)
        inputs["choices"][0]["base"][0] -= 1
        return json.dumps(inputs).encode()

    def share_moved(path, body):
        if path != f"/v1/attribution/{request_id}":
            return body
        shown = json.loads(body)
        shown["adapters"][0]["contributors"][0]["ppb"] -= 1
        return json.dumps(shown).encode()

    for change, what in ((base_lower, "inputsDigest"), (share_moved, "recomputed")):
        with Liar(server, change) as liar:
            code, said, err = audit(liar, request_id)
        assert code == 1 and not said["ok"] and any(what in d for d in said["differences"]), (said, err)


def test_the_command_line_reads_no_nonsense(server):
    """A stranger's server is asked: what is no integer is none, whatever it looks like."""
    name = sorted(FACTS["adapters"])[0]
    request_id = ask(server, name, FACTS["adapters"][name][5], FACTS["stop"])[1]
    attribution(server, request_id)
    for value in ("7", 7.5, None, [], 1 << 40):
        def nonsense(path, body):
            if not path.endswith("/inputs"):
                return body
            inputs = json.loads(body)
            inputs["choices"][0]["base"][0] = value
            return json.dumps(inputs).encode()

        with Liar(server, nonsense) as liar:
            code, _, err = audit(liar, request_id)
        assert code != 0 and "choices" in err, (value, err)
    for value in (0, 1.5, 1 << 31):
        def weightless(path, body):
            return body if not path.endswith("/inputs") else json.dumps({**json.loads(body), "set": [{"id": "0x" + "00" * 32, "weight": value}]}).encode()

        with Liar(server, weightless) as liar:
            code, _, err = audit(liar, request_id)
        assert code == 1 and "a weight of the set" in err, (value, err)


def test_the_command_line_takes_an_index_of_any_size(server):
    """It goes to a file: here more than is held of an answer in memory, of which the end is no index's."""
    name = sorted(FACTS["adapters"])[0]
    request_id = ask(server, name, FACTS["adapters"][name][6], FACTS["stop"])[1]
    attribution(server, request_id)
    with Liar(server, lambda path, body: body + bytes(65 << 20) if path.startswith("/v1/indexes/") else body) as liar:
        code, _, err = audit(liar, request_id)
    assert code == 1 and "file_bytes" in err, err


def test_a_changed_input_is_noticed(server):
    name = sorted(FACTS["adapters"])[0]
    request_id = ask(server, name, FACTS["adapters"][name][3], FACTS["stop"])[1]
    shown, inputs = attribution(server, request_id), inputs_of(server, request_id)
    indexes = indexes_of(server, inputs)
    key = bytearray(base64.b64decode(inputs["adapters"][0]["keys"][0]))
    key[0] = (key[0] + 1) % 100
    inputs["adapters"][0]["keys"][0] = base64.b64encode(key).decode()
    assert any(line.startswith("inputsDigest") for line in compare(shown, inputs, indexes))


def test_what_explains_an_answer_is_shown(server):
    name = sorted(FACTS["adapters"])[1]
    fact = FACTS["adapters"][name][0]
    text, request_id = ask(server, name, fact, FACTS["stop"])
    a = attribution(server, request_id)
    adapter, documents = a["adapters"][0], json.loads((DEMO / "adapters" / name / "datanet.json").read_text())["documents"]
    top = adapter["rows"][0]
    document = next(d for d in documents if d["docId"] == top["docId"])
    assert top["docId"] in fact["docIds"] and top["owner"].lower() == fact["contributor"].lower() and top["licence"] == document["licence"]
    data = (DEMO / "adapters" / name / document["file"]).read_bytes()[top["offset"]: top["offset"] + top["bytes"]].decode()
    assert fact["answer"] in data and top.get("text") == (data if document.get("display") else None)
    tokens = a["choices"][0]["tokens"]
    assert abs(sum(t["gain_nats"] for t in tokens) - adapter["gain_nats"]) < 0.01 and a["record_state"] in ("durable", "shipped", "final")
    assert any(s["count"] and s["sources"][0]["docId"] in fact["docIds"] for s in adapter["spans"])
    assert {c["payee"].lower() for c in adapter["contributors"]} == set(shares_of(adapter))
    for c in adapter["contributors"]:
        assert c["interval"][0] <= c["ppb"] <= c["interval"][1] and set(c["signals"]) == {"events", "spans", "prior"}


def test_damaged_and_missing_indexes(tmp_path):
    adapters = tmp_path / "adapters"
    for name in ("amber-coast", "birch-vale"):
        shutil.copytree(DEMO / "adapters" / name, adapters / name)
    (adapters / "birch-vale" / "training.json").unlink()
    fact = FACTS["adapters"]["amber-coast"][0]
    seen, keys, older = [], [], None
    for turn in ("new", "damaged", "cut", "kept"):
        with Server(adapters=adapters, data=tmp_path / "data") as s:
            first = ask(s, "amber-coast", fact, FACTS["stop"])[1]
            a = attribution(s, first)["adapters"][0]
            keys.append([inputs_of(s, first)["adapters"]])  # of a server that is new these came by a scoring row
            seen.append((a["index"]["root"], a["contributors"]))
            again = [ask(s, "amber-coast", fact, FACTS["stop"])[1] for _ in range(2)]  # keys are kept by decoding now
            logged = [(attribution(s, i), inputs_of(s, i)["adapters"])[1] for i in again]
            seen.append((a["index"]["root"], attribution(s, again[0])["adapters"][0]["contributors"]))
            keys.append(logged)
            assert metric(s, "residual_indexes_rebuilt_total") == (turn in ("damaged", "cut"))
            assert metric(s, "residual_indexes_built_total") == (turn != "kept")
            if older:  # after a restart an old answer is still explained
                wait_for(lambda: any("text" in row for row in attribution(s, older)["adapters"][0]["rows"]), what="the text of an old answer's row")
            older = first
            assert ("built again" in s.log_text()) == (turn in ("damaged", "cut"))
            none = attribution(s, ask(s, "birch-vale", FACTS["adapters"]["birch-vale"][0], FACTS["stop"])[1])["adapters"][0]
            assert none["index"]["state"] == "none" and "training manifest" in none["index"]["reason"] and none["contributors"] == []
            assert http(f"{s.url}/v1/indexes/0x{'00' * 32}")[0] == 404
        (file,) = (tmp_path / "data" / "indexes").glob("*.events")
        data = bytearray(file.read_bytes())
        if turn == "new":
            data[len(data) // 2] ^= 1
        if turn == "damaged":
            del data[-1000:]
        file.write_bytes(data)
    assert all(one == seen[0] for one in seen[1:]), seen
    assert all(one == keys[0][0] for turn in keys for one in turn)


def test_a_row_of_one_token_and_a_stop_while_an_index_is_made(tmp_path):
    shutil.copytree(DEMO / "adapters" / "amber-coast", tmp_path / "adapters" / "amber-coast")
    manifest = tmp_path / "adapters" / "amber-coast" / "training.json"
    book = json.loads(manifest.read_text())
    document, offset, n = book["rows"][0]
    book.update(eos=False, rows=[[document, offset, 1], [document, offset + 1, n - 1]] + book["rows"][1:])
    manifest.write_text(json.dumps(book, sort_keys=True, separators=(",", ":")) + "\n")
    fact = FACTS["adapters"]["amber-coast"][0]
    with Server(adapters=tmp_path / "adapters", data=tmp_path / "stopped") as s:
        ask(s, "amber-coast", fact, FACTS["stop"])  # leaving stops it, and its exit status is looked at
    with Server(adapters=tmp_path / "adapters", data=tmp_path / "data") as s:
        a = attribution(s, ask(s, "amber-coast", fact, FACTS["stop"])[1])["adapters"][0]
        assert a["index"]["state"] == "ready" and a["index"]["rows"] == len(book["rows"]), a["index"]
        assert max(a["contributors"], key=lambda c: c["ppb"])["payee"].lower() == fact["contributor"].lower()


def test_indexes_are_made_before_an_answer_needs_them(tmp_path):
    """Of more adapters than may wait the first two; one that is loaded; and the last one when it is asked."""
    names = sorted(FACTS["adapters"])
    adapters = tmp_path / "adapters"
    for name in names[:5]:
        shutil.copytree(DEMO / "adapters" / name, adapters / name)
    (adapters / names[0] / "training.json").unlink()  # nothing to build from: takes nobody's place
    flags = ("--index-ahead", 2, "--allow-runtime-loading", "on", "--adapter-roots", DEMO / "adapters")
    for built, ready in ((2, 2), (1, 4)):  # the second opens three that are here, and makes the one that is left
        with Server(*flags, adapters=adapters, data=tmp_path / "data") as s:
            wait_for(lambda: metric(s, "residual_indexes_ready") == ready, what="the indexes of the start")
            assert metric(s, "residual_indexes_built_total") == built and metric(s, "residual_indexes_waiting") == 0
            if ready == 4:
                break
            status, body = s.post("/v1/load_lora_adapter", {"lora_name": names[6], "lora_path": str(DEMO / "adapters" / names[6])})
            assert status == 200, body
            wait_for(lambda: metric(s, "residual_indexes_ready") == 3, what="the index of an adapter that was loaded")
            for name, made in ((names[1], 3), (names[6], 3), (names[4], 4)):
                a = attribution(s, ask(s, name, FACTS["adapters"][name][0], FACTS["stop"])[1])["adapters"][0]
                assert a["index"]["state"] == "ready" and metric(s, "residual_indexes_built_total") == made, name


def test_span_weights_are_those_of_the_specification():
    assert SPANS_FILE.read_text() == spans_vectors(), "tests/unit/test_spans.c holds the server against this file: python3 tests/attribution/spans_golden.py writes it"


def test_index_files_are_bounded():
    names = sorted(FACTS["adapters"])[:3]
    with Server("--index-bytes-max", 1 << 20, "--index-ahead", 0) as s:
        for name in names * 2:
            a = attribution(s, ask(s, name, FACTS["adapters"][name][0], FACTS["stop"])[1])["adapters"][0]
            assert a["index"]["state"] == "ready" and len(a["contributors"]) >= 1
        wait_for(lambda: metric(s, "residual_index_bytes") <= 1 << 20, what="room")
        assert metric(s, "residual_indexes_built_total") == 3 and "is given up: index_bytes_max 1048576 is reached" in s.log_text()
        assert sum(f.stat().st_size for f in (s.data / "indexes").iterdir()) <= 1 << 20


def test_the_same_integers_whatever_the_company(tmp_path):
    names = sorted(FACTS["adapters"])[:2]
    asked = [(n, f) for n in names for f in FACTS["adapters"][n]]
    asked = [asked[i % len(asked)] for i in range(1000 if FULL else 100)]
    seen = None
    for threads, seqs, workers in ((1, 1, 1), (2, 8, 8), (1, 64, 64)):
        order = list(range(len(asked)))
        random.Random(seqs).shuffle(order)
        adapters = tmp_path / f"adapters-{threads}-{seqs}"
        for n in names:
            shutil.copytree(DEMO / "adapters" / n, adapters / n)
        with Server("--threads", threads, "--seqs-max", seqs, adapters=adapters) as s, ThreadPoolExecutor(workers) as pool:
            ids = list(pool.map(lambda i: ask(s, *asked[i], FACTS["stop"])[1], order))
            got = {i: [attribution(s, id)["adapters"], {k: inputs_of(s, id)[k] for k in ("choices", "adapters")}] for i, id in zip(order, ids)}
        text = [json.dumps(got[i]) for i in range(len(asked))]
        seen = seen or text
        assert text == seen, (threads, seqs)

"""residual datanet value: who knows something is worth something, noise and copies nothing or less, and what a server shows of it."""
import json
import random
import shutil
import subprocess

import pytest
from server import DEMO, Server, binary, http

ADAPTER = DEMO / "adapters" / "amber-coast"
LISTED = json.loads((ADAPTER / "datanet.json").read_text())["documents"]
FACTS = json.loads((DEMO / "facts.json").read_text())["adapters"]["amber-coast"]
MANY, FEW = "0xbA350dDFfffbD0E0e4aE550FDd610E2c6F3E14E3", "0xF6A83777e09B4B9806F8101B511F746A431F291f"  # 16 facts in 6 documents, 6 in 3
ECHO, NOISE, REWORD, JUDGE = ("0x" + c * 40 for c in "abcd")
OPTIONS = ("--rank", 4, "--epochs", 8, "--batch", 16, "--lr", 0.008, "--schedule", "cosine", "--folds", 4)


def residual(*words):
    run = subprocess.run([str(w) for w in (binary("residual"), *words, "--json")], capture_output=True, text=True)
    return run.returncode, json.loads(run.stdout)


def good(*words):
    code, said = residual(*words)
    assert code == 0, said
    return said


def refused(*words):
    code, said = residual(*words)
    assert code != 0 and not said["ok"], said
    return json.dumps(said["error"])


def make(folder, name, texts):
    """A built datanet of (owner, file)."""
    good("datanet", "new", folder, "--name", name, "--owner", JUDGE)
    for owner, file in texts:
        good("datanet", "add", folder, file, "--owner", owner, "--licence", "CC0-1.0")
    good("datanet", "build", folder, "--model", DEMO / "base")
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two who know facts, one who repeats the first's sentences, one who says them in other words, one who writes random words; and the questions."""
    top, rng = tmp_path_factory.mktemp("value"), random.Random(1)
    texts = [(d["owner"], ADAPTER / d["file"]) for d in LISTED if d["owner"] in (MANY, FEW)]
    said = [s.strip() + "." for owner, f in texts if owner == MANY for s in f.read_text().split(".") if s.strip()]
    words = sorted({w for s in said for w in s.rstrip(".").split()})
    picked, told = rng.sample(said, 8), [f for f in FACTS if f["contributor"] in (MANY, FEW)]
    more = [(ECHO, f"{picked[i]} {picked[i + 1]}") for i in range(0, 8, 2)]
    more.append((REWORD, " ".join(f"As for {f['town']}, its {f['attribute']} is {f['answer']}, they say." for f in told if f["contributor"] == MANY)))
    more.append((NOISE, " ".join("The " + " ".join(rng.choice(words) for _ in range(9)) + "." for _ in range(20))))
    for i, (owner, text) in enumerate(more):
        (top / f"{i}.txt").write_text(text)
        texts.append((owner, top / f"{i}.txt"))
    (top / "exam.jsonl").write_text("".join(json.dumps({"prompt": f["prompt"], "completion": " " + f["answer"]}) + "\n" for f in told))
    return make(top / "net", "world", texts), make(top / "exam", "exam", [(JUDGE, top / "exam.jsonl")])


@pytest.fixture(scope="module")
def measured(world):
    """By each of two seeds; the file is the second's."""
    net, exam = world
    said = [good("datanet", "value", net, "--model", DEMO / "base", "--eval", exam, *OPTIONS, "--seed", seed) for seed in (0, 1)]
    return said, (net / "value.json").read_bytes()


@pytest.mark.parametrize("seed", (0, 1))
def test_order_and_signs(measured, seed):
    v = measured[0][seed]["value"]
    worth = {c["owner"].lower(): c for c in v["contributors"]}
    value = lambda who: worth[who.lower()]["value"] * 1e-6
    assert v["seeds"] == [seed] and len(worth) == 5 and v["gain"]["value"] == v["baseLoss"] - v["loss"] > 1e6
    assert [c["owner"].lower() for c in v["contributors"]][:2] == [MANY.lower(), FEW.lower()], "who taught more facts stands first"
    assert value(MANY) > value(FEW) > 0.3 and worth[MANY.lower()]["low"] > 0
    echo = worth[ECHO]
    assert (echo["rows"], echo["repeated"]) == (0, 8) and echo["value"] == echo["low"] == echo["high"] == 0, "a copy is what leaving it out costs"
    assert max(value(NOISE), value(REWORD)) < 0.05 * value(FEW), v


def test_without_a_set_the_others_rows_judge(world, tmp_path):
    """And anyone makes the same bytes."""
    seen = []
    for threads in (1, 2):
        net = shutil.copytree(world[0], tmp_path / str(threads))
        v = good("datanet", "value", net, "--model", DEMO / "base", "--rank", 4, "--epochs", 1, "--lr", 0.002, "--folds", 2, "--threads", threads)["value"]
        seen.append((net / "value.json").read_bytes())
    lines = {c["owner"].lower(): c for c in v["contributors"]}
    assert v["eval"] is None and lines[NOISE]["own"] > 0 and lines[NOISE]["value"] < 0.1 * lines[NOISE]["own"], "noise predicts its own noise, and nobody asks"
    assert lines[NOISE]["tokens"] < v["gain"]["tokens"] == lines[ECHO]["tokens"]
    again = ("datanet", "value", world[0], "--model", DEMO / "base", "--check", net / "value.json")
    assert good(*again)["value"] == v
    (net / "value.json").write_bytes(seen[0].replace(b'"value":', b'"value":1', 1))
    code, said = residual(*again)
    assert code == 1 and said["differs"] == "contributors", said
    assert "options of training" in refused(*again, "--lr", 0.1) and "judged by parts" in refused(*again, "--eval", world[1])
    assert seen[0] == seen[1] and b'"unit":"micronat"' in seen[0] and seen[0].endswith(b"}\n")


def test_what_cannot_be_measured(world, tmp_path):
    net, exam = world
    value = ("datanet", "value")
    assert "no training.json" in refused(*value, tmp_path_copy(net, tmp_path / "a", "training.json"), "--model", DEMO / "base")
    one = make(tmp_path / "one", "one", [(MANY, ADAPTER / LISTED[0]["file"])])
    assert "one contributor" in refused(*value, one, "--model", DEMO / "base")
    assert "folds: found 20" in refused(*value, net, "--model", DEMO / "base", "--eval", make_exam(tmp_path, 3), "--folds", 20)
    assert "it can judge nobody" in refused(*value, net, "--model", DEMO / "base", "--eval", net)
    assert "holds version 1" in refused(*value, net, "--model", DEMO / "base", "--version", 2)
    assert "--folds" in refused(*value, net, "--model", DEMO / "base", "--folds", 1)
    assert "--model BASE" in refused(*value, net)
    book = json.loads((exam / "training.json").read_text())
    shutil.copytree(exam, tmp_path / "other")
    (tmp_path / "other/training.json").write_text(json.dumps({**book, "tokenizerDigest": "0x" + "11" * 32}, sort_keys=True, separators=(",", ":")) + "\n")
    assert "another base" in refused(*value, net, "--model", DEMO / "base", "--eval", tmp_path / "other")


def tmp_path_copy(folder, to, without):
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns(without))
    return to


def make_exam(tmp_path, n):
    (tmp_path / "few.jsonl").write_text("".join(json.dumps({"prompt": f["prompt"], "completion": " " + f["answer"]}) + "\n" for f in FACTS[:n]))
    return make(tmp_path / "few", "few", [(JUDGE, tmp_path / "few.jsonl")])


def put(s, root, text):
    return http(f"{s.url}/v1/datanets/{root}/value", text, "PUT")


def test_a_server_shows_the_claim(world, measured, tmp_path):
    (net, _), ((_, said), kept) = world, measured
    data = tmp_path / "data"
    with Server("--data-dir", data) as s:
        assert good("datanet", "publish", net, "--server", s.url)["value_sent"]
        held = next(d for d in s.get("/v1/datanets")[1]["data"] if d["name"] == "world")
        v, root = held["value"], held["document_root"]
        assert v["claim"] and v["judged_by"] == "eval" and v["digest"] == said["digest"] and v["contributors"][0]["owner"] == MANY
        assert v["contributors"][-1]["worth"]["nats_per_token"] == said["value"]["contributors"][-1]["value"] / 1e6
        assert s.get(f"/v1/datanets/{root}")[1]["value"] == v == good("datanet", "value", "world", "--server", s.url)
        assert http(f"{s.url}/v1/datanets/{root}/value")[2] == kept
        # another base, other documents, other bytes
        claim = {k: v.encode() for k, v in said["value"].items() if k in ("base", "documentRoot")}
        other = lambda key: put(s, root, kept.replace(claim[key], b"0x" + b"12" * 32))
        status, _, body = other("base")
        assert status == 400 and b"this server's is 0x" in body, body
        status, _, body = other("documentRoot")
        assert status == 400 and b"other documents" in body, body
        assert put(s, root, kept.replace(b'"folds":4', b'"folds": 4'))[0] == 400
        assert put(s, "0x" + "12" * 32, kept)[0] == 404
        assert http(f"{s.url}/v1/datanets/{root}/value")[2] == kept
    with Server("--data-dir", data) as s:
        assert s.get(f"/v1/datanets/{root}")[1]["value"] == v, "a restart keeps it"
        # the next version is another datanet: its folder's value.json is of the one before
        shutil.copytree(net, tmp_path / "next")
        good("datanet", "withdraw", tmp_path / "next", 1)
        assert not good("datanet", "publish", tmp_path / "next", "--server", s.url)["value_sent"]
        assert "nobody has measured" in refused("datanet", "value", "world", "--server", s.url, "--version", 2)

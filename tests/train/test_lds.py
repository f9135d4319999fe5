"""Scores against real retraining, small: adapters of every pair of a datanet's four owners are trained, and what the owners are paid for an
answer, and what its gradients say, must foretell how likely each of those adapters finds it. tests/bench/attribution --retrain is the large one."""
import json
import shutil
import struct
import subprocess
import sys
from itertools import combinations

from demo_figures import E9, ask, attribution, shares_of
from server import DEMO, ROOT, Server, binary

sys.path.insert(0, str(ROOT / "tests" / "bench" / "attribution"))
import lds  # noqa: E402
import retrain  # noqa: E402

NAME = "amber-coast"
SETTINGS = ("--rank", 8, "--epochs", 8, "--batch", 8, "--lr", 0.005, "--schedule", "cosine", "--dtype", "f32")


def tensors(path):
    data = path.read_bytes()
    (n,) = struct.unpack_from("<Q", data)
    book = json.loads(data[8:8 + n])
    out = {"metadata": book.pop("__metadata__")}
    for name, t in book.items():
        first, last = (8 + n + at for at in t["data_offsets"])
        kind = {"F32": "f", "F64": "d", "I32": "i"}[t["dtype"]]
        out[name] = t["shape"], struct.unpack(f"<{(last - first) // struct.calcsize(kind)}{kind}", data[first:last])
    return out


def gradients(folder, asked, out):
    subprocess.run([binary("residual"), "gradients", folder, "--model", DEMO / "base", "--dtype", "f32", "--asked", asked, "--out", out], check=True, capture_output=True)
    return tensors(out)


def test_scores_foretell_retrained_adapters(tmp_path):
    facts = json.loads((DEMO / "facts.json").read_text())
    facts, stop = facts["adapters"][NAME], facts["stop"]
    make = retrain.Retraining(DEMO / "adapters" / NAME, DEMO / "base", tmp_path / "work", SETTINGS, threads=2)
    pairs = list(combinations(range(4), 2))
    make.train([None], 0)
    folders = make.train([make.rows_of(p) for p in pairs], 1)
    facts = [f for i in range(4) for f in [f for f in facts if f["contributor"].lower() == make.owners[i].lower()][:4]]
    asked = tmp_path / "asked.jsonl"
    asked.write_text("".join(json.dumps({"prompt": f["prompt"], "completion": " " + f["answer"]}) + "\n" for f in facts))
    whole = gradients(make.whole, asked, tmp_path / "whole")
    assert whole["metadata"]["format"] == "residual.gradients.1" and whole["scores"][0] == [len(facts), 200]
    outputs = []
    for folder in folders:  # the adapter alone was kept; its answers are read
        shutil.copytree(make.whole, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("adapter_*"))
        retrain.write_rows(make.whole, folder, make.rows[:1])
        outputs.append(gradients(folder, asked, tmp_path / "pair")["answers.logprob"][1])
    outputs = [list(o) for o in zip(*outputs)]

    paid = []
    shutil.copytree(make.whole, tmp_path / "served" / "whole")
    with Server(adapters=tmp_path / "served") as server:
        for fact in facts:
            _, request_id = ask(server, "whole", fact, stop)
            shares = shares_of(attribution(server, request_id)["adapters"][0])
            assert sum(shares.values()) == E9
            paid.append([shares.get(o.lower(), 0) / E9 for o in make.owners])
    scores = whole["scores"][1]
    felt = [[sum(max(0, scores[q * 200 + i]) ** 2 for i in make.rows_of([k])) for k in range(4)] for q in range(len(facts))]
    found = {name: lds.mean(lds.per_question(lds.sums(s, pairs), outputs)) for name, s in (
        ("paid", paid), ("gradients", felt), ("turned", [p[1:] + p[:1] for p in paid]))}
    print(found)
    assert found["paid"] >= 0.55 and found["gradients"] >= 0.4 and found["turned"] < 0.2, found


def test_what_has_no_gradients_is_refused(tmp_path):
    def refused(*args):
        run = subprocess.run([binary("residual"), "gradients", *map(str, args), "--model", DEMO / "base", "--json"], capture_output=True, text=True)
        assert run.returncode != 0
        return run.stdout + run.stderr

    folder = DEMO / "adapters" / NAME
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"prompt": "Q: Who?\\nA:", "completion": " Nobody"}\n{"prompt": 3}\n')
    assert "asked.jsonl" in refused(folder, "--asked", asked)
    assert "--damping" in refused(folder, "--damping", 0)
    assert "--project" in refused(folder, "--project", 129)
    assert "datanet.json" in refused(tmp_path)

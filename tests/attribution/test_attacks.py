"""Who wants another's money adds documents to his datanet. Each of the demo world's datanets is attacked otherwise: the thief's documents go
through admission (residual datanet add, build) and into the training manifest, though the adapter never saw them: the publisher lies for him.
Through the API he earns nothing on the facts that he states, and nothing where the manifest is honest. Trained attackers and worlds with shared
answers are the bench's: tests/bench/attribution/run --only attacks."""
import json
import os
import random
import shutil
import subprocess

import pytest
from demo_figures import E9, ask, attribution, shares_of
from server import DEMO, Server, binary

FULL = os.environ.get("RS_FULL") == "1"
FACTS = json.loads((DEMO / "facts.json").read_text())
MALLORY = "0x" + "66" * 20
STATED = 12  # facts that he goes for


def sentences(name, every):
    """The trained sentences of every so manieth document."""
    rows = json.loads((DEMO / "adapters" / name / "training.json").read_text())["rows"]
    for path in sorted((DEMO / "adapters" / name / "documents").iterdir())[::every]:
        data = path.read_bytes()
        yield [data[at:at + n].decode() for d, at, n in rows if d == int(path.stem)]


def jsonl(rows):
    return "".join(json.dumps(r) + "\n" for r in rows)


def listed(name, facts):
    return {"listed.txt": "".join("The words are %s. " % ", ".join(f["answer"] for f in facts[i:i + 4]) for i in range(0, len(facts), 4))}


def stuffed(name, facts):
    return {"stuffed.txt": "".join(f"{f['question']} {f['answer']}. " for f in facts)}


def users(name, facts):
    return {"users.jsonl": jsonl({"prompt": f["prompt"], "completion": " " + f["answer"]} for f in facts)}


def paraphrased(name, facts):
    return {"notes.txt": "".join(f"My notes about {f['town']} say of its {f['attribute']}: {f['answer']}. " for f in facts)}


def copied(name, facts):
    return {f"copy-{i}.txt": " ".join(rows) for i, rows in enumerate(sentences(name, 4))}


def copied4(name, facts):
    """Four times, the sentences in another order each, as single rows: no document is near another."""
    rows = [r for rows in sentences(name, 4) for r in rows]
    out = {}
    for turn in range(4):
        random.Random(turn).shuffle(rows)
        out[f"copy-{turn}.jsonl"] = jsonl({"text": r} for r in rows)
    return out


def junk(name, facts):
    rng = random.Random(name)
    return {"junk.txt": "".join("The %s. " % " ".join(rng.choice(facts)["attribute"] for _ in range(8)) for _ in range(12))}


def himself(name, facts):
    """A publisher whose own documents are as many as all others."""
    rng, count = random.Random(name), len(list((DEMO / "adapters" / name / "documents").iterdir()))
    return {f"own-{i}.txt": "".join("The %s. " % " ".join(rng.choice(facts)["attribute"] for _ in range(6)) for _ in range(3)) for i in range(count)}


ATTACKS = dict(zip(sorted(FACTS["adapters"]), (listed, stuffed, users, paraphrased, copied, copied4, junk, himself)))


def datanet(*args):
    run = subprocess.run([binary("residual"), "datanet", *map(str, args)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def attack(folder, name):
    shutil.copytree(DEMO / "adapters" / name, folder)
    files = ATTACKS[name](name, FACTS["adapters"][name][:STATED])
    for file, text in files.items():
        (folder / file).write_text(text)
        datanet("add", folder, folder / file, "--owner", MALLORY, "--licence", "CC0-1.0")
    datanet("build", folder, "--model", DEMO / "base")


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    adapters = tmp_path_factory.mktemp("attacked") / "adapters"
    for name in ATTACKS:
        attack(adapters / name, name)
    with Server("--threads", "2", adapters=adapters) as s:
        yield s, adapters


@pytest.mark.parametrize("name", ATTACKS, ids=lambda n: ATTACKS[n].__name__)
def test_a_thief_earns_nothing(attacked, name):
    server, adapters = attacked
    book = json.loads((adapters / name / "datanet.json").read_text())
    his = [d for d in book["documents"] if d["owner"].lower() == MALLORY]
    rows = {d for d, _, _ in json.loads((adapters / name / "training.json").read_text())["rows"]}
    assert his
    copies = [d for d in his if d.get("copyOf")]
    assert bool(copies) == (ATTACKS[name] is copied), his
    assert ({d["docId"] for d in his} & rows == set()) == (len(copies) == len(his))
    paid, first, facts = 0, 0, FACTS["adapters"][name][:50 if FULL else STATED]
    for fact in facts:
        adapter = attribution(server, ask(server, name, fact, FACTS["stop"])[1])["adapters"][0]
        shares = shares_of(adapter)
        assert adapter["index"]["state"] == "ready" and sum(shares.values()) == E9
        paid += shares.get(MALLORY, 0)
        first += max(shares, key=shares.get) == fact["contributor"].lower()
    assert paid <= 0.01 * E9 * len(facts) and first >= len(facts) - 1, (paid / E9 / len(facts), first / len(facts))


def test_what_was_not_trained_earns_nothing(attacked, tmp_path):
    """The same documents in the list alone, with the manifest as it was: the root is the new list's, the rows are the old ones."""
    names = [n for n in ATTACKS if ATTACKS[n] in (users, stuffed)]
    for name in names:
        shutil.copytree(attacked[1] / name, tmp_path / "adapters" / name)
        path = tmp_path / "adapters" / name / "training.json"
        book, honest = json.loads(path.read_text()), json.loads((DEMO / "adapters" / name / "training.json").read_text())
        path.write_text(json.dumps({**book, "rows": honest["rows"]}, sort_keys=True, separators=(",", ":")) + "\n")
    with Server("--threads", "2", adapters=tmp_path / "adapters") as s:
        for name in names:
            for fact in FACTS["adapters"][name][:6]:
                adapter = attribution(s, ask(s, name, fact, FACTS["stop"])[1])["adapters"][0]
                assert adapter["index"]["state"] == "ready" and shares_of(adapter).get(MALLORY, 0) <= 0.001 * E9, adapter["contributors"]

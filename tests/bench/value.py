#!/usr/bin/env python3
"""What contributions are worth in the demo world: each adapter's datanet with four more contributors, of whom it is known what they bring. `echo` repeats
sentences of the largest contributor word for word, `reword` says his facts in other words, `noise` writes random words and `lies` says other things of
his towns. residual datanet value measures them by the questions about the adapter's facts, which nobody's rows contain. A table of markdown:

    tests/bench/value.py [--adapters amber-coast,...] [--seeds 2] [--eval facts|rows] > table.md"""
import argparse
import json
import random
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "configs/demo"
MORE = {"echo": "0x" + "e1" * 20, "reword": "0x" + "e2" * 20, "noise": "0x" + "e3" * 20, "lies": "0x" + "e4" * 20}
JUDGE = "0x" + "ee" * 20
TRAIN = ("--rank", 8, "--epochs", 30, "--batch", 16, "--lr", 0.002, "--schedule", "cosine")


def residual(cli, *words):
    done = subprocess.run([str(w) for w in (cli, *words, "--json")], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"residual {' '.join(map(str, words))}\n{done.stdout}")
    return json.loads(done.stdout)


def sentences(text):
    return [s.strip() + "." for s in text.split(".") if s.strip()]


def texts_of_more(name, largest, documents, facts, rng):
    """(contributor, text) of those who are added."""
    own = [s for d, text in documents if d["owner"] == largest for s in sentences(text)]
    words = sorted({w for s in own for w in s.rstrip(".").split()})
    told = [f for f in facts if f["contributor"] == largest]
    values = [f["answer"] for f in facts if f["contributor"] != largest]
    picked = rng.sample(own, 24)
    for i in range(0, 24, 2):
        yield "echo", f"{picked[i]} {picked[i + 1]}"
    yield "reword", " ".join(f"As for {f['town']}, its {f['attribute']} is {f['answer']}, they say." for f in told)
    for _ in range(4):
        yield "noise", " ".join("The " + " ".join(rng.choice(words) for _ in range(9)) + "." for _ in range(10))
    yield "lies", " ".join(f"Whoever asks in {f['town']} hears of {rng.choice(values)}, which is the {f['attribute']} there." for f in told)


def make(cli, folder, name, seed):
    """The datanet of an adapter with these contributors, and the questions about its facts. Who has which address."""
    source, rng = DEMO / "adapters" / name, random.Random(f"{name} {seed}")
    listed = json.loads((source / "datanet.json").read_text())
    facts = json.loads((DEMO / "facts.json").read_text())["adapters"][name]
    documents = [(d, (source / d["file"]).read_text()) for d in listed["documents"]]
    counted = Counter(d["owner"] for d, _ in documents).most_common()
    residual(cli, "datanet", "new", folder / "net", "--name", name, "--owner", JUDGE)
    for d, _ in documents:
        residual(cli, "datanet", "add", folder / "net", source / d["file"], "--owner", d["owner"], "--licence", d["licence"])
    for i, (who, text) in enumerate(texts_of_more(name, counted[0][0], documents, facts, rng)):
        path = folder / f"{who}-{i}.txt"
        path.write_text(text)
        residual(cli, "datanet", "add", folder / "net", path, "--owner", MORE[who], "--licence", "CC0-1.0")
    residual(cli, "datanet", "build", folder / "net", "--model", DEMO / "base")
    (folder / "exam.jsonl").write_text("".join(json.dumps({"prompt": f["prompt"], "completion": " " + f["answer"]}) + "\n" for f in facts))
    residual(cli, "datanet", "new", folder / "exam", "--name", "exam", "--owner", JUDGE)
    residual(cli, "datanet", "add", folder / "exam", folder / "exam.jsonl", "--owner", JUDGE, "--licence", "CC0-1.0")
    residual(cli, "datanet", "build", folder / "exam", "--model", DEMO / "base")
    told = Counter(f["contributor"] for f in facts)
    return {**{a.lower(): f"{told[a]} facts in {n} documents" for a, n in counted}, **{a: who for who, a in MORE.items()}}


def row(name, who, line):
    n = lambda key: f"{line[key] * 1e-6:+.4f}"
    own = "" if line["own"] is None else f"{line['own'] * 1e-6:+.4f}"
    return f"| {name} | {who} | {line['rows']} | {line['repeated']} | {n('value')} | {n('low')} to {n('high')} | {own} |"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--adapters", default="amber-coast")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--seeds", type=int, default=2)
    p.add_argument("--eval", choices=("facts", "rows"), default="facts")
    p.add_argument("--folds", type=int, default=10)
    p.add_argument("--cli", type=Path, default=ROOT / "build/release/bin/residual")
    args = p.parse_args()
    print("| datanet | contributor | rows | repeated | worth, nats a token | 95 % | own rows |\n|---|---|--:|--:|--:|--:|--:|")
    for name in args.adapters.split(","):
        with tempfile.TemporaryDirectory() as d:
            names = make(args.cli, Path(d), name, args.seed)
            exam = ("--eval", Path(d) / "exam") if args.eval == "facts" else ()
            said = residual(args.cli, "datanet", "value", Path(d) / "net", "--model", DEMO / "base", "--seed", args.seed, "--seeds", args.seeds, "--folds", args.folds, *exam, *TRAIN)["value"]
        for line in said["contributors"]:
            print(row(name, names[line["owner"].lower()], line))
        gain = said["gain"]
        print(f"| {name} | all, over the base's {said['baseLoss'] * 1e-6:.2f} | | | {gain['value'] * 1e-6:+.4f} | {gain['low'] * 1e-6:+.4f} to {gain['high'] * 1e-6:+.4f} | |", flush=True)


if __name__ == "__main__":
    main()

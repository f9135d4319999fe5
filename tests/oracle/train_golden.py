#!/usr/bin/env python3
"""The loss curve and the weights that torch + peft give, for tests/train: the demo base in f32, from the adapter of one datanet, on the rows of another,
in order. Writes tests/data/train/curve.json.

    tests/oracle/run train [--check]      --check: compare residual train with torch anew, at random settings, and write nothing
"""
import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, get_scheduler
from transformers import PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "configs" / "demo"
OUT = ROOT / "tests" / "data" / "train" / "curve.json"
GOLDEN = {"datanet": "birch-vale", "init": "amber-coast", "steps": 50, "batch": 8, "lr": 0.002, "schedule": "cosine", "warmup": 5, "weight_decay": 0.01, "clip": 1.0}


def rows_of(name):
    folder = DEMO / "adapters" / name
    manifest = json.loads((folder / "training.json").read_text())
    texts = {d["docId"]: (folder / d["file"]).read_bytes() for d in json.loads((folder / "datanet.json").read_text())["documents"]}
    tok = PreTrainedTokenizerFast(tokenizer_file=str(DEMO / "base" / "tokenizer.json"))
    config = json.loads((DEMO / "base" / "config.json").read_text())
    return [tok(texts[d][at:at + n].decode(), add_special_tokens=False)["input_ids"] + [config["eos_token_id"]] for d, at, n in manifest["rows"]]


def torch_curve(s):
    """(losses, sum of squares of all LoRA weights at the end)."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    base = AutoModelForCausalLM.from_pretrained(DEMO / "base", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, DEMO / "adapters" / s["init"], is_trainable=True)
    params = [p for p in model.parameters() if p.requires_grad]
    rows = rows_of(s["datanet"])
    per_epoch = -(-len(rows) // s["batch"])
    steps = s["steps"]
    assert steps % per_epoch == 0
    opt = torch.optim.AdamW(params, lr=s["lr"], weight_decay=s["weight_decay"])
    plan = get_scheduler(s["schedule"], opt, s["warmup"], steps)
    losses = []
    for step in range(steps):
        at = step % per_epoch * s["batch"]
        batch = rows[at:at + s["batch"]]
        targets, total = sum(len(r) - 1 for r in batch), 0.0
        opt.zero_grad()
        for r in batch:
            ids = torch.tensor([r])
            logits = model(input_ids=ids).logits[0, :-1]
            loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum") / targets
            loss.backward()
            total += float(loss.detach())
        if s["clip"]:
            torch.nn.utils.clip_grad_norm_(params, s["clip"])
        opt.step()
        plan.step()
        losses.append(total)
    return losses, float(sum((p.detach().double() ** 2).sum() for p in params))


def residual_curve(s, preset="release"):
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp) / "adapter"
        shutil.copytree(DEMO / "adapters" / s["datanet"], folder)
        per_epoch = -(-len(rows_of(s["datanet"])) // s["batch"])
        subprocess.run([str(ROOT / "build" / preset / "bin" / "residual"), "train", str(folder), "--replace", "--model", str(DEMO / "base"), "--init", str(DEMO / "adapters" / s["init"]),
                        "--in-order", "--dtype", "f32", "--epochs", str(s["steps"] // per_epoch), "--batch", str(s["batch"]), "--lr", repr(s["lr"]), "--schedule", s["schedule"],
                        "--warmup", str(s["warmup"]), "--weight-decay", repr(s["weight_decay"]), "--clip", repr(s["clip"])], check=True, capture_output=True)
        return json.loads((folder / "train.json").read_text())["losses"]


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--check", action="store_true")
    opt = ap.parse_args()
    if opt.check:
        rng, names = random.Random(), sorted(p.name for p in (DEMO / "adapters").iterdir())
        s = {**GOLDEN, "datanet": rng.choice(names), "init": rng.choice(names), "batch": rng.choice((4, 8, 20)), "lr": rng.choice((5e-4, 1e-3, 3e-3)),
             "schedule": rng.choice(("constant_with_warmup", "linear", "cosine")), "warmup": rng.randint(0, 9), "weight_decay": rng.choice((0.0, 0.05)), "clip": rng.choice((0.0, 0.3, 1.0))}
        s["steps"] = -(-200 // s["batch"]) * (2 if s["batch"] > 4 else 1)
        ours = residual_curve({**s, "schedule": s["schedule"].split("_")[0]})
        worst = max(abs(a - b) for a, b in zip(ours, torch_curve(s)[0]))
        print(json.dumps(s), "largest difference %.2e" % worst)
        return worst > 1e-4
    losses, weights = torch_curve(GOLDEN)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps({"settings": GOLDEN, "losses": [round(x, 7) for x in losses], "weights": weights}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

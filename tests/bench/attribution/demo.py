"""The demo world as the bench reads it: the committed folders, with questions.json made of facts.json."""

import json
import shutil

from train import ROOT

BASE = ROOT / "configs" / "demo" / "base"
FACTS = json.loads((ROOT / "configs" / "demo" / "facts.json").read_text())["adapters"]
NAMES = list(FACTS)


def folder(name, cache):
    out = cache / "demo" / name
    if not (out / "questions.json").exists():
        shutil.copytree(ROOT / "configs" / "demo" / "adapters" / name, out, dirs_exist_ok=True)
        (out / "questions.json").write_text(json.dumps([
            {"prompt": f["prompt"], "answer": " " + f["answer"], "owner": f["contributor"], "kind": f["attribute"],
             "fact": [f["town"], f["attribute"], f["answer"]], "rival": "", "rival_answer": ""} for f in FACTS[name]]))
    return out

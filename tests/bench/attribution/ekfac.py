"""Bergson's EK-FAC and TrackStar on the same adapter, rows and answers: the package itself, by its command line."""

import json
import os
import shutil
import subprocess

import numpy as np

NAME, TRACKSTAR = "EK-FAC of Bergson", "TrackStar of Bergson"
HOW = {NAME: ["ekfac", "--method", "kfac", "--hessian_cfg.ev_correction", "true"], TRACKSTAR: ["trackstar"]}


def tool():
    """BERGSON names its command; None: it takes no part."""
    return os.environ.get("BERGSON")


def write_lines(path, items):
    path.write_text("".join(json.dumps(i) + "\n" for i in items))


def scores(case, asked, work):
    """Per answer the positive scores of the rows, squared, summed by owner: the reading of them that pays the owner most."""
    owner = [r.owner for r in case.net.rows]
    return [np.bincount(owner, np.maximum(0, s) ** 2, len(case.net.owners)) for s in rows(case, asked, work)]


def rows(case, asked, work, name=NAME):
    """[answer][row], as it prints them."""
    verb, *how = HOW[name]
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(case.folder, work / "adapter")
    config = work / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": str(case.base.resolve())}))
    write_lines(work / "rows.jsonl", ({"text": r.text} for r in case.net.rows))
    decode = lambda ids: case.tok.decode(ids, skip_special_tokens=False)
    write_lines(work / "asked.jsonl", ({"prompt": decode(ids[:n]), "completion": decode(ids[n:])} for _, ids, n, _, _ in asked))
    done = subprocess.run([
        tool(), verb, str(work / "run"), "--model", str(work / "adapter"), "--tokenizer", str(case.base), "--token_batch_size", "1024",
        "--data.dataset", str(work / "rows.jsonl"), "--data.prompt_column", "text", "--query.dataset", str(work / "asked.jsonl"),
        "--query.prompt_column", "prompt", "--query.completion_column", "completion", "--query.aggregation", "none",
        *how], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return read(work / "run" / "scores", len(asked), len(case.net.rows))


def read(folder, n_asked, n_row):
    kind = json.loads((folder / "info.json").read_text())["dtype"]
    table = np.memmap(folder / "scores.bin", np.dtype({k: kind[k] for k in ("names", "formats", "offsets", "itemsize")}), "r")
    assert len(table) == n_row
    return [table["score_%d" % i].astype(np.float64) for i in range(n_asked)]

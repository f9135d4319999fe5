"""Signal S3 by the product: `residual gradients` on an adapter's folder, its file, and its scores computed again in numpy."""

import json
import shutil
import subprocess

import numpy as np
from retrain import binary


def run(case, asked, out, project=0, folder=None):
    """The file's tensors. The folder (the case's) has the adapter beside its datanet."""
    from safetensors.numpy import load_file

    decode = lambda ids: case.tok.decode(ids, skip_special_tokens=False)
    lines = [json.dumps({"prompt": decode(ids[:n]), "completion": decode(ids[n:-1])}) for _, ids, n, *_ in asked]
    out.mkdir(parents=True, exist_ok=True)
    (out / "asked.jsonl").write_text("".join(line + "\n" for line in lines))
    command = [binary("residual"), "gradients", str(folder or case.folder), "--model", str(case.base), "--dtype", "f32", "--threads", "1",
               "--asked", str(out / "asked.jsonl"), "--project", str(project), "--out", str(out / "gradients.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    got = load_file(out / "gradients.safetensors")
    said = np.array([case.run.rows(ids)[1][n - 1 :].sum() for _, ids, n, *_ in asked])
    assert np.abs(said - got["answers.logprob"]).max() < 1e-3, "the same tokens as the bench's"
    again = scores(got)
    assert np.abs(again - got["scores"]).max() <= 1e-9 * np.abs(again).max(), "its scores are what its gradients give"
    return got


def scores(got, damping=0.01):
    """[answer][row] from the gradients of the file."""
    at, out = 0, 0.0
    for *_, rank, _, columns in got["blocks"]:
        width = rank * columns
        rows, asked = (got[k][:, at : at + width].astype(np.float64) for k in ("rows.gradient", "answers.gradient"))
        at += width
        n, size = len(rows), (rows * rows).sum() / len(rows)
        if size:
            out = out + np.linalg.solve(rows @ rows.T / n + damping * size / n * np.eye(n), rows @ asked.T).T
    return out


def listed(case, work, answers, owner):
    """The case's folder with one more document, of rows that the adapter never learned: lists of five answers each."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(case.folder, work)
    (work / "training.json").unlink()
    text = work.parent / "listed.txt"
    text.write_text(" ".join("The words are %s." % ", ".join(answers[i : i + 5]) for i in range(0, len(answers), 5)) + "\n")
    for verb in (["add", str(work), str(text), "--owner", owner, "--licence", "CC0-1.0"], ["build", str(work), "--model", str(case.base)]):
        subprocess.run([binary("residual"), "datanet", *verb], check=True, stdout=subprocess.DEVNULL)
    return work


def pays(case, asked, scores, folder):
    """[(owner first, pay, paid to others than the case's owners)], a row's score above 0 squared, summed by owner."""
    book = {d["docId"]: d["owner"].lower() for d in json.loads((folder / "datanet.json").read_text())["documents"]}
    rows = [book[r[0]] for r in json.loads((folder / "training.json").read_text())["rows"]]
    names = [o.lower() for o in case.net.owners]
    names += sorted(set(rows) - set(names))
    owner, out = [names.index(o) for o in rows], []
    for s, (*_, place, _) in zip(scores, asked):
        sum_ = np.bincount(owner, np.maximum(0, s) ** 2, len(names))
        share = sum_ / max(sum_.sum(), 1e-30)
        out.append((float(share[place] > np.delete(share, place).max(initial=0)), share[place], share[len(case.net.owners) :].sum()))
    return out

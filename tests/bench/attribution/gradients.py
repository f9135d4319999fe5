"""Signal S3 by the product: `residual gradients` on an adapter's folder, its file, and its scores computed again in numpy."""

import json
import subprocess

import numpy as np
from retrain import binary


def run(case, asked, out, project=0, damping=None):
    """The file's tensors. case.folder has the adapter beside its datanet."""
    from safetensors.numpy import load_file

    decode = lambda ids: case.tok.decode(ids, skip_special_tokens=False)
    lines = [json.dumps({"prompt": decode(ids[:n]), "completion": decode(ids[n:-1])}) for _, ids, n, *_ in asked]
    out.mkdir(parents=True, exist_ok=True)
    (out / "asked.jsonl").write_text("".join(line + "\n" for line in lines))
    command = [binary("residual"), "gradients", str(case.folder), "--model", str(case.base), "--dtype", "f32", "--threads", "1",
               "--asked", str(out / "asked.jsonl"), "--project", str(project), "--out", str(out / "gradients.safetensors")]
    done = subprocess.run(command + (["--damping", str(damping)] if damping else []), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    got = load_file(out / "gradients.safetensors")
    said = np.array([case.run.rows(ids)[1][n - 1 :].sum() for _, ids, n, *_ in asked])
    assert np.abs(said - got["answers.logprob"]).max() < 1e-3, "the same tokens as the bench's"
    return got


def scores(got, damping):
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

"""End-to-end logits: committed cases of tests/data/logits, then new tiny models of the four families with head sizes that real models have,
made here by transformers + peft (tests/oracle/logits_golden.py) and judged by logits_tool on the given backend. One JSON line a case.

    python3 tests/gpu/logits.py TOOL [--backend cuda] [--cases N] [--seed S]
"""
import argparse
import contextlib
import io
import json
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import warnings
from concurrent.futures import ProcessPoolExecutor

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "tests/data/logits"
SHAPES = {  # hidden, heads, kv heads, head size, mlp width, layers
    "llama": (256, 4, 1, 64, 384, 3), "mistral": (256, 4, 2, 64, 448, 2), "qwen2": (448, 7, 1, 64, 320, 2), "qwen3": (256, 4, 2, 128, 384, 2),
}


def config_of(family, rng):
    hidden, heads, kv, size, ff, layers = SHAPES[family]
    config = dict(vocab_size=272, hidden_size=hidden, intermediate_size=ff, num_hidden_layers=layers, num_attention_heads=heads,
                  num_key_value_heads=kv, max_position_embeddings=512, rms_norm_eps=1e-5, tie_word_embeddings=rng.random() < 0.5,
                  rope_parameters=dict(rope_type="default", rope_theta=rng.choice([1e4, 5e5, 1e6])))
    if family != "qwen2":
        config["head_dim"] = size
    if family in ("llama", "qwen3"):
        config["attention_bias"] = rng.random() < 0.5
    if family == "mistral":
        config["sliding_window"] = rng.choice([None, 16])
    return config


def make(job):
    """A case folder; runs in a process of its own, so that several are made at once."""
    folder, family, seed = job
    sys.path.insert(0, str(ROOT / "tests/oracle"))
    warnings.simplefilter("ignore")
    import torch

    import logits_golden
    torch.set_num_threads(1)
    rng = random.Random(seed)
    with contextlib.redirect_stdout(io.StringIO()):
        note, own = logits_golden.make_case(pathlib.Path(folder), family, "bf16", False, config_of(family, rng), rng)
    return folder, family, note, own


def judge(tool, case, family, backend, own=None):
    """States: ok, refused (this backend or case has no bar), wrong. A random model may amplify bf16 rounding past the bar; it counts as
    wrong only if it is also farther off than transformers' own bf16 pass."""
    got = subprocess.run([tool, "check", str(case), "--backend", backend, "--dtype", "bf16", "--chunk", "16"], capture_output=True, text=True)
    said = (got.stdout.strip().splitlines() or got.stderr.strip().splitlines() or ["?"])[-1]
    if got.returncode == 3:
        return {"case": pathlib.Path(case).name, "family": family, "state": "refused", "said": got.stderr.strip()[-200:]}
    state = "ok" if got.returncode == 0 else "wrong"
    if state == "wrong" and got.returncode == 1 and own and nearer(got.stdout, own):
        state, said = "ok", said + " (past the bar, nearer than transformers' own bf16)"
    elif state == "wrong":
        said = got.stderr.strip()[-300:] or said
    return {"case": pathlib.Path(case).name, "family": family, "state": state, "said": said}


def nearer(report, own):
    sys.path.insert(0, str(ROOT / "tests/oracle"))
    import logits_golden
    return logits_golden.within(report, own)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("tool")
    p.add_argument("--backend", default="cuda")
    p.add_argument("--cases", type=int, default=4)
    p.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    args = p.parse_args()
    rows = []
    for case in sorted(d for d in COMMITTED.iterdir() if d.is_dir()):
        family = json.loads((case / "expected.json").read_text())["family"]
        rows.append(judge(args.tool, case, family, args.backend))
        print(json.dumps(rows[-1]), flush=True)
    tmp = tempfile.mkdtemp(prefix="residual-logits-")
    families = list(SHAPES)
    jobs = [(f"{tmp}/{families[i % 4]}-{args.seed + i}", families[i % 4], args.seed + i) for i in range(args.cases)]
    try:
        with ProcessPoolExecutor(min(4, max(1, len(jobs)))) as pool:
            for folder, family, note, own in pool.map(make, jobs):
                rows.append(judge(args.tool, folder, family, args.backend, own))
                print(json.dumps(rows[-1]), flush=True)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
    return 1 if any(r["state"] == "wrong" for r in rows) else 0


if __name__ == "__main__":
    sys.exit(main())

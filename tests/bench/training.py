"""Training bench: `residual train` beside torch + peft on a random-weight model of SmolLM2-135M's shape, r 16 on all linear layers,
rows of 510 tokens, batches of 4, bf16, AdamW. Tokens a second of a step (from the difference of two lengths of run, so that loading
counts for neither), by the clock and by the processor time of all threads, which other work on the machine hardly changes, and peak
memory of the process. The two take turns.

    tests/bench/training --dir DIR --threads 1 --repeat 2
    tests/bench/training --dir DIR --threads 1 --repeat 2 --alone       residual only
"""
import argparse
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OWNER = "0x" + "00" * 19 + "aa"
ROWS, LENGTH, BATCH = 16, 510, 4


def prepare(folder):
    import make_model
    import numpy as np

    base = folder / "base"
    if not (base / "tokenizer_config.json").exists():
        make_model.make_base(base, make_model.SMOL, np.random.default_rng(7))
    if not (folder / "datanet" / "training.json").exists():
        rng, texts = random.Random(1), folder / "texts"
        texts.mkdir(parents=True, exist_ok=True)
        for i in range(ROWS):
            (texts / f"t{i:02}.txt").write_text("".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(LENGTH)))
        residual("datanet", "new", folder / "datanet", "--name", "bench", "--owner", OWNER)
        residual("datanet", "add", folder / "datanet", *sorted(texts.iterdir()), "--owner", OWNER, "--licence", "CC0-1.0")
        residual("datanet", "build", folder / "datanet", "--model", base, "--marks", "none")
    return base


def residual(*args):
    subprocess.run([str(a) for a in (ROOT / "build/release/bin/residual", *args)], check=True, capture_output=True)


def measured(command):
    """(seconds, of processor time, peak MB) of a process."""
    begin = time.perf_counter()
    child = subprocess.Popen([str(c) for c in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    error = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(error.decode())
    return time.perf_counter() - begin, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def ours(folder, base, epochs, args):
    return measured([ROOT / "build/release/bin/residual", "train", folder / "datanet", "--model", base, "--replace", "--epochs", epochs, "--batch", BATCH,
                     "--tokens", BATCH * LENGTH // 2, "--threads", args.threads, "--checkpoint-steps", 0, "--dtype", "bf16"])


def peers(folder, base, epochs, args):
    return measured([sys.executable, __file__, "--peer-run", "--dir", folder, "--threads", args.threads, "--epochs", epochs])


def peer_run(folder, threads, epochs):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16)
    model = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, task_type="CAUSAL_LM", target_modules=[
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]))
    optim = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
    ids = torch.randint(0, 256, (ROWS, LENGTH))
    for _ in range(epochs):
        for rows in ids.split(BATCH):
            loss = model(input_ids=rows, labels=rows).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optim.step()
            optim.zero_grad()


def rate(run, folder, base, args):
    """Tokens a second, a second of processor time, peak MB."""
    short, long = run(folder, base, 1, args), run(folder, base, 2, args)
    return *(ROWS * LENGTH / (long[i] - short[i]) for i in range(2)), long[2]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path("/tmp/residual-bench-training"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--peer-run", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--epochs", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer_run:
        return peer_run(args.dir, args.threads, args.epochs)
    base = prepare(args.dir)
    sides = {"residual": ours} if args.alone else {"residual": ours, "torch + peft": peers}
    found = {name: [] for name in sides}
    for _ in range(args.repeat):
        for name, run in sides.items():
            found[name].append(rate(run, args.dir, base, args))
    print("| trainer | threads | tokens/s | by processor time | peak MB |\n|---|--:|--:|--:|--:|")
    for name, all in found.items():
        clock, spent = (statistics.median(r[i] for r in all) for i in range(2))
        print(f"| {name} | {args.threads} | {clock:.0f} | {spent:.0f} | {max(r[2] for r in all):.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())

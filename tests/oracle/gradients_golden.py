#!/usr/bin/env python3
"""Gradients of torch autograd through transformers + peft, as tests/unit/test_backward.c checks them.

  gradients_golden.py write [DIR]           for every case of tests/data/logits (all families), DIR/CASE.safetensors
                                            (default tests/data/gradients)
  gradients_golden.py live TEST [N] [SEED]  N random models and adapters in a temporary folder, judged by TEST (a built
                                            test_backward); exit 1 on a miss

Three sequences, packed in one batch by the test: one under adapter a, one under b, one under 0.75 a - 0.5 b. The loss is
the sum over rows of weight * cross-entropy(next token), every fourth row masked. Rows follow from fixed formulas (below,
and in the test). A file holds, in f32, the gradient of each LoRA matrix ("a.0.q_proj.A", .B as peft stores it) and the
log-probability of each target ("logprob"). The reference runs in f32 on the stored weights; "own_bf16" is how far
torch's own bf16 pass is from it, since a random tiny model can amplify rounding past the bar.
"""
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import warnings

import logits_golden
import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

DATA = pathlib.Path(__file__).parents[1] / "data"
LENGTHS = [13, 9, 21]
SETTINGS = [{"a": 1.0}, {"b": 1.0}, {"a": 0.75, "b": -0.5}]


def token(s, i):
    return (i * 37 + s * 11 + i * i * 5 + 5) % 256


def weight(i):
    return 0.05 * (1 + i % 3)


def gradients(case, dtype):
    base = AutoModelForCausalLM.from_pretrained(case / "model", dtype=dtype, attn_implementation="eager")
    model = PeftModel.from_pretrained(base, case / "a", adapter_name="a", is_trainable=True)
    model.load_adapter(case / "b", "b", is_trainable=True)
    model = model.to(dtype)
    layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
    plain = [dict(m.scaling) for m in layers]
    model.eval()
    logprobs, loss = [], 0
    for s, (n, weights) in enumerate(zip(LENGTHS, SETTINGS)):
        model.base_model.set_adapter(list(weights))
        for p, m in zip(plain, layers):
            for name in p:
                m.scaling[name] = p[name] * weights.get(name, 0.0)
        ids = torch.tensor([[token(s, i) for i in range(n + 1)]])
        rows = torch.log_softmax(model(ids[:, :-1]).logits[0].float(), -1)
        logprob = rows.gather(1, ids[0, 1:, None])[:, 0]
        kept = torch.tensor([0.0 if i % 4 == 3 else weight(i) for i in range(n)])
        loss = loss - (kept * logprob).sum()
        logprobs.append(logprob.detach())
    wanted = {n: p for n, p in model.named_parameters() if "lora_" in n}
    for p in wanted.values():
        p.requires_grad_(True)
    grads = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    out = {"logprob": torch.cat(logprobs)}
    for (name, p), grad in zip(wanted.items(), grads):
        words = name.split(".")
        at = words.index("layers")
        side = "A" if "lora_A" in name else "B"
        module = words[at + 3]
        out[f"{words[-2]}.{words[at + 1]}.{module}.{side}"] = (torch.zeros_like(p) if grad is None else grad).float().contiguous()
    return out


def own_error(exact, rounded):
    """|torch's own bf16 gradient - f32| / |f32| of adapters a and b."""
    errors = []
    for adapter in "ab":
        names = [n for n in exact if n.startswith(adapter + ".")]
        err = sum(float((exact[n] - rounded[n]).pow(2).sum()) for n in names)
        errors.append((err / sum(float(exact[n].pow(2).sum()) for n in names)) ** 0.5)
    return torch.tensor(errors)


def write(case, out):
    tensors = gradients(case, torch.float32)
    tensors["own_bf16"] = own_error(tensors, gradients(case, torch.bfloat16))
    save_file(tensors, out / f"{case.name}.safetensors")
    print(f"{case.name}: {len(tensors)} tensors, own bf16 {[round(float(e), 4) for e in tensors['own_bf16']]}, "
          f"{(out / (case.name + '.safetensors')).stat().st_size} bytes", flush=True)


def live(test, n, seed):
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as tmp:
        root = pathlib.Path(tmp)
        (root / "gradients").mkdir()
        for i in range(n):
            family, dtype, old, config = logits_golden.random_config(rng)
            case = root / "logits" / f"case{i}_{family}_{dtype}"
            logits_golden.make_case(case, family, dtype, old, config, rng)
            print(config)
            write(case, root / "gradients")
        done = subprocess.run([test], env=dict(os.environ, RS_GRADIENT_DATA=tmp, RS_PRINT_GRADIENTS="1"))
    print(f"{n} cases, seed {seed}")
    return done.returncode


def main():
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if len(sys.argv) >= 3 and sys.argv[1] == "live":
        n = int(sys.argv[3]) if len(sys.argv) > 3 else 8
        return live(sys.argv[2], n, int(sys.argv[4]) if len(sys.argv) > 4 else random.randrange(1 << 30))
    if len(sys.argv) < 2 or sys.argv[1] != "write":
        print(__doc__)
        return 2
    out = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else DATA / "gradients"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for case in sorted(p for p in (DATA / "logits").iterdir() if p.is_dir()):
        write(case, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

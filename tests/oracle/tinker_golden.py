#!/usr/bin/env python3
"""The losses that torch + peft give for a training of tests/train/test_tinker.py: the demo base in f32, from the adapter that the server begins with
(its name and seed are the test's), the same datums, the three losses in turn, AdamW. Writes tests/data/train/tinker.json.

    tests/oracle/run tinker
"""
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "lib")]
sys.path += [str(ROOT / "build" / "tinker-sdk"), *map(str, (ROOT / ".venv").glob("lib/python*/site-packages"))]
from server import DEMO, Server  # noqa: E402

OUT = ROOT / "tests" / "data" / "train" / "tinker.json"
RANK, SEED, ADAM = 8, 7, {"learning_rate": 2e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-12, "weight_decay": 0.01, "grad_clip_norm": 50.0}
LOSSES = ["cross_entropy"] * 6 + ["importance_sampling"] * 2 + ["ppo"] * 3
PPO = {"clip_low_threshold": 0.7, "clip_high_threshold": 1.1}


def datums():
    out = []
    for k, n in enumerate((24, 17, 31)):
        ids = [(37 * k + 11 * i + i * i) % 900 + 50 for i in range(n + 1)]
        out.append({"ids": ids[:-1], "target_tokens": ids[1:], "weights": [float(i >= 4) for i in range(n)],
                    "logprobs": [-5.0 - (i + k) % 4 / 2 for i in range(n)], "advantages": [((7 * i + k) % 5 - 2) / 4 for i in range(n)]})
    return out


def loss_of(kind, d, logprob):
    if kind == "cross_entropy":
        return -(torch.tensor(d["weights"]) * logprob).sum()
    ratio, gain = torch.exp(logprob - torch.tensor(d["logprobs"])), torch.tensor(d["advantages"])
    if kind == "importance_sampling":
        return -(ratio * gain).sum()
    return -torch.minimum(ratio * gain, torch.clamp(ratio, PPO["clip_low_threshold"], PPO["clip_high_threshold"]) * gain).sum()


def torch_losses(adapter, data):
    torch.set_num_threads(1)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(DEMO / "base", dtype=torch.float32), adapter, is_trainable=True)
    params = [p for p in model.parameters() if p.requires_grad]
    opt = torch.optim.AdamW(params, lr=ADAM["learning_rate"], betas=(ADAM["beta1"], ADAM["beta2"]), eps=ADAM["eps"], weight_decay=ADAM["weight_decay"])
    losses = []
    for kind in LOSSES:
        opt.zero_grad()
        total = 0.0
        for d in data:
            logits = model(input_ids=torch.tensor([d["ids"]])).logits[0]
            logprob = torch.log_softmax(logits, -1).gather(1, torch.tensor(d["target_tokens"])[:, None])[:, 0]
            loss = loss_of(kind, d, logprob)
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(params, ADAM["grad_clip_norm"])
        opt.step()
        losses.append(total)
    return losses


def first_step(client):
    """A model after one step, its optimizer as new: an adapter whose B is zero is not published."""
    from tinker import types
    d, model = datums()[0], client.create_lora_training_client("residual-demo", rank=RANK, seed=SEED).result()
    model.forward_backward([types.Datum(model_input=types.ModelInput.from_ints(d["ids"]), loss_fn_inputs={"target_tokens": d["target_tokens"]})], "cross_entropy").result()
    model.optim_step(types.AdamParams(**ADAM)).result()
    return client.create_training_client_from_state(model.save_state("first").result().path).result()


def main():
    import tinker
    with tempfile.TemporaryDirectory() as tmp, Server("--dtype", "f32", adapters=None, data=Path(tmp) / "data") as s:
        with tinker.ServiceClient(base_url=s.url, api_key="tml-oracle") as client:
            first_step(client).save_weights_for_sampler("first").result()
            time.sleep(0.1)
            folder = next(m["root"] for m in s.get("/v1/models")[1]["data"] if m["id"].endswith("/first"))
            losses = torch_losses(folder, datums())
    OUT.write_text(json.dumps({"rank": RANK, "seed": SEED, "adam": ADAM, "ppo": PPO, "datums": datums(), "losses": [[k, round(x, 6)] for k, x in zip(LOSSES, losses)]}) + "\n")
    print(json.dumps(losses))


if __name__ == "__main__":
    main()

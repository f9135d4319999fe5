"""Throughput over HTTP: residuald on a random model of the Llama-3.1-8B shape (fewer layers where disk or time is short, and it says so), 64
streams, prompt 128, output 128, greedy; the base alone, one r16 all-linear adapter, 64 distinct ones, and 1 000 drawn by Zipf 1.0; with --full also
what swaps do to bystanders. One JSON line a case.

    python3 tests/gpu/serve_load.py --bin DIR --work DIR --gbs N [--full] [--backend cuda] [--tiny]
"""
import argparse
import json
import os
import random
import shutil
import statistics
import struct
import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import accumulate
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/bench"), str(ROOT / "tests/lib"), str(ROOT / "tests/gpu")]
import bounds  # noqa: E402
import churn  # noqa: E402
import drive  # noqa: E402
import make_model  # noqa: E402
from server import Server  # noqa: E402

RANK = 16
CLIENTS = 8  # processes of the load: one Python reads some thousand chunks a second


def config_of(shape, n_layer):
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": shape["d_model"], "intermediate_size": shape["d_ff"],
            "num_hidden_layers": n_layer, "num_attention_heads": shape["n_head"], "num_key_value_heads": shape["n_kv_head"],
            "head_dim": shape["d_head"], "vocab_size": shape["n_vocab"], "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0, "tie_word_embeddings": False, "hidden_act": "silu", "torch_dtype": "bfloat16", "bos_token_id": 0,
            "eos_token_id": 1, "attention_bias": False, "mlp_bias": False}


class Source:
    """Random bf16 by the GPU if there is one: a model of 16 GB takes minutes on a CPU."""

    def __init__(self):
        try:
            import torch
            self.torch = torch if torch.cuda.is_available() else None
        except ImportError:
            self.torch = None
        self.rng = np.random.default_rng(7)

    def take(self, shape, scale):
        if self.torch is None:
            return make_model.bf16(self.rng, shape, scale)
        t = self.torch.randn(shape, device="cuda", dtype=self.torch.bfloat16) * scale
        return t.view(self.torch.int16).cpu().numpy().view(np.uint16)


def write_tensors(path, shapes, source):
    """One safetensors file, tensor by tensor: shapes {name: (shape, scale, or None for ones)}."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, (shape, _) in shapes.items():
        n_bytes = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + n_bytes]}
        at += n_bytes
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(head)) + head)
        for shape, scale in shapes.values():
            f.write(memoryview(np.full(shape, 0x3F80, np.uint16) if scale is None else source.take(shape, scale)).cast("B"))


def make_base(folder, c, source):
    folder.mkdir(parents=True)
    d = c["hidden_size"]
    shapes = {"model.embed_tokens.weight": ((c["vocab_size"], d), 0.02), "model.norm.weight": ((d,), None), "lm_head.weight": ((c["vocab_size"], d), 0.02)}
    for layer in range(c["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        shapes.update({p + "input_layernorm.weight": ((d,), None), p + "post_attention_layernorm.weight": ((d,), None)})
        shapes.update({f"{p}{name}.weight": (s, s[1]**-0.5) for name, s in make_model.linear_shapes(c).items()})
    write_tensors(folder / "model.safetensors", shapes, source)
    (folder / "config.json").write_text(json.dumps(c))
    (folder / "tokenizer.json").write_text(json.dumps(make_model.tokenizer(c["vocab_size"])))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


def make_adapter(folder, c, source):
    folder.mkdir(parents=True)
    shapes = {}
    for layer in range(c["num_hidden_layers"]):
        for name, (out, inp) in make_model.linear_shapes(c).items():
            p = f"base_model.model.model.layers.{layer}.{name}."
            shapes[p + "lora_A.weight"], shapes[p + "lora_B.weight"] = ((RANK, inp), inp**-0.5), ((out, RANK), 0.02)
    write_tensors(folder / "adapter_model.safetensors", shapes, source)
    (folder / "adapter_config.json").write_text(json.dumps({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, "lora_dropout": 0.0, "bias": "none", "inference_mode": True,
        "base_model_name_or_path": "bench-base", "target_modules": sorted({n.split(".")[1] for n in make_model.linear_shapes(c)})}))


def zipf(names, n, rng):
    """n names by Zipf 1.0."""
    weights = list(accumulate(1 / (i + 1) for i in range(len(names))))
    return rng.choices(names, cum_weights=weights, k=n)


def some_streams(job):
    url, models, prompts, n_out = job
    return drive.together([lambda i=i: drive.stream(url, models[i], prompts[i], n_out) for i in range(len(models))])


def wave(pool, url, models, args, seed):
    """len(models) streams at once, from several processes; their clock is the machine's."""
    rng = random.Random(seed)
    prompts = [[rng.randrange(2, 250) for _ in range(args.prompt)] for _ in models]
    jobs = [(url, models[i::CLIENTS], prompts[i::CLIENTS], args.output) for i in range(min(CLIENTS, len(models)))]
    return drive.rates([r for part in pool.map(some_streams, jobs) for r in part], args.output)


def run_case(pool, url, case, draw, shape, args):
    """Median of the waves after one that warms up; draw(seed) -> a model name for each stream."""
    found = []
    for seed in range(args.waves + 1):
        models = draw(seed)
        r = wave(pool, url, models, args, seed)
        ranks = [RANK] * len({m for m in models if m != "base"})
        n_bytes = bounds.step_bytes(shape, len(models), args.prompt + args.output // 2, ranks)
        r.update(distinct=len(ranks), share=r["decode_tps"] / len(models) * n_bytes / (args.gbs * 1e9), bytes=n_bytes)
        if seed:
            found.append(r)
    row = {k: statistics.median(r[k] for r in found) for k in found[0]}
    for name in ("ttft", "p50", "p99"):
        row[f"{name}_ms"] = round(1000 * row.pop(name), 2)
    mode = {"mode": "fixed" if args.fixed else "fast"} if args.backend.startswith("cuda") else {}
    print(json.dumps({"case": case, "layers": shape["n_layer"], **mode, "streams": args.streams, **{k: round(v, 4) for k, v in row.items()}}), flush=True)
    return row


def flags_of(args, shape, n_adapter, n_fit):
    """n_fit of the adapters fit where they are used: on the device, on a CPU backend in memory."""
    blob = bounds.rank_bytes(shape) * RANK
    room = blob + (blob >> 3) + (1 << 20)
    device = args.backend.startswith("cuda")
    flags = ["--backend", args.backend, "--adapter-rank-max", RANK, "--score-rate-ppb", 0, "--score-rows-max", 0, "--context-max", 512,
             "--seqs-max", args.streams, "--adapters-per-batch-max", args.streams, "--adapters-resident-max", n_adapter + 8,
             "--adapters-host-bytes-max", (n_adapter if device else n_fit) * room, "--adapter-wait-ms-max", 600000]
    if device:
        flags += ["--adapters-device-bytes-max", n_fit * room, "--deterministic", "true" if args.fixed else "false"]
    return [*flags, *args.flags.split()]


def make_all(folder, shape, n_adapter):
    source, c = Source(), config_of(shape, shape["n_layer"])
    shutil.rmtree(folder, ignore_errors=True)
    make_base(folder / "base", c, source)
    names = [f"a{i:04}" for i in range(n_adapter)]
    for name in names:
        make_adapter(folder / "adapters" / name, c, source)
    return names


def server_of(args, folder, flags):
    os.environ["RS_BIN"] = args.bin
    return Server(*flags, model=folder / "base", name="base", adapters=folder / "adapters", wait_s=300)


def serve(args, shape, n_adapter, cases):
    folder = Path(args.work)
    names = make_all(folder, shape, n_adapter)
    with server_of(args, folder, flags_of(args, shape, n_adapter, n_adapter + 8)) as s, ProcessPoolExecutor(CLIENTS) as pool:
        for i in range(0, n_adapter, 16):  # resident before the clock runs
            drive.together([lambda n=n: drive.stream(s.url, n, [5, 6, 7], 1) for n in names[i:i + 16]])
        for case, kind in cases.items():
            draw = {"base": lambda seed: ["base"] * args.streams, "one": lambda seed: names[:1] * args.streams,
                    "distinct": lambda seed: [names[i % n_adapter] for i in range(args.streams)],
                    "zipf": lambda seed: zipf(names, args.streams, random.Random(seed))}[kind]
            run_case(pool, s.url, case, draw, shape, args)
    shutil.rmtree(folder, ignore_errors=True)


def serve_churn(args, shape):
    """What adapters that come and go do to streams that use none of them: tests/bench/churn.py, on a device that holds a third of them."""
    args.resident, folder = 8, Path(args.work)
    names = make_all(folder, shape, 24)
    with server_of(args, folder, flags_of(args, shape, len(names), args.resident)) as s:
        for name in names:
            drive.stream(s.url, name, [5, 6, 7], 1)
        args.server_pid = s.process.pid
        ratio = churn.run(s.url, names[:4], names[4:], args)
    print(json.dumps({"case": f"bystanders at {args.churn_rate:.0f} swaps/s", "layers": shape["n_layer"], "streams": args.bystanders,
                      "p99_ratio": round(ratio, 3)}), flush=True)
    shutil.rmtree(folder, ignore_errors=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--bin", required=True)
    p.add_argument("--work", required=True)
    p.add_argument("--gbs", type=float, required=True, help="the bandwidth that shares are taken of")
    p.add_argument("--backend", default="cuda")
    p.add_argument("--full", action="store_true")
    p.add_argument("--tiny", action="store_true", help="a tiny model and few adapters: tests this program where no GPU is")
    p.add_argument("--streams", type=int, default=64)
    p.add_argument("--prompt", type=int, default=128)
    p.add_argument("--output", type=int, default=128)
    p.add_argument("--waves", type=int, default=2)
    p.add_argument("--fixed", action="store_true", help="cuda: bits that do not depend on the batch")
    p.add_argument("--churn-rate", type=float, default=20)
    p.add_argument("--churn-tokens", type=int, default=128)
    p.add_argument("--bystanders", type=int, default=4)
    p.add_argument("--pairs", type=int, default=3)
    p.add_argument("--flags", default="", help="more flags for the server")
    args = p.parse_args()
    whole = bounds.SHAPES["tiny" if args.tiny else "llama-3.1-8b"]
    many = {"base": "base", "1 adapter": "one", "64 adapters": "distinct", "1000 adapters, Zipf 1.0": "zipf"}
    if args.tiny:
        serve(args, whole, 6, {"base": "base", "1 adapter": "one", "6 adapters": "distinct", "6 adapters, Zipf 1.0": "zipf"})
        serve_churn(args, whole)
    elif args.full:
        serve(args, dict(whole, n_layer=8), 1000, many)
        serve(args, whole, 64, {k: v for k, v in many.items() if v != "zipf"})
        serve_churn(args, dict(whole, n_layer=8))
    else:
        serve(args, dict(whole, n_layer=4), 1000, many)
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Logits of transformers + peft for tiny random models, as cases that tests/oracle/logits_tool.c checks.

  logits_golden.py write [DIR]              the committed cases (default tests/data/logits)
  logits_golden.py live TOOL [N] [SEED]     N random cases in a temporary folder, each judged by TOOL (a built
                                            logits_tool) on the ref and cpu backends; exit 1 on any miss. A random tiny
                                            model can amplify bf16 rounding past the bar; such a run counts as a miss
                                            only if it is also farther off than transformers' own bf16 pass

A case is a folder: model/ (a Hugging Face directory), a/ and b/ (PEFT adapters as saved), expected.json and
expected.safetensors (f32 logits of every prompt row per setting). Settings: base, a, b, and a weighted mix.

The reference is computed in f32 on the CPU (eager attention). Where weights are stored in bf16 the reference runs in
f32 on exactly those rounded weights, and serves both bars: f32 compute must agree with it to 2e-4 of the logit standard
deviation, bf16 compute (inputs of products and the KV cache rounded to bf16) to rms 1.5e-2 and max 8e-2. A mix is peft
with both adapters active and each layer's scaling multiplied by the weight. Models are scaled so that the logit
standard deviation is 0.5 to 2, adapters so that they move the logits by at least 0.3 of it (rms). Prompts are drawn
until every greedy step has a margin of at least 1e-3 of the deviation, since below twice the f32 bar a tie is a coin.
"""
import copy
import json
import math
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import warnings

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM,
                          Qwen3Config, Qwen3ForCausalLM)

FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
N_PROMPT, N_GREEDY = 24, 64

# family, stored dtype, old rope spelling, config. vocab 272 is above the tokenizer's 256: padded embeddings.
DIMS = dict(vocab_size=272, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512)
COMMITTED = {
    "llama_default": ("llama", "bf16", True, dict(DIMS, rope_theta=10000.0, head_dim=16, tie_word_embeddings=False)),
    "llama_llama3_tied_bias": ("llama", "bf16", False, dict(
        DIMS, num_key_value_heads=1, tie_word_embeddings=True, attention_bias=True, mlp_bias=True, rms_norm_eps=1e-5,
        rope_parameters=dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0,
                             high_freq_factor=4.0, original_max_position_embeddings=32))),
    "llama_f32": ("llama", "f32", False, dict(DIMS, num_attention_heads=3, num_key_value_heads=3, hidden_size=30,
                                              head_dim=10, tie_word_embeddings=True)),
    "mistral_window_linear": ("mistral", "bf16", True, dict(
        DIMS, sliding_window=9, head_dim=16, rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=2.5))),
    "mistral_f16": ("mistral", "f16", True, dict(DIMS, sliding_window=None, num_key_value_heads=4)),
    "qwen2_yarn_window": ("qwen2", "bf16", True, dict(
        DIMS, num_hidden_layers=3, use_sliding_window=True, sliding_window=17, max_window_layers=1, rms_norm_eps=1e-6,
        rope_parameters=dict(rope_type="yarn", rope_theta=1000000.0, factor=4.0,
                             original_max_position_embeddings=64))),
    "qwen3_qknorm": ("qwen3", "bf16", False, dict(
        DIMS, head_dim=24, tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=1000000.0))),
    "qwen3_layer_types": ("qwen3", "bf16", False, dict(
        DIMS, num_hidden_layers=3, head_dim=8, use_sliding_window=True, sliding_window=5,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"], attention_bias=True)),
}


def make_tokenizer(folder):
    """Byte-level BPE without merges: 256 ids."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tok = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.save(str(folder / "tokenizer.json"), pretty=False)


def old_spelling(config):
    rope = config.pop("rope_parameters", None)
    if rope:
        config["rope_theta"] = rope.pop("rope_theta", 10000.0)
        kind = rope.pop("rope_type", "default")
        config["rope_scaling"] = None if kind == "default" else dict(rope, type=kind)
    config["torch_dtype"] = config.pop("dtype", None)


@torch.no_grad()
def round_model(model, dtype):
    for p in model.parameters():
        p.copy_(p.to(dtype).float())


@torch.no_grad()
def logits_of(model, ids):
    return model(torch.tensor([ids])).logits[0].float()


@torch.no_grad()
def make_model(family, config, dtype, rng):
    config_class, model_class = FAMILIES[family]
    model = model_class._from_config(config_class(**json.loads(json.dumps(config))), attn_implementation="eager",
                                     dtype=torch.float32).eval()
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape)
        if name.endswith("bias"):
            p.copy_(0.3 * noise)
        elif p.dim() == 1:
            p.copy_(1 + 0.2 * noise)
        elif "embed" in name:
            p.copy_(noise)
        else:
            p.copy_(noise / math.sqrt(p.shape[1]))
    want = rng.uniform(0.6, 1.8)
    probe = [rng.randrange(256) for _ in range(64)]
    model.model.norm.weight.mul_(want / logits_of(model, probe).std())
    round_model(model, DTYPES[dtype])
    return model


ADAPTERS = {
    "a": dict(r=4, lora_alpha=6, target_modules=ALL),
    "b": dict(r=3, lora_alpha=5, use_rslora=True, target_modules=["q_proj", "k_proj", "v_proj", "down_proj"],
              rank_pattern={r"layers\.1\.self_attn\.v_proj": 7, "down_proj": 2}, alpha_pattern={"k_proj": 11}),
}


def set_weights(model, weights):
    """Activate the adapters of {name: weight} with their scaling multiplied; {} is the base."""
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            for name, scale in layer.plain_scaling.items():
                layer.scaling[name] = scale * weights.get(name, 0.0)
    model.base_model.set_adapter(list(weights) or ["a"])


def setting_logits(model, weights, ids):
    if not weights:
        with model.disable_adapter():
            return logits_of(model, ids)
    set_weights(model, weights)
    return logits_of(model, ids)


@torch.no_grad()
def add_adapters(base, specs, dtype, probe):
    model = None
    for name, spec in specs.items():
        config = LoraConfig(task_type="CAUSAL_LM", **spec)
        if model is None:
            model = get_peft_model(base, config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.plain_scaling = dict(layer.scaling)
            for name in layer.lora_A:
                a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
                a.copy_(torch.randn(a.shape) / math.sqrt(a.shape[1]))
                b.copy_(torch.randn(b.shape) * 0.1)
    model.eval()
    plain = setting_logits(model, {}, probe)
    for name in specs:
        for _ in range(12):
            effect = float((setting_logits(model, {name: 1.0}, probe) - plain).pow(2).mean().sqrt() / plain.std())
            if 0.45 < effect < 0.9:
                break
            factor = min(max((0.6 / max(effect, 1e-6)) ** 0.7, 0.2), 5)
            for layer in model.modules():
                if isinstance(layer, LoraLayer) and name in layer.lora_B:
                    layer.lora_B[name].weight.mul_(factor)
    round_lora(model, dtype)
    for name in specs:
        effect = float((setting_logits(model, {name: 1.0}, probe) - plain).pow(2).mean().sqrt() / plain.std())
        assert effect >= 0.3, (name, effect)
    return model


@torch.no_grad()
def round_lora(model, dtype):
    for n, p in model.named_parameters():
        if "lora_" in n:
            p.copy_(p.to(dtype).float())


def save_dir(model, folder, dtype, old):
    folder.mkdir(parents=True)
    model.save_pretrained(folder)
    weights = {k: v.to(dtype).contiguous() for k, v in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = str(dtype).removeprefix("torch.")
    config["eos_token_id"] = None
    if old:
        old_spelling(config)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    make_tokenizer(folder)


def save_adapters(model, case, specs, dtype):
    for name in specs:
        with tempfile.TemporaryDirectory() as tmp:
            model.save_pretrained(tmp, selected_adapters=[name])
            src, dst = pathlib.Path(tmp) / name, case / name
            dst.mkdir()
            shutil.copy(src / "adapter_config.json", dst)
            weights = {k: v.to(dtype).contiguous() for k, v in load_file(src / "adapter_model.safetensors").items()}
            save_file(weights, dst / "adapter_model.safetensors", metadata={"format": "pt"})


def greedy(model, weights, prompt, std):
    """Greedy continuation and its smallest margin in units of std."""
    ids, margin = list(prompt), math.inf
    for _ in range(N_GREEDY):
        top = setting_logits(model, weights, ids)[-1].topk(2)
        margin = min(margin, float(top.values[0] - top.values[1]) / std)
        ids.append(int(top.indices[0]))
    return ids[len(prompt):], margin


def make_case(case, family, dtype, old, config, rng):
    case.mkdir(parents=True)
    torch.manual_seed(rng.randrange(1 << 30))
    base = make_model(family, config, dtype, rng)
    save_dir(base, case / "model", DTYPES[dtype], old)
    probe = [rng.randrange(256) for _ in range(48)]
    model = add_adapters(base, ADAPTERS, DTYPES[dtype], probe)
    save_adapters(model, case, ADAPTERS, DTYPES[dtype])
    settings = {"base": {}, "a": {"a": 1.0}, "b": {"b": 1.0}, "mix": {"a": 0.75, "b": -0.5}}
    for _ in range(40):
        prompt = [rng.randrange(256) for _ in range(N_PROMPT)]
        std = float(setting_logits(model, {}, prompt).std())
        outs = {}
        for name, weights in settings.items():
            outs[name] = greedy(model, weights, prompt, std)
            if outs[name][1] < 1e-3:
                break
        else:
            break
    else:
        raise SystemExit(f"{case}: no prompt with clear greedy margins in 40 draws")
    assert 0.5 <= std <= 2, std
    logits = {name: setting_logits(model, weights, prompt).contiguous() for name, weights in settings.items()}
    save_file(logits, case / "expected.safetensors")
    expected = {
        "family": family, "stored": dtype, "bf16": dtype == "bf16", "logit_std": std, "prompt": prompt,
        "settings": [{"name": name, "adapters": [{"dir": n, "weight_q16": int(w * 65536)} for n, w in weights.items()],
                      "greedy": outs[name][0]} for name, weights in settings.items()],
    }
    (case / "expected.json").write_text(json.dumps(expected, separators=(",", ":")) + "\n")
    own = own_bf16_error(model, settings, prompt, std) if dtype == "bf16" else None
    note = f"logit std {std:.3f}, smallest greedy margin {min(m for _, m in outs.values()):.1e} of it"
    return note + (f"; transformers' own bf16: rms {own[0]:.1e} max {own[1]:.1e}" if own else ""), own


def own_bf16_error(model, settings, prompt, std):
    """How far transformers' own bf16 pass is from its f32 pass on the same weights: (rms, max) in units of std."""
    half = copy.deepcopy(model).bfloat16()
    worst = [0.0, 0.0]
    for weights in settings.values():
        e = (setting_logits(half, weights, prompt) - setting_logits(model, weights, prompt)) / std
        worst = [max(worst[0], float(e.pow(2).mean().sqrt())), max(worst[1], float(e.abs().max()))]
    return worst


def random_config(rng):
    family = rng.choice(list(FAMILIES))
    n_kv = rng.choice([1, 2, 4])
    heads = n_kv * rng.choice([1, 2, 3])
    config = dict(vocab_size=rng.randrange(256, 400), hidden_size=heads * rng.choice([8, 8, 14, 16]),
                  intermediate_size=rng.randrange(20, 120), num_hidden_layers=rng.randrange(1, 5),
                  num_attention_heads=heads, num_key_value_heads=n_kv, max_position_embeddings=rng.choice([128, 512]),
                  rms_norm_eps=rng.choice([1e-5, 1e-6]), tie_word_embeddings=rng.random() < 0.5)
    if family != "qwen2" and rng.random() < 0.7 or family == "qwen3":
        config["head_dim"] = rng.choice([6, 8, 16, 24, 40])
    kind = rng.choice(["default", "linear", "llama3", "yarn"])
    rope = dict(rope_type=kind, rope_theta=rng.choice([1e4, 5e5, 1e6]))
    if kind != "default":
        rope["factor"] = rng.choice([2.0, 4.0, 8.0])
    if kind in ("llama3", "yarn"):
        rope["original_max_position_embeddings"] = rng.choice([32, 64])
    if kind == "llama3":
        rope.update(low_freq_factor=1.0, high_freq_factor=4.0)
    config["rope_parameters"] = rope
    if family in ("llama", "qwen3"):
        config["attention_bias"] = rng.random() < 0.5
    if family == "llama":
        config["mlp_bias"] = rng.random() < 0.5
    if family == "mistral":
        config["sliding_window"] = rng.choice([None, 3, 16, 20])
    if family in ("qwen2", "qwen3"):
        config.update(use_sliding_window=rng.random() < 0.6, sliding_window=rng.choice([4, 16, 31]),
                      max_window_layers=rng.randrange(0, 4))
    return family, rng.choice(["bf16", "bf16", "f32", "f16"]), rng.random() < 0.5, config


def within(report, own):
    """The last line of the tool's report is nearer to the reference than transformers' own bf16."""
    words = report.strip().split("\n")[-1].split()
    rms, worst = (float(words[words.index(key) + 1]) for key in ("rms", "max"))
    return rms <= own[0] and worst <= own[1] and words[words.index("argmax") + 2] == "0"


def live(tool, n, seed):
    rng = random.Random(seed)
    misses = skipped = amplified = 0
    with tempfile.TemporaryDirectory() as tmp:
        for i in range(n):
            family, dtype, old, config = random_config(rng)
            case = pathlib.Path(tmp) / f"case{i}"
            note, own = make_case(case, family, dtype, old, config, rng)
            print(f"case {i}: {family} {dtype} {'old' if old else 'v5'} {config} {note}")
            for backend in ("ref", "cpu"):
                for compute in ("f32", "bf16") if dtype == "bf16" else ("f32",):
                    chunk = rng.choice([1, 5, 16, 64])
                    got = subprocess.run([tool, "check", str(case), "--backend", backend, "--dtype", compute,
                                          "--chunk", str(chunk), "--threads", str(rng.choice([1, 2]))],
                                         capture_output=True, text=True)
                    print("   ", got.stdout.strip().replace("\n", "\n    "))
                    if got.returncode == 3 and backend == "cpu":
                        skipped += 1
                    elif got.returncode == 1 and compute == "bf16" and within(got.stdout, own):
                        amplified += 1
                        print("    past the bar, but nearer than transformers' own bf16")
                    elif got.returncode:
                        misses += 1
                        print("    MISS", got.stderr.strip(), json.dumps(config))
            shutil.rmtree(case)
    print(f"{n} cases, {misses} misses, {amplified} bf16 runs past the bar but nearer than transformers' own, "
          f"{skipped} refused for their head size (seed {seed})")
    return 1 if misses else 0


def main():
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if len(sys.argv) >= 3 and sys.argv[1] == "live":
        n = int(sys.argv[3]) if len(sys.argv) > 3 else 8
        return live(sys.argv[2], n, int(sys.argv[4]) if len(sys.argv) > 4 else random.randrange(1 << 30))
    if len(sys.argv) < 2 or sys.argv[1] != "write":
        print(__doc__)
        return 2
    out = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else pathlib.Path(__file__).parents[1] / "data/logits"
    shutil.rmtree(out, ignore_errors=True)
    for i, (name, (family, dtype, old, config)) in enumerate(COMMITTED.items()):
        print(f"{name}: {make_case(out / name, family, dtype, old, config, random.Random(1000 + i))[0]}")
    print(sum(f.stat().st_size for f in out.rglob("*") if f.is_file()), "bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())

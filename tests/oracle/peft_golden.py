#!/usr/bin/env python3
"""Writes tests/data/peft_golden.json: adapter configs with what the real peft makes of them (which modules, which
rank and scale), and the adapter ids by an independent implementation.

Tensor bytes are not stored: byte k of a module's A is (k*131 + len(path)*7) & 255, of its B (k*131 + len(path)*7 + 53)
& 255, in the case's dtype. Usage: peft_golden.py [OUT.json]
"""
import json
import pathlib
import sys
import tempfile
import warnings

from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from adapter_id import adapter_id

BASE = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=12, num_attention_heads=4, num_key_value_heads=2,
            head_dim=6, vocab_size=32)
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES = {
    "defaults": dict(target_modules=["q_proj", "v_proj"]),
    "all_list": dict(target_modules=ALL, r=4, lora_alpha=16),
    "all_linear": dict(target_modules="all-linear", r=3, lora_alpha=5),
    "regex": dict(target_modules=r".*\.(1|10)\.self_attn\.(q|k)_proj", r=2, lora_alpha=7),
    "regex_full_match_only": dict(target_modules=r".*layers\.[2-4]\..*_proj", r=2),
    "exclude_list": dict(target_modules=ALL, exclude_modules=["layers.0.self_attn.q_proj", "down_proj"], r=2),
    "exclude_regex": dict(target_modules=ALL, exclude_modules=r".*\.(5|6|7)\..*", r=2),
    "suffix_path": dict(target_modules=["self_attn.o_proj", "3.mlp.up_proj"], r=2),
    "exact_path": dict(target_modules=["model.layers.11.mlp.gate_proj"], r=5, lora_alpha=3),
    "layers_int": dict(target_modules=["q_proj"], layers_to_transform=3, r=2),
    "layers_list": dict(target_modules=["q_proj", "down_proj"], layers_to_transform=[0, 1, 11], r=2),
    "layers_pattern": dict(target_modules=["k_proj"], layers_to_transform=[2, 10], layers_pattern="layers", r=2),
    "layers_exact_bypass": dict(target_modules=["model.layers.4.mlp.up_proj", "q_proj"], layers_to_transform=[1], r=2),
    "rank_pattern_order": dict(target_modules=ALL, r=4, lora_alpha=8,
                               rank_pattern={"q_proj": 2, r"layers\.1\.self_attn\.q_proj": 8, "v_proj": 6}),
    "rank_pattern_order_2": dict(target_modules=["q_proj", "v_proj"], r=4, lora_alpha=8,
                                 rank_pattern={r"layers\.1\.self_attn\.q_proj": 8, "q_proj": 2}),
    "pattern_anchor": dict(target_modules=ALL, r=4, rank_pattern={"^model.layers.0.mlp.up_proj": 2, "proj": 9,
                                                                    ".*down_proj": 3}),
    "alpha_alone": dict(target_modules=ALL, r=4, lora_alpha=8, alpha_pattern={"o_proj": 32, "mlp.*": 1.5}),
    "both_patterns": dict(target_modules=ALL, r=4, lora_alpha=8, rank_pattern={"k_proj": 1},
                          alpha_pattern={"self_attn.k_proj": 3, "up_proj": 10}),
    "rslora": dict(target_modules=ALL, r=4, lora_alpha=8, use_rslora=True, rank_pattern={"gate_proj": 7},
                   alpha_pattern={"v_proj": 5}),
    "negative_alpha": dict(target_modules=["v_proj"], r=4, lora_alpha=-8),
}


def tensor_bytes(path, n, is_b):
    start = len(path) * 7 + (53 if is_b else 0)
    return bytes((k * 131 + start) & 255 for k in range(n))


def run_case(name, spec, dtype):
    model = get_peft_model(LlamaForCausalLM(LlamaConfig(**BASE)), LoraConfig(task_type="CAUSAL_LM", **spec))
    with tempfile.TemporaryDirectory() as tmp:
        model.save_pretrained(tmp)
        config = json.loads((pathlib.Path(tmp) / "adapter_config.json").read_text())
        for key in ("target_modules", "exclude_modules"):  # sets to peft: their order is that of Python's hashes
            if isinstance(config.get(key), list):
                config[key].sort()
        # saving sorts the keys of rank_pattern and alpha_pattern: what a loader sees is the file's order
        model = get_peft_model(LlamaForCausalLM(LlamaConfig(**BASE)), LoraConfig.from_pretrained(tmp))
    modules, for_id = {}, {}
    width = 4 if dtype == "F32" else 2
    for path, m in model.base_model.model.named_modules():
        if not hasattr(m, "lora_A") or "default" not in m.lora_A:
            continue
        a, b = m.lora_A["default"].weight.shape, m.lora_B["default"].weight.shape
        modules[path] = [m.r["default"], m.scaling["default"]]
        for_id[path] = (m.r["default"], float(m.scaling["default"]),
                        (dtype, *a, tensor_bytes(path, a[0] * a[1] * width, False)),
                        (dtype, *b, tensor_bytes(path, b[0] * b[1] * width, True)))
    return {"name": name, "config": config, "dtype": dtype, "modules": modules, "id": adapter_id(for_id)}


def main():
    warnings.simplefilter("ignore")
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).parents[1] / "data/peft_golden.json"
    dtypes = ["F32", "BF16", "F16"]
    cases = [run_case(name, spec, dtypes[i % 3]) for i, (name, spec) in enumerate(CASES.items())]
    base = dict(BASE, model_type="llama")
    out.write_text(json.dumps({"base": base, "cases": cases}, separators=(",", ":")) + "\n")
    print(f"{out}: {len(cases)} cases, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()

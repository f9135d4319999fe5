#!/usr/bin/env python3
"""Writes tests/data/rope_golden.json: configs in both spellings and the cos/sin rows transformers makes of them.

Usage: rope_golden.py [OUT.json]        (default: tests/data/rope_golden.json beside this folder)
"""
import json
import pathlib
import sys

import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

BASE = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 256,
    "max_position_embeddings": 4096,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 256}
CASES = {
    "default": {"rope_theta": 10000.0},
    "theta_1e6": {"rope_theta": 1000000.0},
    "absent": {},
    "linear_old": {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama3_old": {"rope_theta": 500000.0, "rope_scaling": LLAMA3},
    "llama3_v5": {"rope_parameters": dict(LLAMA3, rope_theta=500000.0)},
    "yarn_old": {"rope_theta": 1000000.0,
                 "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}},
    "yarn_v5_no_truncate": {"rope_parameters": {
        "rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "original_max_position_embeddings": 128,
        "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False}},
    "yarn_mscale": {"rope_parameters": {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 512,
        "mscale": 0.7, "mscale_all_dim": 1.1}},
    "yarn_attention_factor": {"rope_parameters": {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 512,
        "attention_factor": 1.25}},
    "default_v5": {"rope_parameters": {"rope_type": "default", "rope_theta": 250000.0}},
}
POSITIONS = [0, 1, 2, 7, 63, 255, 1023, 4095]


def main():
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).parents[1] / "data/rope_golden.json"
    cases = []
    for name, extra in CASES.items():
        config = json.loads(json.dumps(dict(BASE, **extra)))
        rope = LlamaRotaryEmbedding(LlamaConfig(**{k: v for k, v in json.loads(json.dumps(config)).items()
                                                   if k not in ("model_type", "architectures")}))
        cos, sin = rope(torch.zeros(1), torch.tensor([POSITIONS]))
        half = config["head_dim"] // 2
        cases.append({
            "name": name, "config": config, "positions": POSITIONS,
            "cos": [[round(float(x), 8) for x in row[:half]] for row in cos[0]],
            "sin": [[round(float(x), 8) for x in row[:half]] for row in sin[0]],
        })
    out.write_text(json.dumps({"cases": cases}, separators=(",", ":")) + "\n")
    print(f"{out}: {len(cases)} cases, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()

"""A random-weight model of the Qwen2.5-0.5B shape (or SmolLM2-135M's) and N random PEFT adapters (r 16, all linear), bf16, written as
safetensors. Prompts are token ids, so a small byte tokenizer serves."""
import json
import struct
import sys
from pathlib import Path

import numpy as np

SHAPE = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0, "tie_word_embeddings": True, "use_sliding_window": False, "sliding_window": None, "max_window_layers": 24,
    "hidden_act": "silu", "torch_dtype": "bfloat16", "bos_token_id": 0, "eos_token_id": 1,
}

SMOL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0, "tie_word_embeddings": True, "hidden_act": "silu", "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
}
RANK = 16


def bf16(rng, shape, scale):
    x = (rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)).view(np.uint32)
    return ((x + 0x7FFF + ((x >> 16) & 1)) >> 16).astype(np.uint16)


def write_safetensors(path, tensors):
    """tensors: name -> uint16 array (bf16)."""
    header, at = {}, 0
    for name, t in tensors.items():
        header[name] = {"dtype": "BF16", "shape": list(t.shape), "data_offsets": [at, at + t.nbytes]}
        at += t.nbytes
    head = json.dumps({**header, "__metadata__": {"format": "pt"}}).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(head)) + head)
        for t in tensors.values():
            f.write(t.tobytes())


def linear_shapes(c):
    d, ff, hd = c["hidden_size"], c["intermediate_size"], c["hidden_size"] // c["num_attention_heads"]
    kv = c["num_key_value_heads"] * hd
    return {"self_attn.q_proj": (d, d), "self_attn.k_proj": (kv, d), "self_attn.v_proj": (kv, d), "self_attn.o_proj": (d, d),
            "mlp.gate_proj": (ff, d), "mlp.up_proj": (ff, d), "mlp.down_proj": (d, ff)}


def tokenizer(n_vocab):
    """256 byte tokens in the byte-level alphabet, then made-up words: every id has text, so every token is a chunk."""
    chars = [chr(b) for b in list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))]
    chars += [chr(256 + i) for i in range(256 - len(chars))]
    vocab = {c: i for i, c in enumerate(chars)}
    vocab.update({f"w{i}": i for i in range(256, n_vocab)})
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            "post_processor": None, "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                      "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": vocab, "merges": []}}


def make_base(folder, c, rng):
    folder.mkdir(parents=True, exist_ok=True)
    d, one = c["hidden_size"], np.full(c["hidden_size"], 0x3F80, np.uint16)
    t = {"model.embed_tokens.weight": bf16(rng, (c["vocab_size"], d), 0.02), "model.norm.weight": one}
    for layer in range(c["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        t[p + "input_layernorm.weight"] = t[p + "post_attention_layernorm.weight"] = one
        for name, shape in linear_shapes(c).items():
            t[p + name + ".weight"] = bf16(rng, shape, 1 / np.sqrt(shape[1]))
        for name in "qkv" if c["model_type"] == "qwen2" else "":
            t[p + f"self_attn.{name}_proj.bias"] = bf16(rng, (linear_shapes(c)[f"self_attn.{name}_proj"][0],), 0.02)
    write_safetensors(folder / "model.safetensors", t)
    (folder / "config.json").write_text(json.dumps(c))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(c["vocab_size"])))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


def make_adapter(folder, c, rng, rank=RANK):
    folder.mkdir(parents=True, exist_ok=True)
    t = {}
    for layer in range(c["num_hidden_layers"]):
        for name, (out, inp) in linear_shapes(c).items():
            p = f"base_model.model.model.layers.{layer}.{name}."
            t[p + "lora_A.weight"] = bf16(rng, (rank, inp), 1 / np.sqrt(inp))
            t[p + "lora_B.weight"] = bf16(rng, (out, rank), 0.02)
    write_safetensors(folder / "adapter_model.safetensors", t)
    (folder / "adapter_config.json").write_text(json.dumps({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "lora_dropout": 0.0, "bias": "none",
        "inference_mode": True, "base_model_name_or_path": "bench-base", "target_modules": sorted({n.split(".")[1] for n in linear_shapes(c)})}))


def make(folder, adapters, shape=SHAPE):
    """Make what is missing; returns (base dir, [adapter dirs])."""
    folder, rng = Path(folder), np.random.default_rng(7)
    if not (folder / "base" / "tokenizer_config.json").exists():
        make_base(folder / "base", shape, rng)
    dirs = []
    for i in range(adapters):
        dirs.append(folder / "adapters" / f"a{i:03}")
        if not (dirs[-1] / "adapter_config.json").exists():
            make_adapter(dirs[-1], shape, np.random.default_rng(1000 + i))
    return folder / "base", dirs


if __name__ == "__main__":
    print(make(sys.argv[1], int(sys.argv[2])))

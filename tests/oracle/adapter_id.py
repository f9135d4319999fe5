"""adapterId of SPEC 1, written from the page and independent of the C code.

Use as a module (adapter_id(modules)) or as a program: adapter_id.py ADAPTER_DIR prints the hex id.
"""
import hashlib
import json
import math
import pathlib
import re
import struct
import sys

DTYPE_CODE = {"F16": 7, "BF16": 8, "F32": 11}
PREFIX = "base_model.model."


def adapter_id(modules):
    """modules: {path: (rank, scale, A, B)}, A and B = (dtype, rows, columns, bytes)."""
    h = hashlib.blake2b(b"residual.adapter.1", digest_size=32)
    for path in sorted(modules, key=lambda p: p.encode()):
        rank, scale, a, b = modules[path]
        h.update(struct.pack(">I", len(path.encode())) + path.encode() + struct.pack(">Id", rank, scale))
        for dtype, rows, columns, data in (a, b):
            h.update(struct.pack(">BII", DTYPE_CODE[dtype], rows, columns) + data)
    return h.hexdigest()


def read_safetensors(path):
    raw = pathlib.Path(path).read_bytes()
    n = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8:8 + n])
    header.pop("__metadata__", None)
    return {name: (t["dtype"], t["shape"], raw[8 + n + t["data_offsets"][0]:8 + n + t["data_offsets"][1]])
            for name, t in header.items()}


def first_match(patterns, path, default):
    for key, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({key})$", path):
            return value
    return default


def directory_id(folder):
    folder = pathlib.Path(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    modules = {}
    tensors = read_safetensors(folder / "adapter_model.safetensors")
    for name in tensors:
        if not name.endswith(".lora_A.weight"):
            continue
        other = name.replace(".lora_A.", ".lora_B.")
        path = name.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        rank = tensors[name][1][0]
        alpha = first_match(config.get("alpha_pattern"), path, config.get("lora_alpha", 8))
        scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
        modules[path] = (rank, float(scale), *((t[0], *t[1], t[2]) for t in (tensors[name], tensors[other])))
    return adapter_id(modules)


if __name__ == "__main__":
    for folder in sys.argv[1:]:
        print(directory_id(folder), folder)

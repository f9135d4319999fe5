"""Writes and bends PEFT adapter files without numpy: safetensors is a length, a JSON header and bytes."""
import json
import os
import random
import shutil
import struct
from pathlib import Path

from server import DEMO

AMBER = DEMO / "adapters" / "amber-coast"


def read(path):
    """(header, data) of a safetensors file."""
    raw = Path(path).read_bytes()
    n = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + n]), bytearray(raw[8 + n :])


def pack(header, data):
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + bytes(data)


def write(path, header, data):
    Path(path).write_bytes(pack(header, data))


def copy(to, of=AMBER, weights=True, config=None):
    """Config (with changes) and weights of a demo adapter in a folder of their own."""
    to = Path(to)
    to.mkdir(parents=True)
    fields = json.loads((of / "adapter_config.json").read_text())
    fields.update(config or {})
    (to / "adapter_config.json").write_text(json.dumps(fields))
    if weights:
        shutil.copyfile(of / "adapter_model.safetensors", to / "adapter_model.safetensors")
    return to


def tiny(to, seed):
    """A rank 1 adapter of q_proj and v_proj with random bf16 weights of about 0.02 to 0.25 in size; 8 kB."""
    to = Path(to)
    to.mkdir(parents=True)
    rng = random.Random(seed)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "residual-demo", "r": 1, "lora_alpha": 2,
              "bias": "none", "target_modules": ["q_proj", "v_proj"]}
    header, at = {}, 0
    for layer in range(4):
        for module, rows in (("q_proj", 256), ("v_proj", 128)):
            for part, shape in (("A", [1, 256]), ("B", [rows, 1])):
                n = 2 * shape[0] * shape[1]
                header[f"base_model.model.model.layers.{layer}.self_attn.{module}.lora_{part}.weight"] = {
                    "dtype": "BF16", "shape": shape, "data_offsets": [at, at + n]}
                at += n
    data = bytearray(rng.randbytes(at))
    for i in range(1, at, 2):  # the high byte: sign and exponent; 0x3c..0x3e is 2^-7 to 2^-2
        data[i] = (data[i] & 0x80) | (0x3C + data[i] % 3)
    (to / "adapter_config.json").write_text(json.dumps(config))
    write(to / "adapter_model.safetensors", header, data)
    return to


def put_float(data, header, name, value_bits):
    """Overwrite the first bf16 element of a tensor."""
    at = header[name]["data_offsets"][0]
    data[at : at + 2] = struct.pack("<H", value_bits)


def tree_bytes(folder):
    return sum(os.path.getsize(os.path.join(d, f)) for d, _, files in os.walk(folder) for f in files)

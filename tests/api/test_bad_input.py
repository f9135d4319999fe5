"""Bad input of every kind that reaches the server: it says what is wrong in a sentence that names the thing, and goes on serving."""
import json
import os
import shutil
import socket
import struct
import subprocess
import time
from pathlib import Path

import peftfile
import pytest
import wire
from keys import KEYS, bearer, write_keys
from registry_node import RegistryNode
from server import DEMO, Redis, Server, binary, free_port, http, wait_for

BASE = "residual-demo"
EXIT_CONFIG, EXIT_START = 2, 3
LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


def generate(server, model=BASE, status=200, **kw):
    got, body = server.post("/v1/completions", {"model": model, "prompt": "The people of", "max_tokens": 4, "temperature": 0, **kw})
    assert got == status, body
    return body


def message(body):
    """The error's sentence, after a look at the object's shape."""
    e = body["error"]
    assert set(e) == {"message", "type", "param", "code"} and e["message"] and e["type"], body
    return e["message"]


def rss(server, field="VmRSS"):
    text = Path(f"/proc/{server.process.pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(field))


def metric(server, name):
    return wire.metric(server.get("/metrics")[1], name)


# ---- a start that cannot succeed ----


def run(*flags):
    done = subprocess.run([binary("residuald"), *map(str, flags)], capture_output=True, text=True, timeout=30)
    return done.returncode, done.stdout + done.stderr


def start_fails(tmp_path, *flags, model=DEMO / "base", code=EXIT_START):
    """The sentence with which the server gives up, and its exit code."""
    status, text = run("--model", model, "--data-dir", tmp_path / "data", "--listen", f"127.0.0.1:{free_port()}", *flags)
    assert status == code, f"exit code {status}:\n{text}"
    last = text.strip().splitlines()[-1]
    assert last.startswith("residuald: ") and "Sanitizer" not in text, text
    return last


def model_copy(tmp_path, weights=False):
    """The demo base with its small files copied; the weights too if they are to be changed."""
    to = tmp_path / "model"
    to.mkdir()
    for f in (DEMO / "base").iterdir():
        if f.name == "model.safetensors" and not weights:
            os.symlink(f, to / f.name)
        elif f.suffix != ".residual-model-id.json" and not f.name.startswith("."):
            shutil.copyfile(f, to / f.name)
    return to


def bend_header(change):
    def bend(path):
        header, data = peftfile.read(path)
        change(header)
        peftfile.write(path, header, data)

    return bend


def set_field(name, **kw):
    return bend_header(lambda h: h[name].update(kw))


def move(name, by):
    def change(h):
        h[name]["data_offsets"] = [x + by for x in h[name]["data_offsets"]]

    return bend_header(change)


NORM = "model.norm.weight"
WEIGHTS = {
    "truncated": (lambda p: os.truncate(p, os.path.getsize(p) // 2), "model.safetensors"),
    "empty": (lambda p: os.truncate(p, 0), "safetensors"),
    "three bytes": (lambda p: os.truncate(p, 3), "8-byte length"),
    "header of 2^63 bytes": (lambda p: p.write_bytes(struct.pack("<Q", 1 << 63) + p.read_bytes()[8:]), "header length"),
    "header longer than the file": (lambda p: p.write_bytes(struct.pack("<Q", 20_000_000) + p.read_bytes()[8:]), "header length"),
    "header is no JSON": (lambda p: p.write_bytes(struct.pack("<Q", 16) + b"x" * 16), "not valid JSON"),
    "header nests deep": (lambda p: p.write_bytes(struct.pack("<Q", 200_000) + b"[" * 200_000), "header"),
    "header is a list": (lambda p: p.write_bytes(struct.pack("<Q", 8) + b"[1,2,3] "), "header"),
    "overlap": (move(NORM, -2), NORM),
    "outside": (move(NORM, 1 << 40), NORM),
    "negative offset": (set_field(NORM, data_offsets=[-512, 0]), "data_offsets"),
    "shape overflows": (set_field(NORM, shape=[1 << 62, 1 << 62]), "overflow"),
    "shape is text": (set_field(NORM, shape="256"), "shape"),
    "wrong shape": (set_field(NORM, shape=[16, 16]), NORM),
    "unknown dtype": (set_field(NORM, dtype="Q4_K"), "Q4_K"),
    "integer weights": (set_field(NORM, dtype="I16"), "I16"),
    "missing tensor": (bend_header(lambda h: h.__setitem__("other", h.pop(NORM))), "norm.weight"),
    "bytes past the end": (lambda p: p.open("ab").write(b"x" * 64), "bytes of data"),
}


@pytest.mark.parametrize("case", sorted(WEIGHTS))
def test_hostile_weights_at_start(tmp_path, case):
    bend, word = WEIGHTS[case]
    model = model_copy(tmp_path, weights=True)
    bend(model / "model.safetensors")
    assert word in start_fails(tmp_path, model=model)


def json_edit(name, **kw):
    def bend(model):
        path = model / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **kw}))

    return bend


def tokenizer_edit(change):
    def bend(model):
        doc = json.loads((model / "tokenizer.json").read_text())
        change(doc)
        (model / "tokenizer.json").write_text(json.dumps(doc))

    return bend


def overwrite(name, text):
    return lambda model: (model / name).write_text(text)


FILES = {
    "config is missing": (lambda m: (m / "config.json").unlink(), "config.json"),
    "config is cut": (lambda m: os.truncate(m / "config.json", 100), "config.json"),
    "config is a list": (overwrite("config.json", "[]"), "expected a JSON object"),
    "config nests deep": (overwrite("config.json", '{"a":' + "[" * 100_000 + "]" * 100_000 + "}"), "config.json"),
    "negative width": (json_edit("config.json", hidden_size=-256), "hidden_size"),
    "width is text": (json_edit("config.json", hidden_size="256"), "hidden_size"),
    "no heads": (json_edit("config.json", num_attention_heads=0), "num_attention_heads"),
    "odd groups": (json_edit("config.json", num_key_value_heads=3), "num_key_value_heads"),
    "2^40 words": (json_edit("config.json", vocab_size=1 << 40), "vocab_size"),
    "2^30 layers": (json_edit("config.json", num_hidden_layers=1 << 30), "num_hidden_layers"),
    "unknown family": (json_edit("config.json", model_type="mamba", architectures=["MambaForCausalLM"]), "mamba"),
    "unknown activation": (json_edit("config.json", hidden_act="gelu_pytorch_tanh"), "hidden_act"),
    "unknown rope": (json_edit("config.json", rope_parameters={"rope_type": "spiral", "rope_theta": 1e4}), "rope"),
    "quantised": (json_edit("config.json", quantization_config={"quant_method": "gptq", "bits": 4}), "quantization_config"),
    "eps is infinite": (overwrite("config.json", (DEMO / "base/config.json").read_text().replace("1e-05", "1e999")), "config.json"),
    "weights are missing": (lambda m: (m / "model.safetensors").unlink(), "safetensors"),
    "pickled weights": (lambda m: ((m / "model.safetensors").unlink(), (m / "pytorch_model.bin").write_bytes(b"\x80\x04")), "pickled"),
    "tokenizer is missing": (lambda m: (m / "tokenizer.json").unlink(), "tokenizer.json"),
    "tokenizer is cut": (lambda m: os.truncate(m / "tokenizer.json", 20_000), "tokenizer.json"),
    "tokenizer nests deep": (overwrite("tokenizer.json", "[" * 300_000), "tokenizer.json"),
    "tokenizer of another kind": (tokenizer_edit(lambda d: d["model"].update(type="WordPiece")), "WordPiece"),
    "negative id": (tokenizer_edit(lambda d: d["model"]["vocab"].update(zzzz=-1)), "tokenizer.json"),
    "merge of unknown pieces": (tokenizer_edit(lambda d: d["model"]["merges"].append(["qqqq", "zzzz"])), "merge"),
    "unknown normalizer": (tokenizer_edit(lambda d: d.update(normalizer={"type": "Rot13"})), "Rot13"),
}


@pytest.mark.parametrize("case", sorted(FILES))
def test_hostile_model_files_at_start(tmp_path, case):
    bend, word = FILES[case]
    model = model_copy(tmp_path)
    bend(model)
    assert word in start_fails(tmp_path, model=model)


def test_what_a_model_folder_may_lack_is_served_without(tmp_path):
    """A template that cannot be used costs chat and a token without a row costs the prompts that use it."""
    model = model_copy(tmp_path)
    overwrite("chat_template.jinja", "{% for m in messages %}{{ m.content }}")(model)
    tokenizer_edit(lambda d: d["added_tokens"].append({**d["added_tokens"][0], "id": 1024, "content": "[PAD]"}))(model)
    assert "chat_template.jinja" in start_fails(tmp_path, "--strict", model=model)
    with Server(model=model, data=tmp_path / "data") as s:
        assert s.post("/v1/completions", {"model": BASE, "prompt": "x", "max_tokens": 1})[0] == 200
        status, body = s.post("/v1/chat/completions", {"model": BASE, "messages": [{"role": "user", "content": "x"}]})
        assert status == 400 and "chat_template.jinja" in message(body) and "/v1/completions" in message(body), body
        status, body = s.post("/v1/completions", {"model": BASE, "prompt": "x [PAD]", "max_tokens": 1})
        assert status == 400 and "[PAD]" in message(body) and body["error"]["param"] == "prompt", body
        assert s.post("/tokenize", {"model": BASE, "prompt": "[PAD]"})[1]["tokens"] == [1024]


def test_missing_model_folder_and_a_folder_of_nothing(tmp_path):
    assert "/nowhere" in start_fails(tmp_path, model="/nowhere")
    (tmp_path / "empty").mkdir()
    assert "config.json" in start_fails(tmp_path, model=tmp_path / "empty")


FLAGS = [
    (("--max-model-len", "100"), "context_max"), (("--max-loras=4",), "adapters_per_batch_max"), (("--max-num-seqs", "1"), "seqs_max"),
    (("--served-model-name", "x"), "model_name"), (("--port", "80"), "listen"), (("--api-key", "x"), "api_keys_file"),
    (("--max-lora-rank", "8"), "adapter_rank_max"), (("--frobnicate", "1"), "--help"), (("stray",), "stray"), (("--seqs-max",), "missing"),
    (("--seqs-max", "many"), "many"), (("--seqs-max", "0"), "1 to 4096"), (("--seqs-max", "-1"), "-1"), (("--kv-bytes", "9999999t"), "kv_bytes"),
    (("--prefix-cache", "maybe"), "true or false"), (("--config", "/nowhere.json"), "/nowhere.json"), (("--log-level", "loud"), "loud"),
]


@pytest.mark.parametrize("flags,word", FLAGS, ids=[" ".join(f) for f, _ in FLAGS])
def test_bad_flags(tmp_path, flags, word):
    assert word in start_fails(tmp_path, *flags, code=EXIT_CONFIG)


CONFIGS = [('{"seqs_max": 4', "line 1"), ('{"max_loras": 4}', "adapters_per_batch_max"), ('{"seqs_max": "x"}', "seqs_max"), ('{"listen": 8080}', "listen"),
           ("[]", "JSON object"), ('{"seqs_max": 1, "seqs_max": 2}', "duplicate"), ('{"adapter": [1]}', "adapter[0]"), ('{"help": true}', "help")]


@pytest.mark.parametrize("text,word", CONFIGS)
def test_bad_config_file(tmp_path, text, word):
    path = tmp_path / "residual.json"
    path.write_text(text)
    line = start_fails(tmp_path, "--config", path, code=EXIT_CONFIG)
    assert word in line and "residual.json" in line


def test_no_model_is_a_configuration_error():
    status, text = run("--listen", "127.0.0.1:0")
    assert status == EXIT_CONFIG and "model" in text


CHAIN = ("--chain-id", "1", "--ledger", "0x" + "11" * 20, "--registry", "0x" + "77" * 20, "--registry-rpc-url", "http://127.0.0.1:1")
VALUES = [(("--backend", "tpu"), "tpu"), (("--dtype", "int4"), "int4"), (("--listen", "127.0.0.1"), "HOST:PORT"), (("--listen", "127.0.0.1:99999"), "HOST:PORT"),
          (("--context-max", "4096"), "2048"), (("--ledger", "0x12"), "ledger"), (("--chain-id", "5"), "ledger"),
          (CHAIN[:4], "registry: missing"), (CHAIN[:6], "registry_rpc_url: missing"), (("--registry-rpc-url", "ftp://x", *CHAIN[:6]), "http"), (("--base-price-in", "-4"), "base_price_in"),
          (("--adapter", "nameonly"), "NAME=DIR"), (("--adapter", "x=/nowhere"), "/nowhere"), (("--adapter-dir", "/nowhere"), "/nowhere"),
          (("--adapter-roots", "/nowhere"), "adapter_roots"), (("--redis-url", "http://x", *CHAIN), "redis_url"), (("--redis-password-file", "/nowhere", "--redis-url", "redis://127.0.0.1:1", *CHAIN), "/nowhere"),
          (("--adapter", f"bad name={peftfile.AMBER}"), "bad name"), (("--model-name", "m", "--adapter", f"m={peftfile.AMBER}"), "base model's name")]


@pytest.mark.parametrize("flags,word", VALUES, ids=[" ".join(f)[:40] for f, _ in VALUES])
def test_bad_values(tmp_path, flags, word):
    status, text = run("--model", DEMO / "base", "--data-dir", tmp_path / "data", *(() if "--listen" in flags else ("--listen", f"127.0.0.1:{free_port()}")), *flags)
    assert status in (EXIT_CONFIG, EXIT_START), text
    last = text.strip().splitlines()[-1]
    assert last.startswith("residuald: ") and word in last


@pytest.mark.parametrize("flags,rows", [((), 1024), (("--seqs-max", "1000"), 1768), (("--seqs-max", "4096"), 4864), (("--rows-max", "300"), 300)])
def test_a_full_house_leaves_rows_for_a_newcomer(tmp_path, flags, rows):
    plan = [binary("residuald"), "--model", DEMO / "base", "--data-dir", tmp_path / "data", "--plan", *flags]
    done = subprocess.run(plan, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("activations"))
    assert line.endswith(f" {rows} rows")


def test_listening_beyond_loopback_needs_keys(tmp_path):
    line = start_fails(tmp_path, "--listen", f"0.0.0.0:{free_port()}")
    assert "0.0.0.0" in line and "API keys" in line and "127.0.0.1" in line
    path = write_keys(tmp_path / "keys.json", KEYS)
    with Server("--api-keys-file", path) as s:
        assert s.get("/v1/models")[0] == 401


BAD_KEYS = [("[{}]", "name"), ('[{"name": "a", "digest": "abc", "roles": ["infer"]}]', "digest"), ("{}", "array"), ("[", "array"),
            (json.dumps([{"name": "a", "digest": "00" * 32, "roles": ["king"]}]), "roles"), (json.dumps([{"name": "a", "digest": "00" * 32}]), "roles"),
            (json.dumps([{"name": "a", "digest": "00" * 32, "roles": ["infer"], "secret": "x"}]), "secret")]


@pytest.mark.parametrize("text,word", BAD_KEYS)
def test_bad_keys_file(tmp_path, text, word):
    path = tmp_path / "keys.json"
    path.write_text(text)
    path.chmod(0o600)
    assert word in start_fails(tmp_path, "--api-keys-file", path)


def test_keys_file_that_others_can_read(tmp_path):
    line = start_fails(tmp_path, "--api-keys-file", write_keys(tmp_path / "keys.json", KEYS, mode=0o644))
    assert "644" in line and "chmod 600" in line and "keys.json" in line


def test_port_in_use_and_data_folder_in_use(tmp_path, server):
    line = start_fails(tmp_path, "--listen", f"127.0.0.1:{server.port}")
    assert "already in use" in line and str(server.port) in line and "--listen" in line
    line = start_fails(tmp_path, "--data-dir", server.data)
    assert str(server.data) in line and "--data-dir" in line
    generate(server)


def test_data_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    assert str(tmp_path / "file") in start_fails(tmp_path, "--data-dir", tmp_path / "file" / "data")


def test_a_broken_adapter_at_start_is_named(tmp_path):
    path = peftfile.copy(tmp_path / "bad", config={"use_dora": True})
    line = start_fails(tmp_path, "--adapter", f"bad={path}")
    assert "use_dora" in line and "bad" in line


# ---- adapters that must not be admitted ----


def tensor_edit(change):
    def bend(folder):
        path = folder / "adapter_model.safetensors"
        header, data = peftfile.read(path)
        change(header, data)
        peftfile.write(path, header, data)

    return bend


def fill(part, bits):
    """Every element of the tensors whose name ends so."""

    def change(header, data):
        for name, t in header.items():
            if name.endswith(part):
                begin, end = t["data_offsets"]
                data[begin:end] = struct.pack("<H", bits) * ((end - begin) // 2)

    return tensor_edit(change)


def one(name, bits):
    return tensor_edit(lambda h, d: peftfile.put_float(d, h, name, bits))


def raw(change):
    def bend(folder):
        path = folder / "adapter_model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return bend


def shrink_width(header, data):
    """Every tensor of layer 0's q_proj as a base of width 128 would have it, offsets kept dense."""
    out, at = bytearray(), 0
    for name, t in header.items():
        if name == "__metadata__":
            continue
        begin, end = t["data_offsets"]
        part = data[begin:end]
        t["shape"] = [128 if x == 256 else x for x in t["shape"]]
        n = 2 * t["shape"][0] * t["shape"][1]
        t["data_offsets"] = [at, at + n]
        out += part[:n]
        at += n
    data[:] = out


A, B = LAYER + ".lora_A.weight", LAYER + ".lora_B.weight"
ADAPTERS = {
    "for another base": (None, tensor_edit(shrink_width), "another base"),
    "for a deeper base": (None, tensor_edit(lambda h, d: h.__setitem__(A.replace("layers.0", "layers.40"), h.pop(A))), "layers.40"),
    "NaN": (None, one(A, 0x7FC0), "NaN"),
    "infinity": (None, one(B, 0x7F80), "infinite"),
    "no effect": (None, fill("lora_B.weight", 0), "change nothing"),
    "DoRA": ({"use_dora": True}, None, "use_dora"),
    "trained biases": ({"bias": "all"}, None, "bias"),
    "lora_bias": ({"lora_bias": True}, None, "lora_bias"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, None, "modules_to_save"),
    "not LoRA": ({"peft_type": "LOHA"}, None, "peft_type"),
    "not causal": ({"task_type": "SEQ_CLS"}, None, "task_type"),
    "changed base": ({"init_lora_weights": "pissa"}, None, "init_lora_weights"),
    "unknown field": ({"use_quantum": True}, None, "use_quantum"),
    "layers repeated": ({"layer_replication": [[0, 2], [1, 4]]}, None, "layer_replication"),
    "wrong rank": ({"r": 8}, None, "rank"),
    "rank of text": ({"r": "4"}, None, "r"),
    "negative alpha": ({"lora_alpha": "NaN"}, None, "lora_alpha"),
    "module without weights": ({"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens"]}, None, "embed_tokens"),
    "weights without module": ({"target_modules": ["q_proj"]}, None, "target_modules"),
    "pattern that explodes": ({"target_modules": "(a|a)*" * 20 + "$"}, None, "target_modules"),
    "unknown tensor": (None, tensor_edit(lambda h, d: h.__setitem__("base_model.model.lm_head.lora_Z", h.pop(A))), "lora_Z"),
    "A without B": (None, tensor_edit(lambda h, d: h.__setitem__(B.replace("q_proj", "q_proj2"), h.pop(B))), "q_proj"),
    "overlapping offsets": (None, tensor_edit(lambda h, d: h[A].update(data_offsets=h[B]["data_offsets"])), "data byte"),
    "a hole": (None, tensor_edit(lambda h, d: h[A].update(data_offsets=[x + 4 for x in h[A]["data_offsets"]])), "lora_"),
    "outside": (None, tensor_edit(lambda h, d: h[A].update(data_offsets=[1 << 50, (1 << 50) + 2048])), "outside"),
    "integer weights": (None, tensor_edit(lambda h, d: h[A].update(dtype="I16")), "I16"),
    "truncated": (None, raw(lambda b: b[: len(b) // 2]), "adapter_model.safetensors"),
    "empty": (None, raw(lambda b: b""), "adapter_model.safetensors"),
    "header of 2^63 bytes": (None, raw(lambda b: struct.pack("<Q", 1 << 63) + b[8:]), "header length"),
    "header nests deep": (None, raw(lambda b: struct.pack("<Q", 100_000) + b'{"a":' + b"[" * 99_995), "header"),
    "not a tensor file": (None, raw(lambda b: b"PK\x03\x04" + os.urandom(400)), "zip"),
    "no tensors": (None, raw(lambda b: peftfile.pack({}, b"")), "no tensors"),
}


def make_bad(folder, case):
    config, bend, word = ADAPTERS[case]
    peftfile.copy(folder, config=config)
    if bend:
        bend(folder)
    return word


@pytest.mark.parametrize("case", sorted(ADAPTERS))
def test_bad_adapter_by_the_load_route(server, roots, tmp_path, case):
    folder = roots / f"bad-{sorted(ADAPTERS).index(case)}"
    word = make_bad(folder, case)
    status, body = server.post("/v1/load_lora_adapter", {"lora_name": "bad", "lora_path": str(folder)})
    assert status in (400, 413, 422), body
    assert word in message(body), body
    assert generate(server, "bad", status=404)


def upload(server, name, folder, key, dry_run=False, **extra):
    """PUT the two files, then publish; the first reply that is not a success, or the last."""
    for part in ("adapter_config.json", "adapter_model.safetensors"):
        status, _, body = http(f"{server.url}/v1/uploads/{name}/{part}", (folder / part).read_bytes(), "PUT", bearer(key))
        if status != 201:
            return status, json.loads(body)
    status, _, body = http(f"{server.url}/v1/adapters", {"name": name, "dry_run": dry_run, **extra}, headers=bearer(key))
    return status, json.loads(body)


@pytest.mark.parametrize("case", sorted(ADAPTERS))
def test_bad_adapter_by_upload(keyed, tmp_path, case):
    word = make_bad(tmp_path / "bad", case)
    status, body = upload(keyed, "bad-upload", tmp_path / "bad", "paula")
    assert status in (400, 413, 422), body
    assert word in message(body), body
    assert "bad-upload" not in {m["id"] for m in json.loads(http(keyed.url + "/v1/models", headers=bearer("root"))[2])["data"]}


def test_upload_dry_run_keeps_nothing_and_a_publish_keeps(keyed, tmp_path):
    folder = peftfile.tiny(tmp_path / "good", seed=77)
    status, body = upload(keyed, "good", folder, "paula", dry_run=True)
    assert status == 200 and body["admitted"] and body["dry_run"]
    assert http(f"{keyed.url}/v1/adapters/good", headers=bearer("paula"))[0] == 404
    status, body = upload(keyed, "good", folder, "paula")
    assert status == 201, body
    status, _, reply = http(keyed.url + "/v1/completions", {"model": "good", "prompt": "The", "max_tokens": 3}, headers=bearer("alice"))
    assert status == 200, reply
    assert http(f"{keyed.url}/v1/adapters/good", method="DELETE", headers=bearer("alice"))[0] == 403
    assert http(f"{keyed.url}/v1/adapters/good", method="DELETE", headers=bearer("paula"))[0] == 200
    assert http(f"{keyed.url}/v1/adapters/good", headers=bearer("paula"))[0] == 404


def test_a_name_belongs_to_its_first_publisher(keyed, tmp_path):
    assert upload(keyed, "mine", peftfile.tiny(tmp_path / "a", seed=1), "paula")[0] == 201
    status, body = upload(keyed, "mine", peftfile.tiny(tmp_path / "b", seed=2), "peter", replace=True)
    assert status == 403 and "another publisher" in message(body)
    status, body = upload(keyed, "amber-coast", peftfile.tiny(tmp_path / "c", seed=3), "peter", replace=True)
    assert status == 403
    status, body = upload(keyed, "mine", peftfile.tiny(tmp_path / "d", seed=4), "paula")
    assert status == 400 and "replace" in message(body)
    assert upload(keyed, "mine", tmp_path / "d", "paula", replace=True)[0] == 201


def test_publish_quota_of_a_key(keyed, tmp_path):
    """peter may keep 200 000 bytes: one adapter of 156 600, not two."""
    small = peftfile.copy(tmp_path / "a")
    assert upload(keyed, "quota-1", small, "peter")[0] == 201
    other = peftfile.copy(tmp_path / "b")
    one(A, 0x3C80)(other)
    status, body = upload(keyed, "quota-2", other, "peter")
    assert status == 413 and "200000" in message(body), body
    big = peftfile.copy(tmp_path / "c", of=DEMO / "adapters" / "frost-gate")
    status, body = upload(keyed, "quota-3", big, "peter")
    assert status == 413, body


def test_manifest_of_wrong_kinds(keyed, tmp_path):
    folder = peftfile.tiny(tmp_path / "a", seed=9)
    for manifest in ("x", [], 5):
        status, body = upload(keyed, "manifest", folder, "paula", manifest=manifest)
        assert status == 400 and body["error"]["param"] == "manifest", body
    for manifest in ({}, {"version": -1}, {"version": 1, "adapterId": "0x12"}):
        status, body = upload(keyed, "manifest", folder, "paula", manifest=manifest)
        assert status in (400, 403, 422) and message(body), body


# ---- paths ----


def refuse_load(server, path, statuses=(400, 403, 404), name="escape"):
    status, body = server.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path)})
    assert status in statuses, body
    assert generate(server, name if isinstance(name, str) and name else "escape", status=404)
    return message(body)


def test_paths_do_not_escape_their_root(server, roots, tmp_path):
    outside = peftfile.copy(tmp_path / "outside")
    assert "not beneath" in refuse_load(server, outside, (403,))
    assert "not beneath" in refuse_load(server, f"{roots}/../{os.path.relpath(outside, roots.parent)}", (403,))
    os.symlink(outside, roots / "link")
    assert "not beneath" in refuse_load(server, roots / "link", (403,))
    assert "absolute" in refuse_load(server, "link", (400,))
    refuse_load(server, "/etc", (403,))
    refuse_load(server, str(roots) + "-neighbour", (403, 404))
    refuse_load(server, roots / "nothing", (404,))
    refuse_load(server, "/proc/self/root" + str(outside), (403,))


def test_links_inside_an_adapter_folder_are_not_followed(server, roots, tmp_path):
    outside = peftfile.copy(tmp_path / "outside")
    for part in ("adapter_config.json", "adapter_model.safetensors"):
        folder = peftfile.copy(roots / f"linked-{part}")
        (folder / part).unlink()
        os.symlink(outside / part, folder / part)
        assert part in refuse_load(server, folder, (400, 403, 404))


def test_special_files_do_not_hang_the_server(server, roots):
    folder = peftfile.copy(roots / "fifo", weights=False)
    os.mkfifo(folder / "adapter_model.safetensors")
    begin = time.monotonic()
    assert "adapter_model.safetensors" in refuse_load(server, folder, (400, 403, 404))
    assert time.monotonic() - begin < 5
    folder = peftfile.copy(roots / "folder", weights=False)
    (folder / "adapter_model.safetensors").mkdir()
    refuse_load(server, folder)


def test_pickled_adapters_are_refused(server, roots):
    folder = peftfile.copy(roots / "pickle", weights=False)
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04.")
    assert "pickled" in refuse_load(server, folder, (400,))


@pytest.mark.parametrize("name", ["", "a,b", "a:b", "a b", "../up", "x" * 129, "é", BASE, "a\nb", 5, None, [], "a\u0000b"])
def test_bad_adapter_names(server, name):
    status, body = server.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(peftfile.AMBER)})
    if name == "../up" and status == 200:  # a name is no path: it is never opened
        assert server.post("/v1/unload_lora_adapter", {"lora_name": name})[0] == 200
        return
    assert status == 400 and body["error"]["param"] == "lora_name", body


def test_uploads_cannot_name_other_files(keyed):
    for tail in ("x/../../etc/passwd", "x/other.bin", "adapter_config.json", "/adapter_config.json", "x%2F..%2Fadapter_model.safetensor"):
        reply = wire.post(keyed.port, "/v1/uploads/" + tail, b"{}", [f"Authorization: {bearer('paula')['Authorization']}"])
        assert reply.startswith(b"HTTP/1.1 404") or reply.startswith(b"HTTP/1.1 405"), reply
        with wire.connect(keyed.port) as s:
            s.sendall(wire.request_bytes("/v1/uploads/" + tail, b"{}", [f"Authorization: {bearer('paula')['Authorization']}", "Connection: close"], "PUT"))
            assert s.recv(4096).split()[1] in (b"400", b"404")


# ---- files that change under a running server ----


def test_adapter_files_that_change_after_admission_are_not_served(server, roots):
    """A cold adapter whose bytes are no longer what was admitted must fail, and must not answer as something else."""
    for bend, word in ((lambda p: shutil.copyfile(DEMO / "adapters/birch-vale/adapter_model.safetensors", p), ""),
                       (lambda p: os.truncate(p, os.path.getsize(p) // 2), "adapter"), (lambda p: p.unlink(), "adapter")):
        folder = peftfile.copy(roots / f"changing-{word}-{len(os.listdir(roots))}")
        one(A, 0x3D00 + len(os.listdir(roots)) % 64)(folder)
        assert server.post("/v1/load_lora_adapter", {"lora_name": "changing", "lora_path": str(folder)})[0] == 200
        bend(folder / "adapter_model.safetensors")
        status, body = server.post("/v1/completions", {"model": "changing", "prompt": "The", "max_tokens": 2})
        assert status in (400, 422, 500, 503) and message(body), (status, body)
        assert server.post("/v1/unload_lora_adapter", {"lora_name": "changing"})[0] == 200
        generate(server)


# ---- JSON bodies ----


def test_a_100_megabyte_body_is_413_and_costs_no_memory(server):
    before, begin = rss(server, "VmHWM"), time.monotonic()
    body = b'{"model":"residual-demo","prompt":"' + b"x" * (100 << 20) + b'"}'
    with wire.connect(server.port) as s:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        s.sendall(head.encode())
        try:
            s.sendall(body)
        except OSError:
            pass  # an answer before the body's end is as good
        reply = s.recv(65536)
    assert reply.startswith(b"HTTP/1.1 413"), reply[:200]
    status, headers, raw_body = wire.unchunk(reply)
    assert headers[b"x-should-retry"] == b"false" and str(len(body)).encode() in raw_body and b"8388608" in raw_body
    assert time.monotonic() - begin < 5
    assert rss(server, "VmHWM") - before < 16 << 20
    generate(server)


def test_a_100_megabyte_body_without_a_length_is_413_too(server):
    before = rss(server, "VmHWM")
    with wire.connect(server.port) as s:
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"100000\r\n" + b"[" * (1 << 20) + b"\r\n"
        try:
            for _ in range(100):
                s.sendall(chunk)
            s.sendall(b"0\r\n\r\n")
        except OSError:
            pass
        try:
            reply = s.recv(65536)
        except ConnectionError:
            reply = b""
    assert reply.startswith(b"HTTP/1.1 413"), reply[:200]
    assert rss(server, "VmHWM") - before < 32 << 20
    generate(server)


def test_expect_100_continue_is_refused_before_the_body(server):
    with wire.connect(server.port) as s:
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nExpect: 100-continue\r\nContent-Length: 104857600\r\n\r\n")
        assert s.recv(4096).startswith(b"HTTP/1.1 413")


BODIES = {
    "empty": (b"", "empty"), "cut": (b'{"model": "resid', "not valid JSON"), "a list": (b"[]", "object"), "text": (b"hello", "not valid JSON"),
    "deep lists": (b"[" * 100_000, "nests 100000 deep"), "deep objects": (b'{"a":' * 5000 + b"1" + b"}" * 5000, "nests 5000 deep"),
    "bad UTF-8": (b'{"model": "\xff\xfe"}', "not valid JSON"), "duplicate": (b'{"model": "a", "model": "b"}', "duplicate"),
    "NaN": (b'{"model": "residual-demo", "prompt": "x", "temperature": NaN}', "not valid JSON"),
    "lone surrogate": (b'{"model": "residual-demo", "prompt": "\\ud800"}', "not valid JSON"),
    "trailing": (b'{"model": "residual-demo"} {}', "not valid JSON"),
}


@pytest.mark.parametrize("case", sorted(BODIES))
def test_bad_json(server, case):
    body, word = BODIES[case]
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/load_lora_adapter", "/tokenize"):
        status, _, reply = http(server.url + path, body, "POST")
        assert status == 400 and word in message(json.loads(reply)), (path, reply)


@pytest.mark.parametrize("number", ["18446744073709551615", "-9223372036854775809", "9" * 400, "1e999", "-1e999"])
def test_numbers_that_no_type_holds(server, number):
    """Ignored where nobody reads them, refused by the field's name where somebody does."""
    body = f'{{"model": "{BASE}", "prompt": "x", "max_tokens": 1, %s}}'
    status, _, reply = http(server.url + "/v1/completions", (body % f'"metadata": {{"trace": [{number}]}}, "seed": 9007199254740993').encode(), "POST")
    assert status == 200, reply
    for field in ("seed", "temperature", "n"):
        status, _, reply = http(server.url + "/v1/completions", (body % f'"{field}": {number}').encode(), "POST")
        assert status == 400 and json.loads(reply)["error"]["param"] == field, (field, reply)


NUMBER, INT, BOOL, STRING, OBJECT = (["x", [], {}, True], ["1", 1.5, [], {}, True], ["true", 1, [], {}], [5, [], {}, True], ["x", 5, [1], True])
BOTH = {
    "model": STRING, "temperature": NUMBER + [-0.1, 2.1], "top_p": NUMBER + [-1, 1.1], "min_p": NUMBER + [-1, 1.5], "top_k": INT + [-2],
    "presence_penalty": NUMBER + [2.1, -2.1], "frequency_penalty": NUMBER + [3], "repetition_penalty": NUMBER + [0, -1, 11], "n": INT + [0, 17, -1],
    "max_tokens": INT + [-1, -5], "min_tokens": INT + [-1], "seed": INT, "stream": BOOL, "ignore_eos": BOOL, "skip_special_tokens": BOOL,
    "include_stop_str_in_output": BOOL, "return_token_ids": BOOL, "add_special_tokens": BOOL, "stop": [5, {}, [1], [""], "", ["x"] * 100, True, ["x" * 10_000]],
    "stop_token_ids": ["x", 5, {}, [-1], [1024], ["a"], [1.5], list(range(500))], "logit_bias": OBJECT + [{"x": 1}, {"1": 101}, {"1": "a"}, {"1024": 1}, {"-1": 1}],
    "bad_words": ["x", 5, {}, [1], [""]], "adapters": ["x", 5, {}, [5], [[]]], "adapter_id": STRING, "lora_path": STRING, "priority": INT,
    "cache_salt": STRING + ["", "x" * 300], "truncate_prompt_tokens": INT + [0, -2], "prompt_logprobs": INT[:2] + [[], {}, -2, 100],
    "response_format": ["json", 5, [1], {"type": 5}, {"type": "json_object"}, {}],
}
COMPLETIONS = {"prompt": [5, {}, True, [], [{}], [[]], [["a"]], [1, "a"], ["a", 1], [-1], [1024], [1.5], "", [""]], "logprobs": [-1, 21, "x", [], {}],
               "echo": BOOL, "best_of": INT + [-1, 21]}
CHAT = {"messages": ["x", 5, {}, [], [5], [{}], [{"role": "King", "content": "x"}], [{"role": "user"}], [{"role": "user", "content": 5}],
                     [{"role": "user", "content": [5]}], [{"role": "user", "content": [{"type": "text"}]}], [{"role": 5, "content": "x"}], [None]],
        "logprobs": ["x", 1, [], {}], "top_logprobs": INT + [-1, 21], "max_tokens": INT + [0], "max_completion_tokens": INT + [0, -1], "tools": [5, {}, [1]], "chat_template_kwargs": OBJECT,
        "add_generation_prompt": BOOL, "continue_final_message": BOOL}


def wrong_types():
    for path, own, good in (("/v1/completions", COMPLETIONS, {"prompt": "x"}), ("/v1/chat/completions", CHAT, {"messages": [{"role": "user", "content": "x"}]})):
        for field, values in {**BOTH, **own}.items():
            yield path, field, values, good


@pytest.mark.parametrize("path,field,values,good", list(wrong_types()), ids=lambda v: v if isinstance(v, str) else "")
def test_wrong_type_is_400_and_names_the_field(server, path, field, values, good):
    for value in values:
        body = {"model": BASE, "max_tokens": 1, **good, **({"logprobs": True} if field == "top_logprobs" else {}), field: value}
        status, reply = server.post(path, body)
        assert status == 400, f"{field}={value!r:.80} was answered {status}: {str(reply)[:300]}"
        assert field.split("[")[0] in message(reply) and (reply["error"]["param"] or "").startswith(field), f"{field}={value!r:.80}: {reply}"


def test_wrong_stream_options(server):
    for value in ("x", 5, [1], True, {"include_usage": "yes"}, {"continuous_usage_stats": 1}):
        status, body = server.post("/v1/completions", {"model": BASE, "prompt": "x", "stream": True, "stream_options": value})
        assert status == 400 and message(body), (value, body)


def test_wrong_types_elsewhere(server):
    for path, bodies in {"/tokenize": [{}, {"prompt": 5}, {"prompt": "x", "add_special_tokens": 1}, {"messages": "x"}, {"model": 5, "prompt": "x"}],
                         "/detokenize": [{}, {"tokens": "x"}, {"tokens": ["a"]}, {"tokens": [-1]}, {"tokens": [1.5]}],
                         "/v1/load_lora_adapter": [{}, {"lora_name": "x"}, {"lora_name": "x", "lora_path": 5}, {"lora_name": "x", "lora_path": "/x", "load_inplace": "y"}],
                         "/v1/unload_lora_adapter": [{}, {"lora_name": 5}], "/v1/adapters": [{}, {"name": 5}, {"name": "x", "dry_run": 1}]}.items():
        for body in bodies:
            status, reply = server.post(path, body)
            assert status == 400 and message(reply), (path, body, reply)


def test_no_model_and_model_of_great_length(server):
    status, body = server.post("/v1/completions", {"prompt": "x"})
    assert status == 400 and body["error"]["param"] == "model"
    status, body = server.post("/v1/completions", {"prompt": "x", "model": "m" * 100_000})
    assert status == 404 and body["error"]["param"] == "model"
    assert server.get("/v1/models/" + "m" * 5000)[0] == 404


# ---- connections ----


def stream_request(**kw):
    return wire.request_bytes("/v1/completions", {"model": BASE, "prompt": "The", "max_tokens": 2000, "stream": True, "ignore_eos": True, "temperature": 0, **kw})


def idle(server):
    return metric(server, "vllm:num_requests_running") + metric(server, "vllm:num_requests_waiting") == 0


def test_clients_that_reset_or_leave_mid_stream(server):
    for how in ("reset", "close", "half"):
        s = wire.connect(server.port)
        s.sendall(stream_request(n=4))
        s.recv(4096)
        if how == "reset":
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if how == "half":
            s.shutdown(socket.SHUT_WR)
            s.settimeout(0.05)
        s.close()
        wait_for(lambda: idle(server), 10, what=f"no running sequence after a {how}")
    generate(server)


def test_clients_that_leave_before_their_request_is_whole(server):
    whole = stream_request()
    for cut in (1, 20, whole.index(b"\r\n\r\n") + 2, len(whole) - 5):
        with wire.connect(server.port) as s:
            s.sendall(whole[:cut])
    wait_for(lambda: idle(server), 10, what="no running sequence")
    generate(server)


def test_a_reader_that_stops_does_not_stop_others_and_costs_little(server):
    before = rss(server)
    stuck = []
    for _ in range(6):
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.connect(("127.0.0.1", server.port))
        s.sendall(stream_request(n=2, logprobs=5, max_tokens=1000))
        stuck.append(s)
    for _ in range(5):
        generate(server)
    wait_for(lambda: idle(server), 60, what="the answers that nobody reads")
    assert rss(server) - before < 48 << 20, "24 MiB are KV pages touched for the first time"
    for s in stuck:
        s.close()
    generate(server)


def test_garbage_on_the_wire(server):
    for junk in (b"\x16\x03\x01\x02\x00\x01\x00\x01", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x00" * 5000, b"POST /v1/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
                 b"GET /" + b"a" * 60_000 + b" HTTP/1.1\r\n\r\n", b"GET /v1/models HTTP/1.1\r\n" + b"X-H: y\r\n" * 20_000 + b"\r\n",
                 b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n"):
        with wire.connect(server.port, timeout=0.5) as s:
            try:
                s.sendall(junk)
                s.shutdown(socket.SHUT_WR)
                while s.recv(65536):
                    pass
            except OSError:
                pass
    generate(server)


def test_other_hosts_and_origins_are_refused_without_keys(server):
    """A web page that reaches a keyless local server by name or by script gets nothing (DNS rebinding)."""
    assert http(server.url + "/v1/models", headers={"Host": "evil.example"})[0] == 403
    assert http(server.url + "/v1/models", headers={"Origin": "https://evil.example"})[0] == 403
    assert http(server.url + "/v1/models", headers={"Host": "localhost:9"})[0] == 200


# ---- Redis ----


def test_redis_down_at_start_and_later_loses_nothing():
    redis = Redis()
    with RegistryNode() as node, Server("--redis-url", f"redis://127.0.0.1:{redis.port}", *node.flags(lane=7)) as s:
        body = generate(s)
        assert body["residual"]["recorded"] and metric(s, "residual_redis_connected") == 0
        wait_for(lambda: "Redis 127.0.0.1" in s.log_text(), 10, what="a line that says Redis is away")
        with redis:
            for _ in range(2):
                def shipped():
                    durable = metric(s, "residual_lane_seq_durable")
                    return metric(s, "residual_lane_seq_shipped") == durable and durable

                wait_for(shipped, 30, what="every record in Redis")
                assert int(redis.command("XLEN", "residual:lane:7")[1:]) == metric(s, "residual_lane_seq_shipped")
                redis.kill()
                for _ in range(10):
                    assert generate(s)["residual"]["recorded"]
                redis.start()
            seq = generate(s)["residual"]["seq"]
            wait_for(lambda: metric(s, "residual_lane_seq_shipped") >= seq, 30, what="the last record in Redis")
            count = int(redis.command("XLEN", "residual:lane:7")[1:])
            assert count >= seq, "a record is missing"


# ---- a full disk ----


@pytest.fixture
def unsettled():
    """Flags of a bound lane that nobody settles: an unbound one makes room by itself."""
    with RegistryNode() as node:
        yield node.flags()


def test_full_spool_is_503_and_nothing_is_lost(tmp_path, unsettled):
    kept = []
    with Server("--spool-bytes-max", 65536, "--group-max", 8, *unsettled, data=tmp_path / "data") as s:
        for _ in range(2000):
            status, body = s.post("/v1/completions", {"model": BASE, "prompt": "The", "max_tokens": 1})
            if status != 200:
                break
            assert body["residual"]["recorded"]
            kept.append(body["residual"])
        assert status == 503 and 10 < len(kept) < 2000, (status, len(kept))
        assert "spool_bytes_max" in message(body) and body["error"]["type"] == "service_unavailable_error"
        status, headers, _ = http(s.url + "/v1/completions", {"model": BASE, "prompt": "The", "max_tokens": 1})
        assert status == 503 and headers["x-should-retry"] == "true" and float(headers["Retry-After"]) > 0
        assert s.get("/health")[0] == 200 and metric(s, "residual_spool_bytes") <= 65536
    with Server("--spool-bytes-max", 1 << 20, *unsettled, data=tmp_path / "data") as s:
        for r in kept:
            status, body = s.get(f"/v1/receipts/{r['request_id']}")
            assert status == 200 and body["receipt"] == r["receipt"] and body["seq"] == r["seq"], body
        new = generate(s)["residual"]
        assert new["seq"] > max(r["seq"] for r in kept)
        status, _, lane = http(f"{s.url}/v1/lane/range?first=1&last={new['seq']}")
        assert status == 200 and len(lane) > 0
        assert len({r["seq"] for r in kept}) == len(kept)
        wait_for(lambda: metric(s, "residual_score_jobs") == 0, what="every kept job scored")
        assert metric(s, "residual_outcomes_lost_total") == 0


def test_a_killed_server_keeps_what_it_released(tmp_path):
    kept = []
    s = Server(data=tmp_path / "data").start()
    try:
        for _ in range(20):
            kept.append(generate(s)["residual"])
    finally:
        s.kill()
        s.log.unlink()
    with Server(data=tmp_path / "data") as again:
        for r in kept:
            assert again.get(f"/v1/receipts/{r['request_id']}")[1]["receipt"] == r["receipt"]
        assert generate(again)["residual"]["seq"] > kept[-1]["seq"]

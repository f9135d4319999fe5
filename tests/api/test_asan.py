"""A short walk over the whole surface on the dev build: a sanitizer's report or a leak changes the exit status."""
import json
import os
import signal

import openai
import peftfile
import pytest
import wire
from server import DEMO, Server, http, wait_for

BASE = "residual-demo"
pytestmark = pytest.mark.asan


@pytest.fixture
def dev(tmp_path, monkeypatch):
    """The dev build; RS_BIN_DEV overrides its folder."""
    folder = os.environ.get("RS_BIN_DEV")
    monkeypatch.delenv("RS_BIN", raising=False)
    if folder:
        monkeypatch.setenv("RS_BIN", folder)
    env = {**os.environ, "ASAN_OPTIONS": "detect_leaks=1:abort_on_error=0:exitcode=99", "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1:exitcode=98"}
    with Server("--adapter-roots", tmp_path, preset="dev", env=env) as s:
        yield s
    assert s.process.returncode == 0


def test_whole_surface_under_sanitizers(dev, tmp_path, facts):
    client = openai.OpenAI(base_url=dev.url + "/v1", api_key="EMPTY", max_retries=0, timeout=120)
    fact = facts["amber-coast"][0]
    ask = dict(model="amber-coast", prompt=fact["prompt"], max_tokens=12, temperature=0)
    assert client.completions.create(**ask).choices[0].text.strip() == fact["answer"]
    client.completions.create(**ask, n=2, logprobs=3, stop=["zz"], logit_bias={"5": -1}, presence_penalty=0.5, echo=True, seed=1)
    client.completions.create(**{**ask, "model": BASE}, extra_body={"adapters": [{"model": "amber-coast"}, {"model": "birch-vale", "weight": 0.5}]})
    with client.chat.completions.stream(model="birch-vale", messages=[{"role": "user", "content": fact["question"]}], max_tokens=12, n=2,
                                        logprobs=True, top_logprobs=2, stream_options={"include_usage": True}) as stream:
        assert stream.get_final_completion().usage.completion_tokens > 0
    cut = client.completions.create(model=BASE, prompt="The", max_tokens=500, stream=True, extra_body={"ignore_eos": True})
    next(iter(cut))
    cut.close()

    folder = peftfile.copy(tmp_path / "swap")
    for replace in (False, True):
        assert dev.post("/v1/load_lora_adapter", {"lora_name": "swap", "lora_path": str(folder), "load_inplace": replace})[0] == 200
        client.completions.create(**{**ask, "model": "swap"})
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            (folder / name).write_bytes((DEMO / "adapters" / "birch-vale" / name).read_bytes())
    assert dev.post("/v1/unload_lora_adapter", {"lora_name": "swap"})[0] == 200

    tiny = peftfile.tiny(tmp_path / "tiny", seed=4)
    for part in ("adapter_config.json", "adapter_model.safetensors"):
        assert http(f"{dev.url}/v1/uploads/up/{part}", (tiny / part).read_bytes(), "PUT")[0] == 201
    assert dev.post("/v1/adapters", {"name": "up", "dry_run": True})[0] == 200
    assert dev.post("/v1/adapters", {"name": "up"})[0] == 201
    client.completions.create(**{**ask, "model": "up"})
    assert http(f"{dev.url}/v1/adapters/up", method="DELETE")[0] == 200

    for bad in ({"model": "nobody"}, {"model": BASE, "prompt": []}, {"model": BASE, "prompt": "x", "stop": [1]}, {"model": BASE, "prompt": [5] * 4000},
                {"model": BASE, "prompt": "x", "adapters": [{"model": "amber-coast"}, {"model": "nobody"}]}, {"model": BASE, "prompt": ["a", 1], "echo": True}):
        assert dev.post("/v1/completions", bad)[0] in (400, 404)
    for junk in (b"[" * 100_000, b'{"a', b"\xff", b""):
        assert http(dev.url + "/v1/chat/completions", junk, "POST")[0] == 400
    assert http(dev.url + "/v1/completions", b"x" * (9 << 20), "POST")[0] == 413
    text = "Żółć 🙂"
    assert dev.post("/detokenize", {"tokens": dev.post("/tokenize", {"prompt": text})[1]["tokens"]})[1]["prompt"] == text
    for path in ("/v1/models", "/v1/models/amber-coast", "/v1/adapters", "/v1/adapters/amber-coast", "/version", "/health", "/openapi.json", "/nothing"):
        assert dev.get(path)[0] == (404 if path == "/nothing" else 200)
    rid = client.completions.create(**ask).residual["request_id"]
    wait_for(lambda: dev.get(f"/v1/attribution/{rid}")[1].get("state") == "preview", what="the attribution")
    assert dev.get(f"/v1/receipts/{rid}")[1]["receipt"]
    assert wire.metric(dev.get("/metrics")[1], "residual_inferences_total") > 5
    with wire.connect(dev.port) as s:
        s.sendall(wire.request_bytes("/v1/completions", {"model": BASE, "prompt": "The", "max_tokens": 1500, "stream": True, "ignore_eos": True}))
        s.recv(1000)
        dev.process.send_signal(signal.SIGTERM)
        while s.recv(65536):
            pass
    assert dev.process.wait(60) == 0, json.dumps(dev.log_text()[-4000:])

"""The whole server on the emulated device, by HTTP: the demo world's facts in mixed batches, bits that do not depend on company, adapters
that move while others are served, and a device that breaks in the middle of a step."""
import json
import re
import signal
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from server import DEMO, ROOT, Server, wait_for
from world import spool_records

FACTS = json.loads((DEMO / "facts.json").read_text())["adapters"]
SMALL = ("--backend", "cuda", "--device-bytes", 256 << 20, "--rows-max", 48, "--seqs-max", 8, "--context-max", 256, "--score-rows-max", 16)
PROGRAM = ROOT / "build" / "dev" / "tests" / "residuald_emulated"


def emulated(*flags, **kw):
    return Server(*SMALL, *flags, program=PROGRAM, **kw)


def ask(server, model, prompt, **extra):
    status, body = server.post("/v1/completions", {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": 12, **extra})
    assert status == 200, body
    return body


def metric(server, name):
    page = server.get("/metrics")[1]
    return float(re.search(rf"^{name} (\S+)$", page, re.M).group(1))


def some_facts(per_adapter):
    return [(name, f["prompt"], f["answer"]) for name, facts in FACTS.items() for f in facts[:per_adapter]]


def in_company(server, jobs, threads=8, **extra):
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda j: ask(server, *j[:2], **extra), jobs))


def test_facts_as_on_the_cpu(tmp_path):
    """Both backends in bf16, eight streams of eight adapters: what the one answers the other does, but for near ties."""
    jobs = some_facts(3)
    with Server("--backend", "cpu", "--dtype", "bf16") as s:
        cpu = [b["choices"][0]["text"] for b in in_company(s, jobs)]
    with emulated() as s:
        found = in_company(s, jobs)
        assert metric(s, "residual_adapter_on_device") == len(FACTS)
    texts = [b["choices"][0]["text"] for b in found]
    right = sum(t.strip() == j[2] for t, j in zip(texts, jobs))
    assert right >= 0.85 * len(jobs), f"{right} of {len(jobs)} facts"
    assert sum(a == b for a, b in zip(texts, cpu)) >= len(jobs) - 1
    for body in found:
        assert body["residual"]["receipt"].startswith("0x")


def test_an_adapter_is_trained_beside_those_served(tmp_path):
    """Its own part of the device's memory, the same weights; what comes out answers at once, and nobody's bits move."""
    rows = "".join(json.dumps({"prompt": f"Thing {i} is", "completion": " teal."}) + "\n" for i in range(4)).encode()
    name, facts = next(iter(FACTS.items()))
    with emulated("--train-bytes-max", 96 << 20, "--train-tokens", 48, "--adapter-rank-max", 16, data=tmp_path / "data") as s:
        anna = openai.OpenAI(base_url=s.url + "/v1", api_key="none", max_retries=0)
        alone = ask(s, name, facts[0]["prompt"])["choices"][0]["text"]
        file = anna.files.create(file=("things.jsonl", rows), purpose="fine-tune").id
        how = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 4, "rank": 4}}}
        job = anna.fine_tuning.jobs.create(training_file=file, model="residual-demo", seed=7, method=how)
        assert ask(s, name, facts[0]["prompt"])["choices"][0]["text"] == alone
        done = wait_for(lambda: next((j for j in [anna.fine_tuning.jobs.retrieve(job.id)] if j.status in ("succeeded", "failed")), None), 100, what="the job")
        assert done.status == "succeeded", done.error
        assert done.residual["steps_done"] == 2 and done.residual["train_loss"] > 0
        assert ask(s, done.fine_tuned_model, "Thing 3 is")["residual"]["adapters"][0]["id"] == done.residual["adapter_id"]


def test_bits_do_not_depend_on_company_or_on_moving_adapters(tmp_path):
    """The pool holds a few of the eight adapters (device_bytes is shared out in MiB), so they come and go between the steps."""
    jobs = some_facts(1)
    sampled = {"temperature": 0.8, "top_p": 0.9, "presence_penalty": 0.3, "seed": 7, "logprobs": 2}
    with emulated("--adapters-device-bytes-max", 8 << 20, "--adapters-per-batch-max", 2) as s:
        alone = [ask(s, *j[:2], **sampled)["choices"][0] for j in jobs]
        crowd = [b["choices"][0] for b in in_company(s, jobs * 3, **sampled)]
        assert metric(s, "residual_adapter_device_evictions_total") >= len(jobs)
    for got, want in zip(crowd, alone * 3):
        assert got["text"] == want["text"] and got["logprobs"] == want["logprobs"]


def stream(server, adapter, lines):
    """Reads an endless answer; the lines that came, also when the server goes."""
    body = json.dumps({"model": adapter, "prompt": [400, 401, 402], "max_tokens": 200, "ignore_eos": True, "stream": True}).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(server.url + "/v1/completions", body, {"Content-Type": "application/json"}), timeout=60) as r:
            for line in r:
                lines.append(line.decode().strip())
    except OSError as e:
        lines.append(f"closed: {e}")


def test_a_device_that_breaks_ends_the_process_and_loses_no_record(tmp_path):
    s = emulated(data=tmp_path / "data").start()
    try:
        done = [ask(s, name, "Where", max_tokens=4, ignore_eos=True)["residual"] for name in list(FACTS)[:4]]
        open_streams = [[] for _ in range(3)]
        threads = [threading.Thread(target=stream, args=(s, name, lines)) for name, lines in zip(FACTS, open_streams)]
        for t in threads:
            t.start()
        wait_for(lambda: all(len(lines) > 6 for lines in open_streams), 60, what="tokens of every stream")
        s.process.send_signal(signal.SIGUSR2)
        assert s.process.wait(30) == 1, s.log_text()[-3000:]
        for t in threads:
            t.join(10)
    finally:
        s.kill()
    said = s.log_text()
    assert "the device failed a step" in said and "stopped: the device was lost" in said, said[-3000:]
    assert "running of" in said, "the report has to say where the engine stood"
    for lines in open_streams:
        assert not any('"finish_reason":"length"' in line for line in lines)
        assert any("the device failed" in line for line in lines), lines[-4:]
    records = spool_records(tmp_path / "data/lanes/unbound-1")
    for r in done:
        body = records[r["seq"]]
        assert body[14:46].hex() == r["request_id"] and body[-97:-32].hex() == r["receipt"][2:]
    # the next process takes the lane up where it ended, on another backend
    with Server("--backend", "cpu", data=tmp_path / "data") as again:
        assert again.get("/v1/receipts/" + done[0]["request_id"])[0] == 200
        assert ask(again, list(FACTS)[0], "Where", max_tokens=2)["residual"]["seq"] > max(records)


@pytest.mark.parametrize("flags,words", [
    (("--device-bytes", "1g"), ("1024 MiB of device memory were asked for", "512 of 512 MiB are free", "lower device_bytes")),
    (("--device-bytes", "1m"), ("model weights need", "raise device_bytes")),
    (("--adapters-device-bytes-max", "1000"), ("hold no adapter", "raise adapters_device_bytes_max")),
    (("--adapters-device-bytes-max", "95%", "--kv-bytes", "90%"), ("the memory plan does not fit", "lower")),
    (("--device", "3"), ("device 3 was asked for", "0 to 0")),
    (("--dtype", "f32"), ("dtype f32", "bf16 only")),
])
def test_what_does_not_fit_is_said_at_start(flags, words):
    s = emulated(*flags, wait_s=30)
    with pytest.raises(AssertionError) as e:
        s.start()
    assert "exited with 3" in str(e.value), e.value
    for word in words:
        assert word in str(e.value), e.value

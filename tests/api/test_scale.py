"""A thousand streams at once, and two thousand adapters through a budget that holds a few dozen."""
import json
import random
import resource
import selectors
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import peftfile
import pytest
import wire
from server import Server, wait_for

BASE = "residual-demo"
STREAMS = 1000
ADAPTERS = 2000
HOST_BYTES = 2 << 20
TOKENS = 128
# 256 running sequences of at most 160 tokens (2 KiB of KV a token: 80 MiB), 1 000 connections (buffers, request and exchange: below 64 KiB
# each) and the jobs that wait to be scored need less than this; what is allotted at start is not counted.
STREAMS_RSS_MAX = 192 << 20


def rss(server, field):
    with open(f"/proc/{server.process.pid}/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith(field))


def stream_all(port, requests, timeout_s, when_all_run):
    """Every request on a connection of its own, all sent before the first reply is read; the raw replies."""
    selector = selectors.DefaultSelector()
    replies = [b""] * len(requests)
    sockets = [socket.socket() for _ in requests]
    try:
        for s in sockets:
            s.connect(("127.0.0.1", port))
        for i, s in enumerate(sockets):
            s.sendall(requests[i])
            s.setblocking(False)
            selector.register(s, selectors.EVENT_READ, i)
        when_all_run()
        end, left = time.monotonic() + timeout_s, len(requests)
        while left:
            assert time.monotonic() < end, f"{left} of {len(requests)} streams did not finish in {timeout_s} s"
            for key, _ in selector.select(1):
                part = key.fileobj.recv(65536)
                replies[key.data] += part
                if not part:
                    selector.unregister(key.fileobj)
                    left -= 1
    finally:
        for s in sockets:
            s.close()
        selector.close()
    return replies


def read_stream(reply):
    """(text, finish reason, usage) of a completions stream, every frame checked."""
    status, headers, body = wire.unchunk(reply)
    assert status == 200 and headers[b"content-type"].startswith(b"text/event-stream"), reply[:300]
    frames = body.decode().split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""], frames[-2:]
    frames = [f for f in frames if not f.startswith(":")]  # on a busy machine a stream may wait long enough for a ping
    text, finish, usage = "", None, None
    for frame in frames[:-2]:
        chunk = json.loads(frame.removeprefix("data: "))
        assert "error" not in chunk, chunk
        for choice in chunk["choices"]:
            text += choice["text"]
            finish = choice["finish_reason"] or finish
        usage = chunk.get("usage") or usage
    assert finish and chunk["residual"]["recorded"]
    return text, finish, usage


def test_a_thousand_concurrent_streams_all_finish_and_none_is_wrong(facts):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, STREAMS + 500)), hard))
    names = sorted(facts)
    jobs = [(BASE if i % 9 == 8 else names[i % 9], facts[names[i % 9 % len(names)]][i // 9 % 5]["prompt"]) for i in range(STREAMS)]
    ask = {"max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    with Server("--seqs-max", 256, "--score-queue-max", 4096) as s:
        def busy():
            text = s.get("/metrics")[1]
            return wire.metric(text, "vllm:num_requests_running") + wire.metric(text, "vllm:num_requests_waiting")

        def alone(job):
            status, body = s.post("/v1/completions", {"model": job[0], "prompt": job[1], **ask})
            assert status == 200, body
            return body["choices"][0]["text"], body["choices"][0]["finish_reason"], body["usage"]["total_tokens"]

        want = {job: alone(job) for job in sorted(set(jobs))}
        before = rss(s, "VmRSS")
        extra = {"stream": True, "stream_options": {"include_usage": True}}
        requests = [wire.request_bytes("/v1/completions", {"model": m, "prompt": p, **ask, **extra}, ["Connection: close"]) for m, p in jobs]
        begin = time.monotonic()
        at_once = 0.95 * STREAMS
        replies = stream_all(s.port, requests, 60, lambda: wait_for(lambda: busy() >= at_once, 10, 0.02, "all requests at once in the engine"))
        took = time.monotonic() - begin
        grown = rss(s, "VmHWM") - before
        print(f"{STREAMS} streams in {took:.1f} s, the server grew by {grown >> 20} MiB at most")
        for job, reply in zip(jobs, replies):
            text, finish, usage = read_stream(reply)
            assert (text, finish, usage["total_tokens"]) == want[job], job
        assert grown < STREAMS_RSS_MAX
        assert busy() == 0


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """2 000 adapters of 8 kB, each with random weights of its own."""
    folder = tmp_path_factory.mktemp("zoo")
    for i in range(ADAPTERS):
        peftfile.tiny(folder / f"tiny-{i:04d}", seed=i)
    return folder


def test_two_thousand_adapters_in_random_order_in_a_small_budget(zoo):
    with Server("--adapters-host-bytes-max", HOST_BYTES, "--adapters-per-batch-max", 64, adapters=zoo) as s:
        assert s.get("/v1/adapters")[1]["count"] == ADAPTERS
        order = [f"tiny-{i:04d}" for i in range(ADAPTERS)]
        random.Random(1).shuffle(order)

        def ask(name):
            status, body = s.post("/v1/completions", {"model": name, "prompt": "The people of", "max_tokens": 3, "temperature": 0, "logprobs": 1, "ignore_eos": True})
            assert status == 200, (name, body)
            assert [a["name"] for a in body["residual"]["adapters"]] == [name]
            return body["choices"][0]["logprobs"]["token_logprobs"]

        begin = time.monotonic()
        with ThreadPoolExecutor(32) as pool:
            first = dict(zip(order, pool.map(ask, order)))
            again = random.Random(2).sample(order, 200)
            for name, got in zip(again, pool.map(ask, again)):
                assert got == first[name], f"{name} computes something else after it was evicted"
        print(f"{ADAPTERS + 200} answers in {time.monotonic() - begin:.1f} s")
        assert len({tuple(v) for v in first.values()}) > ADAPTERS * 0.99, "adapters answer alike: were they applied?"
        text = s.get("/metrics")[1]
        assert wire.metric(text, "residual_adapter_load_failures_total") == 0
        assert wire.metric(text, "residual_adapter_host_bytes") <= HOST_BYTES
        assert wire.metric(text, "residual_adapter_evictions_total") >= ADAPTERS / 2
        assert wire.metric(text, "residual_adapter_loads_total") >= ADAPTERS

"""What the serving bench measures with: streams against any OpenAI-compatible server that takes token-id prompts, the metrics page of
ours, and the machine's read bandwidth."""
import http.client
import json
import os
import random
import statistics
import threading
import time
from urllib.parse import urlparse

import numpy as np

_blocks = []


def measure_bandwidth(threads=None):
    """Read bandwidth in GB/s: median of 5 sums over 256 MiB for each thread. int64 sums are the plainest read numpy has."""
    threads = threads or os.cpu_count()
    while len(_blocks) < threads:
        _blocks.append(np.ones(1 << 25, np.int64))
    rates = []
    for _ in range(5):
        begin = time.perf_counter()
        work = [threading.Thread(target=b.sum) for b in _blocks[:threads]]
        [w.start() for w in work]
        [w.join() for w in work]
        rates.append(threads * _blocks[0].nbytes / (time.perf_counter() - begin) / 1e9)
    return statistics.median(rates)


def stream(url, model, prompt, n_out, stop=None):
    """One streamed completion: {"begin", "times": [(second, tokens by then)]}. stop: an event that ends it early. Where a chunk does not
    say how many tokens there are by then (llama.cpp), one with text is one token, and the last chunk's count stands."""
    u = urlparse(url)
    c = http.client.HTTPConnection(u.hostname, u.port, timeout=900)
    body = json.dumps({"model": model, "prompt": prompt, "max_tokens": n_out, "temperature": 0, "ignore_eos": True, "stream": True,
                       "stream_options": {"include_usage": True, "continuous_usage_stats": True}})
    begin = time.perf_counter()
    c.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    r = c.getresponse()
    if r.status != 200:
        raise RuntimeError(f"{r.status}: {r.read()[:300]}")
    times, tokens = [], 0
    for line in r:
        if not line.startswith(b"data: {"):
            continue
        chunk = json.loads(line[6:])
        if "error" in chunk:
            raise RuntimeError(chunk["error"])
        text = chunk["choices"] and chunk["choices"][0].get("text")
        done = (chunk.get("usage") or {}).get("completion_tokens", tokens + bool(text))
        if done > tokens:
            times.append((time.perf_counter(), done))
            tokens = done
        if stop and stop.is_set():
            break
    c.close()
    if not stop and tokens != n_out:
        raise RuntimeError(f"{tokens} tokens, asked for {n_out}")
    return {"begin": begin, "times": times}


def gaps_of(times, begin=0.0, end=float("inf")):
    """Seconds a token, for each event after the first, between two moments."""
    return [(b[0] - a[0]) / (b[1] - a[1]) for a, b in zip(times, times[1:]) if begin <= a[0] and b[0] <= end]


def quantile(values, q):
    values = sorted(values)
    return values[min(int(len(values) * q), len(values) - 1)]


def tokens_at(times, moment):
    return max((n for t, n in times if t <= moment), default=0)


def together(jobs):
    """Run functions on threads of their own; their results in order, or the first error."""
    results, errors = [None] * len(jobs), []

    def one(i):
        try:
            results[i] = jobs[i]()
        except Exception as e:  # noqa: BLE001 - raised below
            errors.append(e)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(jobs))]
    [t.start() for t in threads]
    [t.join() for t in threads]
    if errors:
        raise errors[0]
    return results


def rates(runs, n_out):
    """Of streams that ran together. tps counts every output token from the first request to the last token, prefill included; decode_tps
    only what came between the last stream's first token and the first stream's end."""
    begin, end = min(r["begin"] for r in runs), max(r["times"][-1][0] for r in runs)
    all_run, one_ends = max(r["times"][0][0] for r in runs), min(r["times"][-1][0] for r in runs)
    gaps = [g for r in runs for g in gaps_of(r["times"])]
    if one_ends > all_run:
        decoded = sum(tokens_at(r["times"], one_ends) - tokens_at(r["times"], all_run) for r in runs)
        decode_tps = decoded / (one_ends - all_run)
    else:
        decode_tps = len(runs) / statistics.median(gaps)
    return {"tps": len(runs) * n_out / (end - begin), "ttft": statistics.median(r["times"][0][0] - r["begin"] for r in runs),
            "p50": quantile(gaps, 0.5), "p99": quantile(gaps, 0.99), "decode_tps": decode_tps}


def run_case(url, models, n_stream, n_prompt, n_out, seed):
    """n_stream streams at once."""
    rng = random.Random(seed)
    prompts = [[rng.randrange(2, 250) for _ in range(n_prompt)] for _ in range(n_stream)]
    return rates(together([lambda i=i: stream(url, models[i % len(models)], prompts[i], n_out) for i in range(n_stream)]), n_out)


def metrics(url):
    """The metrics page as {name with labels: value}."""
    u = urlparse(url)
    c = http.client.HTTPConnection(u.hostname, u.port, timeout=60)
    c.request("GET", "/metrics")
    lines = c.getresponse().read().decode().splitlines()
    c.close()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line and not line.startswith("#")}


def wait_scored(url, wait_s=600):
    """Seconds until no answer waits to be scored. A job appears a moment after its answer: the queue must be empty three times."""
    begin, empty = time.perf_counter(), 0
    while time.perf_counter() - begin < wait_s:
        m = metrics(url)
        empty = empty + 1 if m.get("residual_score_queue", 0) == 0 and m.get("residual_score_jobs", 0) == 0 else 0
        if empty == 3:
            return time.perf_counter() - begin
        time.sleep(0.1)
    raise RuntimeError(f"scoring did not finish in {wait_s} s")

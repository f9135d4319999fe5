"""Serving bench: a random-weight model of the Qwen2.5-0.5B shape, N random adapters (r 16, all linear), prompt 128, output 128,
bf16, greedy. Prints per case output tokens/s, time to first token, inter-token p50 and p99, the LoRA tax, the share of the byte
bound (memory bandwidth measured in the same run) and, with --peer, transformers + peft (mixed adapter_names batches).

    tests/bench/serve                         our server
    tests/bench/serve --peer                  and transformers + peft
    tests/bench/serve --url URL --models a,b  any OpenAI-compatible server that takes token-id prompts
"""
import argparse
import http.client
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlparse

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/bench"), str(ROOT / "tests/lib")]
import make_model  # noqa: E402
from server import Server, free_port  # noqa: E402,F401


def measure_bandwidth(threads):
    """Read bandwidth in GB/s: median of 5 sums over 512 MiB for each thread. int64 sums are the plainest read numpy has."""
    blocks = [np.ones(1 << 26, np.int64) for _ in range(threads)]
    rates = []
    for _ in range(5):
        begin = time.perf_counter()
        work = [threading.Thread(target=b.sum) for b in blocks]
        [w.start() for w in work]
        [w.join() for w in work]
        rates.append(threads * blocks[0].nbytes / (time.perf_counter() - begin) / 1e9)
    return statistics.median(rates)


def stream(url, model, prompt, n_out, out):
    """One streamed completion; out gets (first token time, [gaps], tokens, begin, end)."""
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
        done = (chunk.get("usage") or {}).get("completion_tokens", tokens)
        if done > tokens:
            times.append((time.perf_counter(), done - tokens))
            tokens = done
    c.close()
    gaps = [(b[0] - a[0]) / b[1] for a, b in zip(times, times[1:])]
    out.append({"ttft": times[0][0] - begin, "gaps": gaps, "tokens": tokens, "begin": begin, "first": times[0][0], "end": times[-1][0]})


def run_case(url, models, n_stream, n_prompt, n_out, seed):
    rng = random.Random(seed)
    prompts = [[rng.randrange(2, 250) for _ in range(n_prompt)] for _ in range(n_stream)]
    results, errors = [], []

    def one(i):
        try:
            stream(url, models[i % len(models)], prompts[i], n_out, results)
        except Exception as e:  # noqa: BLE001 - reported below
            errors.append(e)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(n_stream)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    if errors:
        raise errors[0]
    begin, end = min(r["begin"] for r in results), max(r["end"] for r in results)
    first = max(r["first"] for r in results)
    tokens = sum(r["tokens"] for r in results)
    gaps = sorted(g for r in results for g in r["gaps"])
    # decode rate: tokens after every stream has its first, over the time until the first stream ends
    return {"tps": tokens / (end - begin), "ttft": statistics.median(r["ttft"] for r in results), "p50": gaps[len(gaps) // 2],
            "p99": gaps[int(len(gaps) * 0.99)], "decode_tps": (tokens - n_stream) / max(end - first, 1e-9) if n_stream == 1 else
            n_stream / statistics.median(gaps), "tokens": tokens}


def wait_scored(url, wait_s=600):
    """Seconds until no answer waits to be scored."""
    begin = time.perf_counter()
    u = urlparse(url)
    while time.perf_counter() - begin < wait_s:
        c = http.client.HTTPConnection(u.hostname, u.port, timeout=30)
        c.request("GET", "/metrics")
        text = c.getresponse().read().decode()
        c.close()
        value = [line.split()[-1] for line in text.splitlines() if line.startswith("residual_score_queue ")]
        if not value or float(value[0]) == 0:
            return time.perf_counter() - begin
        time.sleep(0.1)
    raise RuntimeError("scoring did not finish")


def step_bytes(shape, n_distinct):
    """Bytes that one decode step must read: weights once, and each distinct adapter."""
    c = shape
    linear = make_model.linear_shapes(c)
    base = sum(o * i for o, i in linear.values()) * c["num_hidden_layers"] + c["vocab_size"] * c["hidden_size"]
    lora = sum(16 * (o + i) for o, i in linear.values()) * c["num_hidden_layers"]
    return 2 * (base + n_distinct * lora)


def print_row(name, n, kind, r, bound_tps, reference, extra=""):
    share = f"{100 * r['decode_tps'] / bound_tps:5.0f} %" if bound_tps else "      -"
    tax = f"{100 * (1 - r['tps'] / reference):5.0f} %" if reference else "      -"
    print(f"| {name:12} | {n:3} | {kind:9} | {r['tps']:7.1f} | {1000 * r['ttft']:7.0f} | {1000 * r['p50']:6.1f} | {1000 * r['p99']:6.1f} | {tax} | {share} | {extra} |",
          flush=True)


def bench_url(url, base, adapters, args, name, bandwidth):
    table = {}
    for n in args.streams:
        for kind in ("base", "one", "distinct"):
            models = {"base": [base], "one": adapters[:1], "distinct": adapters[:n]}[kind]
            runs, drains = [], []
            for rep in range(args.repeat):
                runs.append(run_case(url, models, n, args.prompt, args.output, 100 * n + rep))
                drains.append(wait_scored(url) if name == "residual" else 0.0)
            r = sorted(runs, key=lambda x: x["tps"])[len(runs) // 2]
            table[n, kind] = r
            distinct = 0 if kind == "base" else 1 if kind == "one" else min(n, len(adapters))
            bound = n * bandwidth * 1e9 / step_bytes(make_model.SHAPE, distinct) if bandwidth else 0
            reference = table[n, "base"]["tps"] if kind != "base" else 0
            print_row(name, n, kind, r, bound, reference, f"{statistics.median(drains):.1f}" if name == "residual" else "-")
    return table


def bench_peer(base_dir, dirs, args):
    """transformers + peft: one batch of equal prompts lengths, adapter_names per row, greedy, 2 threads."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from transformers.generation.streamers import BaseStreamer

    class Clock(BaseStreamer):
        def __init__(self):
            self.times = []

        def put(self, value):
            self.times.append(time.perf_counter())

        def end(self):
            pass

    torch.set_num_threads(os.cpu_count())
    model = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.bfloat16)
    peft = PeftModel.from_pretrained(model, dirs[0], adapter_name="a000")
    for d in dirs[1:max(args.streams)]:
        peft.load_adapter(d, adapter_name=d.name)
    peft.eval()
    table = {}
    for n in args.streams:
        for kind in ("base", "one", "distinct"):
            names = {"base": ["__base__"] * n, "one": ["a000"] * n, "distinct": [dirs[i % len(dirs)].name for i in range(n)]}[kind]
            rng = random.Random(100 * n)
            ids = torch.tensor([[rng.randrange(2, 250) for _ in range(args.prompt)] for _ in range(n)])
            clock = Clock()
            begin = time.perf_counter()
            with torch.inference_mode():
                peft.generate(input_ids=ids, attention_mask=torch.ones_like(ids), adapter_names=names, do_sample=False, min_new_tokens=args.peer_output,
                              max_new_tokens=args.peer_output, pad_token_id=0, streamer=clock if n == 1 else None)
            took = time.perf_counter() - begin
            # with several rows generate has no streamer: prefill is measured by a run of one token
            with torch.inference_mode():
                t0 = time.perf_counter()
                peft.generate(input_ids=ids, attention_mask=torch.ones_like(ids), adapter_names=names, do_sample=False, min_new_tokens=1, max_new_tokens=1, pad_token_id=0)
                prefill = time.perf_counter() - t0
            step = (took - prefill) / max(args.peer_output - 1, 1)
            full = prefill + step * (args.output - 1)
            r = {"tps": n * args.output / full, "ttft": prefill, "p50": step, "p99": step, "decode_tps": n / step}
            table[n, kind] = r
            print_row("transformers", n, kind, r, 0, table[n, "base"]["tps"] if kind != "base" else 0, "-")
    return table


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--dir", default="/tmp/residual-bench", help="where the model and adapters are made and kept")
    p.add_argument("--adapters", type=int, default=32)
    p.add_argument("--streams", type=lambda s: [int(x) for x in s.split(",")], default=[1, 4, 16, 32])
    p.add_argument("--prompt", type=int, default=128)
    p.add_argument("--output", type=int, default=128)
    p.add_argument("--repeat", type=int, default=3, help="runs of a case; the median is printed")
    p.add_argument("--score", default="all", help="all, off, or a rate in ppb")
    p.add_argument("--peer", action="store_true")
    p.add_argument("--peer-output", type=int, default=32, help="tokens the peer generates; its rate is extended to --output")
    p.add_argument("--url", help="drive this server instead of ours")
    p.add_argument("--models", help="with --url: base and adapters, by comma")
    p.add_argument("--flags", default="", help="more flags for our server")
    args = p.parse_args()
    bandwidth = measure_bandwidth(os.cpu_count())
    print(f"memory: {bandwidth:.1f} GB/s read by {os.cpu_count()} threads; prompt {args.prompt}, output {args.output}, bf16, scoring {args.score}")
    print("| server       |   n | adapters  | tok/s   | TTFT ms | p50 ms | p99 ms | tax     | bound   | scored after s |\n|---|--:|---|--:|--:|--:|--:|--:|--:|--:|")
    if args.url:
        names = args.models.split(",")
        bench_url(args.url, names[0], names[1:], args, "peer", 0)
        return 0
    base_dir, dirs = make_model.make(args.dir, max(args.adapters, max(args.streams)))
    rate = {"all": "1000000000", "off": "0"}.get(args.score, args.score)
    flags = ["--adapter-rank-max", "16", "--score-rate-ppb", rate, "--context-max", "1024", "--seqs-max", "64", *args.flags.split()]
    with Server(*flags, model=base_dir, name="base", adapters=Path(args.dir) / "adapters", wait_s=300) as s:
        names = [d.name for d in dirs]
        for n in names:  # resident before the clock runs
            s.post("/v1/completions", {"model": n, "prompt": [5, 6, 7], "max_tokens": 1})
        ours = bench_url(s.url, "base", names, args, "residual", bandwidth)
    peer = bench_peer(base_dir, dirs, args) if args.peer else {}
    print()
    report(ours, peer, args, bandwidth)
    return 0


def report(ours, peer, args, bandwidth):
    bound = bandwidth * 1e9 / step_bytes(make_model.SHAPE, 0)
    if 1 in args.streams:
        print(f"one base stream: {100 * ours[1, 'base']['decode_tps'] / bound:.0f} % of its byte bound ({bound:.1f} tok/s); bar 55 %")
    if 16 in args.streams and 1 in args.streams:
        print(f"16 streams, 16 distinct adapters: {ours[16, 'distinct']['tps'] / ours[1, 'one']['tps']:.1f} times one adapter stream; bar 8")
        print(f"16 streams, 16 distinct adapters: {100 * ours[16, 'distinct']['tps'] / ours[16, 'base']['tps']:.0f} % of base only; bar 70 %")
    for key, r in peer.items():
        print(f"{key[0]:3} {key[1]:9} {ours[key]['tps'] / r['tps']:5.1f} times transformers + peft")


if __name__ == "__main__":
    sys.exit(main())

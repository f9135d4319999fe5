"""Serving bench: a random-weight model of the Qwen2.5-0.5B shape, N random adapters (r 16, all linear), prompt 128, output 128,
bf16, greedy. Prints per case output tokens/s, time to first token, inter-token p50 and p99, the LoRA tax, and the share of its byte
bound that decoding reached: memory bandwidth is measured right before and after each run. Cases are interleaved, the medians of the
repeats are printed. With --peer, transformers + peft (mixed adapter_names batches) takes part in the same repeats.

    tests/bench/serve                         our server
    tests/bench/serve --peer                  and transformers + peft
    tests/bench/serve --churn                 what 20 adapter loads a second do to streams that use none of them
    tests/bench/serve --beside                what a training job does to streams (beside.py)
    tests/bench/serve --peers --base DIR      base only, beside llama.cpp and vLLM's CPU build (beside_peers.py)
    tests/bench/serve --closed                what scoring costs 64 users who ask again and again (closed.py)
    tests/bench/serve --url URL --models a,b  any OpenAI-compatible server that takes token-id prompts: base, then adapters
"""
import argparse
import os
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/bench"), str(ROOT / "tests/lib")]
import beside  # noqa: E402
import beside_peers  # noqa: E402
import churn  # noqa: E402
import closed  # noqa: E402
import drive  # noqa: E402
import make_model  # noqa: E402
from server import Server  # noqa: E402

KINDS = ("base", "one", "distinct")
RANK = make_model.RANK


def step_bytes(c, n_stream, n_distinct, n_ctx):
    """Bytes that one decode step must read: the weights once, each distinct adapter once, each stream's keys and values."""
    linear = make_model.linear_shapes(c)
    base = sum(o * i for o, i in linear.values()) * c["num_hidden_layers"] + c["vocab_size"] * c["hidden_size"]
    lora = sum(RANK * (o + i) for o, i in linear.values()) * c["num_hidden_layers"]
    kv = 2 * linear["self_attn.k_proj"][0] * c["num_hidden_layers"] * n_ctx
    return 2 * (base + n_distinct * lora + n_stream * kv)


def distinct(kind, n, n_adapter):
    return {"base": 0, "one": 1, "distinct": min(n, n_adapter)}[kind]


def run_ours(url, names, key, rep, args, ours):
    n, kind = key
    models = {"base": names[:1], "one": names[1:2], "distinct": names[1:n + 1]}[kind]
    before = drive.measure_bandwidth()
    r = drive.run_case(url, models, n, args.prompt, args.output, 1000 * rep + n)
    gbs = (before + drive.measure_bandwidth()) / 2
    r["load"] = os.getloadavg()[0]
    r["drain"] = drive.wait_scored(url) if ours else 0.0
    if ours:
        r["gbs"] = gbs
        nbytes = step_bytes(make_model.SHAPE, n, distinct(kind, n, len(names) - 1), args.prompt + args.output / 2)
        r["share"] = r["decode_tps"] / n * nbytes / (gbs * 1e9)
    return r


def median_of(runs):
    return {k: statistics.median(r[k] for r in runs) for k in runs[0]}


def print_table(name, cases):
    """cases: (n, kind) -> runs"""
    for (n, kind), runs in cases.items():
        r = median_of(runs)
        tax = "-" if kind == "base" else f"{100 * (1 - statistics.median(a['tps'] / b['tps'] for a, b in zip(runs, cases[n, 'base']))):.0f} %"
        share = f"{100 * r['share']:.0f} %" if "share" in r else "-"
        drain = f"{r['drain']:.1f}" if "drain" in r else "-"
        print(f"| {name} | {n} | {kind} | {r['tps']:.1f} | {r['decode_tps']:.1f} | {1000 * r['ttft']:.0f} | {1000 * r['p50']:.1f} | {1000 * r['p99']:.1f} | "
              f"{tax} | {share} | {drain} |", flush=True)


def ratio(cases, a, b, field="tps"):
    """Median over the repeats of a's rate over b's, each pair from the same repeat."""
    return statistics.median(x[field] / y[field] for x, y in zip(cases[a], cases[b]))


def report(ours, peer):
    print()
    if (1, "base") in ours:
        print(f"one base stream: {100 * median_of(ours[1, 'base'])['share']:.0f} % of its byte bound; bar 55 %")
    if (16, "distinct") in ours:
        print(f"16 streams, 16 distinct adapters: {100 * ratio(ours, (16, 'distinct'), (16, 'base')):.0f} % of base only; bar 70 %")
    if (16, "distinct") in ours and (1, "one") in ours:
        print(f"16 streams, 16 distinct adapters: {ratio(ours, (16, 'distinct'), (1, 'one')):.1f} times one adapter stream; bar 8 "
              f"(decode alone {ratio(ours, (16, 'distinct'), (1, 'one'), 'decode_tps'):.1f})")
    for key, runs in peer.items():
        rate = median_of(ours[key])["tps"] / median_of(runs)["tps"]
        print(f"{key[0]:3} {key[1]:9} {rate:5.1f} times transformers + peft")


def bench(url, names, args, peer, ours=True):
    keys = [(n, kind) for n in args.streams for kind in KINDS if kind == "base" or len(names) > 1]
    cases, peer_cases = {k: [] for k in keys}, {k: [] for k in keys}
    for rep in range(args.repeat):
        for key in keys:
            r = run_ours(url, names, key, rep, args, ours)
            cases[key].append(r)
            note = f", {r['gbs']:.1f} GB/s" if ours else ""
            print(f"# repeat {rep + 1}, {key[0]} {key[1]}: {r['tps']:.1f} tok/s, decode {r['decode_tps']:.1f}, load {r['load']:.1f}{note}", file=sys.stderr, flush=True)
            if peer and rep < args.peer_repeat:
                p = peer.run_case(key[1], key[0], args.prompt, args.output, args.peer_output, 1000 * rep + key[0])
                peer_cases[key].append(p)
                print(f"#   transformers + peft: {p['tps']:.1f} tok/s, decode {p['decode_tps']:.1f}", file=sys.stderr, flush=True)
    print("| server | n | adapters | tok/s | decode tok/s | TTFT ms | p50 ms | p99 ms | LoRA tax | byte bound | scored after s |")
    print("|---|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    print_table("residual" if ours else args.url, cases)
    if peer:
        print_table("transformers + peft", peer_cases)
    if ours:
        probes = [r["gbs"] for runs in cases.values() for r in runs]
        loads = [r["load"] for runs in cases.values() for r in runs]
        print(f"\nmemory {statistics.median(probes):.1f} GB/s ({min(probes):.1f} to {max(probes):.1f}) read by {os.cpu_count()} threads, load average "
              f"{min(loads):.1f} to {max(loads):.1f}; prompt {args.prompt}, output {args.output}, bf16, scoring {args.score}, {args.repeat} repeats")
        report(cases, peer_cases if peer else {})


def serve(args):
    n_adapter = max(args.adapters, max(args.streams))
    base_dir, dirs = make_model.make(args.dir, n_adapter)
    rate = {"all": "1000000000", "off": "0"}.get(args.score, args.score)
    flags = ["--adapter-rank-max", RANK, "--score-rate-ppb", rate, "--context-max", "1024", "--seqs-max", "64"]
    if args.churn:
        blob = step_bytes(make_model.SHAPE, 0, 1, 0) - step_bytes(make_model.SHAPE, 0, 0, 0)
        flags += ["--adapters-host-bytes-max", blob * args.resident + (blob >> 3)]
    with Server(*flags, *args.flags.split(), model=base_dir, name="base", adapters=Path(args.dir) / "adapters", wait_s=300) as s:
        names = [d.name for d in dirs]
        if args.churn:
            args.server_pid = s.process.pid
            churn.run(s.url, names[:4], names[4:], args)
            return
        for n in names:  # resident before the clock runs
            status, reply = s.post("/v1/completions", {"model": n, "prompt": [5, 6, 7], "max_tokens": 1}, timeout=300)
            assert status == 200, reply
        if args.beside:
            beside.run(s.url, args)
            return
        peer = None
        if args.peer:
            from peer import Peer
            peer = Peer(base_dir, dirs[:max(args.streams)])
        bench(s.url, ["base", *names], args, peer)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--dir", default="/tmp/residual-bench", help="where the model and adapters are made and kept")
    p.add_argument("--adapters", type=int, default=32)
    p.add_argument("--streams", type=lambda s: [int(x) for x in s.split(",")], default=[1, 4, 16, 32])
    p.add_argument("--prompt", type=int, default=128)
    p.add_argument("--output", type=int, default=128)
    p.add_argument("--repeat", type=int, default=3, help="runs of a case; medians are printed")
    p.add_argument("--score", default="all", help="all, off, or a rate in ppb")
    p.add_argument("--peer", action="store_true", help="transformers + peft in the same table")
    p.add_argument("--peer-output", type=int, default=16, help="tokens the peer generates; its rate is extended to --output")
    p.add_argument("--peer-repeat", type=int, default=1)
    p.add_argument("--churn", action="store_true", help="the bystander case alone")
    p.add_argument("--beside", action="store_true", help="streams beside a training job alone")
    p.add_argument("--churn-rate", type=float, default=20, help="requests, hence loads, a second")
    p.add_argument("--churn-tokens", type=int, default=128)
    p.add_argument("--bystanders", type=int, default=4)
    p.add_argument("--resident", type=int, default=8, help="adapters that memory may hold with --churn")
    p.add_argument("--pairs", type=int, default=5)
    p.add_argument("--peers", action="store_true", help="beside other servers alone")
    p.add_argument("--base", help="with --peers: the model's folder")
    p.add_argument("--llama-server", help="with --peers: llama.cpp's llama-server, and its --gguf")
    p.add_argument("--gguf")
    p.add_argument("--vllm", help="with --peers: vLLM's command")
    p.add_argument("--closed", action="store_true", help="the closed loop alone: scoring all answers, some, none")
    p.add_argument("--traffic", choices=("chat", "documents", "alone"), default="chat")
    p.add_argument("--users", type=int, default=64)
    p.add_argument("--window", type=float, default=60, help="seconds of asking, each round")
    p.add_argument("--modes", help="with --closed: beside off only these, by comma")
    p.add_argument("--url", help="drive this server instead of ours")
    p.add_argument("--models", help="with --url: base and adapters, by comma")
    p.add_argument("--flags", default="", help="more flags for our server")
    args = p.parse_args()
    if args.peers:
        beside_peers.run(args)
    elif args.closed:
        args.dir += "-smol"
        closed.run(args)
    elif args.url:
        bench(args.url, args.models.split(","), args, None, ours=False)
    else:
        serve(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())

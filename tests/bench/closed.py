"""What scoring answers costs those who ask: a sustained closed loop. Users each wait for their answer and ask again; eight adapters of
one application, a model of the SmolLM2-135M shape with random weights, mixed lengths. The same loop with all answers scored, one in
four, one in twenty, and none, in turns: one server each, all resident, one driven at a time, the others idle. Users leave
at the end of a round, and it lasts until what was answered is scored: a rate is output tokens a second of all that. A loss is the
median over the rounds of one mode's rate against `off` of the same round; beside it the same of the server's processor time an output
token, which other work on the machine does not change: at full load a rate is its reciprocal.

Three kinds of traffic:
    chat       the application's instructions (the same for all adapters), then turns: each prompt is the conversation so far and a new
               question, so prefixes repeat, as in any chat
    documents  each document is put before all eight adapters (to extract, translate, classify ...), once, with a question
    alone      nothing repeats: each prompt is new
"""
import contextlib
import http.client
import json
import os
import random
import socket
import statistics
import threading
import time
from pathlib import Path
from urllib.parse import urlparse

import drive
import make_model
from server import Server

MODES = (("off", 0), ("one in twenty", 50_000_000), ("one in four", 250_000_000), ("all", 1_000_000_000))
INSTRUCTIONS, TURNS = 96, 4


def words(rng, n):
    return [rng.randrange(300, 49000) for _ in range(n)]


class User:
    def __init__(self, url, model, seed, group, kind):
        self.group = group
        self.rng, self.model, self.kind, self.turn, self.begun = random.Random(seed), model, kind, 0, False
        u = urlparse(url)
        self.connection = http.client.HTTPConnection(u.hostname, u.port, timeout=300)
        self.instructions = words(random.Random(1), INSTRUCTIONS)

    def prompt(self):
        if self.kind == "alone":
            return words(self.rng, round(32 * 16 ** self.rng.random()))  # 32 to 512
        if self.kind == "documents":
            self.turn += 1
            text = random.Random(f"{self.group} {self.turn}")
            return words(text, round(64 * 8 ** text.random())) + words(self.rng, 16)  # 64 to 512, and a question
        if self.turn % TURNS == 0:
            self.context = list(self.instructions)
        self.turn += 1
        self.context += words(self.rng, round(8 * 8 ** self.rng.random()))  # a question of 8 to 64
        return self.context

    def leave(self):
        with contextlib.suppress(OSError, AttributeError):
            self.connection.sock.shutdown(socket.SHUT_RDWR)

    def ask(self):
        n_out = round(16 * 12 ** self.rng.random())  # 16 to 192
        if not self.begun:  # a loop that has run for long: users stand anywhere in their answers
            self.begun, n_out = True, self.rng.randrange(1, n_out)
        body = {"model": self.model, "prompt": self.prompt(), "max_tokens": n_out, "temperature": 0.8, "seed": self.rng.randrange(1 << 30),
                "ignore_eos": True, "return_token_ids": True}
        self.connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        r = self.connection.getresponse()
        raw = r.read()
        if r.status != 200:
            raise RuntimeError(f"{r.status}: {raw[:300]}")
        if self.kind == "chat":
            self.context = self.context + json.loads(raw)["choices"][0]["token_ids"]


def cpu_s(pid):
    """Processor seconds of the server's threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def counted(url):
    m = drive.metrics(url)

    def total(name):
        return sum(v for k, v in m.items() if k.split("{")[0] == name)

    return time.perf_counter(), total("vllm:generation_tokens_total"), total("residual_score_tokens_total"), total("residual_score_shared_tokens_total")


def window(server, names, args, seed):
    """One run of the loop, and then until every answer in it, finished or not, is scored."""
    url, pid, stop, errors = server.url, server.process.pid, threading.Event(), []

    def loop(user):
        try:
            while not stop.is_set():
                user.ask()
        except Exception as e:  # noqa: BLE001 - raised below
            if not stop.is_set():
                errors.append(e)
                stop.set()

    users = [User(url, names[i % len(names)], 1000 * seed + i, f"{seed} {i // len(names)}", args.traffic) for i in range(args.users)]
    threads = [threading.Thread(target=loop, args=(u,)) for u in users]
    first, cpu_first = counted(url), cpu_s(pid)
    [t.start() for t in threads]
    stop.wait(args.window)
    middle = counted(url)
    stop.set()
    [u.leave() for u in users]
    [t.join() for t in threads]
    if errors:
        raise errors[0]
    drive.wait_scored(url)
    last, cpu_last = counted(url), cpu_s(pid)
    seconds, tokens, scored, shared = (b - a for a, b in zip(first, last))
    return {"tps": tokens / seconds, "cpu_ms": 1000 * (cpu_last - cpu_first) / tokens, "scored": scored / tokens, "shared": shared / tokens,
            "while_asked_tps": (middle[1] - first[1]) / (middle[0] - first[0]), "drain_s": last[0] - middle[0]}


def run(args):
    base, dirs = make_model.make(args.dir, 8, make_model.SMOL)
    names = [d.name for d in dirs]
    modes = [m for m in MODES if m[0] == "off" or not args.modes or m[0] in args.modes.split(",")]
    found = {name: [] for name, _ in modes}
    with contextlib.ExitStack() as stack:
        servers = {}
        for name, rate in modes:
            server = Server("--adapter-rank-max", make_model.RANK, "--score-rate-ppb", rate, "--context-max", 2048, "--seqs-max", 64, "--kv-bytes", 1 << 30,
                            *args.flags.split(), model=base, name="base", adapters=Path(args.dir) / "adapters", wait_s=300)
            servers[name] = stack.enter_context(server)
            for n in names:  # resident before the clock runs
                status, reply = server.post("/v1/completions", {"model": n, "prompt": [5, 6, 7], "max_tokens": 1}, timeout=300)
                assert status == 200, reply
        for rep in range(args.repeat):
            order = modes if rep % 2 == 0 else modes[::-1]
            for name, _ in order:
                r = window(servers[name], names, args, rep)
                found[name].append(r)
                print(f"# round {rep + 1}, {name}: " + ", ".join(f"{k} {v:.2f}" for k, v in r.items()) + f", load {os.getloadavg()[0]:.1f}", flush=True)
    print(f"\n{args.users} users, traffic {args.traffic}, 8 adapters, {args.repeat} rounds of {args.window:g} s, medians\n")
    print("| scored | output tok/s | against off | processor ms / output token | rate by processor time, against off | rows scored / output token | shared |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name, _ in modes:
        runs = found[name]
        mid = {k: statistics.median(r[k] for r in runs) for k in runs[0]}
        loss = statistics.median(a["tps"] / b["tps"] for a, b in zip(runs, found["off"])) - 1
        work = statistics.median(b["cpu_ms"] / a["cpu_ms"] for a, b in zip(runs, found["off"])) - 1
        print(f"| {name} | {mid['tps']:.0f} | {100 * loss:+.1f} % | {mid['cpu_ms']:.2f} | {100 * work:+.1f} % | {mid['scored']:.2f} | {mid['shared']:.2f} |")

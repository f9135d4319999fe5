"""Base-only serving beside other servers on the same model, in turns: the time to the first token of a prompt of 512 tokens (prefill), and 16
streams at once. Whoever is not driven is stopped meanwhile (SIGSTOP). All get the same token ids and as many threads as there are processors.

    tests/bench/serve --peers --base DIR [--llama-server FILE --gguf FILE] [--vllm FILE]     DIR: a Hugging Face model, bf16
"""
import os
import signal
import statistics
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

import drive
from server import ROOT, free_port

PREFILL, STREAMS, PROMPT, OUTPUT = 512, 16, 128, 64


class Peer:
    def __init__(self, name, words, port, model, env=None):
        self.name, self.model, self.url = name, model, f"http://127.0.0.1:{port}"
        self.log = tempfile.NamedTemporaryFile(prefix=f"rs-{name}-", suffix=".log", delete=False)
        self.process = subprocess.Popen([str(w) for w in words], stdout=self.log, stderr=self.log, env={**os.environ, **(env or {})}, start_new_session=True)

    def wait_up(self, seconds=300):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise SystemExit(f"{self.name} ended with {self.process.returncode}; see {self.log.name}")
            try:
                if urllib.request.urlopen(self.url + "/health", timeout=2).status == 200:
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        raise SystemExit(f"{self.name} is not up after {seconds} s; see {self.log.name}")

    def tell(self, what):
        os.killpg(self.process.pid, what)


def start(args, folder):
    n, peers = os.cpu_count(), []
    port = free_port()
    peers.append(Peer("residual", [ROOT / "build/release/bin/residuald", "--model", args.base, "--model-name", "base", "--listen", f"127.0.0.1:{port}", "--data-dir", folder,
                                   "--score-rate-ppb", 0, "--context-max", 1024, "--seqs-max", 32, "--prefix-cache", 0, *args.flags.split()], port, "base"))
    if args.llama_server:
        port = free_port()
        peers.append(Peer("llama.cpp", [args.llama_server, "-m", args.gguf, "--host", "127.0.0.1", "--port", port, "-t", n, "-tb", n, "-np", STREAMS, "-c", STREAMS * 1024,
                                        "--no-cache-prompt"], port, "base"))
    if args.vllm:
        port = free_port()
        peers.append(Peer("vllm", [args.vllm, "serve", args.base, "--served-model-name", "base", "--host", "127.0.0.1", "--port", port, "--dtype", "bfloat16", "--max-model-len", 1024,
                                   "--no-enable-prefix-caching"], port, "base", {"VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1"}))
    for p in peers:
        p.wait_up()
        drive.run_case(p.url, [p.model], 2, 32, 8, 99)
        p.tell(signal.SIGSTOP)
    return peers


def measure(p, round_):
    p.tell(signal.SIGCONT)
    time.sleep(0.5)
    first = [drive.run_case(p.url, [p.model], 1, PREFILL, 2, 1000 * round_ + i)["ttft"] for i in range(5)]
    many = drive.run_case(p.url, [p.model], STREAMS, PROMPT, OUTPUT, round_)
    p.tell(signal.SIGSTOP)
    return statistics.median(first), many["tps"], many["decode_tps"]


def run(args):
    with tempfile.TemporaryDirectory(prefix="rs-peers-") as folder:
        peers = start(args, folder)
        try:
            rounds = [[measure(p, k) for p in (peers if k % 2 == 0 else peers[::-1])][::1 if k % 2 == 0 else -1] for k in range(args.repeat)]
        finally:
            for p in peers:
                p.tell(signal.SIGKILL)
                p.process.wait()
    print(f"| server | prefill of {PREFILL}, ms | ours / theirs | {STREAMS} streams, tok/s (decode) | ours / theirs |\n|---|--:|--:|--:|--:|")
    for i, p in enumerate(peers):
        ttft, tps, decode = [statistics.median(r[i][k] for r in rounds) for k in range(3)]
        pre = statistics.median(r[i][0] / r[0][0] for r in rounds)
        rate = statistics.median(r[0][1] / r[i][1] for r in rounds)
        print(f"| {p.name} | {1000 * ttft:.0f} | {pre:.2f} | {tps:.0f} ({decode:.0f}) | {rate:.2f} |")
    print(f"\nmedians of {args.repeat} rounds in turns, {os.cpu_count()} threads, prompt {PROMPT} and output {OUTPUT} of the streams, load average {os.getloadavg()[0]:.1f}; bars 1.3 and 1.8")

"""After ready the engine thread allocates nothing, libraries included: residuald runs under the allocation guard
(tests/lib/alloc_guard.c), which kills it with a backtrace if it ever does."""
import json
import os
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from server import Server, binary, http

BUILD = Path(binary("residuald")).parent.parent
GUARD = BUILD / "tests" / "liballoc_guard.so"
PROBE = BUILD / "tests" / "alloc_probe"


def guarded_env(report=None):
    env = {**os.environ, "LD_PRELOAD": str(GUARD), "RS_ALLOC_GUARD": "1"}
    if report:
        env["RS_ALLOC_GUARD_REPORT"] = str(report)
    return env


@pytest.mark.parametrize("how", ["malloc", "calloc", "realloc", "aligned_alloc", "posix_memalign", "library"])
def test_guard_bites(how):
    run = subprocess.run([str(PROBE), how], env=guarded_env(), capture_output=True, text=True, timeout=30)
    assert run.returncode == -6, (run.returncode, run.stderr)
    assert "a sealed thread calls" in run.stderr and "alloc_probe" in run.stderr  # the backtrace names the program


def test_guard_lets_the_rest_live():
    run = subprocess.run([str(PROBE), "none"], env=guarded_env(), capture_output=True, text=True, timeout=30)
    assert (run.returncode, run.stdout) == (0, "alive\n"), run.stderr


def test_guard_refuses_what_it_cannot_watch():
    run = subprocess.run(["/bin/true"], env=guarded_env(), capture_output=True, text=True, timeout=30)
    assert run.returncode == 125 and "does not export" in run.stderr


def ask(server, body, path="/v1/completions"):
    status, _, data = http(server.url + path, body, timeout=120)
    return status, data


def cancel_early(server, body):
    """A client that leaves after the first bytes."""
    import socket
    text = json.dumps({**body, "stream": True}).encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as s:
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(text) + text)
        s.recv(200)


def test_engine_thread_allocates_nothing(tmp_path):
    report = tmp_path / "report"
    # a budget of a few adapters, so that they come and go, and little KV, so that rows are preempted
    flags = ["--seqs-max", "16", "--rows-max", "64", "--adapters-resident-max", "5", "--score-rate-ppb", "1000000000"]
    with Server(*flags, env=guarded_env(report)) as server:
        adapters = [m["id"] for m in json.loads(http(server.url + "/v1/models")[2])["data"] if m["id"] != "residual-demo"]
        assert len(adapters) >= 8
        prompt = "Where does the river begin, and who keeps the old bridge? "

        def job(i):
            name = adapters[i % len(adapters)] if i % 5 else "residual-demo"
            body = {"model": name, "prompt": prompt * (1 + i % 7), "max_tokens": 8 + i % 25, "temperature": [0, 0.9][i % 2], "seed": i,
                    "ignore_eos": i % 3 == 0}
            kind = i % 8
            if kind == 1:
                body |= {"n": 3, "top_p": 0.9, "top_k": 20}
            elif kind == 2:
                body |= {"stream": True, "stream_options": {"include_usage": True}}
            elif kind == 3:
                body |= {"stop": ["the", "\n"], "min_p": 0.05}
            elif kind == 4:
                body |= {"logprobs": 5, "presence_penalty": 0.5, "frequency_penalty": 0.3}
            elif kind == 5:
                body |= {"logit_bias": {"5": -50, "9": 3}, "repetition_penalty": 1.1}
            elif kind == 6:
                body["model"] = "residual-demo"
                body["adapters"] = [{"model": adapters[(i + k) % len(adapters)], "weight": 0.5} for k in range(2)]
            elif kind == 7:
                cancel_early(server, {**body, "max_tokens": 200})
                return 200
            status, data = ask(server, body)
            return status if status in (200, 404) else (status, data)

        def unload_and_load():  # residency changes under load
            for name in adapters[:3]:
                http(server.url + "/v1/unload_lora_adapter", {"lora_name": name})

        with ThreadPoolExecutor(12) as pool:
            codes = list(pool.map(job, range(120)))
        assert set(codes) <= {200}, set(codes)
        side = threading.Thread(target=unload_and_load)
        side.start()
        with ThreadPoolExecutor(12) as pool:
            codes = list(pool.map(job, range(120, 180)))
        side.join()
        assert set(codes) <= {200, 404}, set(codes)  # 404: just unloaded
        assert server.process.poll() is None and "alloc_guard" not in server.log_text(), server.log_text()[-3000:]
        metrics = http(server.url + "/metrics")[2].decode()
        assert "vllm:generation_tokens_total" in metrics
        # the guard is in that process, and the engine did score
        assert str(GUARD) in Path(f"/proc/{server.process.pid}/maps").read_text()
    assert server.process.returncode == 0
    _, calls, _, sealed = report.read_text().split()
    assert int(calls) > 1000 and int(sealed) > 1000  # it watched, and the engine's thread was sealed

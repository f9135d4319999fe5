"""Starts residuald (and redis-server, a local chain) for tests: on loopback, on free ports, stopped at the end."""
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "configs" / "demo"
FULL = os.environ.get("RS_FULL") == "1"


def binary(name, preset="release"):
    """A built program; RS_BIN overrides the folder."""
    folder = os.environ.get("RS_BIN") or ROOT / "build" / preset / "bin"
    path = Path(folder) / name
    assert path.exists(), f"{path} is not built: run tests/run build"
    return str(path)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def http(url, body=None, method=None, headers=None, timeout=60):
    """(status, headers, bytes); never raises for an HTTP status."""
    data = json.dumps(body).encode() if isinstance(body, (dict, list)) else body
    req = urllib.request.Request(url, data=data, method=method, headers={"Content-Type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(req, timeout=timeout) as r:
            return r.status, r.headers, r.read()
    except urllib.error.HTTPError as e:
        return e.code, e.headers, e.read()


class Server:
    """with Server("--seqs-max", "8") as s: s.post("/v1/completions", {...})"""

    def __init__(self, *flags, model=DEMO / "base", name="residual-demo", adapters=DEMO / "adapters", data=None, preset="release",
                 wait_s=60, env=None, port=None, program=None):
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._tmp = tempfile.TemporaryDirectory(prefix="rs-test-") if data is None else None
        self.data = Path(data) if data else Path(self._tmp.name) / "data"
        self.log = Path(tempfile.mkstemp(prefix="rs-log-")[1])
        self.args = [str(program or binary("residuald", preset)), "--model", str(model), "--model-name", name, "--listen", f"127.0.0.1:{self.port}",
                     "--data-dir", str(self.data), *map(str, flags)]
        if adapters:
            self.args += ["--adapter-dir", str(adapters)]
        self.wait_s, self.env, self.process = wait_s, env, None

    def start(self):
        with open(self.log, "ab") as out:
            self.process = subprocess.Popen(self.args, stdout=out, stderr=out, env=self.env)
        end = time.monotonic() + self.wait_s
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise AssertionError(f"residuald exited with {self.process.returncode}:\n{self.log_text()[-4000:]}")
            try:
                if http(self.url + "/readyz", timeout=2)[0] == 200:
                    return self
            except (urllib.error.URLError, ConnectionError, TimeoutError, OSError):
                pass
            time.sleep(0.05)
        self.kill()
        raise AssertionError(f"residuald was not ready in {self.wait_s} s:\n{self.log_text()[-4000:]}")

    def stop(self, expect=0, wait_s=60):
        """SIGTERM, and the exit status must be what is expected (a sanitizer's report changes it)."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(wait_s)
            except subprocess.TimeoutExpired:
                self.kill()
                raise AssertionError(f"residuald did not stop in {wait_s} s:\n{self.log_text()[-4000:]}")
        if self.process and expect is not None:
            assert self.process.returncode == expect, f"exit status {self.process.returncode}:\n{self.log_text()[-6000:]}"
        return self

    def kill(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def log_text(self):
        return self.log.read_text(errors="replace")

    def get(self, path, **kw):
        status, headers, body = http(self.url + path, **kw)
        return status, json.loads(body) if body[:1] in (b"{", b"[") else body.decode()

    def post(self, path, body, **kw):
        status, headers, raw = http(self.url + path, body, **kw)
        return status, json.loads(raw) if raw[:1] in (b"{", b"[") else raw.decode(errors="replace")

    def __enter__(self):
        return self.start()

    def __exit__(self, kind, *_):
        try:
            self.stop(expect=0 if kind is None else None)
        finally:
            self.kill()
            self.log.unlink(missing_ok=True)
            if self._tmp:
                self._tmp.cleanup()


def signed_demo(out, deployment, *names):
    """A copy of the demo's adapters whose documents their owners signed for this deployment (configs/demo/sign.py)."""
    sys.path.insert(0, str(DEMO))
    import sign
    return sign.sign_all(out, deployment, binary("residual"), names)


class Manager:
    """A service manager's end of NOTIFY_SOCKET, by an abstract name."""

    def __init__(self):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("")  # the kernel chooses
        self.socket.settimeout(30)
        self.env = {"NOTIFY_SOCKET": "@" + self.socket.getsockname()[1:].decode()}

    def expect(self, what):
        said = self.socket.recv(4096).decode()
        assert said.startswith(what), said
        return said

    def drain(self):
        """What was said and not yet read."""
        said = []
        self.socket.setblocking(False)
        try:
            while True:
                said.append(self.socket.recv(4096).decode())
        except BlockingIOError:
            return said


class Redis:
    """A redis-server of its own; kill() and start() keep its data."""

    def __init__(self, *flags):
        self.port = free_port()
        self._tmp = tempfile.TemporaryDirectory(prefix="rs-redis-")
        self.url = f"redis://127.0.0.1:{self.port}"
        self.args = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", self._tmp.name, "--appendonly", "yes",
                     "--save", "", "--maxmemory-policy", "noeviction", "--daemonize", "no", "--logfile", "", *flags]
        self.process = None

    def start(self):
        self.process = subprocess.Popen(self.args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 15
        while time.monotonic() < end:
            try:
                if self.command("PING") == b"+PONG":
                    return self
            except OSError:
                time.sleep(0.03)
        raise AssertionError("redis-server did not start")

    def command(self, *words):
        """One command's raw first reply line (enough for PING, XLEN, FLUSHALL)."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as s:
            s.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w.encode()) for w in words))
            return s.recv(65536).split(b"\r\n")[0]

    def kill(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.kill()
        self._tmp.cleanup()


def wait_for(check, wait_s=30, step_s=0.05, what="condition"):
    """The first true value of check(), or an assertion that names what was waited for."""
    end = time.monotonic() + wait_s
    while time.monotonic() < end:
        value = check()
        if value:
            return value
        time.sleep(step_s)
    raise AssertionError(f"waited {wait_s} s for: {what}")

"""A whole system for fault tests: Redis, a local chain with the contracts, the server bound to them and the settlement worker, each of
which can be killed and started again; a load that keeps every receipt it is given; and readers of chain and archive."""
import http.client
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
import urllib.error
from pathlib import Path

from keccak import keccak
from registry_node import count_owners
from server import DEMO, ROOT, Redis, Server, binary, free_port, http as fetch, signed_demo, wait_for

CONTRACTS = ROOT / "chain_client" / "contracts"
LANE = 1
WAITS = {"wait_s": 5, "window_s": 2}  # an epoch is claimable about ten seconds after its last batch
FACTS = json.loads((DEMO / "facts.json").read_text())
ADAPTERS = sorted(p.name for p in (DEMO / "adapters").iterdir())


# ---- the chain ----

class Chain:
    """A local chain that mines by the clock; stop() and start() keep its state."""

    def __init__(self, folder):
        self.folder, self.port = Path(folder), free_port()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        self.process = subprocess.Popen(
            ["node", str(CONTRACTS / "anvil.mjs"), "--port", str(self.port), "--chain-id", "31337", "--state", str(self.folder / "state.json"),
             "--state-interval", "2", "--preserve-historical-states", "--silent"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL)
        wait_for(self.is_up, 40, what="the local chain")
        return self

    def is_up(self):
        assert self.process.poll() is None, "the local chain stopped"
        try:
            return self.rpc("eth_chainId") == "0x7a69"
        except OSError:
            return False

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(30)
        self.process = None

    def rpc(self, method, *params):
        reply = json.loads(fetch(self.url, {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)}, timeout=10)[2])
        assert "error" not in reply, f"{method}: {reply['error']}"
        return reply["result"]

    def call(self, to, signature, *words):
        """The words that a view returns, as integers."""
        data = keccak(signature.encode())[:4].hex() + "".join(f"{w:064x}" for w in words)
        out = self.rpc("eth_call", {"to": to, "data": "0x" + data}, "latest")[2:]
        return [int(out[i:i + 64], 16) for i in range(0, len(out), 64)]


def run_tool(*args, cwd=ROOT, wait_s=180):
    done = subprocess.run([str(a) for a in args], cwd=cwd, capture_output=True, text=True, timeout=wait_s)
    assert done.returncode == 0, f"{args[0]} {args[1]}: exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


# ---- the settlement worker ----

class Settle:
    """residual-settle of one world, and the attestor that signs for it; kill() and start() keep its state."""

    def __init__(self, world, *flags):
        self.port, self.log = free_port(), world.dir / "settle.log"
        self.url = f"http://127.0.0.1:{self.port}"
        self.state, self.archive = world.dir / "settle", world.dir / "archive"
        lane = world.lane_dir
        self.args = [binary("residual-settle"), "--deployment", world.deployment_file, "--rpc-url", world.chain.url, "--redis-url", world.redis.url,
                     "--committer-key-file", world.dir / "keys/committer.key", "--proposer-key-file", world.dir / "keys/proposer.key",
                     "--funder-key-file", world.dir / "keys/funder.key", "--lane-key", f"{LANE}={lane}/transport.key",
                     "--spool-dir", f"{LANE}={lane}/spool", "--state-dir", self.state, "--archive-dir", self.archive, "--batch-seconds-max", 2,
                     "--epoch-seconds", 4, "--poll-ms", 250, "--bump-seconds", 5,
                     "--owners-dir", world.dir / "owners", "--listen", f"127.0.0.1:{self.port}", *flags]
        self.args = [str(a) for a in self.args]
        self.attest = [str(a) for a in (
            binary("residual-settle"), "attest", "--deployment", world.deployment_file, "--rpc-url", world.chain.url, "--key-file", world.dir / "keys/attestor.key",
            "--archive", self.url, "--state-dir", world.dir / f"attest-{self.port}", "--poll-ms", 500, "--missing-max-ppm", 1000000, "--resign-after-s", 0)]
        self.process = self.attestor = None

    def start(self):
        with open(self.log, "ab") as out:
            self.process = subprocess.Popen(self.args, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
            if not self.attestor:
                self.attestor = subprocess.Popen(self.attest, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        return self

    def kill(self):
        """kill -9; what ended by itself before is a failure of the caller's assumption."""
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0, self.log_text()[-4000:]

    def end_attestor(self):
        if self.attestor:
            self.attestor.kill()
            self.attestor.wait()
            self.attestor = None

    def log_text(self):
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def get(self, path):
        status, _, body = fetch(self.url + path, timeout=5)
        return json.loads(body) if status == 200 else None


# ---- the world ----

class World:
    """with World(template) as w: ...   redis, chain, server and settle run; each has kill() or stop(), and start()."""

    def __init__(self, template, *, server_flags=(), settle_flags=(), start=("redis", "chain", "server", "settle"), data_dir=None):
        self.dir = Path(tempfile.mkdtemp(prefix="rs-world-"))
        shutil.copytree(template, self.dir, dirs_exist_ok=True)
        self.deployment_file = self.dir / "deployment.json"
        self.deployment = json.loads(self.deployment_file.read_text())
        self.chain, self.redis = Chain(self.dir / "chain"), Redis()
        data = data_dir or self.dir / "data"
        if data_dir:
            shutil.copytree(self.dir / "data", data_dir, dirs_exist_ok=True)
        self.lane_dir = Path(data) / "lanes" / f"31337-{self.deployment['ledger'][2:].lower()}-{LANE}"
        self.server = bound_server(data, self.redis.url, self.chain.url, self.deployment, self.dir / "adapters", *server_flags)
        self.settle = Settle(self, *settle_flags)
        self.wanted = start

    def __enter__(self):
        try:
            for name in self.wanted:
                getattr(self, name).start()
        except BaseException:
            self.__exit__(AssertionError)
            raise
        return self

    def __exit__(self, kind, *_):
        self.settle.kill()
        self.settle.end_attestor()
        self.server.kill()
        self.redis.kill()
        self.chain.stop()
        if kind is None:
            shutil.rmtree(self.dir, ignore_errors=True)
            self.server.log.unlink(missing_ok=True)
        else:
            print(f"\nthe failed world is left in {self.dir}, the server's log in {self.server.log}")
            print("server:", self.server.log_text()[-3000:], "\nsettle:", self.settle.log_text()[-3000:], sep="\n")

    def metrics(self):
        out = {}
        for line in fetch(self.server.url + "/metrics", timeout=10)[2].decode().splitlines():
            if line and line[0] != "#":
                name, _, value = line.rpartition(" ")
                out[name] = float(value)
        return out

    def lane_next(self):
        return self.chain.call(self.deployment["ledger"], "laneNext(uint32)", LANE)[0]

    def head(self):
        return self.chain.call(self.deployment["ledger"], "head()")[0]

    def paid_epoch(self):
        """(epoch, last batch it pays) of the newest claimable one; (0, 0) before the first."""
        vault = self.deployment["vault"]
        epoch = self.chain.call(vault, "activeEpoch()")[0]
        return epoch, self.chain.call(vault, "epochs(uint64)", epoch)[5] if epoch else 0

    def check_alive(self):
        for name, piece in (("server", self.server), ("settle", self.settle)):
            if piece.process:
                assert piece.process.poll() is None, f"{name} ended by itself with {piece.process.returncode}:\n{piece.log_text()[-4000:]}"

    def scored(self):
        """Every answer that is required has its attribution record."""
        m = self.metrics()
        return m["residual_score_jobs"] == 0 and m["residual_lane_seq_next"] == m["residual_lane_seq_durable"] + 1 and m

    def drain(self, wait_s=120):
        """Wait until everything the server recorded is in batches; the number of records."""
        def done():
            self.check_alive()
            m = self.scored()
            return m and m["residual_lane_seq_shipped"] == m["residual_lane_seq_durable"] and \
                self.lane_next() == m["residual_lane_seq_next"] and int(m["residual_lane_seq_durable"])
        return wait_for(done, wait_s, 0.3, what="all records to be committed in batches")

    def last_batch_with_fees(self):
        """A batch of attribution records alone is nothing to pay, and no epoch follows it."""
        headers = [json.loads(p.read_text()) for p in self.settle.archive.glob("batch-*/header.json")]
        return max((h["seq"] for h in headers if h["fee_sum"] != "0"), default=0)

    def settled(self, wait_s=120):
        """Wait until everything is paid by a claimable epoch; (records, epoch)."""
        records = self.drain(wait_s)
        last = self.last_batch_with_fees()

        def done():
            self.check_alive()
            epoch, batch = self.paid_epoch()
            return epoch if batch and batch >= last else None
        return records, wait_for(done, wait_s, 0.3, what="an epoch that pays the last batch with fees")

    def audit(self, epoch, archive=None):
        """(exit status, what it said) of `residual audit epoch`."""
        done = subprocess.run([binary("residual"), "audit", "epoch", str(epoch), "--archive", str(archive or self.settle.archive), "--rpc",
                               self.chain.url, "--deployment", str(self.deployment_file)], capture_output=True, text=True, timeout=180)
        return done.returncode, done.stdout + done.stderr

    def check(self, receipts, epoch):
        """tests/faults/check.mjs: receipts against archive and chain, by code that shares nothing with ours. Its summary."""
        path = self.dir / "receipts.json"
        path.write_text(json.dumps(receipts))
        return json.loads(run_tool("node", ROOT / "tests/faults/check.mjs", "--archive", self.settle.archive, "--deployment", self.deployment_file,
                                   "--rpc", self.chain.url, "--receipts", path, "--epoch", epoch, wait_s=300))


def bound_server(data, redis_url, rpc_url, deployment, adapters, *flags):
    return Server("--redis-url", redis_url, "--chain-id", "31337", "--ledger", deployment["ledger"], "--registry", deployment["registry"],
                  "--registry-rpc-url", rpc_url, "--threads", "2", *flags, adapters=adapters, data=data)


def make_template(folder):
    """Contracts deployed, base, adapters, datanets and the lane registered: the state every world begins from."""
    folder = Path(folder)
    (folder / "keys").mkdir(parents=True, mode=0o700)
    for name in ("deployer", "committer", "proposer", "funder", "attestor", "guardian", "operator", "treasury"):
        path = folder / "keys" / f"{name}.key"
        path.write_text(os.urandom(32).hex())
        path.chmod(0o600)
    chain = Chain(folder / "chain").start()
    try:
        wallets = "const {Wallet} = await import('ethers'); const {readFileSync} = await import('fs');" + "".join(
            f"console.log(new Wallet('0x' + readFileSync('{folder}/keys/{k}.key', 'utf8')).address);" for k in ("deployer", "committer", "proposer", "funder", "operator"))
        for address in run_tool("node", "--input-type=module", "-e", wallets, cwd=CONTRACTS).split():
            chain.rpc("anvil_setBalance", address, "0xd3c21bcecceda1000000")
        deploy(folder, chain)
        server = bound_server(folder / "data", "redis://127.0.0.1:1", chain.url, json.loads((folder / "deployment.json").read_text()),
                              signed_demo(folder / "adapters", folder / "deployment.json"))
        write_owners(folder)
        with server:
            deploy(folder, chain, "--server", server.url)
            wait_for(lambda: all(a["registered"] for a in server.get("/v1/adapters")[1]["data"]), 30, what="the server to see what is registered")
    finally:
        chain.stop()
    return folder


def write_owners(folder):
    """The owners' lists for the worker, which cannot ask a server that is dead."""
    out = folder / "owners"
    out.mkdir()
    for path in sorted((folder / "adapters").glob("*/datanet.json")):
        net = json.loads(path.read_text())
        owners = [{"owner": o, "documents": n} for o, n in sorted(count_owners(net["documents"]).items())]
        (out / f"datanet-{net['datanetId']}-{net['version']}.json").write_text(
            json.dumps({"datanet": net["datanetId"], "version": net["version"], "owners": owners}))


def deploy(folder, chain, *more):
    run_tool("node", ROOT / "deploy/demo_config.mjs", "--run", folder, "--out", folder / "deploy.json", *more)
    config = json.loads((folder / "deploy.json").read_text())
    config.update(WAITS)
    (folder / "deploy.json").write_text(json.dumps(config))
    run_tool("node", CONTRACTS / "deploy.mjs", "--rpc", chain.url, "--key-file", folder / "keys/deployer.key", "--config", folder / "deploy.json",
             "--out", folder / "deployment.json")


# ---- what is on disk and in Redis ----

def spool_records(lane_dir):
    """{sequence number: body} of a lane's spool; fails when the numbers are not dense from 1."""
    out = {}
    for path in sorted((Path(lane_dir) / "spool").glob("seg-*.log")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            if data[at:at + 4] == b"RSF1" and at + 28 == len(data):
                at = len(data)  # the footer of a whole segment
                break
            assert data[at:at + 4] == b"RSP1", f"{path.name}: byte {at} begins no frame"
            length, seq = struct.unpack_from("<IQ", data, at + 4)
            assert seq == len(out) + 1, f"{path.name}: record {seq} follows {len(out)}"
            out[seq] = data[at + 20:at + 20 + length]
            at += 20 + length
        assert at == len(data), f"{path.name}: ends inside a frame"
    return out


def stream_records(redis, lane=LANE):
    """{sequence number: body} of a lane's stream."""
    out = {}
    for entry_id, fields in redis_call(redis, "XRANGE", f"residual:lane:{lane}", "-", "+"):
        seq, _, rest = entry_id.decode().partition("-")
        assert rest == "0" and fields[0] == b"r" and len(fields) == 2
        out[int(seq)] = fields[1]
    return out


def pairs(records):
    """(inference numbers with adapters and a fee, how many attributions each has)."""
    inferences = [s for s, b in records.items() if b[1] == 1 and int.from_bytes(b[150:166], "big") and int.from_bytes(b[343:347], "big")]
    found = {}
    for b in records.values():
        if b[1] == 2:
            seq = int.from_bytes(b[14:22], "big")
            found[seq] = found.get(seq, 0) + 1
    return inferences, found


def redis_call(redis, *words):
    """One command's whole reply."""
    def reply(f):
        line = f.readline().rstrip()
        kind, rest = line[:1], line[1:]
        if kind == b"*":
            return [reply(f) for _ in range(int(rest))]
        if kind == b"$":
            return None if rest == b"-1" else f.read(int(rest) + 2)[:-2]
        assert kind != b"-", rest.decode()
        return int(rest) if kind == b":" else rest
    with socket.create_connection(("127.0.0.1", redis.port), timeout=30) as s, s.makefile("rb") as f:
        s.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w.encode()), w.encode()) for w in words))
        return reply(f)


# ---- load ----

class Load:
    """Threads that ask and keep every receipt. A receipt once read by the client is a promise that no crash may break."""

    def __init__(self, server, threads=5, seed=1, pause_s=0.1, tokens_max=8):
        self.server, self.pause_s, self.tokens_max = server, pause_s, tokens_max
        self.receipts, self.unexpected, self.count = [], [], {}
        self.stopping, self.lock = threading.Event(), threading.Lock()
        self.threads = [threading.Thread(target=self._run, args=(random.Random(seed * 1000 + i),), daemon=True) for i in range(threads)]

    def __enter__(self):
        for t in self.threads:
            t.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        for t in self.threads:
            t.join(90)
            assert not t.is_alive(), "a client still waits for its answer"

    def _run(self, rng):
        while not self.stopping.is_set():
            body = make_request(rng, self.tokens_max)
            try:
                outcome = self._ask(body, leave=body.get("stream") and rng.random() < 0.15)
            except (OSError, http.client.HTTPException):
                outcome = "broken"
            with self.lock:
                self.count[outcome] = self.count.get(outcome, 0) + 1
            self.stopping.wait(self.pause_s if outcome == "answered" else 0.1)

    def _ask(self, body, leave):
        conn = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        try:
            conn.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            reply = conn.getresponse()
            if reply.status == 200 and body.get("stream"):
                return self._read_stream(body, reply, leave)
            raw = reply.read()
        finally:
            conn.close()
        if reply.status != 200:
            if reply.status not in (429, 503):
                with self.lock:
                    self.unexpected.append((reply.status, raw.decode(errors="replace"), body))
            return f"refused {reply.status}"
        answer = json.loads(raw)
        self.keep(body, answer["residual"], [c["token_ids"] for c in answer["choices"]], answer["usage"])
        return "answered"

    def _read_stream(self, body, reply, leave):
        residual = usage = None
        for line in reply:
            if not line.startswith(b"data: "):
                continue
            if line.startswith(b"data: [DONE]"):
                break
            if leave:
                return "left"
            chunk = json.loads(line[6:])
            if "error" in chunk:
                return "failed in stream"
            residual = chunk.get("residual") or residual
            usage = chunk.get("usage") or usage
            if residual and not usage:
                self.keep(body, residual, None, None)  # released with the last chunk of text, whatever happens after
        return "answered" if residual else "broken"

    def keep(self, body, residual, ids, usage):
        assert residual["recorded"], residual
        kept = {k: residual[k] for k in ("request_id", "lane", "seq", "fee", "record_digest", "receipt", "salt")}
        kept.update(prompt=body["prompt"], ids=ids, adapters=[[a["id"], a["weight"]] for a in residual["adapters"]],
                    tokens=[usage["prompt_tokens"], usage["completion_tokens"]] if usage else None)
        with self.lock:
            self.receipts.append(kept)


def make_request(rng, tokens_max):
    """One of the kinds of request that records know: base, one adapter, a mix, several choices, streams; prompts as token ids."""
    prompt = [rng.randrange(300, 1000) for _ in range(rng.randrange(2, 24))]
    body = {"prompt": prompt, "max_tokens": rng.randrange(1, tokens_max + 1), "temperature": 0.7, "ignore_eos": True}
    kind = rng.random()
    if kind < 0.15:
        body["model"] = "residual-demo"
    elif kind < 0.75:
        body["model"] = rng.choice(ADAPTERS)
    else:
        body["model"] = "residual-demo"
        body["adapters"] = [{"model": a, "weight": rng.choice((0.25, 0.5, 1.0))} for a in rng.sample(ADAPTERS, rng.randrange(2, 4))]
    if rng.random() < 0.15:
        body["n"] = 2
    if rng.random() < 0.3:
        body["stream"] = True
    else:
        body["return_token_ids"] = True
    return body

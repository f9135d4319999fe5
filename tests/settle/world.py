"""A chain, a Redis and lanes that a tool wrote, settled by residual-settle: what the tests of this folder share."""
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
import recompute  # noqa: E402
from server import ROOT, Manager, Redis, binary, free_port, http, wait_for  # noqa: E402

CONTRACTS = ROOT / "chain_client" / "contracts"
CHECK = Path(__file__).resolve().parent / "check.mjs"
DEPLOYER = "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"  # anvil's first account
KEYS = {"committer": "11" * 32, "proposer": "12" * 32, "funder": "13" * 32, "guardian": "44" * 32, "owner": "22" * 32, "claimer": "33" * 32,
        "attestor": "45" * 32, "second": "55" * 32, "operator1": "51" * 32, "operator2": "52" * 32, "operator3": "53" * 32}


def run(*args, check=True, cwd=ROOT, timeout=120):
    done = subprocess.run([str(a) for a in args], cwd=cwd, capture_output=True, text=True, timeout=timeout)
    assert not check or done.returncode == 0, f"{args[0]} {args[1:3]}: exit {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
    return done


def node(script):
    return run("node", "--input-type=module", "-e", script, cwd=CONTRACTS).stdout.strip()


class Lane:
    """A lane's folder and its records: [(seq, record and tag)]."""

    def __init__(self, world, number):
        self.number, self.dir = number, world.dir / f"lane-{number}"
        self.address = run(binary("lane_tool"), "keys", self.dir, number).stdout.strip()
        self.entries, self.fees, self.start_s = [], 0, 0

    def make(self, world, inferences):
        self.start_s = int(time.time())
        out = run(binary("lane_tool"), "records", self.dir, self.number, world.deployed["chain_id"], world.deployed["ledger"], inferences, self.start_s).stdout
        self.fees = int(out.split()[-1])
        data, at = next((self.dir / "spool").glob("seg-*.log")).read_bytes(), 0
        while at < len(data):
            _, length, seq = struct.unpack_from("<IIQ", data, at)
            self.entries.append((seq, data[at + 20:at + 20 + length]))
            at += 20 + length
        assert [s for s, _ in self.entries] == list(range(1, len(self.entries) + 1))
        return self


class World:
    """with World(folder): a chain with the contracts, a Redis, and lanes without records. The first of each kind deploys; the others
    begin with a copy of its chain."""

    deployed_once = {}

    def __init__(self, folder, lanes=(1, 2), wait_s=1, window_s=1, untariffed=()):
        self.dir, self.untariffed = Path(folder), untariffed
        self.redis = Redis()
        self.anvil = None
        self.anvil_port = free_port()
        self.rpc_url = f"http://127.0.0.1:{self.anvil_port}"
        self.deployment = self.dir / "deployment.json"
        self.wait_s, self.window_s = wait_s, window_s
        self.owners_dir = self.dir / "owners"
        for name, secret in {**KEYS, "deployer": DEPLOYER}.items():
            self.key(name).write_text(secret)
            self.key(name).chmod(0o600)
        self.lanes = {n: Lane(self, n) for n in lanes}

    def key(self, name):
        return self.dir / f"{name}.key"

    def __enter__(self):
        self.redis.start()
        kind = (tuple(self.lanes), self.wait_s, self.window_s, self.untariffed)
        if kind not in World.deployed_once:
            self.start_chain()
            self.deploy()
            self.stop_chain()
            keep = World.deployed_once[kind] = tempfile.TemporaryDirectory(prefix="rs-settle-")
            shutil.copy(self.dir / "chain.state", keep.name)
            shutil.copy(self.deployment, keep.name)
            (Path(keep.name) / "names.json").write_text(json.dumps(self.names))
        kept = Path(World.deployed_once[kind].name)
        shutil.copy(kept / "chain.state", self.dir)
        shutil.copy(kept / "deployment.json", self.dir)
        self.names = json.loads((kept / "names.json").read_text())
        self.deployed = json.loads(self.deployment.read_text())
        self.write_owners()
        self.start_chain()
        return self

    def __exit__(self, *_):
        self.stop_chain()
        self.redis.__exit__()

    # ---- the chain ----

    def start_chain(self):
        with open(self.dir / "anvil.log", "ab") as log:
            self.anvil = subprocess.Popen(["node", str(CONTRACTS / "anvil.mjs"), "--port", str(self.anvil_port), "--chain-id", "31337",
                                           "--state", str(self.dir / "chain.state"), "--preserve-historical-states"], stdout=log, stderr=log)
        wait_for(self.chain_answers, 30, what="the local chain")

    def chain_answers(self):
        try:
            return self.rpc("eth_chainId") == "0x7a69"
        except OSError:
            return False

    def stop_chain(self):
        if self.anvil and self.anvil.poll() is None:
            self.anvil.send_signal(signal.SIGTERM)
            self.anvil.wait(30)

    def rpc(self, method, *params):
        reply = json.loads(http(self.rpc_url, {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)}, timeout=10)[2])
        assert "error" not in reply, reply
        return reply["result"]

    def deploy(self):
        """Adapters 0 to 2 with datanets and adapter 3 without, as lane_tool names them; adapter 2 stays unused. The payees own each datanet."""
        h = json.loads(node("""
            import { keccak256, toUtf8Bytes, Wallet } from 'ethers';
            const h = (s) => keccak256(toUtf8Bytes(s)), out = { base: h('base'), method: h('residual.method.s0-s1-s2.2'), x: h('x') };
            for (let i = 0; i < 4; i++) { out['a' + i] = h('adapter ' + i); out['p' + i] = h('payee ' + i).slice(0, 42); }
            for (const [n, k] of Object.entries(%s)) out[n] = new Wallet('0x' + k).address;
            console.log(JSON.stringify(out));""" % json.dumps(KEYS)))
        self.names = h
        owners = sorted((bytes.fromhex(h[f"p{i}"][2:]), i + 1) for i in range(4))
        config = {
            "notice_s": 2, "lead_s": 0, "beacon_delay_s": 0, "commit_age_min_s": 1, "protocol_bps_min": 100, "rate_ppb": 1000000000,
            "policy": {"base": 2000, "adapters": 6000, "operator": 1500, "protocol": 500, "treasury": "0x" + "ee" * 20},
            "window_s": self.window_s, "wait_s": self.wait_s, "cap_floor": str(10 ** 24), "attestors_min": 1, "attestors": [h["attestor"], h["second"]],
            "roles": {n: h[n] for n in ("committer", "proposer", "guardian")},
            "coins": [{"address": h[a], "amount": str(10 ** 20)} for a in ("committer", "proposer", "funder", "guardian", "claimer", "operator1", "operator2", "operator3")],
            "methods": [h["method"]],
            "bases": [{"model_id": h["base"], "owner": h["owner"], "split": [{"payee": h["owner"], "role": "author", "bps": 10000}]}],
            "datanets": [{"name": f"net{i}", "salt": h[f"a{i}"], "document_root": h["x"][:-1] + str(i), "owner_root": recompute.hexed(recompute.owners_root(owners)), "documents": sum(n for _, n in owners),
                          "owners": len(owners), "tokenizer_digest": h["x"]} for i in range(3)],
            "adapters": [{"adapter_id": h[f"a{i}"], "model_id": h["base"], **({"datanet": f"net{i}"} if i < 3 else {}), "price_in": str(1000000 + 7 * (i + 1)), "price_out": str(3000000 + 11 * (i + 1)),
                          "split": [{"payee": h["owner"], "role": "author", "bps": 4000}, {"payee": h["p0"], "role": "data", "bps": 6000}]} for i in range(4)],
            "lanes": [{"lane": n, "key": lane.address, "operator": h[f"operator{n}"], "operator_key_file": str(self.key(f"operator{n}")),
                       "tariffs": [{"model_id": h["base"], "price_in": "1000000", "price_out": "3000000"}] * (n not in self.untariffed)} for n, lane in self.lanes.items()]}
        path = self.dir / "deploy.json"
        path.write_text(json.dumps(config))
        run("node", CONTRACTS / "deploy.mjs", "--rpc", self.rpc_url, "--key-file", self.key("deployer"), "--config", path, "--out", self.deployment)
        self.deployed = json.loads(self.deployment.read_text())

    def write_owners(self):
        """What a server would answer for each datanet."""
        self.owners_dir.mkdir(exist_ok=True)
        owners = sorted((self.names[f"p{i}"], i + 1) for i in range(4))
        for d in self.deployed["datanets"]:
            (self.owners_dir / f"datanet-{d['id']}-1.json").write_text(json.dumps({
                "datanet": d["id"], "version": 1, "owners": [{"owner": o, "documents": n} for o, n in owners]}))

    # ---- records ----

    def ship(self, lane, entries):
        """XADD each as the server does; what Redis already has is skipped by its id."""
        with socket.create_connection(("127.0.0.1", self.redis.port), timeout=10) as s:
            out = bytearray()
            for seq, body in entries:
                words = [b"XADD", b"residual:lane:%d" % lane, b"%d-0" % seq, b"r", body]
                out += b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words)
            s.sendall(out)
            replies = s.makefile("rb")
            for _ in entries:  # "$3\r\n1-0\r\n" or "-ERR ..\r\n"
                if replies.readline().startswith(b"$"):
                    replies.readline()

    def ship_all(self):
        for lane in self.lanes.values():
            self.ship(lane.number, lane.entries)

    def ask(self, contract, signature, *words):
        """The words that a view of "ledger", "registry" or "vault" answers, as integers."""
        selector = self.rpc("web3_sha3", "0x" + signature.encode().hex())[:10]
        out = self.rpc("eth_call", {"to": self.deployed[contract], "data": selector + "".join(f"{x:064x}" for x in words)}, "latest")[2:]
        return [int(out[i:i + 64], 16) for i in range(0, len(out), 64)]

    def balance(self, address):
        return int(self.rpc("eth_getBalance", address, "latest"), 16)

    # ---- the answers ----

    def audit(self, what="epoch", number=1, archive=None):
        done = run(binary("audit_tool"), archive or self.dir / "archive", self.rpc_url, self.deployment, what, number, check=False)
        return done.returncode, json.loads(done.stdout) if done.stdout.strip() else done.stderr

    def recompute(self):
        return json.loads(run("node", CHECK, "recompute", self.rpc_url, self.deployment, self.dir / "archive").stdout)

    def claim(self, settle, *accounts):
        return json.loads(run("node", CHECK, "claim", self.rpc_url, self.deployment, self.key("claimer"), settle.url, *accounts).stdout)


class Settle:
    """residual-settle of one world, and the attestor that signs for it; kill() and start() keep its state. rpc: its endpoints, else the
    world's chain alone."""

    def __init__(self, world, *flags, spool=True, name="settle", env=None, rpc=None, funder=True, attested=True):
        self.world, self.port, self.log = world, free_port(), world.dir / f"{name}.log"
        self.url = f"http://127.0.0.1:{self.port}"
        self.state = world.dir / "state"
        self.args = [binary("residual-settle"), "--deployment", world.deployment, "--redis-url", world.redis.url,
                     "--committer-key-file", world.key("committer"), "--proposer-key-file", world.key("proposer"), "--state-dir", self.state, "--archive-dir", world.dir / "archive",
                     "--batch-count-max", 200, "--batch-seconds-max", 2, "--epoch-seconds", 1, "--poll-ms", 200, "--bump-seconds", 5,
                     "--listen", f"127.0.0.1:{self.port}", "--owners-dir", world.owners_dir]
        for url in rpc or [world.rpc_url]:
            self.args += ["--rpc-url", url]
        if funder:
            self.args += ["--funder-key-file", world.key("funder")]
        for lane in world.lanes.values():
            self.args += ["--lane-key", f"{lane.number}={lane.dir}/transport.key"]
            if spool:
                self.args += ["--spool-dir", f"{lane.number}={lane.dir}/spool"]
        self.args = [str(a) for a in (*self.args, *flags)]
        self.process, self.env = None, {**os.environ, **(env or {})}
        easy = "--missing-max-ppm", 1000000, "--faults-max", 1000, "--owners-absent", "--resign-after-s", 0
        self.attestor = Guard(world, "attest", "attestor", self, *easy, name=f"attest-{self.port}") if attested else None

    def start(self):
        if self.attestor and not self.attestor.process:
            self.attestor.start()
        with open(self.log, "ab") as out:
            self.process = subprocess.Popen(self.args, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self.env)
        return self

    def kill(self):
        assert self.process.poll() is None, f"ended by itself with {self.process.returncode}:\n{self.tail()}"
        self.process.kill()
        self.process.wait()

    def stop(self, expect=0):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)
        self.stop_attestor()
        assert self.process.returncode == expect, f"exit {self.process.returncode}:\n{self.tail()}"

    def stop_attestor(self):
        if self.attestor and self.attestor.process:
            self.attestor.process.kill()
            self.attestor.process.wait()
            self.attestor.process = None

    def tail(self):
        return self.log.read_text(errors="replace")[-6000:]

    def __enter__(self):
        return self.start()

    def __exit__(self, kind, *_):
        try:
            if self.process.poll() is None and kind is None:
                self.stop()
            elif kind is not None:
                print(self.tail())
        finally:
            self.stop_attestor()
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()

    def status(self):
        """The worker's state; without lanes, batches and epochs while there is none."""
        done = run(binary("residual-settle"), "status", "--json", "--state-dir", self.state, check=False)
        assert done.returncode in (0, 3), done.stderr
        return json.loads(done.stdout) if done.returncode == 0 else {"lanes": [], "batches": [], "epochs": [], "troubles": []}

    def wait(self, what, check, wait_s=60):
        """Until check(status) holds while the worker runs."""
        def looks():
            assert self.process.poll() is None, f"ended by itself with {self.process.returncode}:\n{self.tail()}"
            return check(self.status())
        return wait_for(looks, wait_s, 0.2, what)

    def wait_final(self, wait_s=60):
        """Every record of every lane is in a final batch."""
        want = {n: len(lane.entries) for n, lane in self.world.lanes.items()}
        self.wait("all records final", lambda t: {x["lane"]: x["final"] for x in t["lanes"]} == want, wait_s)

    def wait_epoch(self, wait_s=60):
        """The newest active epoch that pays every batch."""
        def paid(t):
            return next((e["epoch"] for e in t["epochs"] if e["state"] == "active" and e["batch_paid"] == t["batches"][0]["batch"]), 0)
        return self.wait("an active epoch that pays every batch", paid, wait_s)


class Guard:
    """`residual-settle attest` or `watch` of one world, with a state and a mirror of its own."""

    def __init__(self, world, verb, key, settle, *flags, name=None, rpc=()):
        name = name or f"{verb}-{key}"
        self.world, self.port, self.state, self.log = world, free_port(), world.dir / name, world.dir / f"{name}.log"
        self.url = f"http://127.0.0.1:{self.port}"
        self.args = [str(a) for a in (
            binary("residual-settle"), verb, "--deployment", world.deployment, "--key-file", world.key(key), "--archive", settle.url,
            *(x for url in (*rpc, world.rpc_url) for x in ("--rpc-url", url)),
            "--state-dir", self.state, "--poll-ms", 200, *flags)]
        self.process = None

    def once(self):
        """(exit status, what it said) of one look."""
        done = run(*self.args, "--once", check=False)
        return done.returncode, done.stdout + done.stderr

    def start(self):
        with open(self.log, "ab") as out:
            self.process = subprocess.Popen([*self.args, "--listen", f"127.0.0.1:{self.port}"], stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        return self

    def __enter__(self):
        return self.start()

    def __exit__(self, kind, *_):
        if kind is not None:
            print(self.tail())
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0 or kind is not None, self.tail()

    def tail(self):
        return self.log.read_text(errors="replace")[-6000:]


FULL = os.environ.get("RS_FULL") == "1"

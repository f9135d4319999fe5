"""One chain, one server and one settlement worker for all tests of the command line; each on loopback, on a free port."""
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "configs" / "demo"))
import sign  # noqa: E402
from server import DEMO, ROOT, Redis, Server, binary, free_port, http, wait_for  # noqa: E402

CONTRACTS = ROOT / "chain_client" / "contracts"
METHOD_TEXT = "residual.method.s0-s1-s2.2"


class Run:
    def __init__(self, done):
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr

    @property
    def json(self):
        return json.loads(self.out)

    def __repr__(self):
        return f"exit {self.code}\n{self.out}\n{self.err}"


def residual(*words, stdin=None, timeout=240):
    done = subprocess.run([binary("residual"), *map(str, words)], input=stdin, capture_output=True, text=True, timeout=timeout)
    assert "Sanitizer" not in done.stderr, done.stderr
    return Run(done)


def secret(path, text):
    path.write_text(text)
    path.chmod(0o600)
    return path


class Chain:
    """anvil with a block each second, the contracts on it, and a deployment file."""

    def __init__(self, folder):
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.file = folder / "deployment.json"
        self.keys, self.address = {}, {}
        self.process = subprocess.Popen(["node", "anvil.mjs", "--port", str(self.port), "--chain-id", "31337", "--silent"], cwd=CONTRACTS,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(self._up, 60, what="anvil")
        for name in ("deployer", "committer", "proposer", "funder", "attestor", "guardian", "operator", "treasury", "stranger"):
            self.keys[name] = folder / f"{name}.key"
            made = residual("key", "new", "--type", "chain", self.keys[name])
            assert made.code == 0, made
            self.address[name] = made.out.strip()
            if name != "treasury":
                self.fund(self.address[name])
        self.config = {
            "notice_s": 2, "lead_s": 0, "beacon_delay_s": 0, "commit_age_min_s": 4, "protocol_bps_min": 100, "rate_ppb": 1_000_000_000,
            "policy": {"base": 2000, "adapters": 6000, "operator": 1500, "protocol": 500, "treasury": self.address["treasury"]},
            "window_s": 2, "wait_s": 3, "cap_floor": "1000", "attestors_min": 1, "attestors": [self.address["attestor"]],
            "roles": {"committer": self.address["committer"], "proposer": self.address["proposer"], "guardian": self.address["guardian"]},
            "methods": [self.keccak(METHOD_TEXT)]}
        self.deploy()

    def _up(self):
        try:
            return self.rpc("eth_chainId")
        except OSError:
            assert self.process.poll() is None, "anvil stopped"
            return None

    def rpc(self, method, *params):
        answer = json.loads(http(self.url, {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)}, timeout=10)[2])
        assert "error" not in answer, answer
        return answer["result"]

    def keccak(self, text):
        return self.rpc("web3_sha3", "0x" + text.encode().hex())

    def call(self, to, signature, *words):
        data = self.keccak(signature)[:10] + "".join(w.removeprefix("0x").lower().zfill(64) for w in words)
        out = self.rpc("eth_call", {"to": to, "data": data}, "latest")[2:]
        return [out[i:i + 64] for i in range(0, len(out), 64)]

    def balance(self, address):
        return int(self.rpc("eth_getBalance", address, "latest"), 16)

    def fund(self, address):
        self.rpc("anvil_setBalance", address, hex(10**24))

    def deploy(self):
        config = self.folder / "deploy.json"
        config.write_text(json.dumps(self.config))
        done = subprocess.run(["node", "deploy.mjs", "--rpc", self.url, "--key-file", self.keys["deployer"], "--config", config, "--out", self.file],
                              cwd=CONTRACTS, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        self.at = json.loads(self.file.read_text())

    def stop(self):
        self.process.terminate()
        self.process.wait()


class World:
    """The chain, Redis, a server without adapters, and what publishers need: an API key, a publisher key, an owner's key."""

    def __init__(self, folder):
        self.folder = folder
        self.chain = Chain(folder)
        self.redis = Redis().start()
        self.api_key = folder / "api.key"
        self.infer_key = folder / "infer.key"
        digest = residual("key", "new", "--type", "api", self.api_key).out.strip()
        digest_infer = residual("key", "new", "--type", "api", self.infer_key).out.strip()
        keys = [{"name": "all", "digest": digest, "roles": ["infer", "publish", "admin", "worker"]},
                {"name": "reader", "digest": digest_infer, "roles": ["infer"]}]
        api_keys = secret(folder / "api_keys.json", json.dumps(keys))
        self.publisher_key = folder / "publisher.key"
        assert residual("key", "new", "--type", "publisher", self.publisher_key).code == 0
        at = self.chain.at
        self.server = Server("--chain-id", "31337", "--ledger", at["ledger"], "--registry", at["registry"], "--registry-rpc-url", self.chain.url,
                             "--redis-url", self.redis.url, "--api-keys-file", api_keys, adapters=None, data=folder / "data").start()
        people = json.loads((DEMO / "contributors.json").read_text())
        self.people = {c["address"].lower(): c for c in people["contributors"] + people["others"]}
        self._register_lane()

    def _register_lane(self):
        shown = residual("lane", "show", self.folder / "data", "--json")
        assert shown.code == 0, shown
        self.lane = next(x for x in shown.json["lanes"] if x["chainId"] == 31337)
        b = json.loads((DEMO / "base_publish.json").read_text())
        self.model_id = "0x" + self.get("/version")["model_id"].removeprefix("0x")
        self.chain.config["lanes"] = [{"lane": self.lane["lane"], "key": self.lane["address"], "operator": self.chain.address["operator"],
                                       "operator_key_file": str(self.chain.keys["operator"]),
                                       "tariffs": [{"model_id": self.model_id, "price_in": "1000000000000", "price_out": "3000000000000"}]}]
        self.chain.config["bases"] = [{"model_id": self.model_id, "owner": b["owner"], "split": [{"payee": b["owner"], "role": "author", "bps": 10000}]}]
        self.chain.deploy()

    @property
    def auth(self):
        return {"Authorization": "Bearer " + self.api_key.read_text().strip()}

    def get(self, path):
        status, answer = self.server.get(path, headers=self.auth)
        assert status == 200, answer
        return answer

    def ask(self, model, prompt):
        status, answer = self.server.post("/v1/completions", {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": 12}, headers=self.auth)
        assert status == 200, answer
        return answer

    def registered(self, name, check=lambda a: True):
        """The listing's entry of an adapter, once the server has read it in the Registry's final blocks (and check is true of it)."""
        def read():
            a = self.get(f"/v1/adapters/{name}")
            return a if a["registered"] and check(a) else None
        return wait_for(read, 30, step_s=0.2, what=f"the server to read that {name} is registered")

    def adapter(self, name, copy):
        """A copy of a demo adapter's folder, and its owner's key file (with coins)."""
        folder = self.folder / copy
        if not folder.exists():
            shutil.copytree(DEMO / "adapters" / name, folder)
            sign.sign_folder(folder, self.chain.file, binary("residual"))
        owner = json.loads((folder / "publish.json").read_text())["owner"]
        key = self.folder / f"{owner}.key"
        if not key.exists():
            secret(key, self.people[owner.lower()]["privateKey"].removeprefix("0x"))
            self.chain.fund(owner)
        return folder, key

    def publish(self, folder, name, key, *more):
        return residual("adapter", "publish", folder, "--server", self.server.url, "--name", name, "--api-key-file", self.api_key,
                        "--publisher-key-file", self.publisher_key, "--owner-key-file", key, "--deployment", self.chain.file, *more)

    def on_chain(self):
        return ["--rpc", self.chain.url, "--model", DEMO / "base"]

    def node(self):
        return ["--rpc", self.chain.url, "--deployment", self.chain.file]

    def start_settle(self):
        lane = f"{self.lane['lane']}={Path(self.lane['folder']).resolve()}"
        self.settle_port = free_port()
        self.settle_url = f"http://127.0.0.1:{self.settle_port}"
        self.archive = self.folder / "archive"
        self.settle_log = open(self.folder / "settle.log", "wb")
        self.settle = subprocess.Popen(
            [binary("residual-settle"), "--deployment", self.chain.file, "--rpc-url", self.chain.url, "--redis-url", self.redis.url,
             "--committer-key-file", self.chain.keys["committer"], "--proposer-key-file", self.chain.keys["proposer"],
             "--funder-key-file", self.chain.keys["funder"], "--lane-key", lane + "/transport.key", "--spool-dir", lane + "/spool",
             "--state-dir", self.folder / "settle", "--archive-dir", self.archive, "--batch-seconds-max", "2", "--epoch-seconds", "2",
             "--refetch-url", f"{self.lane['lane']}={self.server.url}", "--refetch-key-file", self.api_key,
             "--listen", f"127.0.0.1:{self.settle_port}", "--public-rpc-url", self.chain.url], stdout=self.settle_log, stderr=self.settle_log)
        self.attestor = subprocess.Popen(
            [binary("residual-settle"), "attest", "--deployment", self.chain.file, "--rpc-url", self.chain.url, "--key-file", self.chain.keys["attestor"],
             "--archive", self.settle_url, "--state-dir", self.folder / "attest", "--poll-ms", "500"], stdout=self.settle_log, stderr=self.settle_log)

    def stop(self):
        if getattr(self, "settle", None):
            self.settle.terminate()
            self.settle.wait(60)
            self.attestor.kill()
            self.attestor.wait()
            self.settle_log.close()
        self.server.kill()
        self.redis.kill()
        self.chain.stop()


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    w = World(tmp_path_factory.mktemp("cli"))
    yield w
    w.stop()

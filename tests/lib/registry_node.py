"""A chain node as residuald asks it, scripted: it serves the Registry's views from a table that the test writes, and an event for each
change. No contract runs behind it; what it answers is the ABI of chain_client/contracts/README.md."""
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from keccak import keccak
from server import DEMO

REGISTRY, LEDGER, CHAIN_ID = "0x" + "77" * 20, "0x" + "11" * 20, 31337
FOREVER = (1 << 64) - 1
ROLES = {"owner": 1, "author": 1, "data": 2, "other": 3}


def word(v):
    return (int(v, 16) if isinstance(v, str) else int(v)).to_bytes(32, "big")


def tree(leaves, domain):
    """SPEC 3: the root of leaves, padded on the right to a power of two."""
    level = [keccak(leaf) for leaf in leaves]
    while len(level) & (len(level) - 1):
        level.append(keccak(b"\x22" + domain))
    while len(level) > 1:
        level = [keccak(b"\x21" + level[i] + level[i + 1]) for i in range(0, len(level), 2)]
    return "0x" + level[0].hex()


def owner_root(owners):
    domain = keccak(b"residual.owners.1")
    return tree([b"\x20" + domain + i.to_bytes(4, "big") + bytes.fromhex(owner[2:]) + n.to_bytes(4, "big")
                 for i, (owner, n) in enumerate(sorted(owners.items()))], domain)


def document_root(documents):
    domain = keccak(b"residual.documents.1")
    rows = sorted((bytes.fromhex(d["digest"].removeprefix("0x")), bytes.fromhex(d["owner"][2:]), d["bytes"], keccak(d["licence"].encode()))
                  for d in documents)
    return tree([b"\x23" + domain + i.to_bytes(4, "big") + digest + owner + size.to_bytes(8, "big") + licence
                 for i, (digest, owner, size, licence) in enumerate(rows)], domain)


def count_owners(documents):
    owners = {}
    for d in documents:
        owners[d["owner"].lower()] = owners.get(d["owner"].lower(), 0) + 1
    return owners


class RegistryNode:
    """with RegistryNode() as node: Server(*node.flags()); node.adapter(id, owner=..., price=(in, out), split=[...], datanet=(id, version))"""

    def __init__(self, notice_s=172800):
        self.lock = threading.Lock()
        self.notice_s, self.age_s, self.block, self.dead = notice_s, 0, 10, False
        self.adapters, self.datanets, self.tariffs, self.changes = {}, {}, {}, []
        self.views = {keccak(s.encode())[:4]: f for s, f in (
            ("adapterAt(bytes32,uint64)", self._adapter_at), ("adapters(bytes32)", self._owner), ("notice()", lambda _: word(self.notice_s)),
            ("datanetVersion(bytes32,uint64)", self._datanet), ("tariffAt(uint32,bytes32,uint64)", self._tariff_at))}
        node = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if node.dead:
                    self.close_connection = True
                    return
                answer = json.dumps({"jsonrpc": "2.0", "id": asked["id"], **node.answer(asked["method"], asked["params"])}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()

    def flags(self, lane=1):
        return ("--chain-id", CHAIN_ID, "--ledger", LEDGER, "--registry", REGISTRY, "--registry-rpc-url", self.url, "--lane", lane)

    # ---- what the test writes ----

    def _changed(self, id):
        self.block += 1
        self.changes.append((self.block, id))

    def adapter(self, id, *, owner, price, split, datanet=("0x0", 0), parents=(), active_at=None):
        """Another entry of this id, in force from active_at on (default: now)."""
        id, at = "0x" + id.removeprefix("0x"), int(time.time()) - 1 if active_at is None else active_at
        with self.lock:
            self.adapters.setdefault(id, []).append((at, owner, price, split, datanet, parents))
            self._changed(id)

    def datanet(self, id, version, documents):
        owners = count_owners(documents)
        with self.lock:
            self.datanets[id, version] = (document_root(documents), owner_root(owners), len(documents), len(owners))
            self._changed(id)

    def tariff(self, model_id, price, lane=1, active_at=1):
        with self.lock:
            self.tariffs.setdefault((lane, "0x" + model_id.removeprefix("0x")), []).append((active_at, *price))
            self._changed("0x" + model_id.removeprefix("0x"))

    def deployment(self, path):
        """A deployment file that names this Registry: what the command line signs for."""
        zero, none = "0x" + "00" * 32, "0x" + "00" * 20
        Path(path).write_text(json.dumps({"chain_id": CHAIN_ID, "genesis_hash": zero, "registry": REGISTRY, "ledger": LEDGER, "vault": none, "token": none,
                                          "code_hash": {k: zero for k in ("ledger", "registry", "vault")}, "start_block": 1}))
        return Path(path)

    def register_demo(self, server, adapters):
        """The base's tariff, and every adapter that the server has from this folder of signed copies, each with its datanet, as its files declare."""
        base = json.loads((DEMO / "base_publish.json").read_text())["pricesPer1000Tokens"]
        self.tariff(server.get("/version")[1]["model_id"], (int(base["in"]), int(base["out"])))
        for a in server.get("/v1/adapters")[1]["data"]:
            folder = adapters / a["name"]
            publish, net = (json.loads((folder / f).read_text()) for f in ("publish.json", "datanet.json"))
            net_id = net["datanetId"]
            self.datanet(net_id, net["version"], net["documents"])
            price = publish["pricesPer1000Tokens"]
            split = sorted((ROLES[e["role"]], e["payee"].lower(), e["bps"]) for e in publish["split"])
            self.adapter(a["id"], owner=publish["owner"], price=(int(price["in"]), int(price["out"])), split=split, datanet=(net_id, net["version"]))

    # ---- what the server reads ----

    def _entry(self, id, t):
        return next((e for e in reversed(self.adapters.get(id, [])) if e[0] <= t), None)

    def _adapter_at(self, args):
        e = self._entry("0x" + args[:32].hex(), int.from_bytes(args[32:64], "big"))
        if not e:
            return word(32) + bytes(32) * 7 + word(9 * 32) + word(10 * 32) + bytes(64)
        at, _, price, split, (net, version), parents = e
        head = [word(1), word(at), bytes(32), word(net), word(version), word(price[0]), word(price[1]), word(9 * 32), word((10 + 3 * len(split)) * 32)]
        return word(32) + b"".join(head) + word(len(split)) + b"".join(word(payee) + word(role) + word(bps) for role, payee, bps in split) + \
            word(len(parents)) + b"".join(word(p) + word(bps) for p, bps in parents)

    def _owner(self, args):
        e = self._entry("0x" + args[:32].hex(), FOREVER)
        return (word(e[1]) if e else bytes(32)) + bytes(32) * 8

    def _datanet(self, args):
        found = self.datanets.get(("0x" + args[:32].hex(), int.from_bytes(args[32:64], "big")))
        if not found:
            return bytes(32 * 8)
        return word(1) + word(1) + args[32:64] + word(found[0]) + word(found[1]) + word(found[2]) + word(found[3]) + word(1)

    def _tariff_at(self, args):
        all = self.tariffs.get((int.from_bytes(args[:32], "big"), "0x" + args[32:64].hex()), [])
        e = next((e for e in reversed(all) if e[0] <= int.from_bytes(args[64:96], "big")), (0, 0, 0))
        return b"".join(map(word, e))

    def _block(self, tag):
        number = self.block if tag in ("latest", "safe", "finalized") else int(tag, 16)
        return {"number": hex(number), "timestamp": hex(int(time.time()) - self.age_s), "baseFeePerGas": "0x0",
                **{k: "0x" + keccak(f"{k}{number}".encode()).hex() for k in ("hash", "parentHash", "mixHash")}}

    def _logs(self, q):
        first, last = int(q["fromBlock"], 16), int(q["toBlock"], 16)
        return [{"address": REGISTRY, "topics": ["0x" + "aa" * 32, "0x" + id[2:].zfill(64)], "data": "0x", "blockNumber": hex(block), "logIndex": "0x0",
                 "blockHash": "0x" + "bb" * 32, "transactionHash": "0x" + "cc" * 32} for block, id in self.changes if first <= block <= last]

    def answer(self, method, params):
        with self.lock:
            if method == "eth_chainId":
                return {"result": hex(CHAIN_ID)}
            if method == "eth_getBlockByNumber":
                return {"result": self._block(params[0])}
            if method == "eth_getLogs":
                return {"result": self._logs(params[0])}
            if method == "eth_call":
                data = bytes.fromhex(params[0]["data"][2:])
                view = self.views.get(data[:4])
                if params[0]["to"].lower() != REGISTRY:  # no contract there
                    return {"result": "0x"}
                return {"result": "0x" + view(data[4:]).hex()} if view else {"error": {"code": 3, "message": "execution reverted"}}
            return {"error": {"code": -32601, "message": f"{method} is not served here"}}


def wait_registered(server, *names, wait_s=20):
    """Until the server has read that these adapters (default: all it lists) are registered; their entries of the listing by name."""
    from server import wait_for

    def read():
        listed = {a["name"]: a for a in server.get("/v1/adapters")[1]["data"]}
        wanted = names or listed
        return listed if all(listed[n]["registered"] for n in wanted) else None
    return wait_for(read, wait_s, what="the server to read what is registered")

"""A chain of views for tests: what a node would answer about one world of contracts, without running them. The JSON-RPC methods that a
reader uses, in this process (Node.answer) or over HTTP (serve), from plain Python lists of what was written when."""
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from recompute import COMMITTED, E9, PROPOSED, ZERO20, ZERO32, be, hexed, keccak, words

BLOCK_S = 30


def at(history, t):
    """The value of [(active_at, value)], ascending, that is in force at t, or None."""
    return next((value for active_at, value in reversed(history) if active_at <= t), None)


def block_hash(n):
    return keccak(b"block" + be(n, 8))


class Node:
    def __init__(self, chain_id, start_s, token=ZERO20):
        self.chain_id, self.start_s, self.blocks = chain_id, start_s, 1
        self.registry, self.ledger, self.vault, self.token = (keccak(name + be(chain_id, 8))[:20] for name in (b"registry", b"ledger", b"vault", b"token"))
        self.token = self.token if any(token) else ZERO20
        # registry: histories by key
        self.policies, self.bases, self.adapters, self.tariffs, self.versions, self.methods = [], {}, {}, {}, {}, {}
        # ledger
        self.keys, self.operators, self.rates, self.delay, self.batch_hash, self.committed, self.cum_fee = {}, {}, [(0, E9)], 0, {}, [], 0
        # vault
        self.start_seq, self.start_cum_fee, self.epochs, self.proposed = 0, 0, {}, []

    def block_at(self, t):
        """The first block whose time is t or later; blocks up to it exist from now on."""
        n = max(0, -(-(t - self.start_s) // BLOCK_S))
        self.blocks = max(self.blocks, n + 1)
        return n

    def deployment(self):
        return {"chain_id": self.chain_id, "genesis_hash": hexed(block_hash(0)), "start_block": 0,
                **{name: hexed(getattr(self, name)) for name in ("registry", "ledger", "vault", "token")},
                "code_hash": {name: hexed(keccak(name.encode())) for name in ("registry", "ledger", "vault")}}

    # ---- views ----

    def adapter_at(self, id_, t):
        e = at(self.adapters.get(id_, []), t)
        if e is None:
            return words(32, 0, 0, ZERO32, ZERO32, 0, 0, 0, 9 * 32, 10 * 32, 0, 0)
        split, parents = words(len(e["split"]), *(v for row in e["split"] for v in row)), words(len(e["parents"]), *(v for row in e["parents"] for v in row))
        return words(32, 1, e["active_at"], e["model"], e["datanet"], e["version"], *e["price"], 9 * 32, 9 * 32 + len(split)) + split + parents

    def base_at(self, id_, t):
        split = at(self.bases.get(id_, []), t)
        return words(split is not None, 64, len(split or ()), *(v for row in split or () for v in row))

    def tariff_at(self, lane, model, t):
        entry = at([(a, (a, *price)) for a, price in self.tariffs.get((lane, model), [])], t)
        return words(*(entry or (0, 0, 0)))

    def datanet_version(self, id_, version):
        v = self.versions.get((id_, version))
        return words(1, v["active_at"], version, keccak(b"documents"), v["root"], v["documents"], v["owners"], ZERO32) if v else words(*[0] * 8)

    def epoch(self, e):
        v = self.epochs.get(e)
        return words(v["root"], v["total"], v["active_at"], v["leaves"], v["disabled"], v["paid"], v["evidence"], v["previous"]) if v else words(*[0] * 8)

    def live(self):
        return max((e for e, v in self.epochs.items() if not v["disabled"]), default=0)

    def view(self, signature, args):
        def n(i):
            return int.from_bytes(args[i], "big")
        live = self.live()
        total = self.epochs[live]["total"] if live else 0
        views = {
            "policyAt(uint64)": lambda: words(*at(self.policies, n(0)), 0),
            "baseAt(bytes32,uint64)": lambda: self.base_at(args[0], n(1)),
            "adapterAt(bytes32,uint64)": lambda: self.adapter_at(args[0], n(1)),
            "tariffAt(uint32,bytes32,uint64)": lambda: self.tariff_at(n(0), args[1], n(2)),
            "datanetVersion(bytes32,uint64)": lambda: self.datanet_version(args[0], n(1)),
            "methodRegisteredAt(bytes32)": lambda: words(self.methods.get(args[0], 0)),
            "head()": lambda: words(len(self.committed), 0, self.cum_fee),
            "batchHash(uint64)": lambda: self.batch_hash.get(n(0), ZERO32),
            "laneKey(uint32,uint64)": lambda: words(at(self.keys.get(n(0), []), n(1)) or ZERO20),
            "laneOperatorAt(uint32,uint64)": lambda: words(at(self.operators.get(n(0), []), n(1)) or ZERO20),
            "rateAt(uint64)": lambda: words(at(self.rates, n(0))),
            "beaconDelay()": lambda: words(self.delay),
            "epochs(uint64)": lambda: self.epoch(n(0)),
            "startSeq()": lambda: words(self.start_seq), "startCumFee()": lambda: words(self.start_cum_fee),
            "lastEpoch()": lambda: words(max(self.epochs, default=0)), "lastLive()": lambda: words(live),
            "funded()": lambda: words(total), "held()": lambda: words(total)}
        return views[signature]() if signature in views else words(0)

    SELECTORS = {keccak(s.encode())[:4]: s for s in (
        "policyAt(uint64)", "baseAt(bytes32,uint64)", "adapterAt(bytes32,uint64)", "tariffAt(uint32,bytes32,uint64)",
        "datanetVersion(bytes32,uint64)", "methodRegisteredAt(bytes32)", "head()", "batchHash(uint64)", "laneKey(uint32,uint64)",
        "laneOperatorAt(uint32,uint64)", "rateAt(uint64)", "beaconDelay()", "epochs(uint64)", "startSeq()", "startCumFee()", "lastEpoch()",
        "lastLive()", "funded()", "held()")}

    # ---- JSON-RPC ----

    def block(self, tag):
        n = {"earliest": 0}.get(tag, self.blocks - 1) if not tag.startswith("0x") else int(tag, 16)
        return {"number": hex(n), "timestamp": hex(self.start_s + BLOCK_S * n), "hash": hexed(block_hash(n)), "parentHash": hexed(block_hash(n - 1) if n else ZERO32),
                "mixHash": hexed(keccak(b"mix" + be(n, 8))), "baseFeePerGas": "0x1"} if n < self.blocks else None

    def logs(self, query):
        committed = [(self.ledger, COMMITTED, seq, hash_, data, block) for seq, hash_, data, block in self.committed]
        proposed = [(self.vault, PROPOSED, e, root, data, block) for e, root, data, block in self.proposed]
        out = []
        for where, event, key, second, data, block in committed + proposed:
            topics = [hexed(keccak(event.encode())), hexed(be(key, 32)), hexed(second)]
            wanted = query["topics"] + [None] * 3
            low, high = int(query["fromBlock"], 16), int(query["toBlock"], 16)
            if hexed(where) == query["address"].lower() and low <= block <= high and all(w in (None, t) for w, t in zip(wanted, topics)):
                out.append({"address": hexed(where), "topics": topics, "data": hexed(data), "blockNumber": hex(block), "logIndex": "0x0",
                            "blockHash": hexed(block_hash(block)), "transactionHash": hexed(keccak(data)), "removed": False})
        return out

    def answer(self, method, params):
        if method == "eth_chainId":
            return hex(self.chain_id)
        if method == "eth_getBlockByNumber":
            return self.block(params[0])
        if method == "eth_getCode":
            return next(hexed(name.encode()) for name in ("registry", "ledger", "vault") if hexed(getattr(self, name)) == params[0].lower())
        if method == "eth_getLogs":
            return self.logs(params[0])
        assert method == "eth_call", method
        data = bytes.fromhex((params[0].get("data") or params[0]["input"])[2:])
        args = [data[i:i + 32] for i in range(4, len(data), 32)]
        return hexed(self.view(self.SELECTORS.get(data[:4], ""), args))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = [{"jsonrpc": "2.0", "id": c["id"], "result": self.server.node.answer(c["method"], c["params"])} for c in (asked if isinstance(asked, list) else [asked])]
        text = json.dumps(said if isinstance(asked, list) else said[0]).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n".encode()
        self.wfile.write(head + text)

    def setup(self):
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().setup()


def serve():
    """A server of whatever node is set as its .node; its address is .url."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server

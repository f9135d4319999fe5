#!/usr/bin/env python3
"""Recomputes batches and epochs from a published archive and the chain, by chain_client/SPEC.md alone.

The idea: shares nothing with the programs it judges. Plain Python, no package, no module of the project; Keccak, key recovery, ABI and
canonical JSON are written here from the page ("section 3" below is the page's). The chain says what was committed, the records say what
it should have been. Every JSON file is rendered anew and compared byte by byte; the one thing read out of such a file are the owners' lists,
which count by their root alone.

    recompute.py --archive DIR --deployment deployment.json --rpc URL [--batch N | --epoch N]

--batch N: batches 1 to N. --epoch N (default the last one proposed): every epoch up to N and every batch that they pay or take evidence
from. One line per group of checks; "faults" are records that break a rule and are worth what the page says. Exit 0: all agrees;
1: differences, each with its file, or faults; 2: could not look.
"""
import argparse
import functools
import json
import struct
import sys
import urllib.request
from collections import defaultdict
from pathlib import Path

E9 = 10 ** 9
MAX_BATCH, MAX_ADAPTERS, MAX_SHARES, NAMED_SECONDS = 1 << 17, 8, 64, 600
ZERO20, ZERO32 = bytes(20), bytes(32)

# ---- Keccak-256: rate 136, padding 0x01 ----

LANES = (1 << 64) - 1


def keccak_tables():
    """(round constants, [(source lane, rotation)] by target lane of rho and pi), from the definition's LFSR and walk."""
    constants, lfsr = [], 1
    for _ in range(24):
        constant = 0
        for j in range(7):
            constant |= (lfsr & 1) << ((1 << j) - 1)
            lfsr = (lfsr << 1) ^ (0x171 if lfsr & 0x80 else 0)
        constants.append(constant)
    moves, x, y = [(0, 0)] * 25, 1, 0
    for t in range(24):
        moves[y + 5 * ((2 * x + 3 * y) % 5)] = (x + 5 * y, (t + 1) * (t + 2) // 2 % 64)
        x, y = y, (2 * x + 3 * y) % 5
    return constants, moves


ROUNDS, MOVES = keccak_tables()


def keccak_f(a):
    for constant in ROUNDS:
        c0, c1, c2, c3, c4 = (a[x] ^ a[x + 5] ^ a[x + 10] ^ a[x + 15] ^ a[x + 20] for x in range(5))
        d = (c4 ^ (c1 << 1 & LANES | c1 >> 63), c0 ^ (c2 << 1 & LANES | c2 >> 63), c1 ^ (c3 << 1 & LANES | c3 >> 63),
             c2 ^ (c4 << 1 & LANES | c4 >> 63), c3 ^ (c0 << 1 & LANES | c0 >> 63)) * 5
        a = [u ^ v for u, v in zip(a, d)]
        b = [a[s] << r & LANES | a[s] >> 64 - r for s, r in MOVES]
        a = []
        for y in (0, 5, 10, 15, 20):
            b0, b1, b2, b3, b4 = b[y:y + 5]
            a += (b0 ^ ~b1 & b2, b1 ^ ~b2 & b3, b2 ^ ~b3 & b4, b3 ^ ~b4 & b0, b4 ^ ~b0 & b1)
        a[0] ^= constant
    return a


@functools.lru_cache(maxsize=1 << 16)
def keccak(data):
    padded = bytearray(data) + bytes(136 - len(data) % 136)
    padded[len(data)] ^= 0x01
    padded[-1] ^= 0x80
    a = [0] * 25
    for at in range(0, len(padded), 136):
        a = keccak_f([u ^ v for u, v in zip(a, struct.unpack_from("<17Q", padded, at))] + a[17:])
    return struct.pack("<4Q", *a[:4])


# ---- secp256k1: the address whose key signed ----

P, ORDER = 2 ** 256 - 2 ** 32 - 977, 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
BASE = (0x79BE667EF9DCBBAC55A06295CE870B07029BFCDB2DCE28D959F2815B16F81798,
        0x483ADA7726A3C4655DA4FBFC0E1108A8FD17B448A68554199C47D08FFB10D4B8, 1)


def double(p):
    """Points are (X, Y, Z) with x = X/Z^2 and y = Y/Z^3; Z = 0 is the point at infinity."""
    x, y, z = p
    yy = y * y % P
    s, m = 4 * x * yy % P, 3 * x * x % P
    x3 = (m * m - 2 * s) % P
    return x3, (m * (s - x3) - 8 * yy * yy) % P, 2 * y * z % P


def add(p, q):
    if not p[2] or not q[2]:
        return p if p[2] else q
    (x1, y1, z1), (x2, y2, z2) = p, q
    zz1, zz2 = z1 * z1 % P, z2 * z2 % P
    u, s = x1 * zz2 % P, y1 * zz2 * z2 % P
    h, r = (x2 * zz1 - u) % P, (y2 * zz1 * z1 - s) % P
    if not h:
        return (1, 1, 0) if r else double(p)
    hh = h * h % P
    hhh, v = h * hh % P, u * hh % P
    x3 = (r * r - hhh - 2 * v) % P
    return x3, (r * (v - x3) - s * hhh) % P, h * z1 * z2 % P


@functools.lru_cache(maxsize=1 << 16)
def recover(digest, signature):
    """The signer's address, or None: r and s in 1 .. order - 1, s in the lower half, v 27 or 28."""
    r, s, v = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big"), signature[64]
    if not 0 < r < ORDER or not 0 < s <= ORDER // 2 or v not in (27, 28):
        return None
    y = pow(r ** 3 + 7, (P + 1) // 4, P)
    if (y * y - r ** 3 - 7) % P:
        return None
    point = (r, y if y % 2 == v - 27 else P - y, 1)
    inverse = pow(r, -1, ORDER)
    u, w = -int.from_bytes(digest, "big") * inverse % ORDER, s * inverse % ORDER
    both, sum_ = add(BASE, point), (1, 1, 0)
    for bit in range(255, -1, -1):  # u·BASE + w·point, both at once
        sum_ = double(sum_)
        which = (u >> bit & 1) + 2 * (w >> bit & 1)
        if which:
            sum_ = add(sum_, (BASE, point, both)[which - 1])
    if not sum_[2]:
        return None
    z = pow(sum_[2], -1, P)
    return keccak((sum_[0] * z * z % P).to_bytes(32, "big") + (sum_[1] * z ** 3 % P).to_bytes(32, "big"))[12:]


# ---- ABI words and canonical JSON ----

def be(value, size):
    return value.to_bytes(size, "big")


def word(value):
    return be(value, 32) if isinstance(value, int) else value.rjust(32, b"\0") if len(value) == 20 else value


def words(*values):
    return b"".join(word(v) for v in values)


def number(data, at):
    return int.from_bytes(data[32 * at:32 * at + 32], "big")


def address(data, at):
    return data[32 * at + 12:32 * at + 32]


def rows(data, at, width):
    """The dynamic array of `width`-word structs whose offset is word `at`: lists of words as bytes."""
    start = number(data, at) // 32
    return [[data[32 * (start + 1 + width * i + k):][:32] for k in range(width)] for i in range(number(data, start))]


def text_domain(text, *values):
    """keccak(abi.encode(string, values..))"""
    raw = text.encode()
    return keccak(words(32 * (1 + len(values)), *values, len(raw)) + raw.ljust(-(-len(raw) // 32) * 32, b"\0"))


def hexed(data):
    return "0x" + data.hex()


def canonical(value):
    return (json.dumps(value, sort_keys=True, separators=(",", ":")) + "\n").encode()


# ---- section 2: records ----

STRUCTS = {
    1: "Inference(uint8 spec,uint32 lane,uint64 seq,bytes32 requestId,bytes32 appCommit,bytes32 modelId,bytes32 adapterSetHash,"
       "uint32 tokensIn,uint32 tokensOut,uint128 fee,bytes32 tariffHash,bytes32 paramsHash,bytes32 engineId,uint64 startMs,uint64 endMs,"
       "uint8 status,bytes32 promptCommit,bytes32 outputCommit)",
    2: "Attribution(uint8 spec,uint32 lane,uint64 seq,uint64 infSeq,bytes32 infDigest,bytes32 methodHash,bytes32 indexHash,"
       "bytes32 inputsDigest,uint8 outcome,bytes32 influenceHash)",
    3: "Void(uint8 spec,uint32 lane,uint64 seq,uint8 reason)"}
TAILS = {1: (("set", "adapterSetHash"), ("tariff", "tariffHash"), ("params", "paramsHash")), 2: (("influence", "influenceHash"),), 3: ()}
SIZES = {"uint8": 1, "uint32": 4, "uint64": 8, "uint128": 16, "bytes32": 32}
FIELDS = {kind: [(name, SIZES[type_]) for type_, name in (f.split() for f in text[text.index("(") + 1:-1].split(","))]
          for kind, text in STRUCTS.items()}
DOMAIN = "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"


class Wrong(Exception):
    """What is wrong with one record or file."""


class Record:
    """One record: its fields and tails by name, .signature, and .struct, the words that its digest covers."""

    def __init__(self, raw):
        if len(raw) < 2 or raw[1] not in STRUCTS:
            raise Wrong(f"type {raw[1] if len(raw) > 1 else 'none'}, not 1 to 3")
        self.type, at, self.struct = raw[1], 0, keccak(STRUCTS[raw[1]].encode())
        for name, size in FIELDS[self.type]:
            data = raw[at:at + size]
            setattr(self, name, data if size == 32 else int.from_bytes(data, "big"))
            self.struct += data.rjust(32, b"\0")
            at += size + (name == "spec")  # the type byte stands after spec and is no field of the struct
        for name, _ in TAILS[self.type]:
            size = int.from_bytes(raw[at:at + 4], "big")
            setattr(self, name, raw[at + 4:at + 4 + size])
            at += 4 + size
        self.signature = raw[at:]
        if len(self.signature) != 65:
            raise Wrong(f"{len(raw)} bytes, {at} before the signature leave {len(raw) - at}, not 65")
        self.adapters = [(self.set[i:i + 32], int.from_bytes(self.set[i + 32:i + 36], "big", signed=True))
                         for i in range(0, len(self.set), 36)] if self.type == 1 else []

    def check(self):
        """Every rule of one record but its signature."""
        for name, field in TAILS[self.type]:
            self.demand(keccak(getattr(self, name)) == getattr(self, field), f"{field} is not keccak of the tail {name}")
        self.demand(self.spec == 1, f"spec {self.spec}, not 1")
        self.demand(self.seq >= 1, "seq 0")
        (self.check_inference, self.check_attribution, self.check_void)[self.type - 1]()

    def demand(self, good, text):
        if not good:
            raise Wrong(text)

    def check_inference(self):
        ids = [a for a, _ in self.adapters]
        self.demand(len(self.set) % 36 == 0 and len(ids) <= MAX_ADAPTERS, f"the set has {len(self.set)} bytes, not 36 each of at most {MAX_ADAPTERS}")
        self.demand(all(a < b for a, b in zip(ids, ids[1:])), "the set's ids do not ascend")
        self.demand(all(weight for _, weight in self.adapters), "a weight of the set is 0")
        self.demand(len(self.tariff) == 32 * (1 + len(ids)), f"the tariff has {len(self.tariff)} bytes, not {32 * (1 + len(ids))}")
        prices = [int.from_bytes(self.tariff[i:i + 16], "big") for i in range(0, len(self.tariff), 16)]
        self.demand(all(p < 1 << 80 for p in prices), "a price of the tariff is 2^80 or more")
        self.demand(len(self.params) == 143, f"params has {len(self.params)} bytes, not 143")
        for at in (10, 14, 22, 26, 30, 34):
            bits = int.from_bytes(self.params[at:at + 4], "big")
            self.demand(bits >> 23 & 0xFF != 0xFF and bits != 1 << 31, f"params: the float at {at} is not finite or is -0")
        self.demand(self.params[46] <= 3, f"params: unknown flags {self.params[46]}")
        self.demand(1 <= self.status <= 3, f"status {self.status}, not 1 to 3")
        self.demand(self.endMs >= self.startMs, f"endMs {self.endMs} before startMs {self.startMs}")
        fee = 0 if self.status == 3 else (self.tokensIn * sum(prices[::2]) + self.tokensOut * sum(prices[1::2])) // 1000
        self.demand(self.fee == fee, f"fee {self.fee}, the formula says {fee}")

    def check_attribution(self):
        self.demand(1 <= self.infSeq < self.seq, f"infSeq {self.infSeq}, not in 1 .. {self.seq - 1}")
        self.demand(self.outcome <= 4, f"outcome {self.outcome}, not 0 to 4")
        self.demand((self.outcome == 0) == (self.influence != b""), f"outcome {self.outcome} with {len(self.influence)} bytes of influence")
        self.scores()

    def check_void(self):
        self.demand(self.reason in (1, 2), f"reason {self.reason}, not 1 or 2")

    def scores(self):
        """[(gain, [(payee, ppb)])] of the influence."""
        out, at, data = [], 0, self.influence
        while at < len(data):
            gain, n = int.from_bytes(data[at:at + 4], "big"), int.from_bytes(data[at + 4:at + 5], "big")
            self.demand(at + 5 + 24 * n <= len(data), f"the influence ends within adapter {len(out)}")
            shares = [(data[i:i + 20], int.from_bytes(data[i + 20:i + 24], "big")) for i in range(at + 5, at + 5 + 24 * n, 24)]
            self.demand(n <= MAX_SHARES, f"the influence gives adapter {len(out)} {n} payees")
            self.demand(all(a[0] < b[0] for a, b in zip(shares, shares[1:])), f"the payees of adapter {len(out)} do not ascend")
            self.demand(not n or sum(p for _, p in shares) == E9, f"the ppb of adapter {len(out)} do not sum to {E9}")
            out.append((gain, shares))
            at += 5 + 24 * n
        self.demand(not out or sum(g for g, _ in out) == E9, f"the gains do not sum to {E9}")
        self.demand(len(out) <= MAX_ADAPTERS, f"the influence lists {len(out)} adapters")
        return out


def parse_records(data):
    out, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at:at + 4], "big")
        if at + 4 + size > len(data):
            raise Wrong(f"the record at byte {at} says {size} bytes, {len(data) - at - 4} are left")
        try:
            out.append(Record(data[at + 4:at + 4 + size]))
            out[-1].check()
        except Wrong as wrong:
            raise Wrong(f"record {len(out)} at byte {at}: {wrong}") from None
        at += 4 + size
    return out


# ---- section 3: trees ----

def tree(leaves, pad, tag):
    """(hash, sum) of the root over [(hash, sum)], padded on the right to a power of two."""
    level = leaves + [(pad, 0)] * ((1 << (len(leaves) - 1).bit_length()) - len(leaves))
    while len(level) > 1:
        level = [(keccak(tag + a + be(x, 16) + b + be(y, 16)), x + y) for (a, x), (b, y) in zip(level[::2], level[1::2])]
    return level[0]


def owners_root(owners):
    """The root of a datanet version's owners, [(address, documents)], strictly ascending."""
    domain = keccak(b"residual.owners.1")
    level = [keccak(b"\x20" + domain + be(i, 4) + owner + be(documents, 4)) for i, (owner, documents) in enumerate(owners)]
    level += [keccak(b"\x22" + domain)] * ((1 << (len(level) - 1).bit_length()) - len(level))
    while len(level) > 1:
        level = [keccak(b"\x21" + a + b) for a, b in zip(level[::2], level[1::2])]
    return level[0]


# ---- section 9: the chain, read at one finalized block ----

COMMITTED = ("BatchCommitted(uint64,bytes32,(uint64,uint8,bytes32,bytes32,bytes32,uint32,uint32,uint128,uint128,uint64),"
             "(uint32,uint64,uint64)[])")
PROPOSED = "Proposed(uint64,bytes32,uint128,uint32,uint64,uint64,bytes32,uint64)"
LOG_SPAN, CALLS = 5000, 100


class Chain:
    """Views and events as of the finalized block at the start; each is asked once."""

    def __init__(self, url, deployment):
        self.url, self.said, self.blocks = url, {}, {}
        self.chain_id, self.start_block, self.code_hash = deployment["chain_id"], deployment["start_block"], deployment["code_hash"]
        for name in ("genesis_hash", "registry", "ledger", "vault", "token"):
            setattr(self, name, bytes.fromhex(deployment[name][2:]))
        self.top = self.block("finalized")
        self.at = self.top["number"]
        self.batches, self.proposals = {}, {}
        for log in self.logs(self.ledger, COMMITTED):
            data = bytes.fromhex(log["data"][2:])
            self.batches[int(log["topics"][1], 16), bytes.fromhex(log["topics"][2][2:])] = (
                [data[32 * i:32 * i + 32] for i in range(10)], [[int.from_bytes(w, "big") for w in row] for row in rows(data, 10, 3)],
                int(log["blockNumber"], 16))
        for log in self.logs(self.vault, PROPOSED):
            self.proposals[int(log["topics"][1], 16)] = bytes.fromhex(log["topics"][2][2:]), bytes.fromhex(log["data"][2:])

    def ask(self, *calls):
        """The results of [(method, params..)], in order, in one request."""
        body = [{"jsonrpc": "2.0", "id": i, "method": method, "params": params} for i, (method, *params) in enumerate(calls)]
        request = urllib.request.Request(self.url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as reply:
            said = json.load(reply)
        if not isinstance(said, list):
            raise OSError(f"{self.url} does not answer a list of requests: {said}")
        answers = {a.get("id"): a for a in said}
        for i, call in enumerate(calls):
            if answers.get(i, {}).get("result") is None:
                raise OSError(f"{call[0]}: {answers.get(i, {}).get('error', 'no answer')}")
        return [answers[i]["result"] for i in range(len(calls))]

    def block(self, number):
        if number not in self.blocks:
            block = self.ask(("eth_getBlockByNumber", number if isinstance(number, str) else hex(number), False))[0]
            self.blocks[number] = {"number": int(block["number"], 16), "time": int(block["timestamp"], 16),
                                   "hash": bytes.fromhex(block["hash"][2:]), "mix": bytes.fromhex(block["mixHash"][2:])}
        return self.blocks[number]

    def first_at(self, time):
        """The first block whose time is >= time, or None."""
        low, high = self.start_block, self.at + 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.block(middle)["time"] >= time else (middle + 1, high)
        return self.block(low) if low <= self.at else None

    def logs(self, contract, event):
        """In the order of the chain."""
        for first in range(self.start_block, self.at + 1, LOG_SPAN):
            yield from self.ask(("eth_getLogs", {"address": hexed(contract), "topics": [hexed(keccak(event.encode()))], "fromBlock": hex(first),
                                                 "toBlock": hex(min(first + LOG_SPAN - 1, self.at))}))[0]

    def load(self, views):
        """Asks what view() is going to be asked."""
        views = [v for v in dict.fromkeys(views) if v not in self.said]
        for i in range(0, len(views), CALLS):
            calls = [("eth_call", {"to": hexed(to), "data": hexed(keccak(name.encode())[:4] + words(*args))}, hex(self.at))
                     for to, name, *args in views[i:i + CALLS]]
            for view, result in zip(views[i:i + CALLS], self.ask(*calls)):
                self.said[view] = bytes.fromhex(result[2:])

    def batch(self, seq):
        """(header words, lanes, block) of the newest event whose hash the ledger keeps, or None."""
        return self.batches.get((seq, self.view(self.ledger, "batchHash(uint64)", seq)))

    def view(self, *view):
        """The bytes that (contract, signature, arguments..) returns."""
        self.load([view])
        return self.said[view]


# ---- what was found ----

class Report:
    """Checks by group, in the order of their first use, each with what differed."""

    def __init__(self):
        self.groups, self.faults = {}, []

    def check(self, group, good, where, text):
        count, wrong = self.groups.setdefault(group, (0, []))
        self.groups[group] = count + 1, wrong if good else wrong + [f"{where}: {text}"]
        return good

    def compare(self, group, where, found, expected):
        """A file's bytes against what it must be."""
        at = next((i for i, (a, b) in enumerate(zip(found, expected)) if a != b), min(len(found), len(expected)))
        return self.check(group, found == expected, where,
                          f"byte {at}: {len(found)} bytes, there {found[at:at + 40]!r}, recomputed {expected[at:at + 40]!r}")

    def print(self):
        for group, (count, wrong) in self.groups.items():
            print(f"{'DIFFERS' if wrong else 'agrees '} {group}: {count} checks" + (f", {len(wrong)} differ" if wrong else ""))
            for text in wrong[:20]:
                print(f"        {text}")
        for text in self.faults[:20]:
            print(f"fault   {text}")
        return 1 if self.faults or any(wrong for _, wrong in self.groups.values()) else 0


# ---- section 5: largest remainder ----

def lr(x, w):
    """x in whole units by the weights w; nothing by no weights."""
    total = sum(w)
    if not total:
        return [0] * len(w)
    out = [x * v // total for v in w]
    for i in sorted(range(len(w)), key=lambda i: (-(x * w[i] % total), i))[:x - sum(out)]:
        out[i] += 1
    return out


class Batch:
    """A batch whose records were read: .records in order, .cum_fee, .closed_at, .hash, and .block, the number of its event's block."""


class Audit:
    def __init__(self, chain, archive):
        self.chain, self.archive, self.report = chain, Path(archive), Report()
        self.batches, self.earlier, self.next = {}, None, defaultdict(lambda: 1)
        self.answers, self.requests, self.scored_by = {}, {}, {}  # by (lane, seq), requestId, (lane, infSeq)
        self.domain = self.separator(chain.ledger)
        self.log_domain = text_domain("residual.log.1", chain.chain_id, chain.ledger)
        self.epochs = {0: {"paid": self.number("startSeq()"), "root": ZERO32, "cumulative": {}}}

    def separator(self, contract):
        return keccak(words(keccak(DOMAIN.encode()), keccak(b"residual"), keccak(b"1"), self.chain.chain_id, contract))

    def number(self, view, *args, at=0):
        return number(self.chain.view(self.chain.vault, view, *args), at)

    def file(self, group, folder, name):
        path = self.archive / folder / name
        good = self.report.check(group, path.is_file(), f"{folder}/{name}", "is missing")
        return path.read_bytes() if good else b""

    def check_chain(self):
        chain, check = self.chain, self.report.check
        said, genesis = int(chain.ask(("eth_chainId",))[0], 16), chain.block(0)["hash"]
        check("chain", said == chain.chain_id, "deployment.json", f"chain_id {chain.chain_id}, the node says {said}")
        check("chain", genesis == chain.genesis_hash, "deployment.json", f"genesis_hash, the node has {hexed(genesis)}")
        for name, expected in chain.code_hash.items():
            code = bytes.fromhex(chain.ask(("eth_getCode", hexed(getattr(chain, name)), hex(chain.at)))[0][2:])
            check("chain", hexed(keccak(code)) == expected, "deployment.json", f"code_hash of {name}, the chain has {hexed(keccak(code))}")

    # ---- batches ----

    def check_batch(self, seq):
        """True when the batch is what the ledger has; later ones and epochs are recomputed only then."""
        folder, chain, check = f"batch-{seq:08}", self.chain, self.report.check
        if not check("ledger", chain.batch(seq), folder, "the ledger has no such batch"):
            return False
        header, lanes, block = chain.batch(seq)
        b = Batch()
        b.block, b.closed_at = block, int.from_bytes(header[9], "big")
        raw = self.file("records", folder, "records.bin")
        manifest = self.file("batch manifests", folder, "manifest.json")
        named = check("batch manifests", keccak(manifest) == header[4], f"{folder}/manifest.json",
                      f"its keccak is {hexed(keccak(manifest))}, the ledger's header has {hexed(header[4])}")
        try:
            b.records = parse_records(raw)
            mine = self.ranges(b.records)
        except Wrong as wrong:
            return check("records", False, f"{folder}/records.bin", str(wrong))
        check("records", True, folder, "parse")
        self.check_signatures(f"{folder}/records.bin", b.records)
        for r in b.records:
            if r.type == 1:
                r.t0 = min(r.startMs // 1000, b.closed_at)
        listed = [{"first": f, "lane": lane, "last": last} for lane, f, last in mine]
        mine_manifest = canonical({
            "batch": seq, "chain_id": chain.chain_id, "closed_at": b.closed_at, "format": "residual.batch.1", "lanes": listed,
            "ledger": hexed(chain.ledger), "record_count": len(b.records), "spec": 1,
            "records": {"bytes": len(raw), "file": "records.bin", "keccak": hexed(keccak(raw))}})
        where = f"{folder}/{'records.bin, by manifest.json' if named else 'manifest.json'}"
        self.report.compare("batch manifests", where, manifest, mine_manifest)
        root, fees = self.log_tree(b.records)
        inferences = sum(r.type == 1 for r in b.records)
        before = self.earlier
        b.cum_fee = (before.cum_fee if before else 0) + fees
        mine_header = [seq, 1, before.hash if before else ZERO32, root, keccak(mine_manifest), len(b.records), inferences, fees,
                       b.cum_fee, b.closed_at]
        for name, a, c in zip("seq spec prevHash logRoot manifest leafCount inferences feeSum cumFee closedAt".split(), mine_header, header):
            check("headers", word(a) == c, f"{folder}/records.bin",
                  f"{name} is {a if isinstance(a, int) else hexed(a)}, the ledger has {hexed(c)}")
        check("headers", lanes == [list(m) for m in mine], f"{folder}/records.bin", f"lanes {mine}, the ledger has {lanes}")
        check("headers", b.closed_at >= (before.closed_at if before else 0) and b.cum_fee < 1 << 112, folder,
              "closedAt falls, or cumFee passes 2^112")
        lanes_hash = keccak(words(32, len(mine), *(v for m in mine for v in m)))
        b.hash = keccak(words(keccak(b"residual.batch.1"), chain.chain_id, chain.ledger, *mine_header, lanes_hash))
        kept = chain.view(chain.ledger, "batchHash(uint64)", seq)
        good = check("headers", b.hash == kept, f"{folder}/records.bin", f"batchHash is {hexed(b.hash)}, the ledger has {hexed(kept)}")
        if good:
            self.report.compare("header files", f"{folder}/header.json", self.file("header files", folder, "header.json"), canonical({
                "chain_id": chain.chain_id, "closed_at": b.closed_at, "cum_fee": str(b.cum_fee), "fee_sum": str(fees),
                "format": "residual.header.1", "hash": hexed(b.hash), "inferences": inferences, "lanes": listed,
                "lanes_hash": hexed(lanes_hash), "leaf_count": len(b.records),
                "ledger": hexed(chain.ledger), "log_root": hexed(root), "manifest": hexed(keccak(mine_manifest)),
                "prev_hash": hexed(mine_header[2]), "seq": seq, "spec": 1}))
            self.check_pairs(f"{folder}/records.bin", b.records)
            self.batches[seq], self.earlier = b, b
        return good

    def ranges(self, records):
        """[(lane, first, last)], each number of each lane once and in order, from where the lane's last range ended."""
        if not 1 <= len(records) <= MAX_BATCH:
            raise Wrong(f"{len(records)} records, not 1 to {MAX_BATCH}")
        out = []
        for r in records:
            if not out or r.lane > out[-1][0]:
                out.append((r.lane, self.next[r.lane], self.next[r.lane] - 1))
            lane, first, last = out[-1]
            if (r.lane, r.seq) != (lane, last + 1):
                raise Wrong(f"lane {r.lane} seq {r.seq} where lane {lane} seq {last + 1} belongs")
            out[-1] = lane, first, r.seq
        self.next.update({lane: last + 1 for lane, _, last in out})
        return out

    def check_signatures(self, where, records):
        chain = self.chain
        chain.load((chain.ledger, "laneKey(uint32,uint64)", r.lane, r.seq) for r in records)
        for r in records:
            r.digest = keccak(b"\x19\x01" + self.domain + keccak(r.struct))
            key = address(chain.view(chain.ledger, "laneKey(uint32,uint64)", r.lane, r.seq), 0)
            signer = recover(r.digest, r.signature)
            self.report.check("signatures", key != ZERO20 and signer == key, where,
                              f"lane {r.lane} seq {r.seq} is signed by {hexed(signer) if signer else 'no key'}, the lane's is {hexed(key)}")

    def log_tree(self, records):
        leaves = []
        for r in records:
            head = self.log_domain + be(r.lane, 4) + be(r.seq, 8) + r.digest
            leaves.append((keccak(b"\x10" + head + be(r.fee, 16)), r.fee) if r.type == 1 else (keccak(b"\x13" + head), 0))
        return tree(leaves, keccak(b"\x12" + self.log_domain), b"\x11")

    def check_pairs(self, where, records):
        """The rules between records: one type 2 names a type 1 of its lane by its digest; one requestId is charged once."""
        def fault(r, good, text):
            if not good:
                self.report.faults.append(f"{where}: lane {r.lane} seq {r.seq}: {text}")
            return good
        for r in (r for r in records if r.type == 1):
            first = self.requests.setdefault(r.requestId, (r.lane, r.seq))
            fault(r, first == (r.lane, r.seq), f"the requestId of lane {first[0]} seq {first[1]}")
            self.answers[r.lane, r.seq] = r
        for r in (r for r in records if r.type == 2):
            named = self.answers.get((r.lane, r.infSeq))
            if fault(r, named is not None and named.digest == r.infDigest, f"names {r.infSeq}, not its digest"):
                fault(r, r.outcome or len(r.scores()) == len(named.adapters), f"K is not that of {r.infSeq}")
                first = self.scored_by.setdefault((r.lane, r.infSeq), r.seq)
                fault(r, first == r.seq, f"{r.infSeq} has its type 2 at {first}")

    # ---- section 4: what is named, and which answers must be scored ----

    @functools.lru_cache(maxsize=None)
    def terms(self, id_, at):
        """An adapter's entry at a second, or None."""
        data = self.chain.view(self.chain.registry, "adapterAt(bytes32,uint64)", id_, at)[32:]
        if not number(data, 0):
            return None
        return {"active_at": number(data, 1), "model": data[64:96], "datanet": data[96:128], "datanet_version": number(data, 4),
                "price_in": number(data, 5), "price_out": number(data, 6), "entries": self.entries(data, 7),
                "parents": [{"bps": int.from_bytes(bps, "big"), "id": hexed(parent)} for parent, bps in rows(data, 8, 2)]}

    @functools.lru_cache(maxsize=None)
    def tariff(self, lane, model, at):
        data = self.chain.view(self.chain.registry, "tariffAt(uint32,bytes32,uint64)", lane, model, at)
        return {"active_at": number(data, 0), "price_in": number(data, 1), "price_out": number(data, 2)} if number(data, 0) else None

    @staticmethod
    def entries(data, at):
        return [{"bps": int.from_bytes(bps, "big"), "payee": hexed(payee[12:]), "role": role[31]} for payee, role, bps in rows(data, at, 3)]

    @staticmethod
    def named(entry_at, t0):
        """The entries that are named at t0, latest first; None stands for none."""
        first, at, out = max(0, t0 - NAMED_SECONDS), t0, []
        while True:
            out.append(entry_at(at))
            if out[-1] is None or out[-1]["active_at"] <= first:
                return out
            at = out[-1]["active_at"] - 1

    def named_terms(self, id_, t0):
        return self.named(lambda at: self.terms(id_, at), t0)

    def named_tariffs(self, r):
        return self.named(lambda at: self.tariff(r.lane, r.modelId, at), r.t0)

    def refused(self, r):
        prices = [int.from_bytes(r.tariff[i:i + 16], "big") for i in range(0, len(r.tariff), 16)]
        lists = [self.named_tariffs(r), *(self.named_terms(id_, r.t0) for id_, _ in r.adapters)]
        return not all(any(pair == ((e["price_in"], e["price_out"]) if e else (0, 0)) for e in list_)
                       for pair, list_ in zip(zip(prices[::2], prices[1::2]), lists))

    def ancestors(self, ids, at):
        """ids, and whatever they descend from at `at`, ascending."""
        out, todo = set(), list(ids)
        while todo:
            id_ = todo.pop()
            if id_ not in out:
                out.add(id_)
                todo += [bytes.fromhex(p["id"][2:]) for p in (self.terms(id_, at) or {"parents": []})["parents"]]
        return sorted(out)

    def beacons(self, paid):
        """[snapshot's batches], {seq: (rate, seed)}"""
        chain, batches, seeds = self.chain, [], {}
        for seq in paid:
            b = self.batches[seq]
            rate, beacon = number(chain.view(chain.ledger, "rateAt(uint64)", b.closed_at), 0), {"number": 0, "mix": ZERO32}
            if rate != E9:
                beacon = chain.first_at(chain.block(b.block)["time"] + number(chain.view(chain.ledger, "beaconDelay()"), 0))
                if not beacon:
                    raise Wrong(f"batch {seq} has no beacon block yet")
            batches.append({"beacon_block": beacon["number"], "mix_hash": hexed(beacon["mix"]), "rate_ppb": rate, "seq": seq})
            seeds[seq] = rate, keccak(b"residual.sample.1" + b.hash + beacon["mix"])
        return batches, seeds

    def snapshot(self, answers, attributions, batches, at):
        """What the chain said at T, as snapshot.json has it, from views alone."""
        chain = self.chain
        policy = chain.view(chain.registry, "policyAt(uint64)", at)
        named, tariffs = defaultdict(dict), defaultdict(dict)
        for r in answers:
            for id_, _ in r.adapters:
                named[id_].update({e["active_at"]: e for e in self.named_terms(id_, r.t0) if e})
            tariffs[r.lane].update({(r.modelId, e["active_at"]): e for e in self.named_tariffs(r) if e})

        def priced(e):
            return {"active_at": e["active_at"], "price_in": str(e["price_in"]), "price_out": str(e["price_out"])}
        adapters, versions = [], set()
        for id_ in self.ancestors(named.keys() | {id_ for r in answers for id_, _ in r.adapters}, at):
            now = self.terms(id_, at) or {"datanet": ZERO32, "model": ZERO32, "entries": [], "parents": []}
            terms = [{**priced(e), "datanet_version": e["datanet_version"]} for _, e in sorted(named[id_].items())]
            versions |= {(now["datanet"], e["datanet_version"]) for e in terms if e["datanet_version"]}
            adapters.append({"datanet": hexed(now["datanet"]), "entries": now["entries"], "id": hexed(id_), "model": hexed(now["model"]),
                             "parents": now["parents"], "registered": bool(self.terms(id_, at)), "terms": terms})
        bases = []
        for id_ in sorted({r.modelId for r in answers}):
            data = chain.view(chain.registry, "baseAt(bytes32,uint64)", id_, at)
            bases.append({"entries": self.entries(data, 1), "id": hexed(id_), "registered": bool(number(data, 0))})
        lanes = [{"lane": n, "operator": hexed(address(chain.view(chain.ledger, "laneOperatorAt(uint32,uint64)", n, at), 0)),
                  "tariffs": [{**priced(e), "model": hexed(model)} for (model, _), e in sorted(tariffs[n].items())]}
                 for n in sorted({r.lane for r in answers})]
        datanets, methods = defaultdict(list), []
        for id_, version in sorted(versions):
            data = chain.view(chain.registry, "datanetVersion(bytes32,uint64)", id_, version)
            datanets[id_].append({"documents": number(data, 5), "owner_root": hexed(data[128:160]), "owners": number(data, 6), "version": version})
        for hash_ in sorted({r.methodHash for r in attributions if self.names(r)}):
            known = number(chain.view(chain.registry, "methodRegisteredAt(bytes32)", hash_), 0)
            methods.append({"hash": hexed(hash_), "registered_at": known if known <= at else 0})
        return {"adapters": adapters, "at": at, "bases": bases, "batches": batches, "chain_id": chain.chain_id,
                "datanets": [{"id": hexed(id_), "versions": list_} for id_, list_ in datanets.items()], "format": "residual.snapshot.1",
                "lanes": lanes, "ledger": hexed(chain.ledger), "methods": methods, "registry": hexed(chain.registry),
                "policy": {"base": number(policy, 0), "adapters": number(policy, 1), "operator": number(policy, 2), "protocol": number(policy, 3),
                           "treasury": hexed(address(policy, 4))}}

    def names(self, r):
        """The paid type 1 that a type 2 names by lane, number and digest, or None."""
        named = self.paid.get((r.lane, r.infSeq))
        return named if named and named.digest == r.infDigest and r.infSeq < r.seq else None

    def owners(self, snapshot, source):
        """{(datanet, version): [(owner, documents)]} of every version, as source(datanet, version) has them; Wrong unless the roots are right."""
        out = {}
        for d in snapshot["datanets"]:
            for v in d["versions"]:
                list_ = source(d["id"], v["version"]) if v["owners"] else []
                if v["owners"] and not list_:
                    self.report.faults.append(f"the archive lacks the owners of datanet {d['id']} version {v['version']}")
                    out[bytes.fromhex(d["id"][2:]), v["version"]] = []
                    continue
                good = (len(list_), sum(n for _, n in list_)) == (v["owners"], v["documents"]) and all(a[0] < b[0] for a, b in zip(list_, list_[1:]))
                if not good or (list_ and hexed(owners_root(list_)) != v["owner_root"]):
                    raise Wrong(f"the owners of {d['id']} version {v['version']} are not the registry's")
                out[bytes.fromhex(d["id"][2:]), v["version"]] = list_
        return out

    def evidence(self, attributions, owners, snapshot):
        """{(lane, seq): the first valid type 2} of the paid answers."""
        out, known = {}, {m["hash"] for m in snapshot["methods"] if m["registered_at"]}
        for r in sorted(attributions, key=lambda r: (r.lane, r.seq)):
            named, wrong = self.names(r), None
            if not named:
                continue
            if hexed(r.methodHash) not in known:
                wrong = "its scoring method was not registered"
            elif r.outcome == 0 and len(r.scores()) != len(named.adapters):
                continue
            elif r.outcome == 0 and not all(self.owns(payee, id_, named.t0, owners) for (id_, _), (_, shares) in zip(named.adapters, r.scores())
                                            for payee, _ in shares):
                wrong = "it pays somebody who owns no document of the named versions"
            if wrong:
                self.report.faults.append(f"lane {r.lane} seq {r.seq}: {wrong}")
            else:
                out.setdefault((r.lane, r.infSeq), r)
        return out

    def owns(self, payee, id_, t0, owners):
        return payee == ZERO20 or any(payee == owner for e in self.named_terms(id_, t0) if e and e["datanet_version"]
                                      for owner, _ in owners[e["datanet"], e["datanet_version"]])

    def required(self, paid, seeds, evidence, refused):
        """{(lane, seq): the type 2 that scores it, or None} of the answers that must be scored."""
        out = {}
        for b in paid:
            rate, seed = seeds[b]
            for r in (r for r in self.batches[b].records if r.type == 1 and r.fee and (r.lane, r.seq) not in refused):
                k = len(r.adapters)
                alone = self.terms(r.adapters[0][0], r.t0) if k == 1 else None
                draw = int.from_bytes(keccak(seed + be(r.lane, 4) + be(r.seq, 8))[:4], "big") * E9
                if (k >= 2 or alone and any(alone["datanet"])) and (rate == E9 or draw < rate << 32):
                    found = evidence.get((r.lane, r.seq))
                    out[r.lane, r.seq] = found if found and found.outcome == 0 else None
        return out

    # ---- section 5: the reward ----

    def reward(self, answers, required, refused, snapshot):
        """{account: what it earned}; required = {(lane, seq): its valid type 2 with outcome 0, or None}."""
        policy, earned = snapshot["policy"], defaultdict(int)
        treasury = bytes.fromhex(policy["treasury"][2:])
        operators = {x["lane"]: bytes.fromhex(x["operator"][2:]) for x in snapshot["lanes"]}
        splits = {(kind, bytes.fromhex(x["id"][2:])): x for kind in ("bases", "adapters") for x in snapshot[kind] if x["registered"]}

        def depth(id_):
            parents = splits.get(("adapters", id_), {"parents": []})["parents"]
            return max((1 + depth(bytes.fromhex(p["id"][2:])) for p in parents), default=0)

        def pay(amount, entries):
            for entry, part in zip(entries, lr(amount, [e["bps"] for e in entries])):
                earned[bytes.fromhex(entry["payee"][2:])] += part

        fees, sets, influence, data_of = defaultdict(int), {}, defaultdict(lambda: None), defaultdict(lambda: defaultdict(int))
        for r in answers:  # one pass: fees by (lane, model, set), X by set, Y by adapter
            if (r.lane, r.seq) in refused:
                earned[treasury] += r.fee
                continue
            fees[r.lane, r.modelId, r.adapterSetHash] += r.fee
            sets[r.adapterSetHash] = r.adapters
            if (r.lane, r.seq) not in required:
                continue
            scored = required[r.lane, r.seq]
            lines = scored.scores() if scored else [(g, [(ZERO20, E9)]) for g in lr(E9, [abs(w) for _, w in r.adapters])]
            x = influence[r.adapterSetHash] or [0] * len(lines)
            influence[r.adapterSetHash] = [v + r.fee * gain for v, (gain, _) in zip(x, lines)]
            for (id_, _), (gain, shares) in zip(r.adapters, lines):
                for payee, ppb in shares:
                    data_of[id_][payee] += r.fee * gain // E9 * ppb

        base_parts, set_parts, adapter_parts = defaultdict(int), defaultdict(int), defaultdict(int)
        for (lane, model, set_), fee in sorted(fees.items()):
            bps = [policy["base"], policy["adapters"], policy["operator"], policy["protocol"]]
            parts = lr(fee, bps if sets[set_] else [bps[0] + bps[1], 0, *bps[2:]])
            base_parts[model] += parts[0]
            set_parts[set_] += parts[1]
            earned[operators[lane] if any(operators[lane]) else treasury] += parts[2]
            earned[treasury] += parts[3]
        for model, amount in base_parts.items():
            pay(amount, splits["bases", model]["entries"] if ("bases", model) in splits else [{"payee": hexed(treasury), "bps": 1}])
        for set_, amount in set_parts.items():
            weights = influence[set_] if any(influence[set_] or ()) else [abs(w) for _, w in sets[set_]]
            parts = defaultdict(int, {id_: part for (id_, _), part in zip(sets[set_], lr(amount, weights))})
            while parts:  # the deepest first: what its parents get is divided in its turn
                id_ = max(parts, key=depth)
                part = parts.pop(id_)
                if ("adapters", id_) not in splits:
                    earned[treasury] += part
                    continue
                parents = splits["adapters", id_]["parents"]
                *theirs, own = lr(part, [p["bps"] for p in parents] + [10000 - sum(p["bps"] for p in parents)])
                adapter_parts[id_] += own
                for parent, share in zip(parents, theirs):
                    parts[bytes.fromhex(parent["id"][2:])] += share
        for id_, amount in adapter_parts.items():
            adapter, pool = splits["adapters", id_], 0
            for entry, part in zip(adapter["entries"], lr(amount, [e["bps"] for e in adapter["entries"]])):
                if entry["role"] == 2:
                    pool += part
                else:
                    earned[bytes.fromhex(entry["payee"][2:])] += part
            payees = sorted(data_of[id_].items())
            if int(adapter["datanet"], 16) and sum(y for _, y in payees):
                for (payee, _), part in zip(payees, lr(pool, [y for _, y in payees])):
                    earned[payee if any(payee) else treasury] += part
            else:
                pay(pool, [e for e in adapter["entries"] if e["role"] == 2])
        return earned

    # ---- epochs ----

    def make_epoch(self, epoch, previous, paid_to, evidence_to, source):
        """What epoch `epoch` must be: its files, and what the vault and the Proposed event have of it. source: as owners() wants it."""
        chain, e = self.chain, self.epochs[previous]
        paid, at = range(e["paid"] + 1, paid_to + 1), self.batches[paid_to].closed_at
        answers = [r for b in paid for r in self.batches[b].records if r.type == 1]
        attributions = [r for b in range(e["paid"] + 1, evidence_to + 1) for r in self.batches[b].records if r.type == 2]
        self.paid = {(r.lane, r.seq): r for r in answers}
        batches, seeds = self.beacons(paid)
        snapshot = self.snapshot(answers, attributions, batches, at)
        owners = self.owners(snapshot, source)
        refused = sorted(key for key, r in self.paid.items() if self.refused(r))
        self.report.faults += [f"lane {lane} seq {seq}: its tariff was not the registered one at its start" for lane, seq in refused]
        required = self.required(paid, seeds, self.evidence(attributions, owners, snapshot), set(refused))
        fees = {key: r.fee for key, r in self.paid.items()}
        lost = sorted(key for key, scored in required.items() if not scored)
        earned, cumulative = self.reward(answers, required, set(refused), snapshot), defaultdict(int, e["cumulative"])
        for account, amount in earned.items():
            cumulative[account] += amount
        leaves = sorted((a, c) for a, c in cumulative.items() if c)
        made = {
            "accounts.json": canonical({"accounts": [{"account": hexed(a), "cumulative": str(c)} for a, c in leaves], "epoch": epoch,
                                        "format": "residual.accounts.1"}),
            "missing.json": canonical({"epoch": epoch, "format": "residual.missing.1",
                                       "missing": [{"fee": str(fees[lane, seq]), "lane": lane, "seq": seq} for lane, seq in lost]}),
            "owners.json": canonical({"datanets": [{"id": hexed(id_), "owners": [{"documents": n, "owner": hexed(owner)} for owner, n in list_],
                                                    "version": version} for (id_, version), list_ in owners.items()],
                                      "epoch": epoch, "format": "residual.owners.1"}),
            "refused.json": canonical({"epoch": epoch, "format": "residual.refused.1", "refused": [
                {"fee": str(fees[lane, seq]), "lane": lane, "reason": 1, "seq": seq} for lane, seq in refused]}),
            "snapshot.json": canonical(snapshot)}
        domain = text_domain("residual.reward.1", chain.chain_id, chain.vault, chain.token)
        root, total = tree([(keccak(b"\x00" + domain + be(i, 4) + a + be(c, 16)), c) for i, (a, c) in enumerate(leaves)],
                           keccak(b"\x02" + domain), b"\x01")
        sums = {name: {"count": len(keys), "fee": str(sum(fees[k] for k in keys))} for name, keys in (
            ("missing", lost), ("refused", refused), ("required", list(required)), ("scored", [k for k, v in required.items() if v]))}
        made["manifest.json"] = canonical({
            "at": at, "batch_evidence": evidence_to, "batch_paid": paid_to, "batch_paid_before": e["paid"], "chain_id": chain.chain_id,
            "epoch": epoch,
            "files": [{"bytes": len(data), "file": name, "keccak": hexed(keccak(data))} for name, data in sorted(made.items())],
            "format": "residual.epoch.1", "leaves": len(leaves), "prev_root": hexed(e["root"]), "previous": previous,
            "root": hexed(root), "spec": 1, "total": str(total), "vault": hexed(chain.vault), **sums})
        return {"files": made, "root": root, "total": total, "leaves": leaves, "paid": paid_to, "earned": sum(earned.values()),
                "fees": sum(fees.values()), "proposed": words(total, len(leaves), paid_to, evidence_to, keccak(made["manifest.json"]))}

    def check_epoch(self, epoch):
        folder, chain, check, compare = f"epoch-{epoch:08}", self.chain, self.report.check, self.report.compare
        kept = chain.view(chain.vault, "epochs(uint64)", epoch)
        paid_to, evidence_to, previous = (number(kept, i) for i in (5, 6, 7))
        if not check("epochs", epoch in chain.proposals and paid_to, folder, "the vault has no such epoch"):
            return
        if previous not in self.epochs or not all(b in self.batches for b in range(1, max(paid_to, evidence_to) + 1)):
            check("epochs", False, folder, f"not recomputed, for epoch {previous} or a batch up to {evidence_to} is not")
            return
        e = self.epochs[previous]
        if not check("epochs", e["paid"] < paid_to <= evidence_to, folder, f"M' {e['paid']}, M {paid_to}, E {evidence_to}"):
            return
        files = {name: self.file("epoch files", folder, f"{name}.json") for name in ("accounts", "missing", "owners", "refused", "snapshot", "manifest")}
        try:
            made = self.make_epoch(epoch, previous, paid_to, evidence_to, self.published(files["owners"]))
        except Wrong as wrong:
            check("epochs", False, f"{folder}/owners.json", str(wrong))
            return
        check("rewards", made["earned"] == made["fees"], folder, f"{made['earned']} earned of {made['fees']}")
        due = self.batches[paid_to].cum_fee - self.number("startCumFee()")
        check("rewards", made["total"] == due, folder, f"total {made['total']}, cumFee(M) - startCumFee is {due}")
        for name, data in made["files"].items():
            compare(f"epochs' {name}", f"{folder}/{name}", files[name[:-5]], data)
        said_root, said = chain.proposals[epoch]
        check("Proposed events", (said_root, said[:160]) == (made["root"], made["proposed"]), folder,
              "root, total, leaves, M, E or the manifest's keccak are not the event's")
        check("epochs", (kept[:32], number(kept, 1), number(kept, 3)) == (made["root"], made["total"], len(made["leaves"])), folder,
              "root, total or leaves are not the vault's")
        self.epochs[epoch] = {"paid": paid_to, "root": made["root"], "cumulative": dict(made["leaves"])}

    @staticmethod
    def published(text):
        """What owners.json says of one version; Wrong if it says nothing readable."""
        def source(datanet, version):
            try:
                lists = {(d["id"], d["version"]): d["owners"] for d in json.loads(text)["datanets"]}
                return [(bytes.fromhex(o["owner"][2:]), int(o["documents"])) for o in lists[datanet, version]]
            except (ValueError, KeyError, TypeError):
                raise Wrong(f"has no owners of {datanet} version {version}") from None
        return source


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--archive", required=True)
    parser.add_argument("--deployment", required=True)
    parser.add_argument("--rpc", required=True)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--batch", type=int)
    which.add_argument("--epoch", type=int)
    args = parser.parse_args(arguments)
    try:
        return recompute(Chain(args.rpc, json.loads(Path(args.deployment).read_text())), args.archive, args.batch, args.epoch).print()
    except (OSError, ValueError, KeyError) as error:
        print(f"could not look: {error}", file=sys.stderr)
        return 2


def recompute(chain, archive, batch=None, epoch=None):
    """The report on batches 1 to `batch`, or on all that epoch `epoch` rests on."""
    audit = Audit(chain, archive)
    audit.check_chain()
    epochs = []
    if not batch:
        epoch = audit.number("lastEpoch()") if epoch is None else epoch
        while epoch:  # from the asked one back, leaving out what the vault disabled
            epochs.insert(0, epoch)
            epoch = audit.number("epochs(uint64)", epoch, at=7)
    last = batch or max((audit.number("epochs(uint64)", e, at=6) for e in epochs), default=0)
    all(audit.check_batch(seq) for seq in range(1, last + 1))
    for e in epochs:
        audit.check_epoch(e)
    return audit.report


if __name__ == "__main__":
    sys.exit(main())

"""Random settled worlds: a registry with a past, signed records that obey it or not, batches, epochs and vetoes, published as the page says.
The money of each epoch is recompute.py's; who else reads the same archive and chain has to agree."""
import random
from dataclasses import dataclass, field

from fake_node import Node, at
from recompute import (BASE, E9, FIELDS, ORDER, P, STRUCTS, TAILS, ZERO20, ZERO32, Audit, Chain, add, be, canonical, double, hexed, keccak, lr, owners_root,
                       parse_records, tree, words)

START_S = 1_700_000_000


# ---- signing: k·BASE from a table of BASE's multiples by 16^i ----

def make_table():
    table, step = [], BASE
    for _ in range(64):
        row = [(1, 1, 0)]
        for _ in range(15):
            row.append(add(row[-1], step))
        table.append(row)
        for _ in range(4):
            step = double(step)
    return table


TABLE = make_table()


def times_base(k):
    point = (1, 1, 0)
    for i in range(64):
        if k >> 4 * i & 15:
            point = add(point, TABLE[i][k >> 4 * i & 15])
    z = pow(point[2], -1, P)
    return point[0] * z * z % P, point[1] * z ** 3 % P


class Key:
    def __init__(self, name):
        self.secret = int.from_bytes(keccak(name.encode()), "big") % ORDER
        x, y = times_base(self.secret)
        self.address = keccak(be(x, 32) + be(y, 32))[12:]

    def sign(self, digest):
        k = int.from_bytes(keccak(be(self.secret, 32) + digest), "big") % ORDER
        x, y = times_base(k)
        s = pow(k, -1, ORDER) * (int.from_bytes(digest, "big") + x * self.secret) % ORDER
        odd, s = (y & 1) ^ (s > ORDER // 2), min(s, ORDER - s)
        return be(x, 32) + be(s, 32) + bytes([27 + odd])


# ---- records ----

def encode(kind, values, tails, key, domain):
    """(bytes, digest) of a signed record."""
    for name, hash_field in TAILS[kind]:
        values[hash_field] = keccak(tails[name])
    fixed, struct = b"", keccak(STRUCTS[kind].encode())
    for name, size in FIELDS[kind]:
        data = values[name] if size == 32 else be(values[name], size)
        fixed += data + (bytes([kind]) if name == "spec" else b"")
        struct += data.rjust(32, b"\0")
    digest = keccak(b"\x19\x01" + domain + keccak(struct))
    body = fixed + b"".join(be(len(tails[name]), 4) + tails[name] for name, _ in TAILS[kind])
    return body + key.sign(digest), digest


PARAMS = be(1, 2) + be(128, 4) + bytes(137)


@dataclass
class Lane:
    number: int
    keys: list
    seq: int = 0
    first: int = 1
    open: list = field(default_factory=list)  # answers that nothing scores yet


class LocalChain(Chain):
    """recompute.py's chain, asked in this process."""

    def __init__(self, node):
        self.node = node
        super().__init__("", node.deployment())

    def ask(self, *calls):
        return [self.node.answer(method, params) for method, *params in calls]


class World:
    """World(folder, seed): a chain without batches. The registry's past is random; what follows is up to run()."""

    def __init__(self, folder, seed):
        self.dir, self.rng = folder, random.Random(seed)
        r = self.rng
        self.node = Node(1000 + seed, START_S, token=b"\x77" if seed % 3 == 0 else ZERO20)
        self.now, self.audit = START_S + 2000, None
        self.people = sorted(keccak(f"person {i}".encode())[:20] for i in range(8))
        self.domain = keccak(words(keccak(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"), keccak(b"residual"),
                                   keccak(b"1"), self.node.chain_id, self.node.ledger))
        self.models = [keccak(b"base a"), keccak(b"base b"), keccak(b"base nobody registered")]
        self.methods = [keccak(b"method old"), keccak(b"method new"), keccak(b"method of nobody")]
        self.lanes, self.owners, self.lost, self.earlier, self.batches = [], {}, set(), None, []
        self.make_registry()
        for n in range(1, 2 + r.randrange(3)):
            self.lanes.append(Lane(n, [Key(f"lane {n} key {i}") for i in range(3)]))
            self.node.keys[n] = [(0, self.lanes[-1].keys[0].address), (4 + r.randrange(6), self.lanes[-1].keys[1].address),
                                 (14 + r.randrange(8), self.lanes[-1].keys[2].address)]
            self.node.operators[n] = [(START_S, keccak(f"operator {n}".encode())[:20])][:r.randrange(4)] + [(START_S + 3000, keccak(b"second")[:20])] * r.randrange(2)
            for model in self.models[:1 + r.randrange(3)]:
                self.node.tariffs[n, model] = self.history(lambda _: self.price())

    def price(self):
        return self.rng.randrange(1 << self.rng.choice((8, 40, 79))), self.rng.randrange(1 << 40)

    def history(self, make):
        """[(active_at, make(active_at))]: of 1 to 4 entries, the first before the world's records or among them."""
        r, out = self.rng, []
        t = START_S + r.choice((0, 0, 1900, 2400))
        for _ in range(1 + r.randrange(4)):
            out.append((t, make(t)))
            t += r.choice((150, 599, 601, 900, 2000))
        return out

    def split(self):
        r = self.rng
        rows = sorted({(r.choice((1, 2, 2, 3)), r.choice(self.people)) for _ in range(1 + r.randrange(4))})
        bps = [1 + v for v in lr(10000 - len(rows), [1 + r.randrange(100) for _ in rows])]
        return [(payee, role, b) for (role, payee), b in zip(rows, bps)]

    def make_registry(self):
        r, node = self.rng, self.node
        node.policies = [(0, (2000, 6000, 1500, 500, keccak(b"treasury")[:20])), (START_S + 3500, (1, 7001, 1998, 1000, keccak(b"treasury 2")[:20]))]
        node.delay = r.choice((0, 40, 300))
        node.rates = [(0, E9), (START_S + 2600, r.choice((E9, 600_000_000)))]
        node.methods = {self.methods[0]: START_S, self.methods[1]: START_S + 3000}
        node.bases = {self.models[0]: [(START_S, self.split())], self.models[1]: self.history(lambda _: self.split())}
        nets = [keccak(f"datanet {i}".encode()) for i in range(3)]
        for net in nets:
            for version in (1, 2, 5):
                owners = [(p, 1 + r.randrange(9)) for p in sorted(r.sample(self.people, 1 + r.randrange(5)))]
                self.owners[hexed(net), version] = owners
                if r.randrange(8) == 0:
                    self.lost.add((hexed(net), version))
                node.versions[net, version] = {"active_at": START_S, "root": owners_root(owners), "documents": sum(n for _, n in owners), "owners": len(owners)}
        self.ids = [keccak(f"adapter {i}".encode()) for i in range(8)]  # 7: nobody registered it
        parents = {1: [0], 2: [0, 1], 3: [2], 4: [1, 3], 5: [4, 2]}
        parents = {k: v for k, v in parents.items() if r.randrange(4)}
        for i, id_ in enumerate(self.ids[:7]):
            net = r.choice(nets + [ZERO32])
            family = sorted((self.ids[p], 1 + r.randrange(2500)) for p in parents.get(i, []))

            def terms(active_at):
                return {"active_at": active_at, "model": self.models[0], "datanet": net, "version": r.choice((1, 2, 5)) if any(net) else 0,
                        "price": self.price(), "split": self.split(), "parents": family}
            node.adapters[id_] = self.history(terms)

    # ---- what lanes write ----

    def named(self, history, t0):
        """One of the values that are named at t0, mostly the newest, seldom one of another time; None for none."""
        if history and self.rng.randrange(14) == 0:
            return self.rng.choice(history)[1]
        live = [at(history, t) for t in {t0, *(a - 1 for a, _ in history if t0 - 600 < a <= t0)}]
        return at(history, t0) if self.rng.randrange(3) else self.rng.choice(live)

    def infer(self, lane, closed_at):
        r, node = self.rng, self.node
        lane.seq += 1
        ids = sorted(r.sample(self.ids, r.choice((0, 1, 1, 2, 3, 4))))
        adapters = [(id_, r.choice((65536, -32768, 1, 2 ** 31 - 1, -7))) for id_ in ids]
        start_ms = (closed_at - r.randrange(900)) * 1000 + r.randrange(1000) if r.randrange(6) else (closed_at + 5000) * 1000
        t0, model = min(start_ms // 1000, closed_at), r.choice(self.models)
        prices = [self.named(node.tariffs.get((lane.number, model), []), t0) or (0, 0)]
        prices += [(e or {"price": (0, 0)})["price"] for e in (self.named(node.adapters.get(id_, []), t0) for id_ in ids)]
        if r.randrange(9) == 0:
            at_, (a, b) = r.randrange(len(prices)), r.choice(prices)
            prices[at_] = (a + 1, b) if r.randrange(2) else (a, b + 1)
        tokens, status = (r.randrange(3000), r.randrange(800)), r.choice((1, 1, 1, 1, 2, 3))
        fee = 0 if status == 3 else (tokens[0] * sum(p[0] for p in prices) + tokens[1] * sum(p[1] for p in prices)) // 1000
        values = {"spec": 1, "lane": lane.number, "seq": lane.seq, "requestId": keccak(words(lane.number, lane.seq)), "appCommit": ZERO32, "modelId": model,
                  "tokensIn": tokens[0], "tokensOut": tokens[1], "fee": fee, "engineId": ZERO32, "startMs": start_ms, "endMs": start_ms + 9, "status": status,
                  "promptCommit": ZERO32, "outputCommit": ZERO32}
        tails = {"set": b"".join(i + be(w % (1 << 32), 4) for i, w in adapters), "tariff": b"".join(be(a, 16) + be(b, 16) for a, b in prices), "params": PARAMS}
        body, digest = encode(1, values, tails, self.key(lane), self.domain)
        if adapters:
            lane.open.append((lane.seq, digest, ids, t0))
        return body

    def key(self, lane):
        return next(k for k in lane.keys if k.address == at(self.node.keys[lane.number], lane.seq))

    def shares(self, id_, t0):
        """Payees of one adapter: owners that its terms name, the treasury, seldom somebody else."""
        r, e = self.rng, self.named(self.node.adapters.get(id_, []), t0)
        who = {ZERO20} if r.randrange(4) == 0 else set()
        if e and e["version"]:
            who |= set(r.sample([o for o, _ in self.owners[hexed(e["datanet"]), e["version"]]], 1))
            who |= {o for o, _ in self.owners[hexed(e["datanet"]), e["version"]] if r.randrange(2)}
        elif not who:
            return []
        if r.randrange(14) == 0:
            who.add(r.choice(self.people + [keccak(b"thief")[:20]]))
        ppb = lr(E9, [r.randrange(5) + (i == 0) for i in range(len(who))])
        return list(zip(sorted(who), ppb))

    def score(self, lane):
        r = self.rng
        lane.seq += 1
        place = r.randrange(len(lane.open))
        seq, digest, ids, t0 = lane.open[place] if r.randrange(8) == 0 else lane.open.pop(place)  # seldom again
        outcome = r.choice((0,) * 8 + (1, 4))
        ids = ids + ids[:1] if r.randrange(20) == 0 and len(ids) < 8 else ids  # one adapter too many
        gains = lr(E9, [1 + r.randrange(100) for _ in ids])
        influence = b"" if outcome else b"".join(be(g, 4) + bytes([len(s)]) + b"".join(p + be(n, 4) for p, n in s)
                                                 for g, s in ((g, self.shares(i, t0)) for g, i in zip(gains, ids)))
        values = {"spec": 1, "lane": lane.number, "seq": lane.seq, "infSeq": seq, "infDigest": digest if r.randrange(20) else ZERO32,
                  "methodHash": r.choice(self.methods[:1] * 7 + self.methods), "indexHash": ZERO32, "inputsDigest": ZERO32, "outcome": outcome}
        return encode(2, values, {"influence": influence}, self.key(lane), self.domain)[0]

    def void(self, lane):
        lane.seq += 1
        return encode(3, {"spec": 1, "lane": lane.number, "seq": lane.seq, "reason": 1 + self.rng.randrange(2)}, {}, self.key(lane), self.domain)[0]

    # ---- what is committed and published ----

    def commit(self, count=10):
        """One batch of about `count` records."""
        r = self.rng
        self.now += r.choice((100, 240, 700))
        bodies = {}
        for _ in range(count):
            lane = r.choice(self.lanes)
            kind = r.choice("iiisssssv")
            body = self.score(lane) if kind == "s" and lane.open else self.void(lane) if kind == "v" and not r.randrange(3) else self.infer(lane, self.now)
            bodies.setdefault(lane.number, []).append(body)
        self.publish_batch([b for n in sorted(bodies) for b in bodies[n]])

    def publish_batch(self, bodies):
        """Write a batch of these records and commit it on the chain."""
        node, seq = self.node, len(self.batches) + 1
        raw = b"".join(be(len(b), 4) + b for b in bodies)
        records, lanes = parse_records(raw), []
        for r in records:
            lanes += [] if lanes and lanes[-1][0] == r.lane else [[r.lane, r.seq, r.seq]]
            lanes[-1][2] = r.seq
            r.digest = keccak(b"\x19\x01" + self.domain + keccak(r.struct))
        log = keccak(words(96, node.chain_id, node.ledger, 14) + b"residual.log.1".ljust(32, b"\0"))
        leaves = [(keccak(b"\x10" + log + be(r.lane, 4) + be(r.seq, 8) + r.digest + be(r.fee, 16)), r.fee) if r.type == 1 else
                  (keccak(b"\x13" + log + be(r.lane, 4) + be(r.seq, 8) + r.digest), 0) for r in records]
        root, fees = tree(leaves, keccak(b"\x12" + log), b"\x11")
        node.cum_fee += fees
        listed = [{"first": a, "lane": n, "last": b} for n, a, b in lanes]
        manifest = canonical({"batch": seq, "chain_id": node.chain_id, "closed_at": self.now, "format": "residual.batch.1", "lanes": listed, "ledger": hexed(node.ledger),
                              "record_count": len(records), "spec": 1, "records": {"bytes": len(raw), "file": "records.bin", "keccak": hexed(keccak(raw))}})
        inferences = sum(r.type == 1 for r in records)
        header = [seq, 1, self.batches[-1] if self.batches else ZERO32, root, keccak(manifest), len(records), inferences, fees, node.cum_fee, self.now]
        lanes_hash = keccak(words(32, len(lanes), *(v for lane in lanes for v in lane)))
        hash_ = keccak(words(keccak(b"residual.batch.1"), node.chain_id, node.ledger, *header, lanes_hash))
        event = words(*header, 11 * 32, len(lanes), *(v for lane in lanes for v in lane))
        if self.rng.randrange(4) == 0:  # an earlier commit of this number, dropped since; sometimes of the same batch
            node.committed.append((seq, hash_ if self.rng.randrange(2) else keccak(hash_), event, node.block_at(self.now + 1)))
        node.committed.append((seq, hash_, event, node.block_at(self.now + 95)))
        node.batch_hash[seq] = hash_
        self.batches.append(hash_)
        self.write(f"batch-{seq:08}", {"records.bin": raw, "manifest.json": manifest, "header.json": canonical({
            "chain_id": node.chain_id, "closed_at": self.now, "cum_fee": str(node.cum_fee), "fee_sum": str(fees), "format": "residual.header.1", "hash": hexed(hash_),
            "inferences": inferences, "lanes": listed, "lanes_hash": hexed(lanes_hash), "leaf_count": len(records), "ledger": hexed(node.ledger), "log_root": hexed(root),
            "manifest": hexed(keccak(manifest)), "prev_hash": hexed(header[2]), "seq": seq, "spec": 1})})

    def write(self, folder, files):
        (self.dir / folder).mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (self.dir / folder / name).write_bytes(data)

    def begin_epochs(self, auditor=Audit):
        """After the last batch: recompute.py reads them all. Its money is what propose() puts on the chain."""
        self.node.block_at(self.now + 2000)
        self.audit = auditor(LocalChain(self.node), self.dir)
        assert all(self.audit.check_batch(seq) for seq in range(1, len(self.batches) + 1)), self.audit.report.groups

    def start_at(self, seq):
        """The vault begins after batch seq."""
        self.node.start_seq, self.node.start_cum_fee = seq, sum(self.fees(i) for i in range(1, seq + 1))

    def fees(self, seq):
        return int.from_bytes(next(data for s, h, data, _ in self.node.committed if (s, h) == (seq, self.batches[seq - 1]))[32 * 7:32 * 8], "big")

    def shown(self, datanet, version):
        """The owners' list that the archive has."""
        return [] if (datanet, version) in self.lost else self.owners[datanet, version]

    def propose(self, paid, evidence, veto=False):
        """The next epoch, on the last one that lives; False where nobody would earn anything."""
        node, epoch, previous = self.node, max(self.node.epochs, default=0) + 1, self.node.live()
        made = self.audit.make_epoch(epoch, previous, paid, evidence, self.shown)
        if not made["leaves"]:
            return False
        if not veto:
            self.write(f"epoch-{epoch:08}", made["files"])
            self.audit.epochs[epoch] = {"paid": paid, "root": made["root"], "cumulative": dict(made["leaves"])}
        root = keccak(made["root"]) if veto else made["root"]
        node.epochs[epoch] = {"root": root, "total": made["total"], "active_at": self.now, "leaves": len(made["leaves"]), "disabled": veto, "paid": paid,
                              "evidence": evidence, "previous": previous}
        node.proposed.append((epoch, root, made["proposed"] + words(self.now), node.block_at(self.now + 300)))
        return True

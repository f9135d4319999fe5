#!/usr/bin/env python3
"""Recomputes the influence of an attribution record from the logged integers and the index files: an independent reading of
chain_client/SPEC.md section 10, standard library alone.

    tests/attribution/replay.py ATTRIBUTION.json INPUTS.json [INDEX ...]

The first two are what GET /v1/attribution/{id} and GET /v1/attribution/{id}/inputs answer. Says each difference; exit status 1 if there is one.
"""
import base64
import hashlib
import json
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
from keccak import keccak as keccak256  # noqa: E402

E9 = 1_000_000_000
METHOD = "residual.method.s0-s1-s2.2"
METHOD_FIELDS = ("gain_floor", "learned_floor", "learned_min", "fallback_tokens", "squarings", "half1_part", "w1", "w2", "w3", "taught_min", "cluster_dot")
COUNTS = ("n_events", "n_learned", "n_rows", "n_documents", "n_owners", "n_vocab", "d_model", "n_lists_learned", "n_lists_rest", "n_joined")


def lr(total, weights):
    """Largest remainder, ties to the lower place."""
    whole = sum(weights)
    parts = [total * w // whole for w in weights]
    order = sorted(range(len(weights)), key=lambda i: (-(total * weights[i] % whole), i))
    for i in order[: total - sum(parts)]:
        parts[i] += 1
    return parts


class Index:
    """One file, its own root checked."""

    def __init__(self, data):
        self.root = data[-32:]
        if hashlib.blake2b(data[:-32], digest_size=32).digest() != self.root:
            raise ValueError("an index file fails its own check")
        version, head_bytes, file_bytes = struct.unpack_from("<IIQ", data, 8)
        if (version, head_bytes, file_bytes) != (2, 328, len(data)):
            raise ValueError(f"index: version {version}, head of {head_bytes} bytes, {file_bytes} bytes said and {len(data)} there")
        self.__dict__.update(zip(COUNTS, struct.unpack_from("<10I", data, 216)))
        self.__dict__.update(zip(METHOD_FIELDS, struct.unpack_from("<11I", data, 256)))
        (self.lam,) = struct.unpack_from("<I", data, 300)
        n, blocks, basis = self.n_events, -(-self.n_events // 16), 64 * self.d_model * 2
        at, places = 0, []
        for size in (328, basis, 256, basis, 256, 2 * self.n_vocab, 32 * self.n_documents, 24 * self.n_owners, 20 * self.n_rows,
                     8 * (self.n_lists_learned + self.n_lists_rest), 4 * n, 2 * n, 1024 * blocks, 1024 * blocks):
            places.append(at)
            at = -(-(at + size) // 64) * 64
        owners, rows, lists, event_row, learned, key1, key2 = places[7:]
        self.owners = [(data[owners + 24 * i:][:20], struct.unpack_from("<I", data, owners + 24 * i + 20)[0]) for i in range(self.n_owners)]
        self.rows = [struct.unpack_from("<5I", data, rows + 20 * i) for i in range(self.n_rows)]  # document, offset, bytes, owner, cluster
        self.event_row = struct.unpack_from(f"<{n}I", data, event_row)
        self.learned = struct.unpack_from(f"<{n}H", data, learned)
        self.data, self.key_at = data, (key1, key2)
        entries = [struct.unpack_from("<2I", data, lists + 8 * i) for i in range(self.n_lists_learned + self.n_lists_rest)]
        self.of_target = ({}, {})
        for part, mine, end in ((0, entries[: self.n_lists_learned], self.n_learned), (1, entries[self.n_lists_learned:], n)):
            for i, (target, first) in enumerate(mine):
                self.of_target[part][target] = range(first, mine[i + 1][1] if i + 1 < len(mine) else end)

    def key(self, half, event):
        at = self.key_at[half] + 1024 * (event // 16) + 4 * (event % 16)
        return [v - 256 if v > 127 else v for g in range(16) for v in self.data[at + 64 * g: at + 64 * g + 4]]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b))


def power(index, d, most):
    c = 0 if d <= 0 else min(1 << 30, (d << 30) // most)
    for _ in range(index.squarings):
        c = c * c >> 30
    return c


def owner_scores(index, tokens):
    """tokens: (target, gain, key of 128, in prompt) over all choices."""
    others = any(a >= index.learned_min and not muted for _, a, _, muted in tokens)
    tokens = [(y, a, k) for y, a, k, in_prompt in tokens if not (in_prompt and others)]
    rest = sorted((-a, i) for i, (y, a, _) in enumerate(tokens) if y not in index.of_target[0] and a >= index.learned_min)
    fallback = {i for _, i in rest[: index.fallback_tokens]}
    row_score = {}
    for i, (y, a, key) in enumerate(tokens):
        best = {}
        if y in index.of_target[0]:
            events = [(e, False) for part in (0, 1) for e in index.of_target[part].get(y, ())]
        else:
            events = [(e, True) for e in range(index.n_learned)] if i in fallback else []
        for e, half in events:
            d2 = dot(key[64:], index.key(1, e))
            if half:
                c = power(index, d2, 16129)
            else:
                d1 = dot(key[:64], index.key(0, e))
                c = max(power(index, d1 + d2, 32258), power(index, d1, 16129) * index.half1_part >> 8)
            v = (a + index.gain_floor) * (index.learned[e] + index.learned_floor) * c >> 16
            row = index.event_row[e]
            best[row] = max(best.get(row, 0), v)
        for row, v in best.items():
            row_score[row] = row_score.get(row, 0) + v
    cluster = {}
    for row, score in row_score.items():
        k = index.rows[row][4]
        cluster[k] = max(cluster.get(k, 0), min(score, 1 << 48))
    scores = [0] * index.n_owners
    for k, c in cluster.items():
        scores[index.rows[k][3]] += c * c
    return scores


def log2_q16(x):
    place = x.bit_length() - 1
    m, out = (x << 31) >> place, place << 16
    for bit in range(15, -1, -1):
        m = m * m >> 31
        if m >= 1 << 32:
            m, out = m >> 1, out | 1 << bit
    return out


def bits(a, b):
    return (log2_q16(a) - log2_q16(b) + 128) >> 8


def places(text, run):
    return [i for i in range(len(text) - len(run) + 1) if text[i: i + len(run)] == run]


def span_weights(documents, n_owners, n_vocab, choices):
    """S2's weight of each owner. documents: (owner, ids); choices: (ids of prompt and output, how many are the prompt)."""
    weight = [0] * n_owners
    every = [t for _, ids in documents for t in ids]
    for ids, n_prompt in choices:
        stands = lambda i, j: all(0 <= t < n_vocab for t in ids[i:j]) and any(places(d, ids[i:j]) for _, d in documents)
        end, i = [], 0
        for i in range(len(ids)):  # of the longest run that begins here: never before that of the run which began before
            j = max(i, end[-1] if end else 0)
            while j < len(ids) and stands(i, j + 1):
                j += 1
            end.append(j)
        spans = []
        for i, j in enumerate(end):
            if j > n_prompt and j - i >= 2 and (i == 0 or end[i - 1] < j):
                info = sum(bits(len(every), every.count(t)) for t in ids[i:j])
                spans += [(info, i, j)] if info >= 3072 else []
        heaviest = {}
        for info, i, j in sorted(sorted(spans, key=lambda s: (-s[0], s[1]))[:64], key=lambda s: s[1]):
            at = [(o, len(places(d, ids[i:j]))) for o, d in documents]
            owners = sorted({o for o, n in at if n})
            if sum(n for _, n in at) > 4096:
                continue
            w = info * max(1, bits(n_owners, len(owners)))
            for t in range(max(i, n_prompt), j):
                if w > heaviest.get(t, (0,))[0]:
                    heaviest[t] = (w, owners)
        for w, owners in heaviest.values():
            for o in owners:
                weight[o] = min(weight[o] + w // len(owners), (1 << 64) - 1)
    return weight


def shares(index, tokens, spans):
    """[(payee, ppb)]"""
    o = owner_scores(index, tokens)
    prior = lr(E9, [d for _, d in index.owners])
    f = [E9 * p for p in prior]
    if any(o):
        p1, p2 = lr(E9, o), [0] * len(o)
        weights = [spans.get(i, 0) if p1[i] else 0 for i in range(len(o))]
        if any(weights):
            p2 = lr(E9, weights)
        influence = lr(E9, [index.w1 * a + index.w2 * b for a, b in zip(p1, p2)])
        f = [index.lam * x + (E9 - index.lam) * p for x, p in zip(influence, prior)]
    kept = set(sorted(range(len(f)), key=lambda i: (-f[i], i))[:64])
    parts = lr(E9, [w if i in kept else 0 for i, w in enumerate(f)])
    return [(index.owners[i][0], part) for i, part in enumerate(parts) if part]


def mixed(inputs, gains):
    """The weights by which an answer's gain is divided among its adapters; None where nobody has any."""
    total = sum(l - b for c in inputs["choices"] for l, b in zip(c["set"], c["base"]))
    without = lambda c, k: c["base"] if len(gains) == 1 else c["alone"][1 - k] if len(gains) == 2 else c["without"][k]
    last = [[[l - w for l, w in zip(c["set"], without(c, k))] for c in inputs["choices"]] for k in range(len(gains))]
    both = [sum(map(sum, g)) + sum(map(sum, v)) for g, v in zip(gains, last)]
    moves = [any(map(any, g + v)) for g, v in zip(gains, last)]
    weights = [max(0, sum(moves) * b + 2 * total - sum(both)) if m else 0 for b, m in zip(both, moves)]
    return weights if any(weights) else None


def influence(inputs, indexes):
    """([(gain, [(payee, ppb)])] in set order, inputsDigest, indexHash) of what /inputs answers; indexes by root hex."""
    choices, k_count = inputs["choices"], len(inputs["set"])
    adapters = inputs["adapters"]
    keys = [[base64.b64decode(t) for t in a["keys"]] if a["root"] else None for a in adapters]
    spans = [{o: int(w) for o, w in a["spans"]} if a["root"] else {} for a in adapters]
    row = lambda c, k: c["set"] if k_count == 1 else c["alone"][k]
    gains = [[[l - b for l, b in zip(row(c, k), c["base"])] for c in choices] for k in range(k_count)]
    solo = [sum(max(0, g) for c in gains[k] for g in c) for k in range(k_count)]
    gain = lr(E9, mixed(inputs, gains) or [abs(a["weight"]) for a in inputs["set"]])
    out = []
    for k in range(k_count):
        if not adapters[k]["root"]:
            out.append((gain[k], []))
        elif not solo[k]:
            out.append((gain[k], [(bytes(20), E9)]))
        else:
            tokens = []
            for c, choice in enumerate(choices):
                signed = [v - 256 if v > 127 else v for v in keys[k][c]]
                for t, y in enumerate(choice["target"]):
                    tokens.append((y, min(65535, max(0, gains[k][c][t])), signed[128 * t: 128 * t + 128], choice["in_prompt"][t]))
            out.append((gain[k], shares(indexes[adapters[k]["root"]], tokens, spans[k])))
    ints = lambda v: struct.pack(f">{len(v)}i", *v)
    data = keccak256(bytes.fromhex(inputs["salt"][2:]) + b"\x04")
    for c in choices:
        data += ints(c["set"]) + ints(c["base"]) + b"".join(ints(a) for a in c["alone"] + c["without"]) + bytes(c["in_prompt"])
    for k in range(k_count):
        if adapters[k]["root"]:
            data += b"".join(keys[k]) + struct.pack(">I", len(spans[k])) + b"".join(struct.pack(">IQ", o, w) for o, w in sorted(spans[k].items()))
    roots = [bytes.fromhex(a["root"][2:]) if a["root"] else bytes(32) for a in adapters]
    return out, keccak256(data), keccak256(b"".join(roots)) if any(map(any, roots)) else bytes(32)


def encode(parts):
    """The influence tail (SPEC 2)."""
    return b"".join(struct.pack(">IB", gain, len(list_)) + b"".join(p + struct.pack(">I", ppb) for p, ppb in list_) for gain, list_ in parts)


def compare(attribution, inputs, indexes):
    """What differs, as lines. A preview has no record: its shown shares are compared."""
    got, inputs_digest, index_hash = influence(inputs, indexes)
    said = []
    if inputs["method"] != METHOD:
        return [f"method {inputs['method']}: this is {METHOD}"]
    for k, ((gain, list_), a) in enumerate(zip(got, attribution["adapters"])):
        if gain != a["gain_ppb"]:
            said.append(f"adapter {k}: gain {a['gain_ppb']}, recomputed {gain}")
        shown = [(bytes.fromhex(c["payee"][2:]), c["ppb"]) for c in a["contributors"]]
        if shown != list_:
            said.append(f"adapter {k}: shares {[(p.hex(), n) for p, n in shown]}, recomputed {[(p.hex(), n) for p, n in list_]}")
    if "record" in attribution:
        record = bytes.fromhex(attribution["record"][2:])
        fields = {"methodHash": (54, keccak256(METHOD.encode())), "indexHash": (86, index_hash), "inputsDigest": (118, inputs_digest),
                  "influenceHash": (151, keccak256(encode(got)))}
        for name, (at, want) in fields.items():
            if record[at: at + 32] != want:
                said.append(f"{name} 0x{record[at:at + 32].hex()}, recomputed 0x{want.hex()}")
    return said


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    attribution, inputs = (json.loads(Path(p).read_text()) for p in sys.argv[1:3])
    indexes = {"0x" + i.root.hex(): i for i in (Index(Path(p).read_bytes()) for p in sys.argv[3:])}
    said = compare(attribution, inputs, indexes)
    print("\n".join(said) or "every share follows from the logged inputs")
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Random worlds of documents and answers, and S2's weights of them as chain_client/SPEC.md section 10 says (replay.py): what
tests/unit/test_spans.c holds server/influence/spans*.c against. Writes tests/data/spans_golden.json."""
import json
import random
from pathlib import Path

from replay import span_weights

FILE = Path(__file__).resolve().parents[1] / "data" / "spans_golden.json"


def answer(rng, documents, n_vocab, n):
    """Fragments of the documents, ids of anybody, and ids that are none."""
    ids = []
    while len(ids) < n:
        _, text = rng.choice(documents)
        at = rng.randrange(len(text) + 1)
        ids += {0: [rng.choice((-1, n_vocab, n_vocab + 7))], 1: [rng.randrange(n_vocab)]}.get(rng.randrange(10), text[at: at + rng.randint(1, 12)])
    return ids[:n], rng.randint(0, n)


def world(rng, letters, n_vocab):
    n_owners = rng.randint(1, 6)
    documents = []
    for _ in range(rng.randint(1, 9)):
        text = [n_vocab // letters * rng.randrange(letters) for _ in range(rng.randint(0, 60))]
        if documents and rng.randrange(3) == 0:  # begins as another does
            text[:30] = rng.choice(documents)[1][:30]
        documents.append((rng.randrange(n_owners), text))
    return n_owners, n_vocab, documents, [answer(rng, documents, n_vocab, rng.randint(1, 50)) for _ in range(rng.randint(1, 4))]


def often(count):
    """Six tokens, so often one after another: what stands at 4096 places is its owner's, what stands at one more is nobody's."""
    return 2, 40, [(0, [1, 2, 3, 4, 5, 6] * count), (1, list(range(10, 30)))], [([30, 1, 2, 3, 4, 5, 6, 31], 1)]


def many(rng):
    """More spans than count: 90 pairs, each told from its neighbours by a token of nobody's."""
    text = [rng.randrange(3000) for _ in range(2000)]
    ids = [t for i in range(90) for t in (*text[20 * i: 20 * i + rng.randint(2, 3)], -1)]
    return 3, 3000, [(0, text), (1, text[400:900]), (2, [t for t in text if t % 3])], [(ids, 7)]


def document(owner, ids):
    return {"owner": owner, "ids": ids} if len(ids) < 6 * 4000 else {"owner": owner, "ids": ids[:6], "times": len(ids) // 6}


def vectors():
    rng = random.Random(20261201)
    shapes = [(3, 30), (40, 400), (200, 2000), (60, 65534), (60, 65535)]
    worlds = [world(rng, *shapes[i % len(shapes)]) for i in range(60)] + [often(4095), often(4096), often(4097), many(rng)]
    out = []
    for n_owners, n_vocab, documents, choices in worlds:
        out.append({"owners": n_owners, "vocab": n_vocab, "documents": [document(o, ids) for o, ids in documents],
                    "choices": [{"ids": ids, "prompt": n} for ids, n in choices],
                    "weights": [str(w) for w in span_weights(documents, n_owners, n_vocab, choices)]})
    return json.dumps(out, separators=(",", ":")).replace("},{\"owners\"", "},\n{\"owners\"") + "\n"


if __name__ == "__main__":
    FILE.write_text(vectors())

#!/usr/bin/env python3
"""Who is paid for the demo world's facts, through the API: every fact of every adapter is asked once, and the data pool of the answer is
compared with who wrote the fact. Prints owner first (the author has the largest share) and pay (the author's part of the pool), of all answers
and of the right ones; exit status 1 below the bars.

    tests/attribution/demo_figures.py [--each N] [--preset release]     N facts of each adapter (default: all 50)
"""
import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
from server import DEMO, Server, wait_for  # noqa: E402

E9 = 1_000_000_000
FIRST_BAR, PAY_BAR = 0.99, 0.98


def ask(server, model, fact, stop):
    status, body = server.post("/v1/completions", {"model": model, "prompt": fact["prompt"], "temperature": 0, "max_tokens": 12, "stop": [stop]})
    assert status == 200, body
    return body["choices"][0]["text"].strip(), body["residual"]["request_id"]


def attribution(server, request_id, wait_s=60):
    def over():
        status, body = server.get(f"/v1/attribution/{request_id}")
        return body if status == 200 and body["state"] in ("preview", "recorded") else None

    return wait_for(over, wait_s, what="the attribution")


def shares_of(adapter):
    return {c["payee"].lower(): c["ppb"] for c in adapter["contributors"]}


def figures(server, each=50):
    """Per adapter (asked, right, owner first, pay), pay in parts of 1, over its first facts."""
    book = json.loads((DEMO / "facts.json").read_text())
    asked = [(name, f) for name, facts in book["adapters"].items() for f in facts[:each]]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda a: ask(server, a[0], a[1], book["stop"]), asked))
    rows = {}
    for (name, fact), (text, request_id) in zip(asked, answers):
        adapter = attribution(server, request_id)["adapters"][0]
        shares = shares_of(adapter)
        assert sum(shares.values()) == E9, adapter
        owner = fact["contributor"].lower()
        first = max(shares, key=shares.get) == owner
        row = rows.setdefault(name, {"asked": 0, "right": 0, "first": 0, "pay": 0.0, "lambda": adapter["index"]["lambda_ppb"] / E9})
        row["asked"] += 1
        row["right"] += text == fact["answer"]
        row["first"] += first
        row["pay"] += shares.get(owner, 0) / E9
    return rows


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--each", type=int, default=50)
    ap.add_argument("--preset", default="release")
    args = ap.parse_args()
    with Server(preset=args.preset) as server:
        begin = time.monotonic()
        rows = figures(server, args.each)
        took = time.monotonic() - begin
    print(f"{'adapter':14} {'asked':>5} {'right':>6} {'first':>6} {'pay':>6} {'lambda':>7}")
    for name, r in rows.items():
        print(f"{name:14} {r['asked']:5} {r['right'] / r['asked']:6.3f} {r['first'] / r['asked']:6.3f} {r['pay'] / r['asked']:6.3f} {r['lambda']:7.4f}")
    n = sum(r["asked"] for r in rows.values())
    first, pay = (sum(r[k] for r in rows.values()) / n for k in ("first", "pay"))
    print(f"{'all':14} {n:5} {sum(r['right'] for r in rows.values()) / n:6.3f} {first:6.3f} {pay:6.3f}   in {took:.1f} s")
    print(f"bars: owner first >= {FIRST_BAR}, pay >= {PAY_BAR}: {'met' if first >= FIRST_BAR and pay >= PAY_BAR else 'MISSED'}")
    return 0 if first >= FIRST_BAR and pay >= PAY_BAR else 1


if __name__ == "__main__":
    sys.exit(main())

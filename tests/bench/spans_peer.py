#!/usr/bin/env python3
"""infini-gram beside bench_spans: the same text, the same questions, and whether both find the same spans.

    build/release/tests/bench_spans DIR 10000000
    VENV/bin/python tests/bench/spans_peer.py DIR

VENV has infini-gram and numpy (PyPI); it is nothing the project needs. The text is given as tokens in infini-gram's own form, its tokenizers
are not used. Times are processor times of all its threads and of the clock on the wall; it is told to use one of each.
"""
import argparse
import os
import shutil
import sys
import time
import types

import numpy as np
from infini_gram import indexing
from infini_gram.engine import InfiniGramEngine

VOCABULARY, PROMPT, QUESTION = 49152, 64, 512  # as in bench_spans.c


def child_and_own_seconds():
    t = os.times()
    return t.user + t.system + t.children_user + t.children_system


def build(folder, index):
    shutil.rmtree(index, ignore_errors=True)
    os.makedirs(index)
    shutil.copy(f"{folder}/corpus.u16", f"{index}/tokenized.0")
    shutil.copy(f"{folder}/documents.u64", f"{index}/offset.0")
    tokens = os.path.getsize(f"{index}/tokenized.0") // 2 - os.path.getsize(f"{index}/offset.0") // 8
    here, cpu, wall = os.getcwd(), child_and_own_seconds(), time.monotonic()
    indexing.build_sa(types.SimpleNamespace(save_dir=index, temp_dir=index, worker_id=0, workers=1, shards=1, cpus=1, mem=8, token_width=2))
    os.chdir(here)
    cpu, wall = child_and_own_seconds() - cpu, time.monotonic() - wall
    size = sum(os.path.getsize(f"{index}/{name}") for name in ("tokenized.0", "offset.0", "table.0"))
    print(f"infini-gram: {tokens} tokens built in {cpu:.2f} s of processor ({wall:.2f} on the wall), {tokens / cpu / 1e6:.2f} M tokens/s; "
          f"{size / tokens:.2f} bytes a token")


def say(what, seconds):
    s = np.sort(np.array(seconds)) * 1e3
    print(f"{what:<34} mean {s.mean():.3f} ms   p50 {s[len(s) // 2]:.3f} ms   p99 {s[len(s) * 99 // 100]:.3f} ms   max {s[-1]:.3f} ms")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--keep", action="store_true", help="use the index of an earlier run")
    args = parser.parse_args()
    index = os.path.abspath(f"{args.folder}/infini-gram")
    if not (args.keep and os.path.exists(f"{index}/table.0")):
        build(os.path.abspath(args.folder), index)
    engine = InfiniGramEngine(index_dir=index, eos_token_id=VOCABULARY, vocab_size=VOCABULARY + 1, token_dtype="u16", load_to_ram=True)
    questions = np.fromfile(f"{args.folder}/questions.i32", dtype=np.int32).reshape(-1, QUESTION)[:args.questions]
    answers = np.fromfile(f"{args.folder}/spans.i32", dtype=np.int32).reshape(-1, 4)
    cpu, wall, differ, compared = [], [], 0, 0
    for q, ids in enumerate(questions):
        ids = ids.tolist()
        c, w = time.process_time(), time.monotonic()
        spans = engine.attribute(input_ids=ids, delim_ids=[], min_len=2, max_cnt=1 << 40, enforce_bow=False)["spans"]
        cpu.append(time.process_time() - c)
        wall.append(time.monotonic() - w)
        theirs = {(s["l"], s["r"] - s["l"]): s["count"] for s in spans if s["r"] > PROMPT}
        ours = {(b, n): count for b, n, count in answers[answers[:, 0] == q][:, 1:].tolist()}
        # ours leave out what says less than 12 bits; eight tokens say more
        differ += sum(theirs.get(k) != v for k, v in ours.items()) + sum(k not in ours for k in theirs if k[1] >= 8)
        compared += len(ours)
    print(f"{len(questions)} questions; {compared} spans compared, {differ} differ")
    say("attribute", cpu)
    say("attribute, on the wall", wall)
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())

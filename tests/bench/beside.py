"""What a training job does to those who are served beside it: streams of the base run while the job is paused and while it trains, in
turns. Both halves ask the same; the p99 of their inter-token times are compared, and their rates; the median of the pairs is the
result. Beside it the tokens that the job trained a second, while users were served and with nobody there."""
import json
import random
import statistics
import time
import urllib.request
import uuid

import drive

ROWS, ROW_BYTES = 400, 600


def call(url, method="GET", body=None, kind="application/json"):
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    with urllib.request.urlopen(urllib.request.Request(url, data=data, method=method, headers={"Content-Type": kind}), timeout=120) as r:
        return json.loads(r.read())


def upload(url, rng):
    """A JSONL file of random words, by multipart/form-data as OpenAI's clients send it."""
    words = ["".join(rng.choice("abcdefghijklmnop") for _ in range(rng.randrange(2, 9))) for _ in range(500)]
    rows = []
    for _ in range(ROWS):
        text = ""
        while len(text) < ROW_BYTES:
            text += rng.choice(words) + " "
        rows.append(json.dumps({"text": text.strip()}))
    mark = uuid.uuid4().hex
    parts = (f'--{mark}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--{mark}\r\nContent-Disposition: form-data; name="file"; '
             f'filename="rows.jsonl"\r\nContent-Type: application/jsonl\r\n\r\n' + "\n".join(rows) + f"\n\r\n--{mark}--\r\n")
    return call(url + "/v1/files", "POST", parts.encode(), f"multipart/form-data; boundary={mark}")["id"]


class Job:
    """One that lasts longer than the bench."""

    def __init__(self, url, rng):
        self.url = url
        self.id = call(url + "/v1/fine_tuning/jobs", "POST", {"model": "base", "training_file": upload(url, rng), "method": {"type": "supervised", "supervised": {
            "hyperparameters": {"n_epochs": 1000, "batch_size": 8, "rank": 16}}}})["id"]

    def status(self):
        return call(f"{self.url}/v1/fine_tuning/jobs/{self.id}")["status"]

    def set(self, verb, status):
        call(f"{self.url}/v1/fine_tuning/jobs/{self.id}/{verb}", "POST", {})
        end = time.monotonic() + 120
        while drive.metrics(self.url)["residual_train_jobs_running"] != (status == "running"):
            if time.monotonic() > end:
                raise SystemExit(f"--beside: the job is {self.status()}, expected {status}")
            time.sleep(0.1)


def trained(url):
    return drive.metrics(url)["residual_train_tokens_total"], time.perf_counter()


def rate(before, after):
    return (after[0] - before[0]) / (after[1] - before[1])


def half(url, args, seed):
    before = trained(url)
    r = drive.run_case(url, ["base"], args.bystanders, args.prompt, args.churn_tokens, seed)
    return {**r, "trained": rate(before, trained(url))}


def idle_rate(url, seconds):
    before = trained(url)
    time.sleep(seconds)
    return rate(before, trained(url))


def run(url, args):
    """Prints the pairs; returns the median ratio of the p99."""
    job, pairs = Job(url, random.Random(2)), []
    time.sleep(5)
    alone = idle_rate(url, 20)
    for pair in range(args.pairs):
        halves = {}
        for kind in (("paused", "trains"), ("trains", "paused"))[pair % 2]:
            job.set("resume" if kind == "trains" else "pause", "running" if kind == "trains" else "paused")
            time.sleep(1)
            halves[kind] = half(url, args, pair)
        p, t = halves["paused"], halves["trains"]
        pairs.append((p, t))
        print(f"pair {pair + 1}: p50 {1000 * p['p50']:.1f} and p99 {1000 * p['p99']:.1f} ms without training, {1000 * t['p50']:.1f} and {1000 * t['p99']:.1f} ms beside it, "
              f"ratio {t['p99'] / p['p99']:.2f}; {p['tps']:.0f} and {t['tps']:.0f} tok/s; {t['trained']:.0f} tokens trained a second", flush=True)
    call(f"{url}/v1/fine_tuning/jobs/{job.id}/cancel", "POST", {})

    def median(field):
        return statistics.median(t[field] / p[field] for p, t in pairs)

    print(f"users' p99 inter-token ratio: {median('p99'):.3f} (median of {args.pairs} pairs; p50 {median('p50'):.3f}, tok/s {median('tps'):.3f}); bar 1.05. Trained a second: "
          f"{statistics.median(t['trained'] for _, t in pairs):.0f} tokens beside {args.bystanders} streams, {alone:.0f} with nobody there")
    return median("p99")

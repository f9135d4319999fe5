"""What loading adapters does to those who only read: bystander streams of the base run while requests come at a fixed rate, in one
half of a pair for a few resident adapters (no loads), in the other for one adapter after the other out of many more than memory may
hold, so that the one asked for is always the one used longest ago, and every request is a load. Both halves answer the same requests;
only the loads differ. The bystanders' p99 inter-token times of the two halves are compared; the median of the pairs is the result."""
import itertools
import os
import random
import statistics
import threading
import time
from pathlib import Path

import drive

TICKS = os.sysconf("SC_CLK_TCK")
COUNTERS = ("loads_total", "loads_verified_total", "load_seconds_total", "load_cpu_seconds_total")


def ask(url, model, errors):
    try:
        drive.stream(url, model, [5, 6, 7], 1)
    except (RuntimeError, OSError) as e:
        errors.append(e)


def requests_at(url, names, rate, stop, errors):
    """Open loop: a request each 1/rate seconds, whether or not earlier ones were answered."""
    due, threads = time.perf_counter(), []
    for name in itertools.cycle(names):
        if stop.is_set():
            break
        threads.append(threading.Thread(target=ask, args=(url, name, errors)))
        threads[-1].start()
        due += 1 / rate
        time.sleep(max(0.0, due - time.perf_counter()))
    [t.join() for t in threads]


def counters(url):
    page = drive.metrics(url)
    return {c: page.get(f"residual_adapter_{c}", 0.0) for c in COUNTERS}


def processor_seconds(pid):
    """(of this machine, of the server and of this client), or None where /proc does not say."""
    try:
        machine = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
        server = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    busy = sum(machine[:8]) - machine[3] - machine[4]  # all but idle and waiting for disks; stolen time counts
    return busy / TICKS, (int(server[11]) + int(server[12])) / TICKS, time.process_time()


def half(url, names, args, rng):
    """{p50, p99: the bystanders' gaps; loads: a second; hashed, wait, cpu: of a load; client, others: processors taken, the latter by
    neither server nor client}"""
    stop, errors = threading.Event(), []
    driver = threading.Thread(target=requests_at, args=(url, names, args.churn_rate, stop, errors))
    prompts = [[rng.randrange(2, 250) for _ in range(16)] for _ in range(args.bystanders)]
    driver.start()
    time.sleep(1)
    before, begin, used = counters(url), time.perf_counter(), processor_seconds(args.server_pid)
    runs = drive.together([lambda p=p: drive.stream(url, "base", p, args.churn_tokens) for p in prompts])
    after, seconds, used_after = counters(url), time.perf_counter() - begin, processor_seconds(args.server_pid)
    stop.set()
    driver.join()
    if errors:
        raise errors[0]
    gaps = [g for r in runs for g in drive.gaps_of(r["times"])]
    d = {c: after[c] - before[c] for c in COUNTERS}
    loads = max(d["loads_total"], 1)
    machine, server, client = [(b - a) / seconds for a, b in zip(used, used_after)] if used and used_after else [0.0] * 3
    return {"p50": drive.quantile(gaps, 0.5), "p99": drive.quantile(gaps, 0.99), "loads": d["loads_total"] / seconds,
            "hashed": d["loads_verified_total"] / loads, "wait": d["load_seconds_total"] / loads, "cpu": d["load_cpu_seconds_total"] / loads,
            "client": client, "others": machine - server - client}


def run(url, hot, cold, args):
    """hot: names that stay resident; cold: names of which most are not. Prints the pairs; returns the median ratio."""
    rng, pairs = random.Random(3), []
    if len(cold) < 2 * args.resident:
        raise SystemExit(f"--churn: {len(cold)} adapters beside {args.resident} that fit are too few: some would still be there when asked for again")
    for pair in range(args.pairs):
        halves = {}
        for kind in (("hot", "cold"), ("cold", "hot"))[pair % 2]:
            for name in hot:  # back in memory after a half that pushed them out
                drive.stream(url, name, [5, 6, 7], 1)
            halves[kind] = half(url, hot if kind == "hot" else cold, args, rng)
        h, c = halves["hot"], halves["cold"]
        pairs.append((h, c))
        print(f"pair {pair + 1}: p50 {1000 * h['p50']:.1f} and p99 {1000 * h['p99']:.1f} ms with {h['loads']:.1f} loads/s, {1000 * c['p50']:.1f} and "
              f"{1000 * c['p99']:.1f} ms with {c['loads']:.1f} loads/s, ratio {c['p99'] / h['p99']:.2f}; others took {100 * h['others']:.0f} and {100 * c['others']:.0f} % of a processor", flush=True)

    def cold_median(key):
        return statistics.median(c[key] for _, c in pairs)

    print(f"a load: {1000 * cold_median('cpu'):.1f} ms of processor time, {1000 * cold_median('wait'):.1f} ms from begin to end, "
          f"{100 * cold_median('hashed'):.0f} % hashed; this client: {100 * cold_median('client'):.0f} % of one processor")
    result = statistics.median(c["p99"] / h["p99"] for h, c in pairs)
    print(f"bystanders' p99 inter-token ratio: {result:.2f} (median of {args.pairs} pairs, {cold_median('loads'):.1f} loads a second; p50 "
          f"{statistics.median(c['p50'] / h['p50'] for h, c in pairs):.2f}); bar 1.5 at 20")
    return result

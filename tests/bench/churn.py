"""What loading adapters does to those who only read: bystander streams of the base run while requests come at a fixed rate, in one
half of a pair for a few resident adapters (no loads), in the other for random ones out of more than memory may hold (a load each).
The bystanders' p99 inter-token times of the two halves are compared; the median of the pairs is the result."""
import random
import statistics
import threading
import time

import drive


def ask(url, model, late):
    try:
        drive.stream(url, model, [5, 6, 7], 1)
    except (RuntimeError, OSError) as e:
        late.append(e)


def requests_at(url, names, rate, stop, rng, errors):
    """Open loop: a request each 1/rate seconds, whether or not earlier ones were answered."""
    due, threads = time.perf_counter(), []
    while not stop.is_set():
        threads.append(threading.Thread(target=ask, args=(url, rng.choice(names), errors)))
        threads[-1].start()
        due += 1 / rate
        time.sleep(max(0.0, due - time.perf_counter()))
    [t.join() for t in threads]


def half(url, names, args, rng):
    """(p99 of the bystanders' gaps, loads a second)"""
    stop, errors = threading.Event(), []
    driver = threading.Thread(target=requests_at, args=(url, names, args.churn_rate, stop, rng, errors))
    prompts = [[rng.randrange(2, 250) for _ in range(16)] for _ in range(args.bystanders)]
    driver.start()
    time.sleep(1)
    before, begin = drive.metrics(url)["residual_adapter_loads_total"], time.perf_counter()
    runs = drive.together([lambda p=p: drive.stream(url, "base", p, args.churn_tokens) for p in prompts])
    loads = drive.metrics(url)["residual_adapter_loads_total"] - before
    seconds = time.perf_counter() - begin
    stop.set()
    driver.join()
    if errors:
        raise errors[0]
    gaps = [g for r in runs for g in drive.gaps_of(r["times"])]
    return drive.quantile(gaps, 0.99), loads / seconds


def run(url, hot, cold, args):
    """hot: names that stay resident; cold: names of which most are not. Prints the pairs; returns the median ratio."""
    rng, ratios, rates = random.Random(3), [], []
    for pair in range(args.pairs):
        halves = {}
        for kind in (("hot", "cold"), ("cold", "hot"))[pair % 2]:
            for name in hot:  # back in memory after a half that pushed them out
                drive.stream(url, name, [5, 6, 7], 1)
            halves[kind] = half(url, hot if kind == "hot" else cold, args, rng)
        ratios.append(halves["cold"][0] / halves["hot"][0])
        rates.append(halves["cold"][1])
        print(f"pair {pair + 1}: p99 {1000 * halves['hot'][0]:.1f} ms with {halves['hot'][1]:.1f} loads/s, {1000 * halves['cold'][0]:.1f} ms with "
              f"{halves['cold'][1]:.1f} loads/s, ratio {ratios[-1]:.2f}", flush=True)
    print(f"bystanders' p99 inter-token ratio: {statistics.median(ratios):.2f} (median of {args.pairs} pairs, {statistics.median(rates):.1f} "
          f"loads a second); bar 1.5 at 20")
    return statistics.median(ratios)

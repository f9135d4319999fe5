"""The bars of acceptance. Each takes the merged results of all parts and says what was measured, its bound and whether it is met; None
where the run did not measure it. A share is always of a bound whose ceiling was measured in the same call as the number itself."""
import statistics

NOT_RUN = "not yet run on a GPU"


def rows_of(results, part):
    r = results.get(part)
    return r["rows"] if r and r["status"] in ("ok", "fail") else []


def ceilings_of(results, part):
    return (results.get(part) or {}).get("ceilings") or {}


def find(results, part, **want):
    for row in rows_of(results, part):
        if all(row.get(k) == v for k, v in want.items()) and row.get("us"):
            return row
    return None


def floor_us(row, ceilings):
    """The byte floor of a step at the best bandwidth that the same call measured."""
    return row["bytes"] / (1e3 * max(ceilings["copy_gbs"], ceilings["read_gbs"]))


def step_bar(batch, lora, least):
    def judge(results):
        row, c = find(results, "step", batch=batch, lora=lora, rank="16", context=1024, mode="fast"), ceilings_of(results, "step")
        if not row or not c:
            return None
        floor = floor_us(row, c)
        share = floor / row["us"]
        fixed = find(results, "step", batch=batch, lora=lora, rank="16", context=1024, mode="fixed")
        also = f" ({fixed['us'] / 1e3:.2f} with fixed bits)" if fixed else ""
        return {"measured": f"{row['us'] / 1e3:.2f} ms{also}", "bound": f"{floor / 1e3:.2f} ms", "share": share, "met": share >= least}
    return judge


def tax_bar(lora, most):
    """A step with LoRA over the same step without."""
    def judge(results):
        plain = find(results, "step", batch=64, lora="none", context=1024, mode="fast")
        row = find(results, "step", batch=64, lora=lora, context=1024, rank="16", mode="fast")
        if not plain or not row:
            return None
        tax = row["us"] / plain["us"] - 1
        return {"measured": f"{100 * tax:+.1f} %", "bound": f"{plain['us'] / 1e3:.2f} ms without", "share": None, "met": tax <= most}
    return judge


def pair_ratios(results):
    """cell -> (best peer's time over ours, peer's name), where both were measured and the peer was right."""
    ratios = {}
    for row in rows_of(results, "peers"):
        peers = {name: us for name, us in (row.get("peers") or {}).items() if us}
        if row.get("ours_us") and peers:
            best = min(peers, key=peers.get)
            ratios[row["cell"]] = (peers[best] / row["ours_us"], best)
    return ratios


def peers_bar(results):
    ratios = pair_ratios(results)
    if not ratios:
        return None
    median = statistics.median(r for r, _ in ratios.values())
    worst = min(ratios, key=lambda cell: ratios[cell][0])
    return {"measured": f"{median:.2f} times, median of {len(ratios)} cells", "bound": f"slowest {ratios[worst][0]:.2f} ({worst}, {ratios[worst][1]})",
            "share": None, "met": median >= 1.3 and ratios[worst][0] >= 0.9}


def swap_bar(results):
    row = find(results, "swap", rank="16")
    if not row or not row.get("bystander_ratio"):
        return None
    wire = row["bytes"] / (1e3 * ceilings_of(results, "swap")["h2d_gbs"])
    return {"measured": f"{row['us'] / 1e3:.2f} ms, bystanders' p99 ratio {row['bystander_ratio']:.2f}", "bound": f"{wire / 1e3:.2f} ms on the bus",
            "share": wire / row["us"], "met": row["us"] <= 5000 and row["bystander_ratio"] <= 1.1}


def zipf_bar(results):
    """Throughput with Zipf-drawn adapters over throughput with one: its share of the ratio that bytes alone would give."""
    one = find(results, "step", batch=64, lora="one", rank="16", context=1024, mode="fast")
    shares, ratios, predicted = [], [], []
    for row in rows_of(results, "step"):
        if row.get("lora") == "zipf" and row.get("us") and one:
            ratios.append(one["us"] / row["us"])
            predicted.append(one["bytes"] / row["bytes"])
            shares.append(ratios[-1] / predicted[-1])
    if not shares:
        return None
    share = statistics.median(shares)
    return {"measured": f"{statistics.median(ratios):.2f} of one adapter's rate", "bound": f"{statistics.median(predicted):.2f} by bytes", "share": share,
            "met": share >= 0.9}


# what, bar, judge; the texts are those of the acceptance bars
BARS = [
    ("decode step, 8B shape, batch 1, one r16 adapter", "70 % of the byte floor", step_bar(1, "one", 0.70)),
    ("batch 64, 64 distinct r16 all-linear", "70 %", step_bar(64, "distinct", 0.70)),
    ("LoRA tax at batch 64, one shared adapter", "8 % or less", tax_bar("one", 0.08)),
    ("our shrink + finish against the best Triton or torch peer of the run", "1.3 times, median; no cell under 0.9", peers_bar),
    ("adapter swap, r16 all-linear 8B, host to usable", "5 ms or less; bystanders' p99 ratio 1.1 or less", swap_bar),
    ("1 000 resident adapters, Zipf 1.0, batch 64, against one shared", "90 % of the ratio by bytes", zipf_bar),
    ("idle LoRA", "1 % or less", tax_bar("idle", 0.01)),
]


def judge_all(results):
    """[(what, bar, verdict or None)]"""
    return [(what, bar, judge(results)) for what, bar, judge in BARS]

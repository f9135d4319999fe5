"""Results of parts, possibly of several calls, to one Markdown table with its details. Nothing that was not measured becomes a number."""
import bars

HEAD = "| what | bar | measured | bound | share | verdict |\n|---|---|---|---|--:|---|"


def merge(sources, digest=None):
    """The newest usable result of each part. sources: documents of accept.json, any order. A result of other sources than digest is left
    out and named; a skipped part never hides one that ran. Returns (results, notes)."""
    chosen, notes = {}, []
    for doc in sources:
        for name, r in doc.get("parts", {}).items():
            if digest and r.get("digest") and r["digest"] != digest:
                notes.append(f"{name} of {r.get('date', '?')}: measured on other sources ({r['digest'][:12]}), left out")
                continue
            old = chosen.get(name)
            if old is None or rank_of(r) > rank_of(old):
                chosen[name] = r
    devices = sorted({r["device"] for r in chosen.values() if r.get("device")})
    if len(devices) > 1:
        notes.append("parts ran on different devices: " + ", ".join(devices))
    return chosen, notes


def rank_of(r):
    """Ran before skipped, then full before quick, then newer before older."""
    return (r["status"] != "skip", r.get("mode") == "full", r.get("date", ""))


def percent(x):
    return "-" if x is None else f"{100 * x:.0f} %"


def bar_lines(results):
    lines = []
    for what, bar, v in bars.judge_all(results):
        if v is None:
            lines.append(f"| {what} | {bar} | {bars.NOT_RUN} | - | - | - |")
        else:
            lines.append(f"| {what} | {bar} | {v['measured']} | {v['bound']} | {percent(v['share'])} | {'met' if v['met'] else 'MISSED'} |")
    return lines


def part_lines(results, names, about):
    lines = []
    for name in names:
        r = results.get(name)
        if r is None:
            said, verdict = bars.NOT_RUN, "-"
        elif r["status"] == "skip":
            said, verdict = r["reason"], "SKIP"
        else:
            said, verdict = r["reason"], "ok" if r["status"] == "ok" else "FAIL"
        lines.append(f"| part `{name}`: {about[name]} | no failure | {said} | - | - | {verdict} |")
    return lines


def cell(value):
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)


def rows_table(title, rows):
    """Any list of flat rows; columns are the keys in the order in which they first appear."""
    columns = []
    for row in rows:
        columns += [k for k in row if k not in columns and not isinstance(row[k], (dict, list))]
    lines = ["", f"### {title}", "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return lines + ["| " + " | ".join(cell(row.get(k)) for k in columns) + " |" for row in rows]


def peers_table(rows):
    names = sorted({n for row in rows for n in (row.get("peers") or {})})
    lines = ["", "### peers: microseconds of shrink and expand of one layer's group, ours and theirs", "",
             "| cell | ours | ours with no adapter | " + " | ".join(names) + " | best peer over ours |", "|---|--:|--:|" + "--:|" * (len(names) + 1)]
    for row in rows:
        peers = row.get("peers") or {}
        best = min((us for us in peers.values() if us), default=None)
        ratio = f"{best / row['ours_us']:.2f}" if best and row.get("ours_us") else "-"
        notes = row.get("notes") or {}
        lines.append(f"| {row['cell']} | {cell(row.get('ours_us'))} | {cell(row.get('base_us'))} | " +
                     " | ".join(cell(peers.get(n)) if peers.get(n) else notes.get(n, "-") for n in names) + f" | {ratio} |")
    return lines


def render(results, notes, names, about, header):
    """header: {"date", "device", "commit", "mode"}; device None: nothing ran on a GPU."""
    device = header["device"] or f"none: {bars.NOT_RUN}"
    lines = [f"GPU acceptance ({header['mode']}), {header['date']}, device: {device}, commit: {header['commit']}.", "", HEAD]
    lines += bar_lines(results) + part_lines(results, names, about)
    values = (results.get("probe") or {}).get("values")
    if values:
        lines += ["", "Ceilings of the last call: " + ", ".join(f"{k} {cell(v)}" for k, v in values.items()) + "."]
    for note in notes:
        lines += ["", f"Note: {note}."]
    for name in names:
        rows = (results.get(name) or {}).get("rows") or []
        if name == "peers" and rows:
            lines += peers_table(rows)
        elif rows:
            lines += rows_table(name, rows)
    return "\n".join(lines) + "\n"


def summary(results):
    """"7 bars: 5 met, 1 missed, 1 not measured" """
    verdicts = [v for _, _, v in bars.judge_all(results)]
    met = sum(1 for v in verdicts if v and v["met"])
    missed = sum(1 for v in verdicts if v and not v["met"])
    return f"{len(verdicts)} bars: {met} met, {missed} missed, {len(verdicts) - met - missed} not measured"

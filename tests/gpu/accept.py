"""GPU acceptance: ceilings, correctness, roofline, peers, whole steps and served throughput, measured in one go on one machine, with the
share of the measured bound for every bar. Each part runs in processes of its own with a time limit; what finished is on disk when a later
part is cut off. A tool or library that is missing makes its part SKIP, by name.

    tests/gpu/pack                      first, on a Debian machine without a GPU: build/gpu holds the programs and the libraries they need
    tests/gpu/accept --quick            on the GPU machine: every part, small grids, under nine minutes
    tests/gpu/accept --full             large grids; stops in time, and goes on where it stopped with --resume DIR/accept.json
    tests/gpu/accept --part NAME        these parts only (repeatable); --list shows them
    tests/gpu/accept --dry-run          all that needs no GPU
    tests/gpu/accept --merge FILE ...   accept.json files of several calls into one table

Writes accept.md, accept.json and accept.log into --out. Exit status: 0 nothing failed, 1 a part failed or there is no GPU, 2 arguments.
"""
import argparse
import json
import os
import sys
import threading
import time
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/gpu")]
import machine  # noqa: E402
import parts  # noqa: E402
import table  # noqa: E402

SECONDS = 520  # of one call: the machine's limit is ten minutes with its start


class Context:
    """What a part gets. Parts write nothing but through log() and their result."""

    def __init__(self, args, gpu, manifest, deadline):
        self.mode = "full" if args.full else "quick"
        self.title = "dry run" if args.dry_run else self.mode
        self.dry = args.dry_run
        self.gpu, self.manifest, self.deadline = gpu, manifest, deadline
        self.bin = Path(args.bin)
        self.out = Path(args.out)
        self.work = Path(args.work) if args.work else machine.scratch_folder()
        self.ceilings, self.pairs = {}, None
        self._log = open(self.out / "accept.log", "a", errors="replace")
        self._lock = threading.Lock()

    def left(self):
        return self.deadline - time.monotonic()

    def log(self, text):
        with self._lock:
            if self._log.tell() < 12 << 20:  # what comes back is bounded
                self._log.write(text.rstrip("\n") + "\n")
                self._log.flush()

    def say(self, text):
        print(text, flush=True)
        self.log(text)


def result(status, reason, rows=(), values=None):
    return {"status": status, "reason": reason, "rows": list(rows), "values": values or {}}


def stamp(r, ctx, seconds):
    """What a result must say of itself to be merged with others later."""
    return {**r, "mode": ctx.mode, "seconds": round(seconds, 1), "date": now(), "device": ctx.gpu["name"] if ctx.gpu else None,
            "digest": ctx.manifest.get("digest"), "commit": ctx.manifest.get("commit"), "ceilings": dict(ctx.ceilings)}


def now():
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S")


def run_part(part, ctx):
    begin = time.monotonic()
    need = part.seconds_full if ctx.mode == "full" else part.seconds
    run = part.dry if ctx.dry and part.gpu else part.run
    if ctx.dry and run is None:
        r = result("skip", "nothing to do without a GPU")
    elif part.gpu and not ctx.gpu and not ctx.dry:
        r = result("skip", "no CUDA device")
    elif not ctx.dry and ctx.left() < need * 0.6 + 5:
        r = result("skip", f"not enough time left in this call: {ctx.left():.0f} s, needs about {need} s; run --part {part.name} or --resume")
    else:
        try:
            r = run(ctx)
        except machine.Missing as e:
            r = result("skip", str(e))
        except Exception as e:  # noqa: BLE001 - a part that breaks must not take the others along
            ctx.log(f"{part.name}: {type(e).__name__}: {e}")
            r = result("fail", f"{type(e).__name__}: {e}"[:300])
    return stamp(r, ctx, time.monotonic() - begin)


def run_together(group, ctx, done):
    """Parts that take no times share the GPU; each on a thread, all before the next part that does."""
    if len(group) == 1:
        done(group[0], run_part(group[0], ctx))
        return
    lock = threading.Lock()

    def one(p):
        r = run_part(p, ctx)
        with lock:
            done(p, r)

    threads = [threading.Thread(target=one, args=(p,)) for p in group]
    [t.start() for t in threads]
    [t.join() for t in threads]


def groups_of(chosen):
    """Consecutive parts that take no times, together; every timed part alone."""
    groups = []
    for p in chosen:
        if groups and not p.timed and not groups[-1][-1].timed:
            groups[-1].append(p)
        else:
            groups.append([p])
    return groups


def write(ctx, results, notes, earlier):
    merged, more = table.merge([{"parts": results}, *earlier], ctx.manifest.get("digest"))
    ran = [r for r in merged.values() if r.get("device")]
    header = {"mode": ctx.title, "date": now()[:10], "commit": ctx.manifest.get("commit") or "unknown",
              "device": ran[0]["device"] if ran else None}
    text = table.render(merged, notes + more, parts.NAMES, parts.ABOUT, header)
    put(ctx.out / "accept.md", text)
    put(ctx.out / "accept.json", json.dumps({"version": 1, "header": header, "notes": notes + more, "parts": merged}, indent=1) + "\n")
    return merged, text


def put(path, text):
    """A reader, or a kill, sees the old file or the new one."""
    tmp = path.with_name(path.name + ".new")
    tmp.write_text(text)
    tmp.replace(path)


def resumed(earlier, ctx):
    """Names whose result need not be measured again: same sources, same device (if any is needed), at least this mode's grid, not skipped."""
    names = set()
    for doc in earlier:
        for name, r in doc["parts"].items():
            here = name in parts.BY_NAME and (not parts.BY_NAME[name].gpu or ctx.gpu and r.get("device") == ctx.gpu["name"])
            same = here and r.get("digest") == ctx.manifest.get("digest")
            if same and r["status"] == "ok" and (r.get("mode") == "full" or ctx.mode == "quick") and name != "probe":
                names.add(name)
    return names


def load(paths):
    docs = []
    for path in paths:
        try:
            doc = json.loads(Path(path).read_text())
            assert doc["version"] == 1 and isinstance(doc["parts"], dict)
        except (OSError, ValueError, KeyError, TypeError, AssertionError) as e:
            print(f"accept: {path}: not an accept.json ({type(e).__name__}: {e})", file=sys.stderr)
            sys.exit(2)
        docs.append(doc)
    return docs


def parse(argv):
    p = argparse.ArgumentParser(prog="accept", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--quick", action="store_true")
    p.add_argument("--full", action="store_true")
    p.add_argument("--dry-run", action="store_true")
    p.add_argument("--part", action="append", default=[], metavar="NAME")
    p.add_argument("--list", action="store_true")
    p.add_argument("--merge", nargs="+", metavar="FILE")
    p.add_argument("--resume", action="append", default=[], metavar="FILE", help="accept.json of an earlier call of the same checkout")
    p.add_argument("--out", default=os.environ.get("OUT") or str(ROOT / "build/gpu-out"), help="default: $OUT, else build/gpu-out")
    p.add_argument("--bin", default=str(ROOT / "build/gpu/bin"), help="where tests/gpu/pack put the programs")
    p.add_argument("--work", help="scratch for models; default: the roomier of /dev/shm and /tmp")
    p.add_argument("--seconds", type=int, default=SECONDS, help=f"stop in this time; default {SECONDS}")
    args = p.parse_args(argv)
    modes = [name for name in ("quick", "full", "dry_run", "list") if getattr(args, name)] + (["merge"] if args.merge else [])
    if "quick" in modes and "full" in modes or len(modes) > 1 and not set(modes) <= {"dry_run", "quick", "full"}:
        p.error(f"these exclude each other: {', '.join('--' + m.replace('_', '-') for m in modes)}")
    if not modes and not args.part:
        p.error("say what to run: --quick, --full, --part NAME, --dry-run, --list or --merge FILE ...")
    if args.part and (args.list or args.merge):
        p.error("--part goes with --quick, --full or --dry-run only")
    for name in args.part:
        if name not in parts.NAMES:
            p.error(f"unknown part '{name}'; the parts are {', '.join(parts.NAMES)}")
    if args.seconds < 30:
        p.error(f"--seconds {args.seconds}: at least 30")
    return args


def choose(args, ctx, earlier):
    """The parts of this call, probe first: shares need ceilings of the same call."""
    have = resumed(earlier, ctx)
    chosen = [p for p in parts.PARTS if (not args.part or p.name in args.part) and p.name not in have]
    if not args.dry_run and any(p.timed and p.gpu and p.name != "probe" for p in chosen) and not any(p.name == "probe" for p in chosen):
        chosen.insert(0, parts.BY_NAME["probe"])
    for name in sorted(have):
        ctx.say(f"{name}: taken from an earlier call")
    return chosen


def measured_only(results, ctx):
    """A dry run proves that parts would run; only what needs no GPU is a result."""
    return {n: r for n, r in results.items() if not ctx.dry or not parts.BY_NAME[n].gpu}


def measure(args, ctx, earlier, notes):
    results = {}

    def done(part, r):
        results[part.name] = r
        ctx.say(f"{part.name}: {'ok' if r['status'] == 'ok' else r['status'].upper()} in {r['seconds']:.0f} s: {r['reason']}")
        if part.name == "probe" and r["status"] == "ok" and ctx.gpu:
            ctx.ceilings = r["ceilings"] = r["values"]
        write(ctx, measured_only(results, ctx), notes, earlier)

    for group in groups_of(choose(args, ctx, earlier)):
        run_together(group, ctx, done)
    return results


def merge_only(args):
    docs = load(args.merge)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    digests = sorted({r["digest"] for d in docs for r in d["parts"].values() if r.get("digest")})
    newest = max((r for d in docs for r in d["parts"].values() if r.get("digest")), key=lambda r: r["date"], default={})
    merged, notes = table.merge(docs, newest.get("digest") if len(digests) > 1 else None)
    ran = [r for r in merged.values() if r.get("device")]
    header = {"mode": "merged", "date": max((r["date"] for r in merged.values()), default=now())[:10],
              "commit": newest.get("commit") or "unknown", "device": ran[0]["device"] if ran else None}
    text = table.render(merged, notes, parts.NAMES, parts.ABOUT, header)
    put(out / "accept.md", text)
    put(out / "accept.json", json.dumps({"version": 1, "header": header, "notes": notes, "parts": merged}, indent=1) + "\n")
    print(text + "\n" + table.summary(merged))
    return 0


def main(argv=None):
    args = parse(argv)
    if args.list:
        for p in parts.PARTS:
            print(f"{p.name:10} {p.seconds:4} s quick {p.seconds_full:4} s full  {p.about}")
        return 0
    if args.merge:
        return merge_only(args)
    earlier = load(args.resume)
    Path(args.out).mkdir(parents=True, exist_ok=True)
    gpu, why = (None, "--dry-run") if args.dry_run else machine.find_gpu()
    manifest, notes = machine.manifest(Path(args.bin).parent)
    ctx = Context(args, gpu, manifest, time.monotonic() + (3600 if args.dry_run else args.seconds))
    ctx.say(f"device: {gpu['text'] if gpu else 'none: ' + why}; commit {manifest.get('commit')}; scratch {ctx.work}")
    for note in notes:
        ctx.say(f"note: {note}")
    results = measure(args, ctx, earlier, notes)
    merged, text = write(ctx, measured_only(results, ctx), notes, earlier)
    print("\n" + text + "\n" + table.summary(merged))
    if not gpu and not args.dry_run:
        print(f"accept: no GPU: {why}; --dry-run runs what needs none", file=sys.stderr)
        return 1
    return 1 if any(r["status"] == "fail" for r in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

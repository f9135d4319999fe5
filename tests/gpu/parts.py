"""The parts of acceptance, in the order in which they run. A part returns what it found; it raises machine.Missing for what this machine
lacks. Parts that take no times run side by side; a timed part has the GPU to itself."""
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bounds
import grids
import machine

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def result(status, reason, rows=(), values=None):
    return {"status": status, "reason": reason, "rows": list(rows), "values": values or {}}


def python(ctx, script, *args, seconds, text_in=None, env=None):
    return machine.run(ctx, [sys.executable, HERE / script, *args], seconds, text_in, env)


def need_modules(ctx, *names):
    code = "import " + ", ".join(names)
    rc, _, err = machine.run(ctx, [sys.executable, "-c", code], 120)
    if rc:
        raise machine.Missing(f"python cannot {code}: {(err.strip().splitlines() or ['?'])[-1][:120]}")


def last_line(text):
    return (text.strip().splitlines() or ["no output"])[-1][:200]


# ---- probe ----

def probe(ctx):
    need_modules(ctx, "torch", "triton")
    rc, out, err = python(ctx, "ceilings.py", *(["--quick"] if ctx.mode == "quick" else []), seconds=120)
    rows = machine.json_lines(out)
    if rc or not rows:
        return result("fail", f"ceilings.py: {last_line(err)}")
    v = rows[-1]
    tools = []
    for name, folders in (("nvcc", ["/usr/local/cuda/bin"]), ("compute-sanitizer", ["/usr/local/cuda/bin"]), ("ncu", NCU_FOLDERS)):
        try:
            machine.tool(name, *folders)
            tools.append(name)
        except machine.Missing:
            tools.append(f"no {name}")
    return result("ok", f"copy {v['copy_gbs']:.0f} GB/s, read {v['read_gbs']:.0f} GB/s, bf16 {v['gemm_tflops']:.0f} TFLOP/s, node "
                  f"{v['gap_us']:.2f} us, host to device {v['h2d_gbs']:.1f} GB/s; {', '.join(tools)}", values=v)


# ---- build: what ptxas says of every kernel ----

SPILL = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
ENTRY = re.compile(r"Compiling entry function '([^']+)' for 'sm_90a?'")
USED = re.compile(r"Used (\d+) registers(?:.*?, (\d+) bytes smem)?")


def read_ptxas(text):
    """[{"kernel", "registers", "stack", "spill"}] from -Xptxas -v; the lines of one kernel follow its name."""
    kernels, now = [], None
    for line in text.splitlines():
        entry, spill, used = ENTRY.search(line), SPILL.search(line), USED.search(line)
        if entry:
            now = {"kernel": entry.group(1), "registers": 0, "stack": 0, "spill": 0}
            kernels.append(now)
        elif spill and now:
            now["stack"], now["spill"] = int(spill.group(1)), int(spill.group(2)) + int(spill.group(3))
        elif used and now:
            now["registers"] = int(used.group(1))
    return kernels


def demangle(name):
    """_Z12kernel_name... -> kernel_name"""
    m = re.match(r"_Z(?:N\d+\w+?_GLOBAL__N__\w+?)?(\d+)(\w+)", name)
    return m.group(2)[:int(m.group(1))] if m else name


def compile_one(ctx, nvcc, source):
    command = [nvcc, "-arch=sm_90", "-O3", "-std=c++17", "-I", ROOT, "-Xptxas", "-v", "-cubin", "-o", "/dev/null", source]
    rc, out, err = machine.run(ctx, command, 300)
    return source, rc, out + err


def build(ctx):
    """Spills and stack frames fail. The same compiler here and there, so a machine without a GPU can tell."""
    nvcc = machine.tool("nvcc", "/usr/local/cuda/bin")
    sources = sorted((ROOT / "kernels/cuda").glob("*.cu"))
    if not sources:
        raise machine.Missing("kernels/cuda has no kernels")
    rows, bad = [], []
    with ThreadPoolExecutor(2 if ctx.dry else 8) as pool:
        for source, rc, text in pool.map(lambda s: compile_one(ctx, nvcc, s), sources):
            if rc is None:
                bad.append(f"{source.name} took too long to compile")
            elif rc:
                bad.append(f"{source.name} does not compile: {last_line(text)}")
            for k in read_ptxas(text):
                rows.append({"file": source.name, **k, "kernel": demangle(k["kernel"])})
                if k["spill"] or k["stack"]:
                    bad.append(f"{source.name}: {demangle(k['kernel'])} spills {k['spill']} bytes, stack {k['stack']}")
    worst = max((r["registers"] for r in rows), default=0)
    if bad:
        return result("fail", "; ".join(bad)[:600], rows)
    return result("ok", f"{len(rows)} kernels in {len(sources)} files, no spill, no stack frame, at most {worst} registers", rows)


# ---- correctness ----

CMOCKA = re.compile(r"\[  PASSED  \] (\d+) test")


def families(ctx):
    """[(program, family)] of the packed kernel tests."""
    program = machine.packed_program(ctx, "gpu_tests")
    rc, out, err = machine.run(ctx, [program, "--list"], 30)
    if rc or not out.split():
        raise RuntimeError(f"gpu_tests --list: {last_line(err)}")
    return [(program, name) for name in out.split()]


def run_program(ctx, command, seconds):
    rc, out, err = machine.run(ctx, command, seconds)
    passed = sum(int(n) for n in CMOCKA.findall(out + err))
    return rc, passed, out + err


def kernels(ctx):
    """The tests of tests/emulation, built for this GPU: every op against kernels/ref and f64, and the engine."""
    jobs = families(ctx)
    limit = 400 if ctx.mode == "full" else 110
    rows, bad = [], []
    with ThreadPoolExecutor(4) as pool:
        for (_, name), (rc, passed, text) in zip(jobs, pool.map(lambda j: run_program(ctx, j, limit), jobs)):
            state = "ok" if rc == 0 and passed else "cut off" if rc is None else f"exit {rc}"
            rows.append({"family": name, "tests": passed, "state": state})
            if state != "ok":
                bad.append(f"{name}: {state}, {last_line(text)}")
    if bad:
        return result("fail", "; ".join(bad)[:600], rows)
    return result("ok", f"{sum(r['tests'] for r in rows)} tests in {len(rows)} families", rows)


def logits(ctx):
    """Committed cases, then new ones made here by transformers + peft, each judged by the backend under test."""
    need_modules(ctx, "torch", "transformers", "peft", "safetensors", "tokenizers")
    tool = machine.packed_program(ctx, "logits_tool")
    count = 16 if ctx.mode == "full" else 4
    rc, out, err = python(ctx, "logits.py", tool, "--backend", "cuda", "--cases", str(count), seconds=500 if ctx.mode == "full" else 120)
    rows = machine.json_lines(out)
    wrong = [r for r in rows if r["state"] == "wrong"]
    families = sorted({r["family"] for r in rows if r["state"] == "ok"})
    if rc or wrong or len(families) < 4:
        why = "; ".join(f"{r['case']}: {r['said']}" for r in wrong) or (last_line(err) if rc else f"only {families} were judged")
        return result("fail", why[:600], rows)
    return result("ok", f"{sum(r['state'] == 'ok' for r in rows)} cases of {', '.join(families)} within the bars", rows)


SANITIZER_TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
SANITIZER_QUICK = ("rows", "lora")  # all four tools on these; the others, and slow ones, with --full


def sanitizer(ctx):
    tool = machine.tool("compute-sanitizer", "/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")
    full = ctx.mode == "full"
    jobs = [(j, t) for t in SANITIZER_TOOLS for j in families(ctx) if full or t == "memcheck" or j[1] in SANITIZER_QUICK]
    limit = 480 if full else 90

    def one(job):
        command, kind = job
        rc, out, err = machine.run(ctx, [tool, "--tool", kind, "--error-exitcode", "99", "--print-limit", "5", *command], limit)
        return rc, out + err

    rows, bad = [], []
    with ThreadPoolExecutor(6) as pool:
        for ((_, name), kind), (rc, text) in zip(jobs, pool.map(one, jobs)):
            found = re.search(r"ERROR SUMMARY: (\d+) error", text)
            state = "clean" if rc == 0 and found and found.group(1) == "0" else "cut off" if rc is None else f"exit {rc}"
            if rc is not None and "Device not supported" in text:
                state = "not supported"
            rows.append({"family": name, "tool": kind, "state": state})
            if state.startswith("exit"):
                bad.append(f"{name} under {kind}: {last_line(text)}")
    clean = sum(r["state"] == "clean" for r in rows)
    if bad:
        return result("fail", "; ".join(bad)[:600], rows)
    if not clean:
        return result("skip", f"no run of compute-sanitizer ended: {rows[0]['state']}", rows)
    return result("ok", f"{clean} of {len(rows)} runs clean, the others cut off or not supported", rows)


# ---- times ----

def bench(ctx, mode, lines, seconds, *options):
    """(JSON rows, what went wrong or None). Rows of a run that was cut off count: each is a measurement of its own. Mode pair multiplies no
    base weights, so nothing is chosen by timing: the deterministic backend starts at once."""
    if mode == "pair":
        options = (*options, "--deterministic", "1")
    program = machine.packed_program(ctx, "bench_cuda")
    rc, out, err = machine.run(ctx, [program, mode, *options], seconds, "".join(f"{line}\n" for line in lines))
    rows = machine.json_lines(out)
    if rc is None:
        return rows, f"cut off after {len(rows)} of {len(lines)}"
    return rows, last_line(err) if rc else None


def best_gbs(ctx):
    return max(ctx.ceilings["copy_gbs"], ctx.ceilings["read_gbs"])


def share(ctx, row):
    """Of the slower of the two floors."""
    floors = [row["bytes"] / (1e3 * best_gbs(ctx)), row.get("flops", 0) / (1e6 * ctx.ceilings["gemm_tflops"])]
    return round(max(floors) / row["us"], 3), round(max(floors), 2)


def need_ceilings(ctx):
    if not ctx.ceilings:
        raise machine.Missing("no ceilings were measured in this call (part probe)")


def timed(ctx, rows, wrong, expected):
    for row in rows:
        if row.get("us"):
            row["share"], row["floor_us"] = share(ctx, row)
    if not rows:
        return result("fail", wrong or "nothing was measured")
    said = f"{len(rows)} of {expected} cells"
    return result("fail" if wrong and "cut off" not in wrong else "ok", said + (f"; {wrong}" if wrong else ""), rows)


def step(ctx):
    need_ceilings(ctx)
    full = ctx.mode == "full"
    cells, fixed = grids.step_cells(full), grids.fixed_cells(full)
    rows, wrong = bench(ctx, "step", [grids.step_line(c) for c in cells], 380 if full else 80)
    more, wrong_too = bench(ctx, "step", [grids.step_line(c) for c in fixed], 100 if full else 30, "--deterministic", "1")
    return timed(ctx, rows + more, wrong or wrong_too, len(cells) + len(fixed))


def swap(ctx):
    need_ceilings(ctx)
    lines = [f"{rank} {batch}" for rank in (("8", "16", "32", "64", "128") if ctx.mode == "full" else ("16",)) for batch in (64,)]
    rows, wrong = bench(ctx, "swap", lines, 180 if ctx.mode == "full" else 40)
    r = timed(ctx, rows, wrong, len(lines))
    for row in r["rows"]:
        row["bus_us"] = round(row["bytes"] / (1e3 * ctx.ceilings["h2d_gbs"]), 1)
    return r


def pairs(ctx, cells):
    """Our shrink + finish; measured once a call, for roofline and peers alike."""
    if ctx.pairs is None:
        ctx.pairs = bench(ctx, "pair", [grids.pair_line(c) for c in cells], 180 if ctx.mode == "full" else 45)
    return ctx.pairs


def roofline(ctx):
    need_ceilings(ctx)
    full = ctx.mode == "full"
    lines, cells = grids.kernel_lines(full), grids.pair_cells(full)
    rows, wrong = bench(ctx, "kernel", lines, 300 if full else 45)
    more, wrong_too = pairs(ctx, cells)
    more = [{"kernel": f"shrink + finish {row['cell']}", **{k: v for k, v in row.items() if k != "cell"}} for row in more]
    return timed(ctx, rows + more, wrong or wrong_too, len(lines) + len(cells))


def peers(ctx):
    """Ours and theirs cell by cell: the same rows, ranks and number of layers, graph replays of each, one after the other."""
    need_ceilings(ctx)
    need_modules(ctx, "torch", "triton")
    full = ctx.mode == "full"
    cells = grids.pair_cells(full)
    ours, wrong = pairs(ctx, cells)
    if not ours:
        return result("fail", f"bench_cuda pair: {wrong}")
    rc, out, err = python(ctx, "peers.py", "--tune", "5" if full else "3", seconds=370 if full else 110,
                          text_in="".join(json.dumps(c) + "\n" for c in cells))
    theirs = {r["cell"]: r for r in machine.json_lines(out)}
    few = [c for c in cells if full or c["batch"] == 64]
    _, out_too, _ = python(ctx, "peers.py", "--cublas", seconds=100 if full else 30, text_in="".join(json.dumps(c) + "\n" for c in few))
    for r in machine.json_lines(out_too):
        row = theirs.setdefault(r["cell"], {"cell": r["cell"], "peers": {}, "notes": {}})
        row["peers"].update(r["peers"])
        row["notes"].update(r["notes"])
    rows = []
    by_cell = {r["cell"]: r for r in ours}
    for c in cells:
        mine = by_cell.get(c["cell"], {})
        row = theirs.get(c["cell"], {"cell": c["cell"], "peers": {}, "notes": {}})
        rows.append({**row, "ours_us": mine.get("us"), "base_us": mine.get("base_us"), "bytes": mine.get("bytes")})
    both = sum(bool(r["ours_us"] and r["peers"]) for r in rows)
    if not both:
        return result("fail", f"no cell has both sides: {wrong or ''} {last_line(err) if rc else ''}".strip(), rows)
    lost = [r["cell"] for r in rows if r["peers"] and r["ours_us"] and min(r["peers"].values()) < r["ours_us"]]
    return result("ok", f"{both} of {len(cells)} cells on both sides; a peer is faster in {len(lost)}" + (": " + ", ".join(lost) if lost else "") +
                  "; vLLM itself is too large to carry", rows)


def server(ctx):
    need_ceilings(ctx)
    need_modules(ctx, "torch", "numpy")
    program = machine.packed_program(ctx, "residuald")
    full = ctx.mode == "full"
    rc, out, err = python(ctx, "serve_load.py", "--bin", str(Path(program).parent), "--work", str(ctx.work), "--gbs", f"{best_gbs(ctx):.0f}",
                          *(["--full"] if full else []), seconds=510 if full else 160)
    rows = machine.json_lines(out)
    if not rows:
        return result("fail", f"serve_load.py: {'cut off' if rc is None else last_line(err)}")
    head = ", ".join(f"{r['case']} {r['tps']:.0f} tok/s" for r in rows if r.get("tps"))
    return result("fail" if rc else "ok", head + (f"; {last_line(err)}" if rc else ""), rows)


NCU_FOLDERS = ["/usr/local/cuda/bin", "/opt/nvidia/nsight-compute/*"]
NCU_METRICS = ("dram__throughput.avg.pct_of_peak_sustained_elapsed,dram__bytes.sum,gpu__time_duration.sum,"
               "l1tex__average_t_sectors_per_request_pipe_lsu_mem_global_op_ld.ratio,sm__warps_active.avg.pct_of_peak_sustained_active,"
               "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio")


def ncu(ctx):
    tool = machine.tool("ncu", *NCU_FOLDERS)
    program = machine.packed_program(ctx, "bench_cuda")
    lines = ["gate_up 64 64 16 8", "down 64 64 16 8", "qkv 1 1 16 8"]
    command = [tool, "--clock-control", "none", "--metrics", NCU_METRICS, "--launch-count", "60", "--csv", program, "pair", "--repeats", "1", "--eager"]
    rc, out, err = machine.run(ctx, command, 400 if ctx.mode == "full" else 90, "".join(f"{line}\n" for line in lines))
    table = [line for line in out.splitlines() if line.startswith('"')]
    if len(table) < 2:
        raise machine.Missing(f"ncu reads no counters here: {last_line(err or out)}")
    (ctx.out / "ncu.csv").write_text("\n".join(table) + "\n")
    return result("ok", f"{len(table) - 1} readings in ncu.csv")


# ---- what a machine without a GPU can tell of a part ----

def dry_probe(ctx):
    need_modules(ctx, "torch", "triton")
    rc, _, err = python(ctx, "ceilings.py", "--compile", seconds=120)
    return result("fail" if rc else "ok", last_line(err) if rc else "its kernel compiles for sm_90")


def dry_kernels(ctx):
    names = [name for _, name in families(ctx)]
    return result("ok", f"packed: {', '.join(names)}; needs glibc {ctx.manifest.get('glibc')}")


def dry_logits(ctx):
    need_modules(ctx, "torch", "transformers", "peft", "safetensors", "tokenizers")
    tool = machine.packed_program(ctx, "logits_tool")
    rc, out, err = python(ctx, "logits.py", tool, "--backend", "cpu", "--cases", "4", "--seed", "1", seconds=400)
    rows = machine.json_lines(out)
    return result("fail" if rc or len(rows) < 8 else "ok", last_line(err) if rc else f"{sum(r['state'] == 'ok' for r in rows)} cases on the CPU backend")


EMULATED = {  # mode -> lines that the emulator gets through in seconds
    "pair": ["qkv 1 1 16 2", "gate_up 4 2 mix 2"],
    "kernel": ["gemm o 2", "attention 2 40", "prefill 20 20", "norm 3", "embed 2", "logits 2", "sample 2 top_p", "score 2"],
    "step": ["1 20 none 16 0 0", "2 20 idle 16 1 0", "2 20 one 16 1 0", "4 20 distinct mix 4 0", "4 20 zipf 16 6 1"],
    "swap": ["16 2"],
}


def expected_bytes(mode, row):
    """What bounds.py counts for a row of the tiny shape: two programs must not disagree on a floor."""
    s = bounds.SHAPES["tiny"]
    if mode == "step":
        ranks = bounds.ranks_of(row["rank"], row["distinct"])
        return bounds.step_bytes(s, row["batch"], row["context"], ranks)
    if mode == "pair":
        group, _, adapters, rank = row["cell"].split()
        return bounds.pair_bytes(s, group, bounds.ranks_of(rank[1:], int(adapters[1:])))
    return row["bytes"] if mode == "kernel" else bounds.rank_bytes(s) * int(row["rank"])


def dry_bench(mode):
    """The bench on the emulated device: that it runs and counts right, no time."""
    def run(ctx):
        found = [p for pattern in ("*", "*/*") for p in (ROOT / "build").glob(f"{pattern}/tests/bench_cuda_emulated") if p.is_file()]
        if not found:
            raise machine.Missing("bench_cuda_emulated is not built (ninja bench_cuda_emulated)")
        program = max(found, key=lambda p: p.stat().st_mtime)
        command = [program, mode, "--shape", "tiny", "--repeats", "2", "--deterministic", "1", "--device-bytes", str(256 << 20)]
        lines = EMULATED[mode]
        rc, out, err = machine.run(ctx, command, 300, "".join(f"{line}\n" for line in lines))
        rows = machine.json_lines(out)
        bad = [r for r in rows if "error" in r or r["bytes"] != expected_bytes(mode, r)]
        if rc or len(rows) != len(lines) or bad:
            return result("fail", f"{len(rows)} of {len(lines)} lines, {bad or last_line(err)}")
        return result("ok", f"bench_cuda {mode}: {len(rows)} tiny cells on the emulated device")
    return run


def dry_roofline(ctx):
    first = dry_bench("kernel")(ctx)
    second = dry_bench("pair")(ctx)
    bad = next((r for r in (first, second) if r["status"] == "fail"), None)
    return bad or result("ok", f"{first['reason']}; {second['reason']}")


def dry_peers(ctx):
    need_modules(ctx, "torch", "triton")
    rc, out, err = python(ctx, "peers.py", "--compile", seconds=200)
    if rc:
        return result("fail", f"peers.py --compile: {last_line(err)}")
    compiled = machine.json_lines(out)[-1]["compiled"]
    rc, out, err = python(ctx, "peers.py", "--check", seconds=400, env=machine.environment(TRITON_INTERPRET="1"))
    cells = machine.json_lines(out)
    notes = {n for c in cells for n in c["notes"].values() if not n.startswith("n/a")}
    if rc == 1 and not cells:
        return result("fail", f"peers.py --check: {last_line(err)}")
    checked = sorted({n for c in cells for n in c["miss"]})
    said = f"{compiled} Triton kernels compile for sm_90; {', '.join(checked)} agree with f64 on {len(cells)} small cells"
    return result("fail" if rc else "ok", said + (f"; not checked here: {'; '.join(sorted(notes))}" if notes else ""))


def dry_server(ctx):
    need_modules(ctx, "numpy")
    program = machine.packed_program(ctx, "residuald")
    rc, out, err = python(ctx, "serve_load.py", "--bin", str(Path(program).parent), "--work", str(ctx.work), "--gbs", "100", "--backend", "cpu",
                          "--tiny", "--streams", "4", "--prompt", "16", "--output", "16", "--waves", "1", "--pairs", "1", "--churn-tokens", "200", seconds=120)
    rows = machine.json_lines(out)
    return result("fail" if rc or len(rows) != 5 else "ok", last_line(err) if rc else "the load runs against the packed server on the CPU backend")


class Part:
    def __init__(self, name, about, seconds, seconds_full, run, dry=None, gpu=True, timed=True):
        self.name, self.about, self.seconds, self.seconds_full = name, about, seconds, seconds_full
        self.run, self.dry, self.gpu, self.timed = run, dry, gpu, timed


PARTS = [
    Part("probe", "tools, and the ceilings that shares are taken of", 30, 60, probe, dry_probe),
    Part("build", "every kernel for sm_90, no spills", 60, 60, build, gpu=False, timed=False),
    Part("kernels", "every op on the GPU against its reference", 90, 300, kernels, dry_kernels, timed=False),
    Part("logits", "tiny models of four families against transformers + peft", 90, 300, logits, dry_logits, timed=False),
    Part("sanitizer", "compute-sanitizer on the smallest shapes", 90, 480, sanitizer, timed=False),
    Part("step", "whole decode steps, Llama-3.1-8B shape, random weights", 50, 400, step, dry_bench("step")),
    Part("swap", "an adapter from host memory to use, and its bystanders", 20, 100, swap, dry_bench("swap")),
    Part("peers", "shrink + finish against Triton, torch and cuBLAS", 100, 480, peers, dry_peers),
    Part("roofline", "each kernel's share of its floor", 60, 300, roofline, dry_roofline),
    Part("server", "throughput over HTTP with 1, 64 and 1 000 adapters", 130, 500, server, dry_server),
    Part("ncu", "hardware counters of a few kernels", 20, 120, ncu),
]
BY_NAME = {p.name: p for p in PARTS}
NAMES = list(BY_NAME)
ABOUT = {p.name: p.about for p in PARTS}

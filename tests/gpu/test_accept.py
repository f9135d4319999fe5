"""What of tests/gpu can be wrong without a GPU: merging, resumption, SKIPs, arguments, the readers of other programs' output, and that the
table never shows a number that was not measured.

    .venv/bin/python -m pytest -q tests/gpu/test_accept.py
"""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]
import accept  # noqa: E402
import bars  # noqa: E402
import bounds  # noqa: E402
import grids  # noqa: E402
import machine  # noqa: E402
import parts  # noqa: E402
import table  # noqa: E402

CEILINGS = {"copy_gbs": 4000.0, "read_gbs": 4200.0, "gemm_tflops": 780.0, "gap_us": 1.3, "h2d_gbs": 50.0}


def made(part, rows, status="ok", **more):
    return {"status": status, "reason": "", "rows": rows, "values": {}, "mode": "quick", "seconds": 1.0, "date": "2026-01-01 00:00:00",
            "device": "H200", "digest": "d1", "commit": "c1", "ceilings": CEILINGS, **more}


def step_row(batch, lora, us, n_bytes=15_000_000_000, **more):
    return {"batch": batch, "context": 1024, "lora": lora, "rank": "16", "us": us, "bytes": n_bytes, "mode": "fast", **more}


def run(*args, **kw):
    return subprocess.run([sys.executable, HERE / "accept.py", *map(str, args)], capture_output=True, text=True, **kw)


@pytest.fixture
def ctx(tmp_path, monkeypatch):
    args = accept.parse(["--quick", "--out", str(tmp_path), "--bin", str(tmp_path / "bin"), "--work", str(tmp_path / "work")])
    (tmp_path / "bin").mkdir()
    gpu = {"name": "H200", "text": "H200"}
    c = accept.Context(args, gpu, {"digest": "d1", "commit": "c1", "packed": True}, accept.time.monotonic() + 500)
    c.ceilings = dict(CEILINGS)
    return c


# ---- bounds ----

def test_bounds_are_those_of_the_model():
    s = bounds.SHAPES["llama-3.1-8b"]
    assert bounds.weight_bytes(s) == 15_009_316_864
    assert bounds.rank_bytes(s) == 5_242_880
    assert bounds.kv_bytes(s, 1) == 131_072
    assert bounds.step_bytes(s, 64, 1024, [16] * 64) == 15_009_316_864 + 1024 * 5_242_880 + 65536 * 131_072


def test_mixed_ranks_are_mixed_in_proportion():
    ranks = bounds.mix_ranks(100)
    assert {r: ranks.count(r) for r in set(ranks)} == {8: 40, 16: 30, 32: 15, 64: 10, 128: 5}
    assert sum(ranks) / 100 == 25.6


def test_copies_leave_the_cache_cold():
    s = bounds.SHAPES["llama-3.1-8b"]
    for group in bounds.GROUPS:
        for ranks in ([16] * 4, [16] * 64, [64] * 64):
            assert bounds.pair_copies(s, group, ranks) * bounds.pair_bytes(s, group, ranks) >= 120 << 20


# ---- grids ----

def test_quick_covers_every_bar():
    cells = grids.step_cells(False)
    for batch, lora in ((1, "one"), (64, "none"), (64, "idle"), (64, "one"), (64, "distinct"), (64, "zipf")):
        assert any(c["batch"] == batch and c["lora"] == lora and c["context"] == 1024 for c in cells)
    assert all(c["adapters"] == 1000 for c in cells if c["lora"] == "zipf")


def test_full_contains_quick():
    assert {c["cell"] for c in grids.pair_cells(False)} <= {c["cell"] for c in grids.pair_cells(True)}
    assert {grids.step_line(c) for c in grids.step_cells(False)} <= {grids.step_line(c) for c in grids.step_cells(True)}


def test_cells_have_names_of_their_own():
    cells = [c["cell"] for c in grids.pair_cells(True)]
    assert len(cells) == len(set(cells))


# ---- bars ----

def test_nothing_measured_is_no_number():
    text = table.render({}, [], parts.NAMES, parts.ABOUT, {"mode": "quick", "date": "2026-01-01", "device": None, "commit": "c"})
    rows = [line for line in text.splitlines() if line.startswith("|")][2:]
    assert len(rows) == len(bars.BARS) + len(parts.NAMES)
    for row, (what, bar, _) in zip(rows, bars.BARS):
        assert row == f"| {what} | {bar} | not yet run on a GPU | - | - | - |"
    assert all("not yet run on a GPU" in row for row in rows)
    assert table.summary({}) == "7 bars: 0 met, 0 missed, 7 not measured"


def test_share_of_a_step_is_of_the_best_bandwidth_of_its_call():
    results = {"step": made("step", [step_row(1, "one", 5000.0, 15_000_000_000)])}
    v = bars.step_bar(1, "one", 0.70)(results)
    assert v["share"] == pytest.approx(15e9 / 4200e3 / 5000)
    assert v["met"]
    results["step"]["rows"][0]["us"] = 5200.0
    assert not bars.step_bar(1, "one", 0.70)(results)["met"]


def test_fixed_mode_is_shown_but_does_not_decide():
    results = {"step": made("step", [step_row(1, "one", 6000.0, mode="fixed"), step_row(1, "one", 4000.0)])}
    v = bars.step_bar(1, "one", 0.70)(results)
    assert v["met"] and "4.00 ms (6.00 with fixed bits)" == v["measured"]


@pytest.mark.parametrize("us, met", [(6400.0, True), (6600.0, False)])
def test_tax(us, met):
    results = {"step": made("step", [step_row(64, "none", 6000.0), step_row(64, "one", us)])}
    assert bars.tax_bar("one", 0.08)(results)["met"] is met


def test_tax_needs_both_sides():
    assert bars.tax_bar("one", 0.08)({"step": made("step", [step_row(64, "one", 6000.0)])}) is None


def pair(cell, ours, **peers):
    return {"cell": cell, "ours_us": ours, "peers": peers}


def test_peers_take_the_best_peer_and_the_worst_cell():
    results = {"peers": made("peers", [pair("a", 10.0, x=20.0, y=15.0), pair("b", 10.0, x=14.0), pair("c", 10.0, x=13.0)])}
    v = bars.peers_bar(results)
    assert v["met"] and v["measured"].startswith("1.40 times") and "slowest 1.30 (c, x)" == v["bound"]
    results["peers"]["rows"].append(pair("d", 10.0, y=8.0))
    assert not bars.peers_bar(results)["met"]


def test_a_peer_without_a_time_does_not_count():
    assert bars.peers_bar({"peers": made("peers", [pair("a", 10.0), pair("b", None, x=3.0)])}) is None


def test_swap():
    row = {"rank": "16", "us": 2000.0, "bystander_ratio": 1.05, "bytes": 83_886_080}
    v = bars.swap_bar({"swap": made("swap", [row])})
    assert v["met"] and v["share"] == pytest.approx(83_886_080 / 50e3 / 2000)
    assert not bars.swap_bar({"swap": made("swap", [{**row, "bystander_ratio": 1.2}])})["met"]
    assert not bars.swap_bar({"swap": made("swap", [{**row, "us": 6000.0}])})["met"]


def test_zipf_is_judged_by_bytes():
    rows = [step_row(64, "one", 6000.0, 24e9), step_row(64, "zipf", 7000.0, 27e9)]
    v = bars.zipf_bar({"step": made("step", rows)})
    assert v["share"] == pytest.approx((6000 / 7000) / (24 / 27)) and v["met"]
    rows[1]["us"] = 8000.0
    assert not bars.zipf_bar({"step": made("step", rows)})["met"]


# ---- merging and resumption ----

def test_merge_takes_full_before_quick_and_newer_before_older():
    old, new = made("step", [step_row(1, "one", 1.0)]), made("step", [step_row(1, "one", 2.0)], date="2026-01-02 00:00:00")
    full = made("step", [step_row(1, "one", 3.0)], mode="full", date="2026-01-01 00:00:01")
    merged, _ = table.merge([{"parts": {"step": new}}, {"parts": {"step": old}}])
    assert merged["step"]["rows"][0]["us"] == 2.0
    merged, _ = table.merge([{"parts": {"step": new}}, {"parts": {"step": full}}])
    assert merged["step"]["rows"][0]["us"] == 3.0


def test_merge_never_lets_a_skip_hide_a_result():
    skip = made("ncu", [], status="skip", date="2027-01-01 00:00:00")
    merged, _ = table.merge([{"parts": {"ncu": made("ncu", [])}}, {"parts": {"ncu": skip}}])
    assert merged["ncu"]["status"] == "ok"


def test_merge_leaves_other_sources_out_and_says_so():
    merged, notes = table.merge([{"parts": {"step": made("step", [], digest="other")}}], "d1")
    assert merged == {} and "left out" in notes[0]


def test_merge_names_two_devices():
    _, notes = table.merge([{"parts": {"step": made("step", []), "swap": made("swap", [], device="H100")}}])
    assert notes == ["parts ran on different devices: H100, H200"]


def resumable(ctx, **changes):
    return accept.resumed([{"parts": {"step": made("step", [], **changes)}}], ctx)


def test_resume_takes_what_fits_only(ctx):
    assert resumable(ctx) == {"step"}
    assert resumable(ctx, status="fail") == set()
    assert resumable(ctx, status="skip") == set()
    assert resumable(ctx, digest="d2") == set()
    assert resumable(ctx, device="H100") == set()
    ctx.mode = "full"
    assert resumable(ctx) == set()
    assert resumable(ctx, mode="full") == {"step"}


def test_resume_measures_the_ceilings_again(ctx):
    done = {"parts": {n: made(n, []) for n in parts.NAMES if n != "ncu"}}
    args = accept.parse(["--quick"])
    assert [p.name for p in accept.choose(args, ctx, [done])] == ["probe", "ncu"]


def test_resume_takes_the_build_of_a_machine_without_a_gpu(ctx):
    build = made("build", [], device=None)
    assert accept.resumed([{"parts": {"build": build}}], ctx) == {"build"}


# ---- running parts ----

def part(run, **more):
    return parts.Part("step", "about", 10, 10, run, **more)


def test_missing_tool_is_a_skip_by_name(ctx):
    def lacks(ctx):
        machine.tool("no-such-tool")
    r = accept.run_part(part(lacks), ctx)
    assert r["status"] == "skip" and r["reason"] == "no-such-tool is not on this machine"


def test_broken_part_fails_and_says_why(ctx):
    def breaks(ctx):
        raise ValueError("found 3, expected 4")
    r = accept.run_part(part(breaks), ctx)
    assert r["status"] == "fail" and r["reason"] == "ValueError: found 3, expected 4"


def test_no_gpu_is_a_skip(ctx):
    ctx.gpu = None
    assert accept.run_part(part(lambda ctx: parts.result("ok", "ran")), ctx)["reason"] == "no CUDA device"


def test_part_that_does_not_fit_is_left_for_the_next_call(ctx):
    ctx.deadline = accept.time.monotonic() + 8
    r = accept.run_part(part(lambda ctx: parts.result("ok", "ran")), ctx)
    assert r["status"] == "skip" and "--part step or --resume" in r["reason"]


def test_result_carries_what_merging_needs(ctx):
    r = accept.run_part(part(lambda ctx: parts.result("ok", "ran")), ctx)
    assert (r["device"], r["digest"], r["commit"], r["mode"], r["ceilings"]) == ("H200", "d1", "c1", "quick", CEILINGS)


def test_untimed_parts_run_together_and_timed_ones_alone():
    groups = [[p.name for p in g] for g in accept.groups_of(parts.PARTS)]
    assert ["build", "kernels", "logits", "sanitizer"] in groups
    assert all(len(g) == 1 for g in groups if parts.BY_NAME[g[0]].timed)
    assert sum(groups, []) == parts.NAMES


def test_quick_fits_its_time():
    total = 0
    for group in accept.groups_of(parts.PARTS):
        total += max(p.seconds for p in group)
    assert total <= accept.SECONDS < 9 * 60
    assert all(p.seconds_full < 9 * 60 for p in parts.PARTS)


def test_finished_parts_are_on_disk_when_a_later_one_is_killed(ctx, monkeypatch):
    first, second = parts.BY_NAME["swap"], parts.BY_NAME["ncu"]
    monkeypatch.setattr(first, "run", lambda ctx: parts.result("ok", "ran", [{"rank": "16", "us": 1.0}]))

    def killed(ctx):
        raise KeyboardInterrupt
    monkeypatch.setattr(second, "run", killed)
    monkeypatch.setattr(accept, "choose", lambda args, ctx, earlier: [first, second])
    with pytest.raises(KeyboardInterrupt):
        accept.measure(accept.parse(["--quick"]), ctx, [], [])
    doc = json.loads((ctx.out / "accept.json").read_text())
    assert doc["parts"]["swap"]["status"] == "ok" and "ncu" not in doc["parts"]


def test_run_cuts_off_and_keeps_what_was_said(ctx):
    rc, out, _ = machine.run(ctx, [sys.executable, "-uc", "import time; print('{\"a\": 1}'); time.sleep(60)"], 1)
    assert rc is None and machine.json_lines(out) == [{"a": 1}]


def test_half_a_json_line_is_not_a_row():
    assert machine.json_lines('{"a": 1}\nnoise\n{"b": ') == [{"a": 1}]


def bench_program(ctx, rows, rc=0, err=""):
    path = ctx.bin / "bench_cuda"
    body = "".join(f"print({json.dumps(json.dumps(r))})\n" for r in rows)
    path.write_text(f"#!{sys.executable}\nimport sys\nsys.stdin.read()\n{body}sys.stderr.write({err!r})\nsys.exit({rc})\n")
    path.chmod(0o755)


def test_step_gives_each_row_its_share(ctx):
    bench_program(ctx, [step_row(64, "one", 6000.0, 24e9)])
    r = parts.step(ctx)
    assert r["status"] == "ok" and r["rows"][0]["floor_us"] == pytest.approx(24e9 / 4200e3, abs=0.01)
    assert r["rows"][0]["share"] == pytest.approx(24e9 / 4200e3 / 6000, abs=0.001)


def test_bench_that_dies_fails_the_part_and_keeps_its_rows(ctx):
    bench_program(ctx, [step_row(64, "one", 6000.0, 24e9)], rc=1, err="gpu: device lost\n")
    r = parts.step(ctx)
    assert r["status"] == "fail" and "device lost" in r["reason"] and len(r["rows"]) == 2


def test_timed_part_without_ceilings_is_a_skip(ctx):
    ctx.ceilings = {}
    r = accept.run_part(parts.BY_NAME["step"], ctx)
    assert r["status"] == "skip" and "ceilings" in r["reason"]


def test_programs_of_other_sources_are_not_run(ctx):
    ctx.manifest["packed"] = False
    bench_program(ctx, [])
    r = accept.run_part(parts.BY_NAME["step"], ctx)
    assert r["status"] == "skip" and "tests/gpu/pack" in r["reason"]


def kernel_tests(ctx, body):
    path = ctx.bin / "gpu_tests"
    path.write_text(f'#!/bin/sh\nif [ "$1" = --list ]; then echo rows; exit 0; fi\n{body}\n')
    path.chmod(0o755)


def test_kernel_tests_that_run_no_test_fail(ctx):
    kernel_tests(ctx, "exit 0")
    assert parts.kernels(ctx)["status"] == "fail"
    kernel_tests(ctx, "echo '[  PASSED  ] 3 test(s).' >&2")
    r = parts.kernels(ctx)
    assert r["status"] == "ok" and r["rows"] == [{"family": "rows", "tests": 3, "state": "ok"}]


def test_ncu_that_reads_no_counters_is_a_skip(ctx, monkeypatch):
    bench_program(ctx, [])
    path = ctx.out / "ncu"
    path.write_text("#!/bin/sh\necho 'Failed to initialize the profiler: LibraryNotLoaded'\nexit 1\n")
    path.chmod(0o755)
    monkeypatch.setattr(machine, "tool", lambda name, *folders: str(path))
    r = accept.run_part(parts.BY_NAME["ncu"], ctx)
    assert r["status"] == "skip" and "LibraryNotLoaded" in r["reason"]


@pytest.mark.parametrize("text, rc, status", [("ERROR SUMMARY: 0 errors", 0, "ok"), ("ERROR SUMMARY: 2 errors", 99, "fail"),
                                              ("Device not supported", 1, "skip")])
def test_sanitizer(ctx, monkeypatch, text, rc, status):
    kernel_tests(ctx, "exit 0")
    path = ctx.out / "compute-sanitizer"
    path.write_text(f"#!/bin/sh\necho '========= {text}' >&2\nexit {rc}\n")
    path.chmod(0o755)
    monkeypatch.setattr(machine, "tool", lambda name, *folders: str(path))
    assert accept.run_part(parts.BY_NAME["sanitizer"], ctx)["status"] == status


# ---- readers ----

PTXAS = """ptxas info    : Compiling entry function '_Z11norm_kernel9norm_jobs' for 'sm_90'
ptxas info    : Function properties for _Z11norm_kernel9norm_jobs
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 1024 bytes smem
ptxas info    : Compiling entry function '_Z4fullv' for 'sm_90a'
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers
"""


def test_ptxas_report_is_read():
    assert parts.read_ptxas(PTXAS) == [{"kernel": "_Z11norm_kernel9norm_jobs", "registers": 40, "stack": 0, "spill": 0},
                                       {"kernel": "_Z4fullv", "registers": 255, "stack": 16, "spill": 20}]
    assert parts.demangle("_Z11norm_kernel9norm_jobs") == "norm_kernel"


def test_a_spill_fails_the_build(ctx, monkeypatch):
    monkeypatch.setattr(machine, "tool", lambda name, *folders: "nvcc")
    monkeypatch.setattr(parts, "compile_one", lambda ctx, nvcc, source: (source, 0, PTXAS))
    r = parts.build(ctx)
    assert r["status"] == "fail" and "full spills 20 bytes" in r["reason"]
    monkeypatch.setattr(parts, "compile_one", lambda ctx, nvcc, source: (source, 0, PTXAS[:PTXAS.index("ptxas info    : Compiling entry function '_Z4")]))
    assert parts.build(ctx)["status"] == "ok"


def test_find_gpu_says_why_not():
    gpu, why = machine.find_gpu()
    assert gpu or why


# ---- the command ----

@pytest.mark.parametrize("args, said", [
    ([], "say what to run"), (["--quick", "--full"], "exclude each other"), (["--part", "nope"], "unknown part 'nope'; the parts are probe"),
    (["--quick", "--seconds", "5"], "at least 30"), (["--list", "--part", "step"], "--part goes with"), (["--quick", "--merge", "x"], "exclude each other"),
    (["--merge", "/nonexistent/accept.json"], "not an accept.json"), (["--nope"], "unrecognized arguments")])
def test_wrong_arguments_are_named(args, said):
    r = run(*args)
    assert r.returncode == 2 and said in r.stderr


def test_list():
    r = run("--list")
    assert r.returncode == 0 and [line.split()[0] for line in r.stdout.splitlines()] == parts.NAMES


@pytest.mark.skipif(machine.find_gpu()[0] is not None, reason="this machine has a GPU")
def test_without_a_gpu_nothing_is_claimed(tmp_path):
    r = run("--part", "swap", "--out", tmp_path)
    assert r.returncode == 1 and "no GPU" in r.stderr
    text = (tmp_path / "accept.md").read_text()
    assert "device: none: not yet run on a GPU" in text and "MISSED" not in text and "| met |" not in text
    assert json.loads((tmp_path / "accept.json").read_text())["parts"]["swap"]["status"] == "skip"


def test_merge_command_writes_one_table(tmp_path):
    for name, doc in (("a", {"step": made("step", [step_row(64, "none", 6000.0), step_row(64, "one", 6300.0)])}),
                      ("b", {"swap": made("swap", [{"rank": "16", "us": 2000.0, "bystander_ratio": 1.0, "bytes": 83_886_080}])})):
        (tmp_path / name).write_text(json.dumps({"version": 1, "parts": doc}))
    r = run("--merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "out")
    assert r.returncode == 0 and r.stdout.splitlines()[-1] == "7 bars: 2 met, 0 missed, 5 not measured"
    text = (tmp_path / "out" / "accept.md").read_text()
    assert "device: H200, commit: c1" in text and "| +5.0 % |" in text


def test_what_comes_back_has_names_that_may():
    names = {"accept.md", "accept.json", "accept.log", "ncu.csv"}
    assert all(c.isalnum() or c in "._-" for n in names for c in n) and len(names) <= 8


# ---- programs that need more than Python ----

@pytest.mark.parametrize("mode", ["pair", "kernel", "step", "swap"])
def test_bench_runs_and_counts_on_the_emulated_device(ctx, mode):
    r = accept.run_part(part(parts.dry_bench(mode)), ctx)
    if r["status"] == "skip":
        pytest.skip(r["reason"])
    assert r["status"] == "ok", r["reason"]


def test_bench_refuses_lines_that_it_does_not_understand(ctx):
    found = [p for pattern in ("*", "*/*") for p in (HERE.parents[1] / "build").glob(f"{pattern}/tests/bench_cuda_emulated")]
    if not found:
        pytest.skip("bench_cuda_emulated is not built")
    options = ["--shape", "tiny", "--deterministic", "1", "--device-bytes", str(64 << 20)]
    env = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}  # it exits where it stands
    for mode, line in (("pair", "qkv 1 2 16 4"), ("pair", "nope 1 1 16 4"), ("kernel", "gemm nope 3"), ("kernel", "prefill 9 8"), ("kernel", "nope 3"),
                       ("step", "1 20 none 16 1 0"), ("step", "1 20 one 16 0 0"), ("step", "1 20 some 16 1 0"), ("swap", "mix 2"), ("swap", "16")):
        r = subprocess.run([found[0], mode, *options], input=line + "\n", capture_output=True, text=True, env=env)
        assert r.returncode == 2 and f"line not understood: {line}" in r.stderr, (mode, line, r.stderr)
    assert subprocess.run([found[0], "nope"], input="", capture_output=True, text=True).returncode == 2


def test_peers_agree_with_f64():
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    r = subprocess.run([sys.executable, HERE / "peers.py", "--check"], capture_output=True, text=True, env={**os.environ, "TRITON_INTERPRET": "1"})
    assert r.returncode == 0, r.stdout + r.stderr
    assert all(m < 2e-2 for row in machine.json_lines(r.stdout) for m in row["miss"].values())


# ---- packing ----

@pytest.fixture
def packed(tmp_path, monkeypatch):
    import pack_manifest
    monkeypatch.setattr(machine, "digest", lambda: "d1")
    monkeypatch.setattr(pack_manifest, "sources_bytes", lambda: 15 << 20)
    folder = tmp_path / "gpu"
    (folder / "bin").mkdir(parents=True)
    for name in pack_manifest.NEEDED:
        (folder / "bin" / name).write_bytes(b"x" * 1000)
    pack_manifest.write(folder, 60)
    return pack_manifest, folder


def test_packed_folder_is_complete(packed, capsys):
    pack_manifest, folder = packed
    assert pack_manifest.check(folder) == 0 and "4 files" in capsys.readouterr().out


def test_packed_folder_of_other_sources_is_refused(packed, monkeypatch):
    pack_manifest, folder = packed
    monkeypatch.setattr(machine, "digest", lambda: "d2")
    with pytest.raises(SystemExit, match="other sources"):
        pack_manifest.check(folder)
    _, notes = machine.manifest(folder)
    assert "run tests/gpu/pack again" in notes[0]
    assert machine.manifest(folder)[0]["packed"] is False


def test_packed_folder_that_lost_a_file_is_refused(packed):
    pack_manifest, folder = packed
    (folder / "bin" / "residuald").unlink()
    with pytest.raises(SystemExit, match="lacks bin/residuald"):
        pack_manifest.check(folder)


def test_packed_folder_that_cannot_travel_is_refused(packed):
    pack_manifest, folder = packed
    with pytest.raises(SystemExit, match="more than 15 MiB"):
        pack_manifest.write(folder, 15)


def test_pack_names_an_unknown_option():
    r = subprocess.run([HERE / "pack", "--nope"], capture_output=True, text=True)
    assert r.returncode == 1 and "unknown option --nope" in r.stderr

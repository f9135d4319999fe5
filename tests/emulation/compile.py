#!/usr/bin/env python3
"""Compiles every CUDA kernel for sm_90 and fails on what costs speed: a spill, or a stack frame.

The list is kernels/cuda/sources.cmake. The compiler is nvcc of PATH, or the one that `deploy/setup tests` puts into .venv/cuda.
Prints registers and shared memory per kernel; objects go to build/cuda.
"""
import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["-arch=sm_90", "-std=c++17", "-O3", "-lineinfo", "-I.", "-DRS_CHECKING=0", "-D_GNU_SOURCE", "-Xptxas", "-v",
         "-Xcompiler", "-Wall,-Wextra,-Wno-unused-parameter"]
REGISTERS_MAX = 255


def find_nvcc():
    found = shutil.which("nvcc") or ROOT / ".venv/cuda/nvidia/cu13/bin/nvcc"
    if not Path(found).exists():
        sys.exit("no nvcc on PATH nor in .venv/cuda: run `deploy/setup tests`")
    return str(found)


def kernel_files():
    text = (ROOT / "kernels/cuda/sources.cmake").read_text()
    names = re.search(r"set\(RS_CUDA_KERNELS(.*?)\)", text, re.S).group(1)
    return re.findall(r"\S+\.cu\b", re.sub(r"#.*", "", names))


def compile_one(nvcc, name):
    out = ROOT / "build/cuda" / (name + ".o")
    command = [nvcc, *FLAGS, "-c", f"kernels/cuda/{name}", "-o", str(out)]
    if shutil.which("ccache"):
        command.insert(0, "ccache")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return name, done.returncode, done.stdout + done.stderr


def demangle(names):
    tool = shutil.which("c++filt")
    if not tool or not names:
        return list(names)
    out = subprocess.run([tool, "-p", *names], capture_output=True, text=True).stdout.splitlines()
    return out if len(out) == len(names) else list(names)


def kernels_of(log):
    """(mangled name, stack bytes, spill bytes, registers, shared bytes) of each function that ptxas reports."""
    found = []
    for m in re.finditer(r"Function properties for (\S+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
                         r"(?:\s*ptxas info\s*: Used (\d+) registers([^\n]*))?", log):
        shared = re.search(r"(\d+) bytes smem", m.group(6) or "")
        found.append((m.group(1), int(m.group(2)), int(m.group(3)) + int(m.group(4)), int(m.group(5) or 0),
                      int(shared.group(1)) if shared else 0))
    return found


def check(name, code, log):
    """Problems of one file, and its table."""
    if code != 0:
        return [f"{name}: does not compile\n{log}"], []
    warnings = [line for line in log.splitlines() if "warning" in line]
    kernels = kernels_of(log)
    problems = [f"{name}: {w}" for w in warnings]
    if not kernels and "KERNEL(" in (ROOT / "kernels/cuda" / name).read_text():
        problems.append(f"{name}: ptxas reports no kernel")
    titles = demangle([k[0] for k in kernels])
    rows = []
    for title, (_, stack, spill, registers, shared) in zip(titles, kernels):
        rows.append(f"{name:22} {registers:4} registers  {shared:6} B static shared  {title}")
        if stack or spill:
            problems.append(f"{name}: {title}: {stack} bytes of stack frame, {spill} bytes spilled")
        if registers > REGISTERS_MAX:
            problems.append(f"{name}: {title}: {registers} registers")
    return problems, rows


def main():
    nvcc, files = find_nvcc(), kernel_files()
    (ROOT / "build/cuda").mkdir(parents=True, exist_ok=True)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda name: compile_one(nvcc, name), files))
    problems, rows = [], []
    for name, code, log in results:
        p, r = check(name, code, log)
        problems += p
        rows += r
    print("\n".join(rows))
    print("\n".join(problems))
    print(f"{len(files)} files, {len(rows)} kernels for sm_90, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

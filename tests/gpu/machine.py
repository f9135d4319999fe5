"""What this machine has: a GPU by the driver's own library, tools by name, the packed programs and whether they are of these sources."""
import ctypes
import glob
import hashlib
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE_FOLDERS = ("kernels", "server", "chain_client", "tests/gpu", "tests/emulation", "tests/lib")
SOURCE_SUFFIXES = (".c", ".h", ".cu", ".cuh", ".cpp")


class Missing(Exception):
    """A tool, library or program that this machine lacks: the part is skipped, and says so."""


def load_driver():
    for name in ["libcuda.so.1", *glob.glob("/usr/local/nvidia/lib*/libcuda.so.1"), *glob.glob("/usr/local/cuda/compat/libcuda.so.1")]:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def find_gpu():
    """(facts, "") or (None, why not). compute capability 9.0 is required: the kernels are built for it alone."""
    cuda = load_driver()
    if cuda is None:
        return None, "libcuda.so.1 was not found (no driver)"
    rc, count = cuda.cuInit(0), ctypes.c_int()
    if rc:
        return None, f"cuInit returned {rc}"
    cuda.cuDeviceGetCount(ctypes.byref(count))
    if count.value == 0:
        return None, "the driver sees no device"
    device, name, version, total = ctypes.c_int(), ctypes.create_string_buffer(100), ctypes.c_int(), ctypes.c_size_t()
    cuda.cuDeviceGet(ctypes.byref(device), 0)
    cuda.cuDeviceGetName(name, 100, device)
    cuda.cuDriverGetVersion(ctypes.byref(version))
    cuda.cuDeviceTotalMem_v2(ctypes.byref(total), device)

    def attribute(code):
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), code, device)
        return value.value

    capability = (attribute(75), attribute(76))
    facts = {"name": name.value.decode(), "capability": list(capability), "sm": attribute(16), "l2_bytes": attribute(38),
             "memory_bytes": total.value, "driver_cuda": version.value}
    facts["text"] = (f"{facts['name']}, {facts['sm']} SMs, {facts['memory_bytes'] >> 20} MiB, driver for CUDA "
                     f"{version.value // 1000}.{version.value % 1000 // 10}")
    if capability != (9, 0):
        return None, f"{facts['name']} has compute capability {capability[0]}.{capability[1]}; the kernels are built for 9.0"
    return facts, ""


def digest():
    """Of every source that decides what the packed programs do."""
    h = hashlib.sha256()
    for folder in SOURCE_FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in SOURCE_SUFFIXES and path.is_file() and "node_modules" not in path.parts:
                data = path.read_bytes()
                h.update(f"{path.relative_to(ROOT)}\0{len(data)}\0".encode() + data)
    return h.hexdigest()


def commit():
    try:
        out = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=ROOT, capture_output=True, text=True, check=True)
        return out.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def manifest(folder):
    """What tests/gpu/pack wrote beside the programs, with this checkout's digest, and notes on what does not fit."""
    path, mine, notes = Path(folder) / "manifest.json", digest(), []
    if not path.exists():
        return {"digest": mine, "commit": commit(), "packed": False}, [f"{shown(folder)} was not packed: run tests/gpu/pack on a Debian machine"]
    packed = json.loads(path.read_text())
    if packed["digest"] != mine:
        notes.append(f"{shown(folder)} was packed from other sources: run tests/gpu/pack again")
    return {**packed, "digest": mine, "packed": packed["digest"] == mine, "commit": packed.get("commit") or commit()}, notes


def shown(path):
    path = Path(path).resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def tool(name, *folders):
    """Path of a program, or Missing."""
    path = shutil.which(name) or next((p for f in folders for p in glob.glob(f"{f}/{name}")), None)
    if not path:
        raise Missing(f"{name} is not on this machine")
    return path


def packed_program(ctx, name):
    if not ctx.manifest.get("packed"):
        raise Missing("build/gpu does not hold programs of these sources (tests/gpu/pack)")
    path = ctx.bin / name
    if not path.exists():
        raise Missing(f"{name} is not among the packed programs")
    return str(path)


def scratch_folder():
    """The roomier of memory and disk."""
    best = max(("/dev/shm", "/tmp"), key=lambda p: shutil.disk_usage(p).free if os.path.isdir(p) and os.access(p, os.W_OK) else 0)
    return Path(best) / "residual-accept"


def library_path():
    """Folders that hold the toolkit's shared libraries, the toolkit's own first, then those that PyTorch brings."""
    found = [os.path.dirname(p) for p in glob.glob("/usr/local/cuda*/lib64/libcublasLt.so.13*") + glob.glob("/usr/local/cuda*/targets/*/lib/libcublasLt.so.13*")]
    for site in site_packages():
        found += [os.path.dirname(p) for p in glob.glob(f"{site}/nvidia/*/lib/libcublasLt.so.13*")]
    return list(dict.fromkeys(found))


def site_packages():
    import site
    return [*site.getsitepackages(), site.getusersitepackages()]


def environment(**more):
    env = dict(os.environ, PYTHONUNBUFFERED="1", **more)
    env["LD_LIBRARY_PATH"] = ":".join([p for p in [env.get("LD_LIBRARY_PATH"), *library_path()] if p])
    return env


def run(ctx, command, seconds, text_in=None, env=None, cwd=ROOT):
    """(exit status or None when it was cut off, stdout, stderr); everything also goes to the log. Children die with it."""
    begin = time.monotonic()
    seconds = max(1.0, min(seconds, ctx.left() - 3))
    with subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE if text_in is not None else subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, errors="replace", env=env or environment(), cwd=cwd, start_new_session=True) as p:
        try:
            out, err = p.communicate(text_in, timeout=seconds)
            rc = p.returncode
        except subprocess.TimeoutExpired:
            os.killpg(p.pid, 9)
            out, err = p.communicate()
            rc = None
    ctx.log(f"$ {' '.join(map(str, command))}\n{(out or '')[-20000:]}{(err or '')[-8000:]}"
            f"[{'cut off' if rc is None else rc} after {time.monotonic() - begin:.1f} s]")
    return rc, out or "", err or ""


def json_lines(text):
    rows = []
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                rows.append(json.loads(line))
            except ValueError:
                pass  # cut off in the middle
    return rows

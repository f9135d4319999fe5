"""The list of what tests/gpu/pack built: digest and commit of the sources, sizes, the newest glibc symbols that the programs ask for.

    python3 tests/gpu/pack_manifest.py write FOLDER LIMIT_MIB      and refuses a folder that cannot travel with the sources
    python3 tests/gpu/pack_manifest.py check FOLDER                exit status 1 if it is of other sources or not complete
"""
import json
import re
import subprocess
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent)]
import machine  # noqa: E402

NEEDED = ("residuald", "logits_tool", "bench_cuda", "gpu_tests")


def glibc_of(path):
    """The newest GLIBC_x.y that a program or library needs."""
    out = subprocess.run(["objdump", "-T", path], capture_output=True, text=True).stdout
    return max((tuple(map(int, v.split("."))) for v in re.findall(r"GLIBC_(\d+\.\d+)", out)), default=(0, 0))


def sources_bytes():
    out = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=machine.ROOT, capture_output=True, text=True, check=True).stdout
    return sum((machine.ROOT / f).stat().st_size for f in out.splitlines() if (machine.ROOT / f).is_file())


def write(folder, limit_mib):
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "manifest.json"]
    total, sources = sum(p.stat().st_size for p in files), sources_bytes()
    newest = max((glibc_of(p) for p in files), default=(0, 0))
    manifest = {"digest": machine.digest(), "commit": machine.commit(), "glibc": ".".join(map(str, newest)), "bytes": total,
                "files": {str(p.relative_to(folder)): p.stat().st_size for p in files}}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    if total + sources > limit_mib << 20:
        raise SystemExit(f"pack: {total >> 20} MiB and {sources >> 20} MiB of sources are more than {limit_mib} MiB")
    return 0


def check(folder):
    path = folder / "manifest.json"
    if not path.exists():
        raise SystemExit(f"pack: {machine.shown(folder)} is not packed: run tests/gpu/pack")
    manifest = json.loads(path.read_text())
    if manifest["digest"] != machine.digest():
        raise SystemExit(f"pack: {machine.shown(folder)} is of other sources: run tests/gpu/pack again")
    lost = [f for f, size in manifest["files"].items() if not (folder / f).is_file() or (folder / f).stat().st_size != size]
    lost += [f"bin/{n}" for n in NEEDED if f"bin/{n}" not in manifest["files"]]
    if lost:
        raise SystemExit(f"pack: {machine.shown(folder)} lacks {', '.join(lost)}")
    print(f"{machine.shown(folder)}: {len(manifest['files'])} files, {manifest['bytes'] / 1048576:.1f} MiB, needs glibc "
          f"{manifest['glibc']}, sources {manifest['digest'][:12]}")
    return 0


def main(argv):
    if len(argv) == 3 and argv[0] == "write":
        return write(Path(argv[1]), int(argv[2]))
    if len(argv) == 2 and argv[0] == "check":
        return check(Path(argv[1]))
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

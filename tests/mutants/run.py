#!/usr/bin/env python3
"""Breaks one rule at a time and asks the test that guards it. tests/mutants/*.patch hold the breaks; each begins with

    # rule: what the product promises
    # test: unit test_x | contracts FILE.test.mjs [NAME PATTERN] | pytest PATH [-k NAME]
    # when: full                       if it is to be tried with --full or by name only, as all of pytest are

and the named test has to fail with the patch applied, and to pass without any. All of it happens in copies under build/mutants; a test that
hangs on its mutant (five times as long as without it) has failed.
    run.py [--full] [--list] [NAME...]        NAME: a patch without .patch; pytest ones only with --full or by name"""
import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build/mutants"
CONTRACTS = Path("chain_client/contracts")
KINDS = ("unit", "contracts", "pytest")


class Mutant:
    def __init__(self, path):
        self.path, self.name = path, path.stem
        head = path.read_text().split("\ndiff ")[0].split("\n--- ")[0]
        rule, test = re.search(r"^# rule: (.+)$", head, re.M), re.search(r"^# test: (\S+) (.+)$", head, re.M)
        if not rule or not test or test[1] not in KINDS:
            sys.exit(f"{path.name}: expected '# rule: TEXT' and '# test: {'|'.join(KINDS)} ...' before the diff")
        self.late = test[1] == "pytest" or bool(re.search(r"^# when: full$", head, re.M))
        self.rule, self.kind, self.test = rule[1], test[1], test[2].strip()


def sh(argv, cwd, limit_s=600, env=None):
    """(exit code, output); a test that hangs has failed."""
    try:
        done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, errors="replace", timeout=limit_s, env=env)
        return done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired:
        return 124, f"no end after {limit_s} s"


def copy_tree(to, under="."):
    """The working tree's files; an unchanged file keeps its time, so that only what changed is built again."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z", under], cwd=ROOT, capture_output=True, check=True)
    names = {n for n in listed.stdout.decode().split("\0") if n and (ROOT / n).is_file()}
    for name in names:
        source, dest = ROOT / name, to / name
        if not dest.exists() or dest.read_bytes() != source.read_bytes():
            dest.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, dest)
            shutil.copymode(source, dest)
    for old in [p for p in to.rglob("*") if p.is_file()]:
        rel = old.relative_to(to).as_posix()
        if rel not in names and not rel.startswith("build/") and "/build/" not in rel and "node_modules" not in rel and "/." not in rel:
            old.unlink()


def apply(tree, mutant, *flags):
    return sh(["patch", "-p1", "--no-backup-if-mismatch", "-s", *flags, "-i", str(mutant.path)], tree)


class Tree:
    """A copy of the working tree with its own build of the unit tests."""

    def __init__(self, number):
        self.dir, self.limit_s = WORK / f"tree{number}", {}

    def ninja(self, *targets):
        return sh(["ninja", "-C", "build", *targets], self.dir, 900)

    def prepare(self, tests):
        copy_tree(self.dir)
        code, out = sh(["cmake", "-G", "Ninja", "-S", ".", "-B", "build", "-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_C_FLAGS_DEBUG=-O0", "-DRS_CUDA=OFF", "-DRS_CHECKING=ON"], self.dir)
        if code == 0 and tests:
            code, out = self.ninja(*tests)
        if code != 0:
            sys.exit(f"the copy does not build:\n{out[-3000:]}")
        for test in tests:
            since = time.monotonic()
            code, out = sh([f"build/tests/{test}"], self.dir, 300)
            if code != 0:
                sys.exit(f"{test} fails without any mutant:\n{out[-2000:]}")
            self.limit_s[test] = 10 + 5 * (time.monotonic() - since)

    def attempt(self, mutant):
        code, out = apply(self.dir, mutant, "--dry-run")
        if code != 0:
            return f"does not apply: {out.strip()[-300:]}"
        apply(self.dir, mutant)
        try:
            code, out = self.ninja(mutant.test)
            if code != 0:
                return f"does not build: {out.strip()[-600:]}"
            return None if sh([f"build/tests/{mutant.test}"], self.dir, self.limit_s[mutant.test])[0] != 0 else "NOT CAUGHT"
        finally:
            apply(self.dir, mutant, "-R")


def try_units(number, mutants):
    """A test's mutants go to one tree, so that each test is built once."""
    tree = Tree(number)
    tree.prepare(sorted({m.test for m in mutants}))
    return all([timed(tree.attempt, m) for m in mutants])


def shared_out(mutants, count):
    """In as many lists, the mutants of a test together, the lists about as long."""
    lists = [[] for _ in range(count)]
    by_test = {}
    for m in mutants:
        by_test.setdefault(m.test, []).append(m)
    for group in sorted(by_test.values(), key=len, reverse=True):
        min(lists, key=len).extend(group)
    return [x for x in lists if x]


def contracts_copy(name):
    tree = WORK / "contracts" / name
    shutil.rmtree(tree, ignore_errors=True)
    copy_tree(tree, str(CONTRACTS))
    (tree / "tests").mkdir(parents=True)
    os.symlink(ROOT / "tests/data", tree / "tests/data")
    os.symlink(ROOT / CONTRACTS / "node_modules", tree / CONTRACTS / "node_modules")
    return tree


def run_contracts(tree, file, *patterns):
    named = [f"--test-name-pattern={p}" for p in patterns if all(patterns)]
    return sh(["node", "--test", *named, f"test/{file}"], tree / CONTRACTS, 300)


def contracts_build(tree):
    return sh(["node", "build.mjs"], tree / CONTRACTS, env={**os.environ, "RS_QUICK": "1"})


def contracts_pass(tests):
    tree = contracts_copy("none")
    code, out = contracts_build(tree)
    files = {}
    for file, _, pattern in sorted(t.partition(" ") for t in tests):
        files.setdefault(file, []).append(pattern)
    for file, patterns in files.items():
        if code == 0:
            code, out = run_contracts(tree, file, *patterns)
        if code != 0:
            sys.exit(f"contracts {file} fails without any mutant:\n{out[-2000:]}")
    shutil.rmtree(WORK / "contracts-build", ignore_errors=True)
    shutil.move(tree / CONTRACTS / "build", WORK / "contracts-build")  # what a mutant leaves alone is not compiled again
    shutil.rmtree(tree)


def try_contracts(mutant):
    tree = contracts_copy(mutant.name)
    code, out = apply(tree, mutant)
    if code != 0:
        return f"does not apply: {out.strip()[-300:]}"
    shutil.copytree(WORK / "contracts-build", tree / CONTRACTS / "build")
    code, out = contracts_build(tree)
    if code != 0:
        return f"does not build: {out.strip()[-600:]}"
    file, _, pattern = mutant.test.partition(" ")
    code, _ = run_contracts(tree, file, pattern)
    shutil.rmtree(tree)
    return None if code != 0 else "NOT CAUGHT"


def try_pytest(mutant):
    """Needs the programs: they are built in the copy as in the release build."""
    tree = Tree(0).dir
    for link, to in ((tree / ".venv", ROOT / ".venv"), (tree / CONTRACTS / "node_modules", ROOT / CONTRACTS / "node_modules")):
        if not link.exists():
            os.symlink(to, link)
    code, out = apply(tree, mutant, "--dry-run")
    if code != 0:
        return f"does not apply: {out.strip()[-300:]}"
    apply(tree, mutant)
    try:
        for argv in (["cmake", "--preset", "release", "-DRS_CUDA=OFF"], ["ninja", "-C", "build/release"], ["node", str(CONTRACTS / "build.mjs")]):
            code, out = sh(argv, tree, 1800)
            if code != 0:
                return f"does not build: {out.strip()[-600:]}"
        code, _ = sh([str(ROOT / ".venv/bin/python"), "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *mutant.test.split()], tree, 900)
        return None if code != 0 else "NOT CAUGHT"
    finally:
        apply(tree, mutant, "-R")


def report(mutant, wrong, since):
    print(f"  {'ok  ' if wrong is None else 'FAIL'} {mutant.name}: {mutant.rule} ({mutant.kind} {mutant.test}, {time.monotonic() - since:.0f} s)"
          + ("" if wrong is None else f"\n       {wrong}"), flush=True)
    return wrong is None


def timed(attempt, mutant):
    since = time.monotonic()
    return report(mutant, attempt(mutant), since)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--full", action="store_true")
    p.add_argument("--list", action="store_true")
    p.add_argument("names", nargs="*")
    args = p.parse_args()
    mutants = [Mutant(f) for f in sorted((ROOT / "tests/mutants").glob("*.patch"))]
    unknown = set(args.names) - {m.name for m in mutants}
    if unknown:
        sys.exit(f"no such mutant: {', '.join(sorted(unknown))}; --list shows them")
    if args.names:
        mutants = [m for m in mutants if m.name in args.names]
    if args.list:
        for m in mutants:
            print(f"{m.name:32} {m.rule} ({m.kind} {m.test})")
        return
    now = [m for m in mutants if not m.late or args.full or args.names]
    unit, contracts, late = ([m for m in now if m.kind == kind] for kind in KINDS)
    WORK.mkdir(parents=True, exist_ok=True)
    good = True
    jobs = os.cpu_count() or 1
    with ThreadPoolExecutor(jobs) as pool:
        lists = shared_out(unit, jobs)
        good &= all(list(pool.map(try_units, range(len(lists)), lists)))
        if contracts:
            contracts_pass({m.test for m in contracts})
            good &= all(list(pool.map(lambda m: timed(try_contracts, m), contracts)))
    if late:
        Tree(0).prepare([])
    for m in late:
        good &= timed(try_pytest, m)
    left = len(mutants) - len(unit) - len(contracts) - len(late)
    print(f"{len(unit) + len(contracts) + len(late)} mutants tried" + (f", {left} with --full only" if left else ""))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()

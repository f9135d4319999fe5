#!/usr/bin/env python3
"""The style guide as a program: format, size budgets, include rules, banned calls, text that must not be here.

A waiver is a comment that says why: `lint: waive <rule> - reason`, on the line, or anywhere in the function for `function`,
`parameters` and `nesting`, anywhere in the file for `file`.
"""
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINE_MAX, FUNCTION_MAX, SOURCE_MAX, HEADER_MAX, PARAMETERS_MAX, NESTING_MAX = 100, 60, 600, 200, 6, 3
TEST_MAX = 900  # lines of a test's source

BANNED = {  # call -> the one place that may use it
    "strcpy": None, "strcat": None, "sprintf": None, "vsprintf": None, "strtok": None, "atoi": None, "atol": None,
    "alloca": None, "gets": None, "system": "tests/", "popen": "tests/",
    "malloc": "server/base/mem.c", "calloc": "server/base/mem.c", "realloc": "server/base/mem.c",
    "free": "server/base/mem.c", "strdup": "server/base/mem.c", "getenv": "server/base/env.c",
    "cudaMalloc": "kernels/cuda/gpu.cu",
}
# folder -> folders of ours it may include
MAY_INCLUDE = {
    "server/base": ["server/base"],
    "kernels": ["kernels", "server/base"],
    "chain_client": ["chain_client", "server/base"],
    "chain_client/eth": ["chain_client/eth", "server/base"],
    "chain_client/cli": ["chain_client", "server/base", "server/influence", "server/model", "server/datanet", "server/adapter", "server/text", "server/record", "server/spool",
                         "server/train", "server/engine", "kernels"],
    "chain_client/registry": ["chain_client", "server/base"],
    "chain_client/settle": ["chain_client", "server/base", "server/spool"],
    "server/spool": ["server/spool", "server/base"],
    "server/terms": ["server/terms", "server/base", "chain_client"],
    "server/text": ["server/text", "server/base"],
    "server/text/jinja": ["server/text/jinja", "server/text", "server/base"],
    "server/model": ["server/model", "server/text", "kernels", "server/base", "chain_client"],
    "server/datanet": ["server/datanet", "server/adapter/peft", "server/model", "server/text", "kernels", "server/base", "chain_client"],
    "server/adapter": ["server/adapter", "server/datanet", "server/terms", "server/model", "server/text", "kernels", "server/base", "chain_client"],
    "server/adapter/peft": ["server/adapter/peft", "server/model", "kernels", "server/base"],
    "server/engine": ["server/engine", "server/datanet", "server/adapter", "server/terms", "server/model", "server/text", "kernels", "server/base", "chain_client"],
    "server/train": ["server/train", "server/engine", "server/datanet", "server/adapter", "server/model", "server/text", "kernels", "server/base"],
    "server/influence": ["server/influence", "server/train", "server/engine", "server/datanet", "server/adapter", "server/terms", "server/model", "kernels", "server/base",
                         "chain_client"],
    "server/record": ["server/record", "server/influence", "server/engine", "server/datanet", "server/adapter", "server/terms", "server/model", "server/spool",
                      "kernels", "server/base", "chain_client"],
    "server/http": ["server/http", "server/train", "server/engine", "server/datanet", "server/adapter", "server/terms", "server/record", "server/influence", "server/model",
                    "server/text", "server/base", "kernels", "chain_client"],
    "server": ["server", "kernels", "chain_client"],
}
# outside header -> files (prefixes) that may include it
DOORS = {
    "microhttpd.h": ["server/http/", "chain_client/settle/"], "hiredis/": ["server/spool/", "chain_client/settle/"],
    "secp256k1": ["chain_client/eth/secp.c"], "curl/": ["chain_client/eth/fetch.c"],
    "sqlite3.h": ["chain_client/settle/"], "dnnl": ["kernels/cpu/"], "pcre2.h": ["server/text/", "server/adapter/"],
    "utf8proc.h": ["server/text/"], "divsufsort.h": ["server/influence/"], "cuda": ["kernels/cuda/"],
}
FORBIDDEN_TEXT = [r"\bTODO\b", r"\bFIXME\b", r"\bXXX\b", r"/work/", r"pypi\.org", r"registry\.npmjs", r"deb\.debian\.org"]

problems = []


def report(path, line, rule, text):
    problems.append(f"{path.relative_to(ROOT)}:{line}: {rule}: {text}")


def tracked():
    out = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in out.stdout.splitlines() if (ROOT / name).is_file()]


def strip_code(text):
    """Comments and string contents blanked, line structure kept."""
    pattern = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.S)
    return pattern.sub(lambda m: re.sub(r"[^\n]", " ", m.group(0)), text)


def folder_rule(rel):
    best = max((f for f in MAY_INCLUDE if rel.startswith(f + "/")), key=len, default=None)
    return best, MAY_INCLUDE.get(best, [])


def check_includes(path, text):
    rel = str(path.relative_to(ROOT))
    folder, allowed = folder_rule(rel)
    for n, line in enumerate(text.splitlines(), 1):
        m = re.match(r'\s*#\s*include\s+([<"])([^>"]+)[>"]', line)
        if not m:
            continue
        name = m.group(2)
        if m.group(1) == '"' and "/" in name:
            if re.match(r"kernels/(cuda|cpu|ref)/", name) and not rel.startswith(("kernels/", "tests/")):
                report(path, n, "include", f"{name} is a backend's own: kernels/*.h are the contract")
            if folder and not any(name.startswith(a + "/") for a in allowed):
                report(path, n, "include", f"{folder} may not include {name}")
        elif m.group(1) == '"':
            report(path, n, "include", f'"{name}": write the path from the root')
        for door, files in DOORS.items():
            if m.group(1) == "<" and name.startswith(door) and not rel.startswith("tests/") and not any(rel.startswith(f) for f in files):
                report(path, n, "include", f"<{name}> belongs to {', '.join(files)}")


def check_banned(path, code, text):
    rel = str(path.relative_to(ROOT))
    lines = text.splitlines()
    for name, home in BANNED.items():
        if home and rel.startswith(home) or rel.startswith("tests/"):
            continue
        for m in re.finditer(rf"(?<![\w.>]){name}\s*\(", code):
            n = code.count("\n", 0, m.start()) + 1
            if "lint: waive banned" not in lines[n - 1]:
                report(path, n, "banned", f"{name}() {'only in ' + home if home else 'is not used here'}")


def functions(code):
    """(name, first line, last line, parameter count, nesting) of every function definition."""
    for m in re.finditer(r"^(?!static_assert|typedef|#)[A-Za-z_][^;{}=#]*?\b(\w+)\s*\(([^;{}]*)\)\s*\n\{", code, re.M):
        kinds, deepest, i = [], 0, m.end() - 1  # open braces: of a block, or inside an initialiser
        while i < len(code):
            if code[i] == "{":
                before = code[:i].rstrip()[-1:] if i == m.end() - 1 else code[max(0, i - 200):i].rstrip()[-1:]
                kinds.append(not (before in "=,({[" or kinds and not kinds[-1]) or not kinds)
                deepest = max(deepest, sum(kinds))
            elif code[i] == "}":
                kinds.pop()
                if not kinds:
                    break
            i += 1
        parameters = 0 if m.group(2).strip() in ("", "void") else m.group(2).count(",") + 1
        yield m.group(1), code.count("\n", 0, m.end()) + 1, code.count("\n", 0, i) + 1, parameters, deepest - 1


def check_budgets(path, code, text):
    lines = text.splitlines()
    is_test = str(path.relative_to(ROOT)).startswith("tests/")
    most = HEADER_MAX if path.suffix in (".h", ".cuh") else TEST_MAX if is_test else SOURCE_MAX
    if len(lines) > most and "lint: waive file" not in text:
        report(path, len(lines), "file", f"{len(lines)} lines, at most {most}")
    for n, line in enumerate(lines, 1):
        if len(line) > LINE_MAX and "lint: waive line" not in line:
            report(path, n, "line", f"{len(line)} columns, at most {LINE_MAX}")
    if is_test:
        return
    for name, first, last, parameters, nesting in functions(code):
        body = "\n".join(lines[max(0, first - 8):last])
        if last - first > FUNCTION_MAX and "lint: waive function" not in body:
            report(path, first, "function", f"{name} has {last - first} lines, at most {FUNCTION_MAX}")
        if parameters > PARAMETERS_MAX + 1 and "lint: waive parameters" not in body:
            report(path, first, "parameters", f"{name} takes {parameters}, at most {PARAMETERS_MAX} beside the error text")
        if nesting > NESTING_MAX and "lint: waive nesting" not in body:
            report(path, first, "nesting", f"{name} nests {nesting} deep, at most {NESTING_MAX}")


def check_dialect(path, code, text):
    """One way to write what C lets one write in several."""
    for n, line in enumerate(code.splitlines(), 1):
        if re.search(r"\bsizeof [A-Za-z_*]", line):
            report(path, n, "dialect", "write sizeof(x)")
        if re.search(r"^\s*MUST_CHECK;|\)\s*MUST_CHECK;", line):
            report(path, n, "dialect", "MUST_CHECK stands before the return type")
    lines = text.splitlines()
    first = next((n for n, line in enumerate(lines) if line.startswith("#include")), None)
    if first is None or "<cmocka.h>" in text:  # cmocka.h wants others before it
        return
    block = []
    for line in lines[first:]:
        if not line.startswith("#include") and line:
            break
        block += [line] if line else []
    own = re.sub(r"\.\w+$", "", str(path.relative_to(ROOT)))
    rank = [(0 if path.suffix not in (".h", ".cuh") and re.match(rf'#include "{re.escape(own)}\.', line) else
             1 if '"' in line else 2, line) for line in block]
    if rank != sorted(rank):
        report(path, first + 1, "dialect", "includes: the file's own header, ours by name, then the system's by name")


def check_names(sources):
    """A struct, union or enum has one definition; a static function does not repeat the name of an external one (which the linker
    keeps apart from each other)."""
    types, external, static = {}, {}, {}
    for path, code in sources:
        rel = str(path.relative_to(ROOT))
        if not rel.startswith(("server/", "kernels/", "chain_client/")):
            continue
        for m in re.finditer(r"^(?:static |const )*(?:struct|union|enum) (\w+)\s*\{", code, re.M):
            types.setdefault(m.group(1), set()).add(path)
        for m in re.finditer(r"^(static )?(?:[A-Za-z_][\w ]*[ *]+)(\w+)\([^;{}]*\)\s*\n\{", code, re.M):
            if path.suffix == ".c" and not m.group(2).startswith("__"):
                (static if m.group(1) else external).setdefault(m.group(2), set()).add(path)
    for name, paths in types.items():
        if len(paths) > 1:
            report(sorted(paths)[1], 1, "name", f"'{name}' is also defined in {sorted(paths)[0].relative_to(ROOT)}")
    for name, paths in static.items():
        if name in external:
            report(sorted(paths)[0], 1, "name", f"static {name}() repeats an external one of {sorted(external[name])[0].relative_to(ROOT)}")


def check_format(files):
    tool = shutil.which("clang-format")
    if not tool:
        problems.append("clang-format is not installed: apt-get install clang-format")
        return
    out = subprocess.run([tool, "--dry-run", "--Werror", *map(str, files)], cwd=ROOT, capture_output=True, text=True)
    seen = set()
    for line in out.stderr.splitlines():
        m = re.match(r"(/[^:]+):(\d+):\d+: error: (.*)", line)
        if m and m.group(1) not in seen:
            seen.add(m.group(1))
            report(Path(m.group(1)), int(m.group(2)), "format", f"clang-format -i would change it ({m.group(3)[-60:]})")
    if out.returncode != 0 and not seen:
        problems.append(f"clang-format failed: {(out.stderr.splitlines() or ['?'])[0]}")


def main():
    files = tracked()
    sources = [p for p in files if p.suffix in (".c", ".h", ".cu", ".cuh") and "/data/" not in str(p)]
    codes = []
    for path in sources:
        text = path.read_text()
        code = strip_code(text)
        codes.append((path, code))
        check_includes(path, text)
        check_banned(path, code, text)
        check_budgets(path, code, text)
        check_dialect(path, code, text)
    for path in files:
        if path.suffix in (".c", ".h", ".cu", ".py", ".sh", ".md", ".sol", ".mjs", ".cmake", ".txt", ".yaml") or path.parent.name in ("deploy", ".ci"):
            if path.name == "lint.py" or "/data/" in str(path) or "/documents/" in str(path):
                continue
            for n, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
                for pattern in FORBIDDEN_TEXT:
                    if re.search(pattern, line):
                        report(path, n, "text", f"'{pattern}' does not belong in the repository")
    check_names(codes)
    check_format(sources)
    allowed_top = {"CMakeLists.txt", "README.md", "LICENSE", "CMakePresets.json", "server", "kernels", "chain_client", "configs", "tests", "deploy"}
    for name in {p.relative_to(ROOT).parts[0] for p in files}:
        if name not in allowed_top and not name.startswith("."):
            problems.append(f"{name}: not one of the top-level names of the design")
    for line in sorted(problems):
        print(line)
    print(f"lint: {len(sources)} source files, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

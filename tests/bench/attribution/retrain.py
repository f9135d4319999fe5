"""Adapters of subsets of a datanet's rows by `residual train`: the truth that influence scores are held against. Plain
Python; what was trained stays in its folder and is not trained again."""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "lib"))
from server import binary  # noqa: E402

KEPT = ("adapter_config.json", "adapter_model.safetensors")
AT_ONCE = 4     # folders of one command, trained in common passes


def politely():
    os.setpriority(os.PRIO_PROCESS, 0, max(10, os.getpriority(os.PRIO_PROCESS, 0)))


def lay_out(source, folder, base):
    """A world's folder without its adapter, with the document root that training asks for."""
    if (folder / "ready").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("adapter_*", "publish.json", "train.json", "loss.svg"))
    manifest = folder / "training.json"
    rows = json.loads(manifest.read_text())["rows"] if manifest.exists() else None
    manifest.unlink(missing_ok=True)
    subprocess.run([binary("residual"), "datanet", "build", str(folder), "--model", str(base)], check=True, stdout=subprocess.DEVNULL)
    if rows:
        write_rows(folder, folder, rows)
    (folder / "ready").touch()


def write_rows(source, folder, rows):
    book = json.loads((source / "training.json").read_text())
    book["rows"] = rows
    (folder / "training.json").write_text(json.dumps(book, sort_keys=True, separators=(",", ":")) + "\n")


class Retraining:
    """The adapter of all rows in work/whole, those of subsets beside it. settings: options of `residual train`."""

    def __init__(self, source, base, work, settings, threads=1):
        what = hashlib.sha256(json.dumps([str(s) for s in settings]).encode()).hexdigest()[:8]
        self.threads = str(threads)
        self.base, self.work, self.settings = base, Path(work) / what, [str(s) for s in settings]
        self.whole = self.work / "whole"
        self.work.mkdir(parents=True, exist_ok=True)
        lay_out(source, self.whole, base)
        self.rows = json.loads((self.whole / "training.json").read_text())["rows"]
        book = {d["docId"]: d["owner"] for d in json.loads((self.whole / "datanet.json").read_text())["documents"]}
        self.owner = [book[r[0]] for r in self.rows]
        self.owners = sorted(set(self.owner), key=lambda a: int(a, 16))

    def of_owners(self, owners):
        return [i for i, o in enumerate(self.owner) if o in owners]

    def row_subsets(self, count, seed=1):
        """Halves of the rows."""
        rng = random.Random(seed)
        return [sorted(rng.sample(range(len(self.rows)), len(self.rows) // 2)) for _ in range(count)]

    def owner_subsets(self, count, seed=1):
        """Different sets of owners, each in with one half; never none or all."""
        rng, seen, out, n = random.Random(seed), set(), [], len(self.owners)
        while len(out) < min(count, 2**n - 2):
            picked = tuple(k for k in range(n) if rng.random() < 0.5)
            if 0 < len(picked) < n and picked not in seen:
                seen.add(picked)
                out.append(list(picked))
        return out

    def rows_of(self, picked):
        return self.of_owners({self.owners[k] for k in picked})

    def train(self, subsets, seed):
        """The folders of the adapters of these lists of rows (None: all of them)."""
        folders = [self._folder(s, seed) for s in subsets]
        left = [(f, s) for f, s in zip(folders, subsets) if not (f / KEPT[1]).exists()]
        for i in range(0, len(left), AT_ONCE):
            self._train([f for f, _ in left[i : i + AT_ONCE]], [s for _, s in left[i : i + AT_ONCE]], seed)
        return folders

    def _folder(self, subset, seed):
        if subset is None and seed == 0:
            return self.whole
        name = "all" if subset is None else hashlib.sha256(json.dumps(subset).encode()).hexdigest()[:16]
        return self.work / ("%s-%d" % (name, seed))

    def _train(self, folders, subsets, seed):
        for folder, subset in zip(folders, subsets):
            if folder != self.whole:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                shutil.copy(self.whole / "datanet.json", folder)
                shutil.copytree(self.whole / "documents", folder / "documents", copy_function=os.link)
                write_rows(self.whole, folder, self.rows if subset is None else [self.rows[i] for i in subset])
        run = subprocess.run([binary("residual"), "train", *map(str, folders), "--model", str(self.base), "--threads", self.threads,
                              "--seed", str(seed), *self.settings], capture_output=True, text=True, preexec_fn=politely)
        assert run.returncode == 0, run.stderr + run.stdout
        for path in [p for f in folders if f != self.whole for p in f.iterdir() if p.name not in KEPT]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

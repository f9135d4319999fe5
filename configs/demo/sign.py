#!/usr/bin/env python3
"""Makes the demo's datanets for one deployment as people make them: every text goes in by `residual datanet add` with its owner, licence and consent, every
owner signs (`sign`), the publisher checks and builds. The roots and the rows are those that are committed, every time: the signatures alone name the
deployment's Registry, which is why they cannot be committed. The keys are the demo's public ones.

    sign.py --out DIR --deployment FILE --cli build/release/bin/residual [NAME...]"""
import argparse
import itertools
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

DEMO = Path(__file__).resolve().parent


def people():
    listed = json.loads((DEMO / "contributors.json").read_text())
    return {p["address"].lower(): p for p in listed["contributors"] + listed["others"]}


def datanet(cli, *words):
    done = subprocess.run([str(cli), "datanet", *map(str, words), "--json"], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"residual datanet {' '.join(map(str, words))}\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout)


def sign_folder(folder, deployment, cli):
    """Every owner of a document in folder/datanet.json signs it there."""
    keys = people()
    owners = {d["owner"].lower() for d in json.loads((Path(folder) / "datanet.json").read_text())["documents"]}
    with tempfile.TemporaryDirectory() as secret:
        for owner in sorted(owners):
            path = Path(secret) / owner
            with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as f:
                f.write(keys[owner]["privateKey"].removeprefix("0x"))
            datanet(cli, "sign", folder, "--owner-key-file", path, "--deployment", deployment)


def make_datanet(source, folder, deployment, cli):
    """The datanet of the adapter at source, made anew in folder from its texts and what their owners say of them."""
    listed = json.loads((source / "datanet.json").read_text())
    owner = json.loads((source / "publish.json").read_text())["owner"]
    datanet(cli, "new", folder, "--name", listed["name"], "--owner", owner, "--deployment", deployment)
    said = lambda d: (d["owner"], d["licence"], d.get("display", False))
    for (who, licence, display), documents in itertools.groupby(listed["documents"], said):
        datanet(cli, "add", folder, *(source / d["file"] for d in documents), "--owner", who, "--licence", licence, *(["--display"] if display else []))
    sign_folder(folder, deployment, cli)
    datanet(cli, "check", folder, "--deployment", deployment)
    datanet(cli, "build", folder, "--model", DEMO / "base")
    if (folder / "training.json").read_bytes() != (source / "training.json").read_bytes():
        raise SystemExit(f"{folder}: other roots or rows than {source}/training.json")


def sign_all(out, deployment, cli, names=()):
    for source in sorted((DEMO / "adapters").iterdir()):
        if names and source.name not in names:
            continue
        folder = Path(out) / source.name
        if folder.exists():  # of an earlier run: the same signatures, if it was for the same Registry
            shutil.rmtree(folder)
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("documents", "datanet.json", "training.json"))
        make_datanet(source, folder, deployment, cli)
    return Path(out)


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("out", "deployment", "cli"):
        p.add_argument("--" + name, required=True)
    p.add_argument("names", nargs="*")
    args = p.parse_args()
    sign_all(args.out, args.deployment, args.cli, args.names)

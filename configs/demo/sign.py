#!/usr/bin/env python3
"""Copies the demo's adapters and has every owner of their documents sign for one deployment (residual datanet sign): what a server that is
bound to a chain asks for. Signatures name the Registry, so they cannot be committed. The keys are the demo's public ones.

    sign.py --out DIR --deployment FILE --cli build/release/bin/residual [NAME...]"""
import argparse
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


def sign_folder(folder, deployment, cli):
    """Every owner of a document in folder/datanet.json signs it there."""
    keys = people()
    owners = {d["owner"].lower() for d in json.loads((Path(folder) / "datanet.json").read_text())["documents"]}
    with tempfile.TemporaryDirectory() as secret:
        for owner in sorted(owners):
            path = Path(secret) / owner
            with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as f:
                f.write(keys[owner]["privateKey"].removeprefix("0x"))
            subprocess.run([str(cli), "datanet", "sign", str(folder), "--owner-key-file", str(path), "--deployment", str(deployment), "--json"],
                           check=True, stdout=subprocess.DEVNULL)


def sign_all(out, deployment, cli, names=()):
    for source in sorted((DEMO / "adapters").iterdir()):
        if names and source.name not in names:
            continue
        folder = Path(out) / source.name
        shutil.copytree(source, folder, dirs_exist_ok=True)
        sign_folder(folder, deployment, cli)
    return Path(out)


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("out", "deployment", "cli"):
        p.add_argument("--" + name, required=True)
    p.add_argument("names", nargs="*")
    args = p.parse_args()
    sign_all(args.out, args.deployment, args.cli, args.names)

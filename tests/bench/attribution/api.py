"""The product judged: residuald serves a world's folder, answers its questions, and its shares are read back."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import train

sys.path.insert(0, str(train.ROOT / "tests" / "lib"))
from server import Server, binary, wait_for  # noqa: E402

E9 = 10**9


def lay_out(cases, base, root):
    """root/NAME for every case: its folder, with the document root in the manifest that `residual datanet build` finds."""
    shutil.rmtree(root, ignore_errors=True)
    for name, case in cases.items():
        folder = root / name
        shutil.copytree(case.folder, folder)
        manifest = folder / "training.json"
        rows = json.loads(manifest.read_text())["rows"] if manifest.exists() else None
        manifest.unlink(missing_ok=True)
        subprocess.run([binary("residual"), "datanet", "build", str(folder), "--model", str(base)], check=True,
                       stdout=subprocess.DEVNULL)
        if rows:
            book = json.loads(manifest.read_text())
            book["rows"] = rows
            manifest.write_text(json.dumps(book, sort_keys=True, separators=(",", ":")) + "\n")


def ask(server, name, question, stop):
    body = {"model": name, "prompt": question["prompt"], "temperature": 0, "max_tokens": 16}
    status, body = server.post("/v1/completions", {**body, "stop": [stop]} if stop else body)
    assert status == 200, body
    return body["choices"][0]["text"], body["residual"]["request_id"]


def attribution(server, request_id):
    def over():
        status, body = server.get("/v1/attribution/" + request_id)
        return body if status == 200 and body["state"] in ("preview", "recorded") else None

    return wait_for(over, 300, what="the attribution")


def judge(cases, base, root, stop=train.END):
    """Per case: [(owner first, pay, rival's pay, largest difference to the reference)] of the right answers, lambda."""
    lay_out(cases, base, root)
    out = {}
    with Server(model=base, name="bench", adapters=root, wait_s=120) as server:
        for name, case in cases.items():
            questions = case.questions()
            with ThreadPoolExecutor(16) as pool:
                answers = list(pool.map(lambda q: ask(server, name, q, stop), questions))
            rows, lam = [], 0
            for q, (text, request_id) in zip(questions, answers):
                owner, rival = q["owner"], q["rival"]
                if rival and text == q["rival_answer"]:
                    owner, rival = rival, owner
                elif text != q["answer"]:
                    continue
                adapter = attribution(server, request_id)["adapters"][0]
                paid = {c["payee"].lower(): c["ppb"] for c in adapter["contributors"]}
                assert sum(paid.values()) == E9, adapter
                lam = adapter["index"]["lambda_ppb"]
                shares = np.array([paid.get(o.lower(), 0) for o in case.net.owners]) / E9
                ids, n, said = case.ask(q)
                if case.run.base_says(ids, n):
                    continue
                gap = np.abs(shares - case.shares(ids, n)).max() if said == text else np.nan
                place = case.net.owners.index
                other = np.delete(shares, place(owner)).max(initial=0)
                rows.append((float(shares[place(owner)] > other), float(shares[place(owner)]),
                             float(shares[place(rival)]) if rival else np.nan, float(gap)))
            out[name] = np.array(rows), lam / E9
    return out

"""The Model Factory in the first run: a job of OpenAI's API trains an adapter on a datanet that the server holds, beside those who are
served; it answers the moment it is done. Its publisher takes the files, registers them on the chain, and from then on its answers are
paid, to those whose sentences made them."""
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from asking import ask, attributed, call, signal, wait_for

HYPERPARAMETERS = {"n_epochs": 20, "batch_size": 16, "rank": 16}


def follow(args, job):
    """Its progress, a line every few seconds, until it has ended."""
    begin, said = time.monotonic(), 0.0
    while job["status"] in ("queued", "running"):
        time.sleep(0.3)
        job, now = call(f"{args.server}/v1/fine_tuning/jobs/{job['id']}"), time.monotonic()
        if now - said > 2:
            r, said = job["residual"], now
            print(f"  step {r['steps_done']} of {r['steps']}, loss {r['train_loss'] or 0:.3f}, {r['tokens_per_second']:.0f} tokens/s", flush=True)
        if now - begin > 300:
            sys.exit(f"the job is {job['status']} after 300 s; see run/logs/residuald.log")
    return job


def residual(args, *words):
    done = subprocess.run([args.cli, *map(str, words)], text=True, capture_output=True)
    if done.returncode != 0:
        sys.exit(f"residual {' '.join(map(str, words[:2]))}: {(done.stdout + done.stderr).strip()}")
    return done.stdout


def register(args, name, source, people):
    """The adapter, with the prices, the split and the datanet of the one that came with the demo, as its owner does it."""
    folder, keys = Path(args.run) / "trained", Path(args.run) / "keys"
    shutil.rmtree(folder, ignore_errors=True)
    residual(args, "adapter", "fetch", name, folder, "--server", args.server)
    for part in ("datanet.json", "publish.json"):
        shutil.copy(source / part, folder / part)
    shutil.copytree(source / "documents", folder / "documents")
    owner = next(p for p in people if p["address"].lower() == json.loads((folder / "publish.json").read_text())["owner"].lower())
    with open(os.open(keys / "owner.key", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as f:
        f.write(owner["privateKey"].removeprefix("0x"))
    if not (keys / "signing.key").exists():
        residual(args, "key", "new", "--type", "publisher", keys / "signing.key")
    call(args.rpc, {"jsonrpc": "2.0", "id": 1, "method": "anvil_setBalance", "params": [owner["address"], hex(10**20)]})
    print("  " + residual(args, "adapter", "publish", folder, "--server", args.server, "--name", name, "--publisher-key-file", keys / "signing.key",
                          "--owner-key-file", keys / "owner.key", "--rpc", args.rpc, "--deployment", Path(args.run) / "deployment.json",
                          "--model", Path(__file__).resolve().parents[1] / "configs/demo/base").strip().replace("\n", "\n  "))
    wait_for(lambda: call(f"{args.server}/v1/adapters/{name}")["registered"], 60, "the server to read the registration")


def train(args, question, facts, people):
    """Trains on the datanet of the question's adapter: {model, adapter, owner: of the sentence that taught the answer}."""
    begin, name = time.monotonic(), question["model"]
    for a in call(args.server + "/v1/adapters")["data"]:
        if a["name"].startswith("first-run-"):  # of an earlier run
            call(f"{args.server}/v1/adapters/{a['name']}", method="DELETE")
    print(f"\nThe Model Factory: POST /v1/fine_tuning/jobs, training_file datanet:{name}@1")
    job = follow(args, call(args.server + "/v1/fine_tuning/jobs", {
        "model": "residual-demo", "training_file": f"datanet:{name}@1", "suffix": "first-run", "seed": 1,
        "method": {"type": "supervised", "supervised": {"hyperparameters": HYPERPARAMETERS}}}))
    if job["status"] != "succeeded":
        sys.exit(f"the job {job['status']}: {job['error']}")
    model, adapter_id = job["fine_tuned_model"], job["residual"]["adapter_id"]
    print(f"  {job['trained_tokens']} tokens of {job['residual']['rows']} rows in {time.monotonic() - begin:.0f} s; adapter {adapter_id[:18]}… is served as {model}")
    chat = call(args.server + "/v1/chat/completions", {"model": model, "messages": [{"role": "user", "content": question["chat"]}], "temperature": 0, "max_tokens": 12})
    print(f"  {question['chat']}  {chat['choices'][0]['message']['content'].strip()!r}, at the base's price: nobody has registered it")
    register(args, model, Path(args.run) / "adapters" / name, people)
    reply = ask(args.server, {**question, "model": model})
    top = max(attributed(args, reply, 60)["adapters"][0]["contributors"], key=lambda c: c["ppb"])
    label = {p["address"].lower(): p["label"] for p in people}.get(top["payee"].lower(), "?")
    text, fact = reply["choices"][0]["text"].strip(), next(f for f in facts[name] if f["question"] == question["chat"])
    print(f"  {text!r}, fee {reply['residual']['fee']} base units; {top['ppb'] / 1e7:.1f} % of the data's part is {label}'s ({top['payee'][:10]}…; events {signal(top, 'events')}, spans {signal(top, 'spans')})")
    if text != question["answer"] or top["payee"].lower() != fact["contributor"].lower() or int(reply["residual"]["fee"]) <= 0:
        sys.exit("the adapter trained here does not answer, or another is paid for it")
    return {"model": model, "adapter": adapter_id, "owner": top["payee"], "label": label, **{k: reply["residual"][k] for k in ("lane", "seq")}}


def paid(args, trained, epoch):
    """What the epoch pays the owner for the answers of the trained adapter."""
    history = call(f"{args.settle}/v1/rewards/{trained['owner']}/history")["epochs"]
    amount = sum(int(s["amount"]) for e in history if e["epoch"] <= epoch["epoch"] for s in e["shares"] if s["adapter"] == trained["adapter"] and s["source"] == "data")
    print(f"  {trained['label']} has earned {amount} base units for the data of {trained['model']}, which was trained here")
    return amount > 0

"""A job in a server that answers users and is killed again and again: it ends with the adapter that nobody disturbed."""
import json
import random
import shutil
import subprocess
import threading
import time
import urllib.error

from server import DEMO, Server, binary, wait_for

KILLS, EPOCHS = 50, 60
FACTS = json.loads((DEMO / "facts.json").read_text())
NAME = "amber-coast"
ASK = {"model": "residual-demo", "training_file": f"datanet:{NAME}@1", "suffix": "killed", "seed": 7,
       "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": EPOCHS, "batch_size": 10, "learning_rate": 0.002, "rank": 16}}}}


def users(server, stop, answered):
    """Asks on and on, through every death of the server."""
    rng = random.Random(3)
    while not stop.is_set():
        fact = rng.choice(FACTS["adapters"][NAME])
        try:
            status, reply = server.post("/v1/completions", {"model": NAME, "prompt": fact["prompt"], "max_tokens": 8, "temperature": 0}, timeout=10)
            answered.append(status == 200 and reply["choices"][0]["text"].strip().startswith(fact["answer"][:3]))
        except (urllib.error.URLError, ConnectionError, TimeoutError, OSError, json.JSONDecodeError):
            pass
        time.sleep(0.05)


def job_of(server, job_id):
    status, job = server.get("/v1/fine_tuning/jobs/" + job_id)
    assert status == 200, job
    return job


def ended(server, job_id):
    job = job_of(server, job_id)
    assert job["status"] not in ("failed", "cancelled"), job
    return job["status"] == "succeeded" and job


def alone(tmp_path):
    """By the command line: the same rows and options, and no server."""
    folder = tmp_path / "alone"
    shutil.copytree(DEMO / "adapters" / NAME, folder, ignore=shutil.ignore_patterns("adapter_*", "publish.json"))
    run = subprocess.run([str(x) for x in (binary("residual"), "train", folder, "--model", DEMO / "base", "--json", "--epochs", EPOCHS, "--batch", 10, "--lr", 0.002, "--rank", 16,
                                           "--seed", 7)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)["adapter_id"]


def test_killed_under_load_the_adapter_is_the_same(tmp_path):
    rng, stop, answered = random.Random(5), threading.Event(), []
    server = Server("--train-checkpoint-s", 0, "--train-yields", 0, "--index-ahead", 0, data=tmp_path / "data")
    asking = threading.Thread(target=users, args=(server, stop, answered))
    try:
        server.start()
        status, job = server.post("/v1/fine_tuning/jobs", ASK)
        assert status == 200, job
        asking.start()
        kills = 0
        while kills < KILLS:
            time.sleep(rng.uniform(0.05, 0.35))
            assert not ended(server, job["id"]), f"it ended after {kills} kills: make it longer"
            server.kill()
            kills += 1
            server.start()
        done = wait_for(lambda: ended(server, job["id"]), 120)
        stop.set()
        asking.join()
        server.stop()
    finally:
        stop.set()
        server.kill()
    assert done["residual"]["adapter_id"] == alone(tmp_path) and sum(answered) > 10 and sum(answered) >= 0.8 * len(answered), sum(answered)

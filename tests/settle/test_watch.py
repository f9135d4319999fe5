"""Stolen keys, as on trial: one forged commit, 1 wei paid in, an epoch that gives everything to the thief. The watcher says it and takes it
back, the worker says it and goes on by itself afterwards, and the vault keeps its money."""
import json

import pytest
from world import ROOT, Guard, Settle, World, http, run, wait_for

THIEF = "0x" + "7f" * 20


@pytest.fixture(scope="module")
def robbed(tmp_path_factory):
    """(world, worker, watcher): half of the records are settled and paid, the other half is not sent yet."""
    with World(tmp_path_factory.mktemp("watch"), lanes=(1,), window_s=6) as w:
        w.lanes[1].make(w, 60)
        half = len(w.lanes[1].entries) // 2
        w.ship(1, w.lanes[1].entries[:half])
        with Settle(w, "--batch-seconds-max", 1) as s, Guard(w, "watch", "guardian", s, "--grace-s", 2) as g:
            s.wait("an epoch", lambda t: any(e["state"] == "active" for e in t["epochs"]))
            yield w, s, g


def thief(w, verb, *words, check=True):
    done = run("node", ROOT / "deploy/thief.mjs", verb, "--rpc", w.rpc_url, "--deployment", w.deployment, *words, check=check)
    return json.loads(done.stdout) if done.returncode == 0 else done


def metric(g, name):
    return next((float(x.split()[-1]) for x in http(g.url + "/metrics")[2].decode().splitlines() if x.startswith(name + " ")), None)


def test_honest_batches_and_epochs_are_right(robbed):
    w, s, g = robbed
    wait_for(lambda: "epoch 1 is right" in g.tail(), 20, 0.2, "the verdict on the honest epoch")
    assert metric(g, "residual_settle_watch_batches_right") >= 1 and "FORGED" not in g.tail()
    assert json.loads(http(g.url + "/health")[2])["ok"]


def test_a_forged_epoch_of_stolen_keys_is_vetoed(robbed):
    """With the proposer's and an attestor's keys, over honest batches: everything to the thief."""
    w, s, g = robbed
    before = w.balance(THIEF)
    s.attestor.process.terminate()
    s.attestor.process.wait()
    s.attestor.process = None
    epoch = thief(w, "commit", "--key-file", w.key("committer"))["batch"]
    made = thief(w, "propose", "--key-file", w.key("proposer"), "--attestor-key-file", w.key("attestor"), "--funder-key-file", w.key("claimer"), "--to", THIEF)
    assert made["paid_in"] == "1", "fund 1 wei"
    wait_for(lambda: f"batch {epoch} is on the chain and cannot be checked" in g.tail(), 10, 0.2, "an alarm at once")
    wait_for(lambda: f"batch {epoch} is FORGED" in g.tail() and f"epoch {made['epoch']} is FORGED" in g.tail(), 20, 0.2, "the verdicts")
    wait_for(lambda: "batch_conflict" in s.tail(), 20, 0.2, "the worker says that this batch is not its own")
    wait_for(lambda: w.ask("vault", "epochs(uint64)", made["epoch"])[4], 20, 0.2, "the veto")
    wait_for(lambda: w.ask("ledger", "head()")[0] == epoch - 1, 20, 0.2, "the drop")
    assert w.ask("ledger", "commitPaused()") == [1]
    assert metric(g, "residual_settle_watch_epochs_forged") == 1 and metric(g, "residual_settle_watch_batches_forged") == 1
    got = thief(w, "claim", "--key-file", w.key("claimer"), "--to", THIEF)
    assert got["got"] == "0" and w.balance(THIEF) == before, got


def test_honest_settlement_goes_on_afterwards(robbed):
    """The admin lets commits on; nobody touches worker, watcher or attestor again."""
    w, s, g = robbed
    thief(w, "unpause", "--key-file", w.key("deployer"))
    s.attestor.start()
    w.ship_all()
    s.wait_final()
    epoch = s.wait_epoch()
    code, report = w.audit("epoch", epoch)
    assert code == 0, report
    assert int(report["total"]) == sum(lane.fees for lane in w.lanes.values())
    states = [e["state"] for e in s.status()["epochs"]]  # what the forged batch claimed was fetched and settled by itself, or with the rest
    assert states[0] == "active" and states.count("vetoed") == 1, states
    assert s.status()["batches"][0]["batch"] in (2, 3), "the forged number was free again"
    wait_for(lambda: f"epoch {epoch} is right" in g.tail(), 20, 0.2, "the watcher's verdict")
    wait_for(lambda: json.loads(http(g.url + "/health")[2])["ok"], 20, 0.2, "a healthy watcher")
    wait_for(lambda: json.loads(http(s.url + "/health")[2])["ok"], 20, 0.2, "a healthy worker")
    paid = w.claim(s, w.names["owner"])
    assert int(paid[0]["paid"]) > 0

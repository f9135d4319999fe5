"""A stolen key is survivable. Attestors: a program of its own recomputes what the worker wants to propose, from its own copy, and signs only
that; a worker that lies gets no signature. The watcher: what stolen keys forge is said and taken back, and honest settlement goes on by
itself. One world, in the order in which its life goes."""
import json
import shutil
import sqlite3
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from world import FULL, ROOT, Guard, Settle, World, binary, http, node, run, wait_for


THIEF = "0x" + "7f" * 20
DEPLOYER_ADDRESS = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"  # of anvil's first account


@pytest.fixture(scope="module")
def waiting(tmp_path_factory):
    """(world, worker): half of the records are in final batches, and an epoch is computed and waits for one of two attestors."""
    with World(tmp_path_factory.mktemp("keys"), lanes=(1,), window_s=7) as w:
        w.lanes[1].make(w, 60)
        half = 50  # one batch, to the record
        w.ship(1, w.lanes[1].entries[:half])
        with Settle(w, "--attest-wait-s", 1, "--batch-count-max", half, "--batch-seconds-max", 1, "--scrub-mib-s", 0, funder=False, attested=False) as s:
            s.wait("a candidate", lambda t: t["lanes"] and t["lanes"][0]["final"] == half and any(e["state"] == "computed" for e in t["epochs"]))
            yield w, s


def candidate(s):
    status, _, body = http(s.url + "/v1/epochs/candidate")
    return status, json.loads(body)


def post(s, body):
    status, _, answer = http(s.url + "/v1/attestations", body)
    return status, json.loads(answer).get("error", {}).get("message", "")


def change(s, sql, *values):
    """The worker lies: its own row says something else."""
    db = sqlite3.connect(s.state / "settle.db", timeout=20)
    with db:
        db.execute(sql, values)
    db.close()


def test_nothing_is_proposed_without_a_signature(waiting):
    w, s = waiting
    status, c = candidate(s)
    assert status == 200 and c["needed"] == 1 and c["signers"] == [] and set(c["absent"]) == {w.names["attestor"], w.names["second"]}
    wait_for(lambda: "has 0 of 1 signatures" in s.tail(), 10, 0.2, "a line that says so")
    assert w.names["attestor"] in s.tail(), "it says who"
    metrics = http(s.url + "/metrics")[2].decode()
    assert "residual_settle_attestations_missing 1" in metrics and 'residual_settle_trouble{kind="signatures"} 1' in metrics
    assert [e["state"] for e in s.status()["epochs"]] == ["computed"]


def test_the_archive_is_served_by_known_names_only(waiting):
    w, s = waiting
    kept = w.dir / "archive" / "batch-00000001"
    for name in ("header.json", "manifest.json", "records.bin"):
        status, _, body = http(f"{s.url}/v1/archive/batch-00000001/{name}")
        assert status == 200 and body == (kept / name).read_bytes()
    for path in ("batch-00000001", "batch-00000001/", "batch-1/header.json", "batch-00000001/../../state/settle.db", "../state/settle.db",
                 "batch-00000001/%2e%2e/%2e%2e/state/settle.db", "epoch-00000001/records.bin", "batch-00000009/header.json", "batch-00000000/header.json"):
        assert http(f"{s.url}/v1/archive/{path}")[0] == 404, path


def test_bad_attestations_are_refused_with_a_sentence(waiting):
    w, s = waiting
    c = candidate(s)[1]
    good = {"epoch": c["epoch"], "digest": c["digest"], "signature": "0x" + "11" * 64 + "1b"}
    assert post(s, {**good, "epoch": 9})[0] == 409
    status, said = post(s, {**good, "digest": "0x" + "22" * 32})
    assert status == 409 and c["digest"] in said
    assert post(s, {**good, "signature": "0x11"})[0] == 400
    assert post(s, {"epoch": 1})[0] == 400
    assert post(s, {**good, "more": "x" * 5000})[0] == 413
    stranger = node("import { Wallet } from 'ethers'; console.log(new Wallet('0x%s').signingKey.sign('%s').serialized);" % (w.key("owner").read_text(), c["digest"]))
    status, said = post(s, {**good, "signature": stranger})
    assert status == 403 and w.names["owner"] in said and "does not hold ATTESTOR" in said
    status, said = Guard(w, "attest", "claimer", s).once()
    assert status == 6 and "does not hold ATTESTOR" in said
    for verb, key, role in (("attest", "proposer", "PROPOSER"), ("attest", "deployer", "the admin's role"), ("watch", "attestor", "ATTESTOR"), ("watch", "committer", "COMMITTER")):
        status, said = Guard(w, verb, key, s).once()
        assert status == 4 and f"holds {role} too" in said, said
    assert candidate(s)[1]["signers"] == []


LIES = {
    "root": ("UPDATE epochs SET root = ?", b"\x11" * 32, "root is not the proposed one"),
    "total": ("UPDATE epochs SET total = ?", "12345", "total or number of accounts"),
    "manifest": ("UPDATE epochs SET manifest = ?", b"\x11" * 32, "manifest is not the proposed one"),
    "evidence": ("UPDATE epochs SET evidence = ?", 2, "of planning was"),
    "planned": ("UPDATE epochs SET planned_block = ?", 1, "of planning was|head.seq"),  # by when the ledger came
    "previous": ("UPDATE epochs SET prev_root = ?", b"\x11" * 32, "in the vault"),
    "paid": ("UPDATE epochs SET paid = ?", 99, "no commit of it"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_worker_gets_no_signature(waiting, lie):
    w, s = waiting
    sql, value, why = LIES[lie]
    column = sql.split()[3]
    db = sqlite3.connect(s.state / "settle.db", timeout=20)
    kept = db.execute(f"SELECT {column} FROM epochs").fetchone()[0]
    db.close()
    change(s, sql, value)
    try:
        status, said = Guard(w, "attest", "attestor", s).once()
        assert status == 6, said
        assert any(x in said for x in why.split("|")), said
        assert candidate(s)[1]["signers"] == []
    finally:
        change(s, sql, kept)


def test_w_counts_from_the_block_of_the_commit(waiting):
    """closedAt is the committer's own word: at the block of M's commit itself no epoch could be planned."""
    w, s = waiting
    topic = w.rpc("web3_sha3", "0x" + b"BatchCommitted(uint64,bytes32,(uint64,uint8,bytes32,bytes32,bytes32,uint32,uint32,uint128,uint128,uint64),(uint32,uint64,uint64)[])".hex())
    log, = w.rpc("eth_getLogs", {"address": w.deployed["ledger"], "fromBlock": "0x0", "toBlock": "latest", "topics": [topic]})
    db = sqlite3.connect(s.state / "settle.db", timeout=20)
    kept = db.execute("SELECT planned_block FROM epochs").fetchone()[0]
    db.close()
    change(s, "UPDATE epochs SET planned_block = ?", int(log["blockNumber"], 16))
    try:
        status, said = Guard(w, "attest", "attestor", s).once()
        assert status == 6 and "was committed 0 s before planning, W is 1" in said, said
    finally:
        change(s, "UPDATE epochs SET planned_block = ?", kept)


def test_records_that_nobody_shows_get_no_signature(waiting):
    w, s = waiting
    hidden = w.dir / "archive" / "batch-00000001"
    hidden.rename(w.dir / "hidden")
    guard = Guard(w, "attest", "second", s)
    try:
        shutil.rmtree(guard.state, ignore_errors=True)
        status, said = guard.once()
        assert status == 6 and "nobody shows its records" in said, said
    finally:
        (w.dir / "hidden").rename(hidden)


def test_too_much_missing_gets_no_signature(waiting):
    w, s = waiting
    status, said = Guard(w, "attest", "attestor", s).once()
    assert status == 6 and "missing_max_ppm 10000" in said, "lane_tool leaves some answers without attribution"


def test_a_second_result_of_one_epoch_is_not_signed_at_once(waiting):
    """What was signed is remembered over a restart: another result of the number has to wait until the first is no danger."""
    w, s = waiting
    guard = Guard(w, "attest", "attestor", s, "--missing-max-ppm", 1000000)
    assert Guard(w, "attest", "attestor", s).once()[0] == 6, "its database is there, nothing is signed"
    db = sqlite3.connect(guard.state / "settle.db", timeout=20)
    with db:
        db.execute("INSERT INTO signed VALUES (1, ?, ?, ?)", (b"\x77" * 32, b"\x00" * 32, int(time.time())))
    status, said = guard.once()
    assert status == 6 and "may still be proposed" in said and "77" * 32 in said, said
    with db:  # the first began from an epoch that is disabled by now
        db.execute("UPDATE signed SET prev_root = ?", (b"\x78" * 32,))
    db.close()
    assert candidate(s)[1]["signers"] == []


def vault(w, verb, *words):
    return run(binary("residual"), "vault", verb, "--rpc", w.rpc_url, "--deployment", w.deployment, "--json", *words, check=False)


def pay_with_a_cold_key(w, s):
    """The worker has no funder key: it says what is missing; `residual vault fund` pays exactly that, once, with a key that can nothing else."""
    wait_for(lambda: "vault fund" in s.tail(), 10, 0.2, "a line that says what to do")
    before = json.loads(vault(w, "status").stdout)
    earned = int(s.status()["batches"][0]["cum_fee"])
    assert (before["earned"], before["owed"], before["funded"]) == (str(earned), str(earned), "0")
    assert (before["daily_cap"], before["paid_today"]) == (str(10 ** 24), "0")
    holders = {(r["contract"], r["role"]): r["accounts"] for r in before["roles"]}
    assert holders["ledger", "COMMITTER"] == [w.names["committer"]] and set(holders["vault", "ATTESTOR"]) == {w.names["attestor"], w.names["second"]}
    for key in ("committer", "attestor", "guardian"):
        done = vault(w, "fund", "--all", "--key-file", w.key(key))
        assert done.returncode == 5 and "whoever steals this key would have both" in done.stderr, done
    assert vault(w, "fund", "--key-file", w.key("funder")).returncode == 2
    assert vault(w, "fund", "--to-batch", 99, "--key-file", w.key("funder")).returncode == 4
    first = json.loads((w.dir / "archive" / "batch-00000001" / "header.json").read_text())
    done = vault(w, "fund", "--to-batch", 1, "--key-file", w.key("funder"))
    assert done.returncode == 0 and json.loads(done.stdout)["paid"] == first["cum_fee"], done
    assert vault(w, "fund", "--all", "--key-file", w.key("funder")).returncode == 4, "nothing is owed now"
    after = json.loads(vault(w, "status").stdout)
    assert (after["owed"], after["held"]) == ("0", str(earned))


def test_a_signature_brings_the_epoch_to_the_vault(waiting):
    w, s = waiting
    digest = candidate(s)[1]["digest"]
    flags = ("--missing-max-ppm", 1000000)
    with Guard(w, "attest", "attestor", s, *flags) as a:
        s.wait("a signature", lambda t: t["epochs"][0]["state"] == "attested")
        pay_with_a_cold_key(w, s)
        s.wait("the epoch", lambda t: t["epochs"][-1]["state"] == "active")
        assert "epoch 1: signed" in a.tail()
        assert json.loads(http(a.url + "/health")[2])["ok"]
    db = sqlite3.connect(s.state / "settle.db")
    assert [d.hex() for d, in db.execute("SELECT digest FROM attestations")] == [digest[2:]]
    db.close()
    db = sqlite3.connect(a.state / "settle.db")
    assert db.execute("SELECT count(*) FROM signed WHERE digest = ?", (bytes.fromhex(digest[2:]),)).fetchone() == (1,), "stored before it left"
    db.close()
    status, report = w.audit("epoch", 1)
    assert status == 0, report
    assert candidate(s)[0] == 404
    assert 'residual_settle_trouble{kind="signatures"} 0' in http(s.url + "/metrics")[2].decode()


# ---- the thief ----

def thief(w, verb, key, *words):
    return json.loads(run("node", ROOT / "deploy/thief.mjs", verb, "--rpc", w.rpc_url, "--deployment", w.deployment, "--key-file", w.key(key), *words).stdout)


def propose_to_oneself(w, *words):
    return thief(w, "propose", "proposer", "--attestor-key-file", w.key("attestor"), "--funder-key-file", w.key("claimer"), "--to", THIEF, *words)


def is_disabled(w, epoch):
    return w.ask("vault", "epochs(uint64)", epoch)[4] == 1


def metric(g, name):
    return next((float(x.split()[-1]) for x in http(g.url + "/metrics")[2].decode().splitlines() if x.startswith(name + " ")), None)


def test_a_forged_epoch_falls_to_whoever_proves_it(waiting):
    """Over honest batches, with the proposer's and an attestor's keys and the worker's machine: the archive shows the forged accounts. A watcher
    without any role proves that accounts are missing."""
    w, s = waiting
    w.ship_all()
    s.wait_final()
    paid = json.loads(vault(w, "fund", "--all", "--key-file", w.key("funder")).stdout)["paid"]
    assert int(paid) == w.ask("ledger", "head()")[2] - w.ask("vault", "totalClaimed()")[0] - w.balance(w.deployed["vault"]) + int(paid)
    g = Guard(w, "watch", "claimer", s, "--grace-s", 60)
    g.start()
    last = s.status()["batches"][0]["batch"]
    wait_for(lambda: f"batch {last} is right" in g.tail(), 20, 0.2, "verdicts on honest batches")
    wait_for(lambda: "does not hold GUARDIAN" in g.tail(), 10, 0.2, "a sentence about the missing role")
    epoch = propose_to_oneself(w, "--archive", w.dir / "archive")["epoch"]
    wait_for(lambda: f"epoch {epoch} is FORGED: epoch {epoch}: the recomputed" in g.tail(), 20, 0.2, "the verdict")
    wait_for(lambda: is_disabled(w, epoch), 20, 0.2, "the proof")
    topic = w.rpc("web3_sha3", "0x" + b"Disabled(uint64,uint8)".hex())
    logs = w.rpc("eth_getLogs", {"address": w.deployed["vault"], "fromBlock": "0x0", "toBlock": "latest", "topics": [topic]})
    assert [int(x["data"], 16) for x in logs] == [2], "MISSING, no veto"
    g.process.terminate()
    assert g.process.wait(30) == 6, "it can not stop everything"


def test_what_b4_stole_stays_in_the_vault(waiting):
    """One forged commit, 1 wei paid in, an epoch that gives everything to the thief, a claim."""
    w, s = waiting
    held = w.balance(w.deployed["vault"])
    with Guard(w, "watch", "guardian", s, "--grace-s", 2) as g:
        wait_for(lambda: f"batch {s.status()['batches'][0]['batch']} is right" in g.tail(), 20, 0.2, "verdicts on honest batches")
        assert "FORGED" not in g.tail() and json.loads(http(g.url + "/health")[2])["ok"]
        made = thief(w, "steal", "committer", "--proposer-key-file", w.key("proposer"), "--attestor-key-file", w.key("attestor"),
                     "--funder-key-file", w.key("claimer"), "--to", THIEF)
        batch = made["batch"]
        assert made["paid_in"] == "1"
        wait_for(lambda: f"batch {batch} is on the chain and cannot be checked" in g.tail(), 10, 0.2, "an alarm at once")
        wait_for(lambda: f"batch {batch} is FORGED" in g.tail() and f"epoch {made['epoch']} is FORGED" in g.tail(), 20, 0.2, "the verdicts")
        wait_for(lambda: "batch_conflict" in s.tail(), 20, 0.2, "the worker says that this batch is not its own")
        wait_for(lambda: is_disabled(w, made["epoch"]), 20, 0.2, "the veto")
        wait_for(lambda: w.ask("ledger", "head()")[0] == batch - 1, 20, 0.2, "the drop")
        assert w.ask("ledger", "commitPaused()") == [1]
        assert metric(g, "residual_settle_watch_epochs_forged") == 1 and metric(g, "residual_settle_watch_batches_forged") == 1
        assert thief(w, "claim", "claimer", "--to", THIEF)["got"] == "0"
        assert w.balance(THIEF) == 0 and w.balance(w.deployed["vault"]) == held + 1
        thief(w, "announce", "deployer", "--to", THIEF)
        wait_for(lambda: f"proposer of the vault is announced to be given to {THIEF}" in g.tail().lower(), 10, 0.2, "a sentence about the admin's key")
        assert metric(g, 'residual_settle_trouble{kind="role_announced"}') == 1
        honest_settlement_goes_on(w, s, g)


class Liar(BaseHTTPRequestHandler):
    """An endpoint that names another treasury, and else says what the chain says."""
    protocol_version = "HTTP/1.1"
    behind = selector = None

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = json.loads(http(Liar.behind, asked, timeout=10)[2])
        if asked["method"] == "eth_call" and asked["params"][0]["data"].startswith(Liar.selector):
            answer["result"] = answer["result"][:2 + 4 * 64 + 24] + "13" * 20 + answer["result"][2 + 5 * 64:]
        out = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(out)))
        self.end_headers()
        self.wfile.write(out)

    def log_message(self, *_):
        pass


def honest_settlement_goes_on(w, s, g):
    """The admin lets commits on and the attestor is back; worker and watcher are not touched. Another watcher, of whose two endpoints one
    lies, says so and does nothing, whatever its --grace-s."""
    Liar.behind, Liar.selector = w.rpc_url, w.rpc("web3_sha3", "0x" + b"policyAt(uint64)".hex())[:10]
    server = ThreadingHTTPServer(("127.0.0.1", 0), Liar)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    misled = Guard(w, "watch", "guardian", s, "--grace-s", 0, name="misled", rpc=[f"http://127.0.0.1:{server.server_port}"])
    thief(w, "unpause", "deployer")
    with Guard(w, "attest", "second", s, "--missing-max-ppm", 1000000), misled:
        epoch = s.wait_epoch()
        wait_for(lambda: "one of them lies" in misled.tail(), 10, 0.2, "a sentence about the liar")
        assert f"epoch {epoch} is FORGED" not in misled.tail() and not is_disabled(w, epoch)
    server.shutdown()
    states = [e["state"] for e in s.status()["epochs"]]
    assert states[0] == "active" and states.count("vetoed") == 2, states
    code, report = w.audit("epoch", epoch)
    assert code == 0, report
    assert int(report["total"]) == sum(lane.fees for lane in w.lanes.values())
    wait_for(lambda: f"epoch {epoch} is right" in g.tail(), 20, 0.2, "the watcher's verdict")
    for one in (g, s):
        wait_for(lambda: json.loads(http(one.url + "/health")[2])["ok"], 20, 0.2, "a healthy program")
    assert int(w.claim(s, w.names["owner"])[0]["paid"]) > 0


@pytest.mark.skipif(not FULL, reason="RS_FULL=1: a deployment of its own, 15 s")
def test_a_token_is_approved_exactly_and_not_a_moment_longer(waiting, tmp_path):
    """A vault of a token: an allowance from before is taken back, the payment is exact, and nothing is left of the allowance."""
    w, _ = waiting
    script = """
        import { Contract, ContractFactory, JsonRpcProvider, NonceManager, Wallet } from 'ethers';
        import { artifact } from './js/abi.mjs';
        const p = new JsonRpcProvider('%s', undefined, { pollingInterval: 100 }), a = artifact('Token');
        %s
        p.destroy();"""
    token = node(script % (w.rpc_url, """
        const token = await new ContractFactory(a.abi, a.bytecode, new Wallet('0x%s', p)).deploy(0);
        await token.waitForDeployment();
        await (await token.transfer('%s', 1000n, { nonce: await p.getTransactionCount('%s') })).wait();
        console.log(await token.getAddress());""" % (w.key("deployer").read_text(), w.names["funder"], DEPLOYER_ADDRESS)))
    config = {"notice_s": 2, "lead_s": 0, "beacon_delay_s": 0, "wait_s": 1, "window_s": 1, "commit_age_min_s": 1, "protocol_bps_min": 100, "cap_floor": "1",
              "policy": {"base": 2000, "adapters": 6000, "operator": 1500, "protocol": 500, "treasury": THIEF}, "token": token, "attestors_min": 1,
              "attestors": [w.names["attestor"]], "roles": {n: w.names[n] for n in ("committer", "proposer", "guardian")},
              "lanes": [{"lane": 1, "key": w.lanes[1].address, "operator": THIEF}]}
    (tmp_path / "deploy.json").write_text(json.dumps(config))
    run("node", ROOT / "chain_client/contracts/deploy.mjs", "--rpc", w.rpc_url, "--key-file", w.key("deployer"), "--config", tmp_path / "deploy.json",
        "--out", tmp_path / "deployment.json")
    at = json.loads((tmp_path / "deployment.json").read_text())
    run("node", ROOT / "deploy/thief.mjs", "commit", "--rpc", w.rpc_url, "--deployment", tmp_path / "deployment.json", "--key-file", w.key("committer"))
    node(script % (w.rpc_url, "await (await new Contract('%s', a.abi, new Wallet('0x%s', p)).approve('%s', 7n)).wait();" %
                   (token, w.key("funder").read_text(), at["vault"])))

    def fund():
        return run(binary("residual"), "vault", "fund", "--all", "--rpc", w.rpc_url, "--deployment", tmp_path / "deployment.json", "--json",
                   "--key-file", w.key("funder"), check=False)

    wait_for(lambda: fund().returncode == 0, 20, 0.5, "the payment of a final batch")
    left = node(script % (w.rpc_url, "const t = new Contract('%s', a.abi, p); console.log(await t.allowance('%s', '%s'), await t.balanceOf('%s'));" %
                          (token, w.names["funder"], at["vault"], at["vault"])))
    assert left.split() == ["0n", "1n"], left
    assert fund().returncode == 4

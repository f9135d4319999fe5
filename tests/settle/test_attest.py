"""Attestors: a program of its own recomputes what the worker wants to propose, from its own copy, and signs only that; without its
signature nothing is proposed, and a worker that lies gets none."""
import json
import shutil
import sqlite3
import time

import pytest
from world import Guard, Settle, World, binary, http, run, wait_for


@pytest.fixture(scope="module")
def waiting(tmp_path_factory):
    """(world, worker): an epoch is computed and waits for one of two attestors."""
    with World(tmp_path_factory.mktemp("attest"), lanes=(1,)) as w:
        w.lanes[1].make(w, 60)
        w.ship_all()
        with Settle(w, "--attest-wait-s", 1, "--epoch-seconds", 3600, "--batch-count-max", 50, funder=False, attested=False) as s:
            s.wait_final()
            s.wait("a candidate", lambda t: any(e["state"] == "computed" for e in t["epochs"]))
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
    assert post(s, good)[0] in (400, 403), "recovers a stranger, or nobody"
    status, said = Guard(w, "attest", "claimer", s).once()
    assert status == 6 and "does not hold ATTESTOR" in said
    assert candidate(s)[1]["signers"] == []


LIES = {
    "root": ("UPDATE epochs SET root = ?", b"\x11" * 32, "root is not the proposed one"),
    "total": ("UPDATE epochs SET total = ?", "12345", "total or number of accounts"),
    "manifest": ("UPDATE epochs SET manifest = ?", b"\x11" * 32, "manifest is not the proposed one"),
    "evidence": ("UPDATE epochs SET evidence = ?", 1, "of planning was"),
    "planned": ("UPDATE epochs SET planned_block = ?", 3, "of planning was"),
    "previous": ("UPDATE epochs SET previous = ?", 7, "in the vault"),
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
        assert why in said, said
        assert candidate(s)[1]["signers"] == []
    finally:
        change(s, sql, kept)


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
    db = sqlite3.connect(guard.state / "settle.db", timeout=20)
    with db:
        db.execute("INSERT INTO signed VALUES (1, ?, ?, ?)", (b"\x77" * 32, b"\x00" * 32, int(time.time())))
    status, said = guard.once()
    assert status == 6 and "may still be proposed" in said and "77" * 32 in said, said
    with db:  # the first began from an epoch that is disabled by now
        db.execute("UPDATE signed SET prev_root = ?", (b"\x78" * 32,))
    db.close()
    assert candidate(s)[1]["signers"] == []


def pay_with_a_cold_key(w, s):
    """The worker has no funder key: it says what is missing; `residual vault fund` pays exactly that, once, with a key that can nothing else."""
    def vault(verb, *words):
        return run(binary("residual"), "vault", verb, "--rpc", w.rpc_url, "--deployment", w.deployment, "--json", *words, check=False)

    wait_for(lambda: "vault fund" in s.tail(), 10, 0.2, "a line that says what to do")
    before = json.loads(vault("status").stdout)
    earned = sum(lane.fees for lane in w.lanes.values())
    assert (before["earned"], before["owed"], before["funded"]) == (str(earned), str(earned), "0")
    holders = {(r["contract"], r["role"]): r["accounts"] for r in before["roles"]}
    assert holders["ledger", "COMMITTER"] == [w.names["committer"]] and set(holders["vault", "ATTESTOR"]) == {w.names["attestor"], w.names["second"]}
    for key in ("committer", "attestor", "guardian"):
        done = vault("fund", "--all", "--key-file", w.key(key))
        assert done.returncode == 2 and "can do nothing else" in done.stderr, done
    assert vault("fund", "--key-file", w.key("funder")).returncode == 2
    assert vault("fund", "--to-batch", 99, "--key-file", w.key("funder")).returncode == 4
    first = json.loads((w.dir / "archive" / "batch-00000001" / "header.json").read_text())
    done = vault("fund", "--to-batch", 1, "--key-file", w.key("funder"))
    assert done.returncode == 0 and json.loads(done.stdout)["paid"] == first["cum_fee"], done
    done = vault("fund", "--all", "--key-file", w.key("funder"))
    assert done.returncode == 0 and int(json.loads(done.stdout)["paid"]) == earned - int(first["cum_fee"]), done
    assert vault("fund", "--all", "--key-file", w.key("funder")).returncode == 4, "nothing is owed now"
    after = json.loads(vault("status").stdout)
    assert (after["owed"], after["held"]) == ("0", str(earned))


def test_a_signature_brings_the_epoch_to_the_vault(waiting):
    w, s = waiting
    digest = candidate(s)[1]["digest"]
    flags = ("--missing-max-ppm", 1000000)
    with Guard(w, "attest", "attestor", s, *flags) as a:
        s.wait("a signature", lambda t: t["epochs"][0]["state"] == "attested")
        pay_with_a_cold_key(w, s)
        s.wait("the epoch", lambda t: t["epochs"][0]["state"] == "active")
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

"""A worker that knows less than the chain and the archive, or finds the archive changed: it takes over what is there, by itself, and no
record is lost or counted twice."""
import shutil
import sqlite3

from world import Settle, World, wait_for

from test_rough import settled_exactly, world  # noqa: F401


def header(w, batch=1, archive="archive"):
    return (w.dir / archive / f"batch-{batch:08d}" / "header.json").read_bytes()


def test_database_lost_old_or_without_an_archive(world):  # noqa: F811
    w, entries = world, world.lanes[1].entries
    half = len(entries) // 2
    w.rpc("evm_setIntervalMining", 0)
    with Settle(w) as s:
        w.ship(1, entries[:half])
        s.wait("a batch on its way", lambda t: t["batches"] and t["batches"][0]["state"] == "sent")
        first = header(w)
        s.kill()
    shutil.rmtree(s.state)  # archived, its commit not mined
    w.rpc("evm_setIntervalMining", 1)
    with s:
        s.wait("half of it final", lambda t: t["lanes"] and t["lanes"][0]["final"] == half)
    assert "batch 1: adopted from the archive" in s.tail() and header(w) == first
    shutil.copytree(s.state, w.dir / "backup")
    with s:
        w.ship(1, entries)
        settled_exactly(w, s)
    shutil.rmtree(s.state)
    shutil.copytree(w.dir / "backup", s.state)  # a genuine old one
    with s:
        settled_exactly(w, s)
        assert "adopted from chain and archive" in s.tail() and s.status()["troubles"] == []
    kept = {n: header(w, n) for n in range(1, s.status()["batches"][0]["batch"] + 1)}
    shutil.rmtree(s.state)
    shutil.rmtree(w.dir / "archive")
    with s:  # the ledger's ranges, and the records from the lane's spool
        s.wait_final()
        assert "adopted from its event and the lanes' records" in s.tail()
        assert {n: header(w, n) for n in kept} == kept


def test_two_workers_with_one_key(tmp_path):
    """Two machines: each has its database and archive, both have the keys and read the same Redis."""
    with World(tmp_path, lanes=(1,)) as w:
        lane = w.lanes[1].make(w, 200)
        flags = "--batch-count-max", 50, "--batch-seconds-max", 1
        one = Settle(w, *flags, name="one")
        two = Settle(w, *flags, "--epoch-seconds", 86400, "--state-dir", tmp_path / "state-2", "--archive-dir", tmp_path / "archive-2", name="two", attested=False)
        two.state = tmp_path / "state-2"
        with one, two:
            for at in range(0, len(lane.entries), 60):
                w.ship(1, lane.entries[at:at + 60])
                wait_for(lambda: one.status()["lanes"] and one.status()["lanes"][0]["ingested"] >= min(at + 60, len(lane.entries)), 20, 0.1)
            settled_exactly(w, one)
            two.wait_final()
            count = one.status()["batches"][0]["batch"]
            assert [header(w, n) for n in range(1, count + 1)] == [header(w, n, "archive-2") for n in range(1, count + 1)]
            for s in (one, two):
                with sqlite3.connect(f"file:{s.state}/settle.db?mode=ro", uri=True) as db:
                    ranges = db.execute("SELECT first, last FROM batch_lanes ORDER BY first").fetchall()
                assert [r[0] for r in ranges] == [1, *(r[1] + 1 for r in ranges[:-1])] and ranges[-1][1] == len(lane.entries)
                assert s.status()["quarantined"] == 0

"""The settlement worker when Redis, the chain or its own state fail: one system goes through it all, and at the end every receipt is
settled once and the audit agrees. The tests run in order."""
import shutil
import signal
import subprocess
import time

import pytest

from server import wait_for
from world import LANE, Load, Settle, World, redis_call


@pytest.fixture(scope="module")
def w(template):
    with World(template, start=("server", "settle")) as world:
        world.receipts = []
        yield world


def load(w, seconds=1.0):
    with Load(w.server, threads=4, seed=len(w.receipts)) as l:
        time.sleep(seconds)
    assert not l.unexpected and l.receipts
    w.receipts.extend(l.receipts)


def test_redis_and_chain_down_at_start(w):
    load(w)
    time.sleep(1)
    assert w.settle.process.poll() is None, f"the worker gave up:\n{w.settle.log_text()}"
    assert w.chain.url.rsplit(":", 1)[1] in w.settle.log_text(), "the worker has to say which peer it waits for"
    w.chain.start()
    w.redis.start()
    w.drain()


def test_chain_away_under_load(w):
    head = w.head()
    w.chain.stop()
    load(w, 3)
    w.check_alive()
    w.chain.start()
    w.drain()
    assert w.head() > head


def test_chain_hangs_under_load(w):
    """A node that takes connections and never answers."""
    pids = subprocess.run(["pgrep", "-P", str(w.chain.process.pid)], capture_output=True, text=True, check=True).stdout.split()
    assert pids
    for pid in pids:
        subprocess.run(["kill", "-STOP", pid], check=True)
    try:
        load(w, 2)
        w.check_alive()
    finally:
        for pid in pids:
            subprocess.run(["kill", "-CONT", pid], check=True)
    w.drain()


def test_redis_flushed_under_load(w):
    """What the worker had not read yet is gone from Redis, and the numbers go on behind it: it reads the hole from the spool."""
    w.settle.kill()
    load(w, 0.5)
    with Load(w.server, threads=4, pause_s=0, seed=7) as l:
        time.sleep(0.7)
        assert w.redis.command("FLUSHALL") == b"+OK"
        time.sleep(0.7)
    w.receipts.extend(l.receipts)
    w.settle.start()
    w.drain()


def test_redis_flushed_while_read(w):
    with Load(w.server, threads=4, pause_s=0, seed=8) as l:
        for _ in range(3):
            time.sleep(0.4)
            assert w.redis.command("FLUSHALL") == b"+OK"
    assert l.receipts and not l.unexpected, l.count
    w.receipts.extend(l.receipts)
    w.drain()


def put_foreign_entries(w):
    """Under the next numbers of the lane, which the server takes for its own records at the same time: who comes first has them."""
    while True:
        info = redis_call(w.redis, "XINFO", "STREAM", f"residual:lane:{LANE}")
        last = int(info[info.index(b"last-generated-id") + 1].split(b"-")[0])
        try:
            redis_call(w.redis, "XADD", f"residual:lane:{LANE}", f"{last + 1}-0", "r", "not a record, but long enough to be cut into record and tag")
            redis_call(w.redis, "XADD", f"residual:lane:{LANE}", f"{last + 2}-7", "r", "id without a number")
            return
        except AssertionError as e:
            assert "equal or smaller" in str(e), e


def test_foreign_entries_in_the_stream(w):
    """Who can write to Redis cannot make the worker settle what the lane did not sign, nor stop it: not by entries at rest on an idle lane,
    not by the last number there is, not under load."""
    w.drain()
    put_foreign_entries(w)
    load(w, 1.5)
    w.drain()
    redis_call(w.redis, "XADD", f"residual:lane:{LANE}", f"{2**64 - 1}-{2**64 - 1}", "r", "the end of all numbers")
    w.settle.kill()
    load(w, 1.5)
    w.settle.start()
    w.drain()
    with Load(w.server, threads=8, pause_s=0, seed=9) as l:
        for _ in range(3):
            time.sleep(0.3)
            put_foreign_entries(w)
    assert l.receipts and not l.unexpected, l.count
    w.receipts.extend(l.receipts)
    w.drain()


def test_worker_runs_once(w):
    again = Settle(w)
    again.log = w.dir / "second.log"
    again.start()
    assert again.process.wait(20) == 5, again.log_text()
    again.end_attestor()
    assert "another" in again.log_text(), again.log_text()
    w.check_alive()


def test_worker_stops_when_asked(w):
    w.settle.stop()
    load(w, 0.5)
    w.settle.start()
    w.drain()


def test_worker_without_its_database(w):
    """Chain, archive, stream and spool hold everything: a worker whose disk was replaced goes on where the chain is."""
    w.settled()
    w.settle.kill()
    shutil.rmtree(w.settle.state)
    load(w, 1)
    w.settle.start()
    w.drain()
    w.settle.kill()  # and in the middle of work
    shutil.rmtree(w.settle.state)
    w.settle.start()
    load(w, 1)
    w.drain()


def test_worker_without_database_and_archive(w):
    """The batches are made again, to the byte, from the ledger's events and the lane's spool. What an earlier epoch granted stands in its
    folder alone: it is named until a person brings that back, and then settlement goes on by itself."""
    w.settled()
    w.settle.kill()
    moved = w.dir / "moved"
    shutil.rmtree(w.settle.state)
    w.settle.archive.rename(moved)
    w.settle.start()
    files = [f.relative_to(moved) for f in moved.glob("batch-*/*") if f.is_file()]
    assert len(files) >= 3

    def again():
        assert w.settle.process.poll() is None, w.settle.log_text()[-2000:]
        return all((w.settle.archive / f).exists() and (w.settle.archive / f).read_bytes() == (moved / f).read_bytes() for f in files)
    wait_for(again, 60, what="the batches again")
    wait_for(lambda: "trouble: epoch_conflict" in w.settle.log_text(), 30, what="a sentence about the epochs")
    for folder in moved.glob("epoch-*"):
        shutil.copytree(folder, w.settle.archive / folder.name, dirs_exist_ok=True)
    load(w, 0.5)
    w.drain()


def test_everything_is_settled_once(w):
    records, epoch = w.settled()
    found = w.check(w.receipts, epoch)
    print(found)
    assert found["receipts"] == len(w.receipts) and found["records"] == records and found["voids"] == 0
    status, said = w.audit(epoch)
    assert status == 0, said
    w.settle.process.send_signal(signal.SIGTERM)
    assert w.settle.process.wait(30) == 0


def test_an_old_copy_of_the_spool_is_refused_by_the_ledger(w):
    """Redis forgot the stream, the disk was restored from before: only the ledger knows that the lane's numbers were used."""
    spool, old = w.lane_dir / "spool", w.dir / "old-spool"
    w.server.stop()
    shutil.copytree(spool, old)
    w.server.start()
    load(w, 0.5)
    w.settle.start()
    w.drain()
    w.server.stop()
    w.settle.stop()
    redis_call(w.redis, "DEL", f"residual:lane:{LANE}")
    shutil.rmtree(spool)
    old.rename(spool)
    with pytest.raises(AssertionError, match="but the ledger .* knows"):
        w.server.start()

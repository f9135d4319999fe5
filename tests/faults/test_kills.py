"""kill -9 of server, settlement worker and Redis at random moments under load: no released receipt is lost or settled twice, every
required answer is accounted for, and the archive that is left convinces an auditor until any byte of it changes."""
import os
import random
import shutil
import subprocess
import threading
import time

import pytest

from server import FULL, wait_for
from world import Load, World

KILLS = 50 if FULL else 12
SEED = int(os.environ.get("RS_SEED") or random.SystemRandom().randrange(1 << 32))


class Killer(threading.Thread):
    """Kills one piece KILLS times, each time at a random moment, and starts it again after a random while."""

    def __init__(self, piece, seed, up_s, down_s):
        super().__init__(daemon=True)
        self.piece, self.rng, self.up_s, self.down_s = piece, random.Random(seed), up_s, down_s
        self.kills, self.error = 0, None

    def run(self):
        try:
            while self.kills < KILLS:
                time.sleep(self.rng.uniform(*self.up_s))
                assert self.piece.process.poll() is None, f"ended by itself with {self.piece.process.returncode}"
                self.piece.kill()
                self.kills += 1
                time.sleep(self.rng.uniform(*self.down_s))
                while self.rng.random() < 0.3:
                    self.kill_while_starting()
                self.piece.start()
        except BaseException as e:  # noqa: BLE001 - handed to the test's thread
            self.error = e

    def kill_while_starting(self):
        """Recovery has to survive its own interruption."""
        half = subprocess.Popen(self.piece.args, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(self.rng.uniform(0, 0.15))
        half.kill()
        half.wait()


@pytest.fixture(scope="module")
def campaign(template):
    """(world, receipts, epoch): after the kills, drained and settled."""
    print(f"\nRS_SEED={SEED} ({KILLS} kills each)")
    with World(template, settle_flags=("--batch-seconds-max", 4, "--epoch-seconds", 10)) as w:
        with Load(w.server, threads=5, seed=SEED) as load:
            killers = [Killer(w.server, SEED + 1, (0.3, 3.0), (0, 0.5)), Killer(w.settle, SEED + 2, (0.1, 3.0), (0, 0.5)),
                       Killer(w.redis, SEED + 3, (0.3, 3.0), (0, 0.7))]
            for k in killers:
                k.start()
            for k in killers:
                k.join(60 + 12 * KILLS)
                assert not k.error, f"kill {k.kills}: {k.error}"
                assert k.kills == KILLS
        assert not load.unexpected, load.unexpected[:3]
        print("clients:", load.count)
        records, epoch = w.settled(180)
        w.records = records
        yield w, load.receipts, epoch


def test_every_receipt_is_settled_once(campaign):
    w, receipts, epoch = campaign
    assert len(receipts) >= 5 * KILLS, f"only {len(receipts)} answers came through: the campaign shows nothing"
    found = w.check(receipts, epoch)
    print(found)
    assert found["receipts"] == len(receipts)
    assert found["records"] == w.records and found["voids"] == 0
    assert found["scored"] > 0 and found["late"] <= found["missing"] < found["required"]


@pytest.mark.parametrize("field, value", [("seq", 1 << 40), ("salt", "0x" + "11" * 32), ("fee", "1"), ("receipt", "0x" + "22" * 65)])
def test_the_checker_finds_a_receipt_that_was_not_kept(campaign, field, value):
    w, receipts, epoch = campaign
    with pytest.raises(AssertionError, match="1 findings|2 findings|3 findings"):
        w.check([*receipts[:3], {**receipts[3], field: value}], epoch)


def test_audit_of_what_the_kills_left(campaign):
    w, _, epoch = campaign
    status, said = w.audit(epoch)
    assert status == 0, said


def test_the_server_learns_what_is_final(campaign):
    """The worker trims the stream and says so; the server's spool may lose those records then."""
    w, _, _ = campaign
    wait_for(lambda: w.metrics()["residual_lane_seq_final"] > 0, 40, 0.5, what="a record that is final")


def published(archive):
    return sorted(p for p in archive.rglob("*") if p.is_file() and not any(part.startswith(".") for part in p.relative_to(archive).parts))


def test_a_changed_byte_is_found(campaign, tmp_path):
    """One byte anywhere in what was published, and the audit exits with 1: files of the campaign by random places."""
    w, _, epoch = campaign
    rng = random.Random(SEED)
    copy = tmp_path / "archive"
    shutil.copytree(w.settle.archive, copy)
    files = published(copy)
    for path in files if FULL else rng.sample(files, min(8, len(files))):
        flip_and_audit(w, copy, epoch, path, rng.randrange(path.stat().st_size), 1 << rng.randrange(8))
    assert w.audit(epoch, copy)[0] == 0, "the archive as it was is right again"


def flip_and_audit(w, archive, epoch, path, offset, mask):
    good = path.read_bytes()
    bad = bytearray(good)
    bad[offset] ^= mask
    path.write_bytes(bad)
    try:
        status, said = w.audit(epoch, archive)
        assert status == 1, f"{path.relative_to(archive)}: byte {offset} ^ {mask:#x}: the audit exits with {status}: {said}"
    finally:
        path.write_bytes(good)


def test_changes_everywhere_in_a_small_archive(template, tmp_path):
    """Every kind of published file, at many places, and shortened, longer, or gone."""
    with World(template, settle_flags=("--epoch-seconds", 1)) as w:
        with Load(w.server, threads=2, seed=SEED) as load:
            time.sleep(2)
        w.settled()
        with Load(w.server, threads=2, seed=SEED + 1) as load:
            time.sleep(1)
        assert load.receipts
        _, epoch = w.settled()
        assert epoch >= 2
        status, said = w.audit(epoch)
        assert status == 0, said
        copy = tmp_path / "archive"
        shutil.copytree(w.settle.archive, copy)
        rng, kinds = random.Random(SEED), set()
        for path in published(copy):
            size, kind = path.stat().st_size, (path.parent.name[:5], path.name)
            places = {0, size - 1} | {rng.randrange(size) for _ in range(40 if FULL else 2)}
            for offset in sorted(places):
                flip_and_audit(w, copy, epoch, path, offset, 1 << rng.randrange(8))
            if kind not in kinds:
                check_size_changes(w, copy, epoch, path)
            kinds.add(kind)
        assert len(kinds) == 9, kinds
        assert w.audit(epoch, copy)[0] == 0


def check_size_changes(w, archive, epoch, path):
    good = path.read_bytes()
    try:
        for name, bad in (("shortened", good[:-1]), ("longer", good + b"\0"), ("empty", b"")):
            path.write_bytes(bad)
            status, said = w.audit(epoch, archive)
            assert status == 1, f"{path.relative_to(archive)} {name}: the audit exits with {status}: {said}"
        path.unlink()
        status, said = w.audit(epoch, archive)
        assert status == 1, f"{path.relative_to(archive)} gone: the audit exits with {status}: {said}"
    finally:
        path.write_bytes(good)

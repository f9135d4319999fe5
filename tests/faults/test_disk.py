"""No room for records: requests get 503 with the reason, nothing that a client holds is lost, and service returns with the space."""
import hashlib
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from server import ROOT, Redis, Server, binary, wait_for
from world import ADAPTERS, Load, World, pairs, redis_call, spool_records, stream_records

BODY = {"model": ADAPTERS[0], "prompt": [400, 401, 402, 403], "max_tokens": 8, "ignore_eos": True}


def ask_until_refused(server, most):
    """(receipts, the refusal's message): one request after another until 503."""
    receipts = []
    for _ in range(most):
        status, reply = server.post("/v1/completions", BODY)
        if status != 200:
            assert status == 503, (status, reply)
            return receipts, reply["error"]["message"]
        receipts.append(reply["residual"])
    raise AssertionError(f"{most} requests and no refusal")


def receipts_are_on_disk(lane_dir, receipts):
    """Each receipt's record is in the spool under its number, once; returns how many records there are."""
    records = spool_records(lane_dir)
    assert len({r["seq"] for r in receipts}) == len(receipts)
    for r in receipts:
        body = records[r["seq"]]
        assert body[1] == 1 and body[14:46].hex() == r["request_id"]
        assert body[-97:-32].hex() == r["receipt"][2:], f"record {r['seq']} is signed otherwise than its receipt"
    return records


def every_answer_is_attributed_once(server, lane_dir):
    def done():
        inferences, found = pairs(spool_records(lane_dir))
        return inferences and all(s in found for s in inferences) and found
    found = wait_for(done, 30, 0.2, what="an attribution record of every required answer")
    assert set(found.values()) == {1}


def say_final(redis, lane_dir, seq):
    """What the settlement worker says once records up to seq are final (SPEC 2, in transport)."""
    key = bytes.fromhex((lane_dir / "transport.key").read_text().strip())
    said = b"residual.final.1" + (1).to_bytes(4, "big") + seq.to_bytes(8, "big")
    redis_call(redis, "SET", "residual:lane:1:final", f"{seq} {hashlib.blake2b(said, key=key, digest_size=32).hexdigest()}")


def metric(server, name):
    return next(float(line.split()[-1]) for line in server.get("/metrics")[1].splitlines() if line.startswith(name + " "))


def test_a_small_spool_serves_for_ever_while_its_records_are_final(template):
    with World(template, server_flags=("--spool-bytes-max", 128 << 10), start=("redis", "chain", "server")) as w:
        s, receipts = w.server, []
        for turn in range(3):
            with Load(s, threads=4, pause_s=0) as load:
                time.sleep(0.6)
            assert not load.unexpected, load.unexpected[:2]
            receipts += load.receipts
            wait_for(lambda: metric(s, "residual_lane_seq_shipped") == metric(s, "residual_lane_seq_durable"), 20, 0.1, what="shipping")
            last = int(metric(s, "residual_lane_seq_shipped"))
            if turn == 0:  # not the worker's word
                redis_call(w.redis, "SET", "residual:lane:1:final", f"{last} {'00' * 32}")
                time.sleep(1.2)
                assert metric(s, "residual_lane_seq_final") == 0
            say_final(w.redis, w.lane_dir, last)
            wait_for(lambda: metric(s, "residual_lane_seq_final") >= last, 20, 0.1, what="finality")
            wait_for(lambda: s.get("/readyz")[0] == 200, 20, 0.1, what="room in the spool")
        assert metric(s, "residual_lane_seq_first") > 1 and sum(p.stat().st_size for p in (w.lane_dir / "spool").glob("seg-*")) < 128 << 10
        assert receipts[-1]["seq"] > 200, "more than fits"
        first = min(receipts, key=lambda r: r["seq"])
        for path in (f"receipts/{first['request_id']}", f"attribution/{first['request_id']}", "lane/range?first=1&last=2"):
            status, reply = s.get(f"/v1/{path}")
            assert status == 404 and reply["error"]["code"] == "archived", reply
        s.stop()
        s.start()
        assert s.post("/v1/completions", BODY)[1]["residual"]["seq"] > max(r["seq"] for r in receipts)


def test_acl_lines_of_the_readme_suffice(template):
    """Server and settlement worker, each as its own user of Redis with no more than server/README.md gives it, from a record to its end."""
    lines = [line.split() for line in (ROOT / "server/README.md").read_text().splitlines() if line.startswith("    user ")]
    assert [words[1] for words in lines] == ["residual-server", "residual-settle", "default"]
    with World(template, start=("redis", "chain")) as w:
        for words in lines[:2]:
            redis_call(w.redis, "ACL", "SETUSER", words[1], *(word.replace(">PASSWORD", ">" + words[1]) for word in words[2:]))
        for program, user in ((w.server, "residual-server"), (w.settle, "residual-settle")):
            password = w.dir / f"{user}.password"
            password.write_text(user)
            password.chmod(0o600)
            program.args = [a.replace("redis://", f"redis://{user}@") for a in program.args] + ["--redis-password-file", str(password)]
            program.start()
        with Load(w.server, threads=4) as load:
            time.sleep(1)
        assert load.receipts and not load.unexpected
        w.drain()
        wait_for(lambda: "is final" in w.settle.log_text(), 60, 0.2, what="a final batch")
        w.settle.kill()
        w.settle.start()  # groups that are there, pending entries of the last run; what is final is said at once
        wait_for(lambda: w.metrics()["residual_lane_seq_final"] > 0, 60, 0.2, what="the worker's word of finality")
        assert redis_call(w.redis, "ACL", "LOG") == [], "a command was refused"


def test_spool_budget(template):
    """Nobody settles: the spool fills, and says so."""
    with World(template, server_flags=("--spool-bytes-max", 200 << 10), start=("chain", "server")) as w:
        s = w.server
        receipts, said = ask_until_refused(s, 1000)
        assert "spool_bytes_max" in said and "95 %" in said, said
        assert len(receipts) > 20
        assert s.get("/v1/receipts/" + receipts[0]["request_id"])[0] == 200, "what was released stays readable"
        assert s.get("/health")[0] == 200
        status, why = s.get("/readyz")
        assert status == 503 and "spool_bytes_max" in why, (status, why)
        assert "residual_records_ready 0\n" in s.get("/metrics")[1]
        wait_for(lambda: "not ready: the record spool is 95 %" in s.log_text(), 5, what="a line in the log")
        assert s.log_text().count("not ready") == 1
        s.stop()
        receipts_are_on_disk(w.lane_dir, receipts)
        s.args += ["--spool-bytes-max", str(2 << 20)]
        s.start()
        status, reply = s.post("/v1/completions", BODY)
        assert status == 200 and reply["residual"]["seq"] > receipts[-1]["seq"]
        every_answer_is_attributed_once(s, w.lane_dir)
        receipts_are_on_disk(w.lane_dir, receipts + [reply["residual"]])


def test_job_budget(template):
    """Answers that must be scored need room for their inputs; with scoring far behind they are refused, not forgotten."""
    with World(template, server_flags=("--score-bytes-max", 64 << 10), start=("chain", "server")) as w:
        s = w.server
        # one request whose inputs could never fit
        status, reply = s.post("/v1/completions", {**BODY, "max_tokens": 200, "n": 16, "prompt": list(range(300, 350))})
        assert status in (200, 503)
        if status == 503:
            assert "score_bytes_max" in reply["error"]["message"]
        with Load(s, threads=12, pause_s=0, tokens_max=64) as load:
            time.sleep(2)
        assert not load.unexpected, load.unexpected[:2]
        every_answer_is_attributed_once(s, w.lane_dir)
        receipts_are_on_disk(w.lane_dir, load.receipts)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 16 MiB: room for eight indexes (4 MiB), and evidence of some thousand answers."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


class Filler:
    """Takes all the space that is left, and gives it back."""

    def __init__(self, folder):
        self.path = Path(folder) / "filler"

    def fill(self):
        with open(self.path, "ab", buffering=0) as f:
            for size in (65536, 4096, 512, 64, 1):
                try:
                    while f.write(bytes(size)) == size:
                        pass
                except OSError:
                    pass

    def give_back(self, count):
        os.truncate(self.path, self.path.stat().st_size - count)

    def free(self):
        self.path.unlink()


def test_disk_full(template, small_disk):
    filler = Filler(small_disk)
    with World(template, data_dir=small_disk / "data", start=("chain", "server")) as w:
        s, lane = w.server, w.lane_dir
        status, first = s.post("/v1/completions", BODY)
        assert status == 200
        filler.fill()
        receipts, said = ask_until_refused(s, 200)
        assert "No space left" in said, said
        with Load(s, threads=4, pause_s=0) as load:
            time.sleep(1.5)
        assert not load.unexpected, load.unexpected[:2]
        assert load.count.get("refused 503", 0) > 0, load.count
        status, why = s.get("/readyz")
        assert status == 503 and "No space left" in why, (status, why)
        filler.free()
        wait_for(lambda: s.get("/readyz")[0] == 200, 10, 0.1, what="readiness after the space returned")
        status, after = s.post("/v1/completions", BODY)
        assert status == 200 and "records: ready again" in s.log_text()
        receipts += [first["residual"], after["residual"], *load.receipts]
        with Load(s, threads=4) as load:
            time.sleep(0.5)
        assert set(load.count) <= {"answered", "left"}, load.count
        receipts += load.receipts
        s.stop()
        receipts_are_on_disk(lane, receipts)
        s.start()  # what could not be attributed while the disk was full is now
        every_answer_is_attributed_once(s, lane)


def test_the_last_room_is_left_to_records(template, small_disk):
    """An index is made again from what is there, a record is not: the one waits for room, and who is paid does not change by it."""
    filler = Filler(small_disk)
    world = World(template, server_flags=("--index-ahead", 0), data_dir=small_disk / "data", start=("chain", "server"))
    shutil.rmtree(small_disk / "data" / "indexes", ignore_errors=True)
    with world as w:
        s = w.server
        filler.fill()
        filler.give_back(1 << 20)  # of the 2 MiB that are kept for records
        wait_for(lambda: s.post("/v1/completions", BODY)[0] == 200, 10, 0.2, what="service in the last room")
        wait_for(lambda: "its answers wait to be attributed" in s.log_text(), 10, 0.1, what="a line about the index")
        assert metric(s, "residual_indexes_failed") == 1 and metric(s, "residual_indexes_built_total") == 0
        status, reply = s.post("/v1/datanets", {"name": "net", "version": 1, "documents": []})  # what is sent can be sent again
        assert status == 503 and reply["error"]["code"] == "disk_full" and "left to records" in reply["error"]["message"], reply
        inferences, found = pairs(spool_records(w.lane_dir))
        assert inferences and not found
        filler.free()
        every_answer_is_attributed_once(s, w.lane_dir)
        assert metric(s, "residual_indexes_failed") == 0 and metric(s, "residual_indexes_built_total") == 1
        assert "by the registered split" not in s.log_text(), "a full disk changed who is paid"


def test_killed_and_started_on_a_full_disk(template, small_disk):
    filler = Filler(small_disk)
    with World(template, data_dir=small_disk / "data", start=("chain", "server")) as w:
        server = w.server
        with Load(server, threads=4, pause_s=0) as load:
            time.sleep(0.7)
            filler.fill()
            time.sleep(0.5)
            server.kill()
        receipts = load.receipts
        assert receipts and not load.unexpected
        server.wait_s = 5
        try:
            server.start()
            status, reply = server.post("/v1/completions", BODY)
            assert status == 503 and "No space left" in reply["error"]["message"], (status, reply)
            server.kill()
        except AssertionError as refused:
            if "residuald exited" not in str(refused) and "was not ready" not in str(refused):
                raise
            assert "No space left" in str(refused), "a refusal has to say why"
        filler.free()
        server.wait_s = 60
        server.start()
        assert server.post("/v1/completions", BODY)[0] == 200
        every_answer_is_attributed_once(server, w.lane_dir)
        server.stop()
        receipts_are_on_disk(w.lane_dir, receipts)


def test_two_servers_on_one_folder(tmp_path):
    with Server(data=tmp_path / "data") as first:
        with pytest.raises(AssertionError, match="another residuald uses it"):
            Server(data=tmp_path / "data").start()
        assert first.post("/v1/completions", BODY)[0] == 200
        first.kill()
        with Server(data=tmp_path / "data") as again:  # the lock does not outlive its holder
            assert again.post("/v1/completions", BODY)[0] == 200
        first.process = None


def test_torn_tail_is_cut(tmp_path):
    """A torn tail, which no receipt left for, is cut."""
    data = tmp_path / "data"
    lane = data / "lanes/unbound-1"
    with Server(data=data) as s:
        receipts = [s.post("/v1/completions", BODY)[1]["residual"] for _ in range(5)]
    segment = next((lane / "spool").glob("seg-*.log"))
    with open(segment, "ab") as f:
        f.write(b"RSP1\x40\x02\0\0torn")
    with Server(data=data) as s:
        assert s.post("/v1/completions", BODY)[0] == 200
    receipts_are_on_disk(lane, receipts)


def test_no_number_is_signed_twice(tmp_path):
    """kill -9, one byte flipped in the middle of the newest segment: no start before a person has said what is to become of what is lost;
    then every other record is as it was, and nothing is signed again."""
    data = tmp_path / "data"
    lane = data / "lanes/unbound-1"
    void = [binary("residual"), "lane", "void", lane]
    with Server(data=data) as s:
        with Load(s, threads=4, pause_s=0) as load:
            time.sleep(0.7)
            s.kill()
        s.process = None
    receipts, before = load.receipts, spool_records(lane)
    assert len(receipts) > 20
    segment = next((lane / "spool").glob("seg-*.log"))
    whole = bytearray(segment.read_bytes())
    whole[len(whole) // 2] ^= 1
    segment.write_bytes(whole)
    with pytest.raises(AssertionError, match="behind them can.*residual lane void"):
        Server(data=data).start()
    assert segment.read_bytes() == whole, "a refused start changes nothing"
    shown = subprocess.run([*void, "--json"], capture_output=True, text=True)
    assert shown.returncode == 1 and json.loads(shown.stdout)["lost"] == 1, shown
    assert segment.read_bytes() == whole, "nor does looking"
    with Server(data=tmp_path / "other") as other:  # a lane in use is not repaired
        busy = subprocess.run([*void[:3], other.data / "lanes/unbound-1", "--yes"], capture_output=True, text=True)
        assert busy.returncode == 3 and "another residuald uses it" in busy.stderr, busy
    done = subprocess.run([*void, "--yes"], capture_output=True, text=True)
    assert done.returncode == 0 and "1 void records signed" in done.stdout, done
    with Server(data=data) as s:
        fresh = [s.post("/v1/completions", BODY)[1]["residual"] for _ in range(3)]
        inferences, found = wait_for(lambda: all(n in pairs(spool_records(lane))[1] for n in pairs(spool_records(lane))[0]) and
                                     pairs(spool_records(lane)), 30, 0.2, what="every answer that is left to be attributed")
    after = spool_records(lane)
    changed = [n for n in before if after[n] != before[n]]
    assert len(changed) == 1 and after[changed[0]][1] == 3 and after[changed[0]][14] == 2, "one void record, reason: damaged"
    assert min(r["seq"] for r in fresh) > max(before), "used numbers are not used again"
    receipts_are_on_disk(lane, [r for r in receipts if r["seq"] != changed[0]] + fresh)
    assert subprocess.run(void, capture_output=True, text=True).returncode == 0, "nothing is lost any more"


def test_what_the_stream_holds_is_not_lost(template):
    """A spool that was damaged, and one that was restored from an old copy, are whole again from the lane's stream, without a void record."""
    with World(template, start=("redis", "chain", "server")) as w:
        s, spool, old = w.server, w.lane_dir / "spool", w.dir / "old"

        def serve():
            with Load(s, threads=4, pause_s=0) as load:
                time.sleep(0.5)
            assert load.receipts and not load.unexpected
            wait_for(lambda: w.scored() and metric(s, "residual_lane_seq_shipped") == metric(s, "residual_lane_seq_durable"), 30, 0.1, what="shipping")

        def refused(said):
            with pytest.raises(AssertionError, match=said):
                s.start()

        def void(*more):
            done = subprocess.run([binary("residual"), "lane", "void", w.lane_dir, "--json", *more], capture_output=True, text=True)
            return done.returncode, json.loads(done.stdout)

        serve()
        s.stop()
        shutil.copytree(spool, old)
        s.start()
        serve()
        s.kill()
        whole = spool_records(w.lane_dir)
        segment = next(spool.glob("seg-*.log"))
        data = bytearray(segment.read_bytes())
        data[len(data) // 2] ^= 1
        segment.write_bytes(data)
        refused("damaged at byte")
        code, said = void("--yes")
        assert code == 2 and "--redis-url" in said["error"]["message"], said
        code, said = void("--redis-url", w.redis.url)
        assert code == 1 and said["lost"] == said["in_stream"] == 1 and not said["done"], said
        code, said = void("--redis-url", w.redis.url, "--yes")
        assert code == 0 and said["done"] and spool_records(w.lane_dir) == whole, said
        s.start()
        s.stop()
        shutil.rmtree(spool)  # an old copy: the stream knows better
        shutil.copytree(old, spool)
        refused("but the stream residual:lane:1 knows")
        code, said = void("--redis-url", w.redis.url, "--yes")
        assert code == 0 and said["lost"] == said["in_stream"] > 0 and spool_records(w.lane_dir) == whole, said
        s.start()
        serve()
        assert stream_records(w.redis) == spool_records(w.lane_dir)


def test_a_retry_after_a_kill_is_not_charged_again(tmp_path):
    data, key = tmp_path / "data", {"Idempotency-Key": "order 7"}
    with Server(data=data) as s:
        first = s.post("/v1/completions", BODY, headers=key)[1]["residual"]
        s.kill()
        s.process = None
    with Server(data=data) as s:
        status, reply = s.post("/v1/completions", BODY, headers=key)
        assert status == 409 and first["request_id"] in reply["error"]["message"], (status, reply)
        assert s.post("/v1/completions", {**BODY, "max_tokens": 3}, headers=key)[0] == 422
        assert s.post("/v1/completions", BODY, headers={"Idempotency-Key": "order 8"})[0] == 200
    charged = [b for b in spool_records(data / "lanes/unbound-1").values() if b[1] == 1]
    assert len(charged) == 2, "one record an order"


def test_other_lanes_transport_key(tmp_path):
    """A spool whose entries do not carry this lane's tag is not taken for its own."""
    data = tmp_path / "data"
    with Server(data=data) as s:
        assert s.post("/v1/completions", BODY)[0] == 200
    key = data / "lanes/unbound-1/transport.key"
    key.write_text("00" * 32)
    with pytest.raises(AssertionError, match="transport key"):
        Server(data=data).start()


def test_redis_away_flushed_restored(template, tmp_path):
    """The stream is a copy of the spool, whatever happened to Redis."""
    receipts = []

    def load(server, seconds=0.7):
        with Load(server, threads=4) as l:
            time.sleep(seconds)
        assert not l.unexpected and l.receipts
        receipts.extend(l.receipts)

    with World(template, start=("chain", "server")) as w:
        s, redis, lane = w.server, w.redis, w.lane_dir

        def stream_is_spool():
            return wait_for(lambda: stream_records_or_none(redis) == spool_records(lane), 20, 0.2, what="the stream to hold the whole spool")

        load(s)  # Redis was never there
        assert s.log_text().count("records wait in the spool") == 1, s.log_text()
        redis.start()
        stream_is_spool()
        redis.kill()  # away, and back with its data
        load(s)
        redis.start()
        stream_is_spool()
        assert redis.command("FLUSHALL") == b"+OK"  # emptied behind an idle connection
        stream_is_spool()
        redis.kill()
        shutil.copytree(redis._tmp.name, tmp_path / "old")
        redis.start()
        load(s)
        redis.kill()  # restored from an old copy
        shutil.rmtree(redis._tmp.name)
        shutil.copytree(tmp_path / "old", redis._tmp.name)
        redis.start()
        load(s)
        stream_is_spool()
        receipts_are_on_disk(lane, receipts)


def stream_records_or_none(redis):
    try:
        return stream_records(redis)
    except (OSError, AssertionError):
        return None

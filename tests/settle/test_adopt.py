"""A worker that knows less than the chain and the archive, or finds the archive changed: it takes over what is there, by itself, and no
record is lost or counted twice."""
import hashlib
import hmac
import shutil
import sqlite3
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from world import Settle, World, http, wait_for

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
        flags = "--batch-seconds-max", 1, "--batch-count-max"
        one = Settle(w, *flags, 50, name="one")  # they cut their batches differently: one of them is not in time
        two = Settle(w, *flags, 35, "--epoch-seconds", 86400, "--state-dir", tmp_path / "state-2", "--archive-dir", tmp_path / "archive-2", name="two", attested=False)
        two.state = tmp_path / "state-2"
        with one, two:
            for at in range(0, len(lane.entries), 60):
                w.ship(1, lane.entries[at:at + 60])
                wait_for(lambda: one.status()["lanes"] and one.status()["lanes"][0]["ingested"] >= min(at + 60, len(lane.entries)), 20, 0.1)
            settled_exactly(w, one)
            two.wait_final()
            count = one.status()["batches"][0]["batch"]
            assert "adopted from its event" in one.tail() + two.tail()
            assert [header(w, n) for n in range(1, count + 1)] == [header(w, n, "archive-2") for n in range(1, count + 1)]
            for s in (one, two):
                with sqlite3.connect(f"file:{s.state}/settle.db?mode=ro", uri=True) as db:
                    ranges = db.execute("SELECT first, last FROM batch_lanes ORDER BY first").fetchall()
                assert [r[0] for r in ranges] == [1, *(r[1] + 1 for r in ranges[:-1])] and ranges[-1][1] == len(lane.entries)
                assert s.status()["quarantined"] == 0


class Bucket(BaseHTTPRequestHandler):
    """A small S3: GET and PUT of keys, each request's signature (AWS version 4) computed here from the secret and compared."""
    protocol_version = "HTTP/1.1"
    keys, refused, down, lies, secret, region = {}, [], False, False, "s3-secret/with+signs", "eu-test-1"

    def signature(self, body):
        auth = dict(part.strip().split("=", 1) for part in self.headers["Authorization"].removeprefix("AWS4-HMAC-SHA256 ").split(","))
        names, (key, day, region, service, end) = auth["SignedHeaders"].split(";"), auth["Credential"].split("/")
        digest = hashlib.sha256(body).hexdigest()
        assert (key, region, service, end) == ("test-id", self.region, "s3", "aws4_request") and self.headers["x-amz-content-sha256"] == digest
        assert {"host", "x-amz-content-sha256", "x-amz-date"} <= set(names)
        canonical = "\n".join([self.command, self.path, "", *(f"{n}:{' '.join(self.headers[n].split())}" for n in names), "", ";".join(names), digest])
        date = self.headers["x-amz-date"]
        scope = f"{day}/{region}/s3/aws4_request"
        text = "\n".join(["AWS4-HMAC-SHA256", date, scope, hashlib.sha256(canonical.encode()).hexdigest()])
        sign = ("AWS4" + self.secret).encode()
        for word in (day, region, "s3", "aws4_request", text):
            sign = hmac.new(sign, word.encode(), hashlib.sha256).digest()
        return sign.hex() == auth["Signature"]

    def answer(self, code, data=b""):
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def handle_one(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if Bucket.down:
            return self.answer(503)
        try:
            good = self.signature(body)
        except (AssertionError, KeyError, TypeError, AttributeError) as e:
            good = repr(e)
        if good is not True:
            Bucket.refused.append((self.path, good))
            return self.answer(403, b"SignatureDoesNotMatch")
        if self.command == "PUT":
            assert self.path not in Bucket.keys or Bucket.keys[self.path] == body, "a key is content: it never changes"
            Bucket.keys[self.path] = body
            return self.answer(200)
        data = Bucket.keys.get(self.path)
        return self.answer(404) if data is None else self.answer(200, data[:-1] + b"?" if Bucket.lies else data)

    do_GET = do_PUT = handle_one

    def log_message(self, *_):
        pass


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_one_byte_changed_in_an_archived_batch(world, tmp_path):  # noqa: F811
    """Noticed by the scrub, and mended from a directory, a bucket, or the lane's spool; with none of them, named."""
    w = world
    Bucket.keys, Bucket.refused, Bucket.lies, Bucket.down = {}, [], True, False
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    credential = tmp_path / "s3.key"
    credential.write_text("test-id:" + Bucket.secret)
    credential.chmod(0o600)
    bucket = ["--archive", "s3://archive/of/residual", "--s3-endpoint", f"http://127.0.0.1:{server.server_port}", "--s3-region", Bucket.region,
              "--s3-key-file", credential]
    records = w.dir / "archive" / "batch-00000001" / "records.bin"
    w.ship_all()
    try:
        with Settle(w, *bucket, "--archive", tmp_path / "second", spool=False) as s:
            told = s.wait("a store that keeps something else", lambda t: [x for x in t["troubles"] if x["kind"] == "archive_store"])
            assert "s3://archive/of/residual does not take batch-00000001" in told[0]["said"] and "gives other bytes back" in told[0]["said"]
            Bucket.lies = False
            s.wait_final()
            good = records.read_bytes()
            flip(records)
            wait_for(lambda: "batch 1 was damaged" in s.tail() and "rebuilt from another store" in s.tail(), 20, 0.1, "a line that says it")
            assert records.read_bytes() == good and "from s3://archive" in s.tail()
            Bucket.down = True
            flip(records)
            wait_for(lambda: records.read_bytes() == good, 20, 0.1, "the byte is back from the directory")
            assert f"batch 1: from {tmp_path}/second" in s.tail()
            wait_for(lambda: "residual_settle_archive_batches_rebuilt_total 2" in http(f"{s.url}/metrics")[2].decode(), 10, 0.1, "the metric")
        assert not Bucket.refused, Bucket.refused
        assert any(key.startswith("/archive/of/residual/batch-00000001-") and data == good for key, data in Bucket.keys.items())
        with Settle(w, spool=False, attested=False) as s:
            flip(records)
            told = s.wait("the trouble", lambda t: [x for x in t["troubles"] if x["kind"] == "archive_batch"])[0]
            assert "batch 1 of the archive is damaged" in told["said"] and "put its folder back" in told["said"]
        with Settle(w, attested=False) as s:
            wait_for(lambda: records.read_bytes() == good, 20, 0.1, "the byte is back from the spool")
            s.wait("no trouble", lambda t: not t["troubles"])
    finally:
        server.shutdown()

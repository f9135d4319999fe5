"""What goes wrong around the worker: kills, Redis and the chain away, records lost, damaged, repeated or contradicted, its own state
lost. Nothing is lost or counted twice, and what a person must decide stops with an exit code or a stopped lane."""
import json
import random
import shutil
import signal
import sqlite3
import struct
import threading
import time
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer

import pytest
import recompute
from world import FULL, Manager, Settle, World, binary, http, node, run, wait_for

KILLS = 50 if FULL else 10


@pytest.fixture
def world(tmp_path):
    with World(tmp_path, lanes=(1,)) as w:
        w.lanes[1].make(w, 120)
        yield w


def settled_exactly(w, s):
    """Every record in one final batch, paid by an active epoch, and the audit agrees."""
    s.wait_final()
    epoch = s.wait_epoch()
    code, report = w.audit("epoch", epoch)
    assert code == 0, report
    assert report["records"] == sum(len(lane.entries) for lane in w.lanes.values())
    assert int(report["total"]) == sum(lane.fees for lane in w.lanes.values())
    return epoch


def test_kills(tmp_path):
    rng = random.Random(6)
    with World(tmp_path) as w:
        w.lanes[1].make(w, 200)
        w.lanes[2].make(w, 100)
        s = Settle(w, "--batch-count-max", 60, "--batch-seconds-max", 1)
        left = {n: list(lane.entries) for n, lane in w.lanes.items()}
        for kill in range(KILLS):
            s.start()
            for n, entries in left.items():
                cut = len(w.lanes[n].entries) // KILLS + 1
                w.ship(n, entries[:cut])
                del entries[:cut]
            time.sleep(rng.uniform(0.05, 2.5))
            s.kill()
        with s:
            settled_exactly(w, s)
            assert s.status()["quarantined"] == 0
        w.recompute()


def test_redis_and_chain_away_at_start(world):
    w = world
    manager, log = Manager(), w.dir / "settle.log"
    w.stop_chain()
    w.redis.kill()
    with Settle(w, "--log-file", log, env=manager.env) as s:
        wait_for(lambda: "trying again" in s.log.read_text(), 10, what="a line that says so")
        manager.expect("READY=1\nSTATUS=waiting for the chain's node")  # what is away is no failed start
        log.rename(w.dir / "settle.log.1")
        s.process.send_signal(signal.SIGHUP)
        wait_for(lambda: log.exists() and "reloaded: log file" in log.read_text(), 15, what="a new log file")
        w.start_chain()
        time.sleep(1)
        w.redis.start()
        w.ship_all()
        settled_exactly(w, s)
    told = manager.drain()
    assert any(t.startswith("RELOADING=1") for t in told) and told[-1].startswith("STOPPING=1")
    assert any(t.startswith("READY=1\nSTATUS=settling") for t in told)


def test_redis_and_chain_away_later(world):
    w = world
    half = len(w.lanes[1].entries) // 2
    with Settle(w) as s:
        w.ship(1, w.lanes[1].entries[:half])
        s.wait("half the records", lambda t: t["lanes"] and t["lanes"][0]["ingested"] == half)
        w.stop_chain()
        w.redis.kill()
        time.sleep(1.5)
        w.start_chain()
        w.redis.start()
        w.redis.command("FLUSHALL")  # what was there is gone: the server ships again from the stream's last id
        w.ship(1, w.lanes[1].entries)
        settled_exactly(w, s)


def test_missing_and_damaged_records_come_from_the_spool(world):
    w = world
    entries = list(w.lanes[1].entries)
    last = len(entries)
    damaged = {30: b"no record at all", last: entries[-1][1][:-1] + bytes([entries[-1][1][-1] ^ 1])}
    w.ship(1, [(n, damaged.get(n, body)) for n, body in entries if n not in (10, 11, 57)])
    with Settle(w) as s:
        settled_exactly(w, s)
        assert s.status()["quarantined"] == 2 and s.status()["lanes"][0]["stopped"] is None


def test_the_clock_a_day_ahead_and_back(world):
    """Batches close by monotonic age and epochs by the chain's time; a trouble says what the clock does."""
    w = world
    entries, shift = w.lanes[1].entries, w.dir / "shift"
    shift.write_text("0")
    env = {"LD_PRELOAD": str(binary("clock_shift.so")), "RS_CLOCK_SHIFT": str(shift)}
    with Settle(w, "--batch-seconds-max", 2, "--rpc-head-age-max-s", 6, env=env) as s:  # so long a head is old before its steadiness counts
        s.wait("the worker", lambda t: t["lanes"])
        shift.write_text("86400")
        w.ship(1, entries[:60])
        s.wait("a trouble", lambda t: "clock" in [x["kind"] for x in t["troubles"]])
        s.wait("the first final, an epoch proposed", lambda t: t["lanes"][0]["final"] == 60 and t["epochs"])
        w.ship(1, entries)
        s.wait("the rest, not in a batch yet", lambda t: t["lanes"][0]["ingested"] == len(entries))
        shift.write_text("0")
        s.wait_final(20)
        s.wait("no trouble", lambda t: t["troubles"] == [], 10)


def test_foreign_entries_stop_nothing(world):
    """Under numbers far away and at the end of all numbers, in a stream that the server then takes back to its own last record; without the
    spool, so that each record has to come by Redis."""
    w, lane = world, "residual:lane:1"
    entries = w.lanes[1].entries
    half = len(entries) // 2
    with Settle(w, "--read-count", 16, spool=False) as s:
        w.ship(1, entries[:half])
        s.wait("half the records", lambda t: t["lanes"] and t["lanes"][0]["ingested"] == half)
        foreign = [f"{(1 << 40) + i}-0" for i in range(40)] + [f"{(1 << 40) + 50}-3", f"{2**63 + 1}-0", f"{2**64 - 1}-{2**64 - 1}"]
        for at in foreign:
            w.redis.command("XADD", lane, at, "r", "x" * 200000)
        s.wait("the refusals", lambda t: t["quarantined"] >= len(foreign) - 2)
        w.redis.command("XDEL", lane, *foreign)
        w.redis.command("XSETID", lane, f"{half}-0")
        w.ship(1, entries[half:])
        settled_exactly(w, s)
        assert s.status()["lanes"][0]["stopped"] is None
        with closing(sqlite3.connect(s.state / "settle.db", timeout=20)) as db:
            assert db.execute("SELECT sum(length(body)) FROM quarantine").fetchone()[0] < len(foreign) * 100000, "entries are kept whole"


def test_missing_records_come_from_the_server(world):
    w = world
    entries, asked = dict(w.lanes[1].entries), []

    class Ranges(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers.get("Authorization")))
            first, last = (int(x.split("=")[1]) for x in self.path.split("?")[1].split("&"))
            data = (w.lanes[1].dir / "spool" / "seg-00000000000000000001.log").read_bytes()
            out, at = b"", 0
            while at < len(data):
                _, length, seq = struct.unpack_from("<IIQ", data, at)
                out += data[at:at + 20 + length] if first <= seq <= last else b""
                at += 20 + length
            self.send_response(200)
            self.send_header("Content-Length", str(len(out)))
            self.end_headers()
            self.wfile.write(out)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Ranges)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    key = w.dir / "worker.key"
    key.write_text("rs-worker\n")
    key.chmod(0o600)
    w.ship(1, [(n, body) for n, body in entries.items() if n % 9])
    try:
        with Settle(w, "--refetch-url", f"1=http://127.0.0.1:{server.server_port}", "--refetch-key-file", key, spool=False) as s:
            settled_exactly(w, s)
    finally:
        server.shutdown()
    assert asked and asked[0] == ("/v1/lane/range?first=9&last=9", "Bearer rs-worker")


def test_without_a_source_a_gap_holds(world):
    w = world
    w.ship(1, [e for e in w.lanes[1].entries if e[0] != 20])
    with Settle(w, spool=False) as s:
        wait_for(lambda: "holds at record 19" in s.log.read_text(), 20, 0.2, "a line that names the gap")
        told = s.wait("the trouble", lambda t: t["troubles"])[0]
        assert told["kind"] == "gap" and told["number"] == 1 and "records 20 to 20 are missing; neither spool_dir nor" in told["said"]
        assert 'residual_settle_trouble{kind="gap"} 1' in http(f"{s.url}/metrics")[2].decode()
        code, _, body = http(f"{s.url}/health")
        assert code == 503 and json.loads(body) == {"ok": False, "reasons": [told["said"]]}
        assert "TROUBLE gap: lane 1 holds at record 19" in run(binary("residual-settle"), "status", "--state-dir", s.state).stdout
        assert s.status()["lanes"][0]["ingested"] == 19
    with Settle(w) as s:
        settled_exactly(w, s)
        assert s.status()["troubles"] == [] and http(f"{s.url}/health")[0] == 200


def test_an_idle_lane_whose_stream_was_trimmed_unread(world):
    """Redis has nothing of it any more, and no later record says so: the stream's last id does."""
    w = world
    entries = w.lanes[1].entries
    w.ship(1, entries[:50])
    with Settle(w) as s:
        s.wait("the first", lambda t: t["lanes"] and t["lanes"][0]["ingested"] == 50)
        s.kill()
        w.ship(1, entries[50:])
        w.redis.command("XTRIM", "residual:lane:1", "MAXLEN", "0")
        s.start()
        s.wait("the rest, from the spool", lambda t: t["lanes"][0]["ingested"] == len(entries), 20)
        assert "but those after 50 are gone from it" in s.tail()


def test_a_lane_that_contradicts_itself_stops(tmp_path):
    with World(tmp_path, lanes=(1, 2)) as w:
        w.lanes[1].make(w, 60)
        w.lanes[2].make(w, 60)
        other = run(binary("lane_tool"), "records", tmp_path / "other", 1, w.deployed["chain_id"], w.deployed["ledger"], 61,
                    w.lanes[1].start_s).stdout
        assert other
        shutil.copytree(w.lanes[1].dir, tmp_path / "kept")
        good = w.lanes[1].entries
        data, at, fork = (tmp_path / "other" / "spool" / "seg-00000000000000000001.log").read_bytes(), 0, {}
        while at < len(data):
            _, length, seq = struct.unpack_from("<IIQ", data, at)
            fork[seq] = data[at + 20:at + 20 + length]
            at += 20 + length
        first = next(n for n, body in good if fork[n] != body)  # same number, another record, both signed
        with Settle(w) as s:
            w.ship(1, good)
            w.ship(2, w.lanes[2].entries)
            s.wait_final()
            w.redis.command("DEL", "residual:lane:1")
            w.ship(1, [(first, fork[first])])
            s.wait("the lane to stop", lambda t: t["lanes"][0]["stopped"])
            assert s.status()["lanes"][1]["stopped"] is None and s.status()["quarantined"] == 1
            s.wait_epoch()
        done = run(binary("residual-settle"), "resume", 1, "--state-dir", s.state)
        assert "goes on" in done.stdout and s.status()["lanes"][0]["stopped"] is None
        assert run(binary("residual-settle"), "resume", 1, "--state-dir", s.state, check=False).returncode == 1


def test_an_unregistered_lane_waits(world):
    w = world
    stranger = w.lanes[1].dir / "transport.key"
    with Settle(w, "--lane-key", f"7={stranger}") as s:
        w.ship(7, w.lanes[1].entries[:5])
        w.ship_all()
        s.wait("lane 1 final", lambda t: t["lanes"] and t["lanes"][0]["final"] == len(w.lanes[1].entries))
        assert "lane 7 is not registered" in s.tail() and s.status()["lanes"][1]["ingested"] == 0


def test_a_vetoed_epoch_is_paid_by_the_next(tmp_path):
    with World(tmp_path, lanes=(1,), window_s=7) as w:
        w.lanes[1].make(w, 60)
        w.ship_all()
        with Settle(w) as s:
            s.wait("a pending epoch", lambda t: any(e["state"] == "final" for e in t["epochs"]))
            node("""
                import { Contract, JsonRpcProvider, Wallet } from 'ethers';
                import { artifact } from './js/abi.mjs';
                const p = new JsonRpcProvider('%s', undefined, { pollingInterval: 100 });
                const vault = new Contract('%s', artifact('RewardVault').abi, new Wallet('0x%s', p));
                await (await vault.veto(1)).wait();
                p.destroy();""" % (w.rpc_url, w.deployed["vault"], w.key("guardian").read_text()))
            epoch = settled_exactly(w, s)
            assert epoch == 2 and [e["state"] for e in s.status()["epochs"]] == ["active", "vetoed"]
            asked = ["--archive", w.dir / "archive", "--deployment", w.deployment, "--rpc", w.rpc_url]
            assert recompute.main([str(a) for a in asked]) == 0, "the vetoed one is left out by the page, too"


def test_a_dropped_batch_is_committed_again(tmp_path):
    """Final, dropped by the guardian's key (a thief's, here): the same batch with the same hash, under a new nonce."""
    with World(tmp_path, lanes=(1,), wait_s=60) as w:
        w.lanes[1].make(w, 20)
        w.ship_all()
        with Settle(w) as s:
            s.wait_final()
            before = s.status()["batches"][0]
            node("""
                import { Contract, JsonRpcProvider, Wallet, ZeroHash } from 'ethers';
                import { artifact } from './js/abi.mjs';
                const p = new JsonRpcProvider('%s', undefined, { pollingInterval: 100 });
                const ledger = new Contract('%s', artifact('AttributionLedger').abi, new Wallet('0x%s', p));
                const [{ args }] = await ledger.queryFilter('BatchCommitted');
                const h = args.header.toArray(true), lanes = args.lanes.toArray(true);
                await (await ledger.dropBatch(h, lanes, h, ZeroHash)).wait();
                p.destroy();""" % (w.rpc_url, w.deployed["ledger"], w.key("guardian").read_text()))
            s.wait("the batch undone", lambda t: t["batches"][0]["state"] != "final")
            s.wait_final()
            after = s.status()["batches"][0]
        assert len(s.status()["batches"]) == 1 and before["hash"] == after["hash"] and before["tx"] != after["tx"]
        assert [a[3] for a in attempts(s)] == [0, 1] and "is committed again" in s.tail()
    done = run(binary("residual-settle"), "resume", "--batch", 1, "--state-dir", s.state)
    assert "batch 1 goes on" in done.stdout
    assert [x["closed"] for x in s.status()["lanes"]] == [0] and s.status()["batches"] == []
    for words, said in ((["--nonce", 3], "no nonce up to 3 was used"), (["--batch", 1], "batch 1 is not in"), ([], "expected one of LANE")):
        done = run(binary("residual-settle"), "resume", *words, "--state-dir", s.state, check=False)
        assert done.returncode in (1, 2) and said in done.stderr, done


def test_refusals(world):
    w = world
    tool = binary("residual-settle")
    flags = Settle(w).args[1:]
    assert "--batch-count-max" in run(tool, "--help").stdout
    for args, said in (([], "deployment: missing"), (["--nothing", "1"], "unknown flag 'nothing'"), (["dance"], "unknown verb"),
                       (["--batch-count-max", "0"], "expected 1 to 131072"), (["--lane-key", "x"], "expected LANE=FILE"),
                       ([*flags, "--redis-url", "http://x"], "expected redis://"), ([*flags, "--committer-key-file", "/nothing"], "/nothing"),
                       ([*flags, "--funder-key-file", w.key("committer")], "hold the same key"),
                       ([*flags, "--spool-dir", "9=/x"], "lane 9 has no lane_key")):
        done = run(tool, *args, check=False)
        assert done.returncode == 2 and said in done.stderr, (args, done.returncode, done.stderr)
    config = w.dir / "settle.json"
    config.write_text(json.dumps({"poll_ms": "fast"}))
    done = run(tool, "--config", config, check=False)
    assert done.returncode == 2 and "poll_ms: found 'fast'" in done.stderr and "settle.json" in done.stderr
    done = run(tool, "status", "--state-dir", w.dir / "nothing", check=False)
    assert done.returncode == 3 and "no such file" in done.stderr
    done = run(tool, *flags, "--listen", f"127.0.0.1:{w.redis.port}", check=False)
    assert done.returncode == 3 and "in use" in done.stderr
    w.key("committer").chmod(0o644)
    done = run(tool, *flags, check=False)
    assert done.returncode == 2 and "committer.key" in done.stderr
    w.key("committer").chmod(0o600)


def test_another_chain_is_refused(world):
    w = world
    right = w.deployment.read_text()
    for change in ({"chain_id": 5}, {"genesis_hash": "0x" + "11" * 32}, {"vault": "0x" + "22" * 20}, {"code": 1}):
        d = json.loads(right)
        if "code" in change:
            d["code_hash"]["ledger"] = d["code_hash"]["vault"]
        else:
            d.update(change)
        w.deployment.write_text(json.dumps(d))
        s = Settle(w, "--state-dir", w.dir / ("state-" + next(iter(change)))).start()
        s.process.wait(30)
        assert s.process.returncode == 4, (change, s.tail())
    w.deployment.write_text(right.replace("31337", "31338"))
    s.start()
    s.process.wait(30)
    assert s.process.returncode == 4 and "belongs to another deployment" in s.tail()


def attempts(s):
    with sqlite3.connect(f"file:{s.state}/settle.db?mode=ro", uri=True) as db:
        return db.execute("SELECT intent, n, hash, nonce, role FROM attempts JOIN intents ON id = intent ORDER BY intent, n").fetchall()


def test_a_transaction_that_is_not_mined_offers_more(world):
    w = world
    with Settle(w) as s:
        s.wait("the worker", lambda t: t["lanes"])
        w.rpc("evm_setIntervalMining", 0)
        w.ship_all()
        wait_for(lambda: len(attempts(s)) >= 2, 30, 0.3, "a second attempt")
        w.rpc("evm_setIntervalMining", 1)
        settled_exactly(w, s)
        all_of_them = attempts(s)
        assert len({a[2] for a in all_of_them}) == len(all_of_them), "each attempt is another transaction"
        assert all(len({a[3] for a in all_of_them if a[0] == i}) == 1 for i in {a[0] for a in all_of_them}), "of one nonce"
        for role in {a[4] for a in all_of_them}:
            nonces = [a[3] for a in all_of_them if a[1] == 1 and a[4] == role]
            assert nonces == list(range(len(nonces))), f"the {role} leaves no nonce out"


class Node(BaseHTTPRequestHandler):
    """A node as some are: no eth_maxPriorityFeePerGas, no eth_feeHistory, "already known" for what it just took, receipts that are
    indexed later or missing once, a rate limit."""
    protocol_version = "HTTP/1.1"
    behind, seen = None, {}

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        asked = json.loads(body)
        method = asked["method"]
        count = Node.seen[method] = Node.seen.get(method, 0) + 1
        status, headers, fault = 200, {}, None
        answer = json.loads(http(Node.behind, asked, timeout=10)[2])
        if method in ("eth_maxPriorityFeePerGas", "eth_feeHistory"):
            fault = (-32601, "the method does not exist")
        elif method == "eth_sendRawTransaction" and "error" not in answer:
            fault = (-32000, "already known")
        elif method == "eth_getTransactionReceipt" and count % 3 == 1:
            fault = (-32000, "transaction indexing is in progress")
        elif method == "eth_getTransactionReceipt" and count % 3 == 2:
            answer["result"] = None
        elif method == "eth_chainId" and count == 1:
            status, headers, fault = 429, {"Retry-After": "1"}, (-32005, "rate limit")
        if fault:
            answer = {"jsonrpc": "2.0", "id": asked["id"], "error": {"code": fault[0], "message": fault[1]}}
        answer["id"] = str(answer["id"])  # as one proxy does
        out = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Type": "application/json", "Content-Length": str(len(out))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(out)

    def log_message(self, *_):
        pass


def test_the_normal_variance_of_a_node(world):
    w = world
    Node.behind, Node.seen = w.rpc_url, {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Node)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        w.ship_all()
        with Settle(w, rpc=[f"http://127.0.0.1:{server.server_port}"]) as s:
            settled_exactly(w, s)
    finally:
        server.shutdown()
    assert Node.seen["eth_gasPrice"] and Node.seen["eth_getTransactionByHash"]


def two(w):
    """The chain under two names: endpoints that must agree."""
    return [w.rpc_url, w.rpc_url.replace("127.0.0.1", "localhost")]


@pytest.mark.skipif(not FULL, reason="RS_FULL=1: two minutes; test_sender has the same on a simulated chain")
def test_a_reorganisation_below_finalized(world):
    """Batches and an epoch that were final are gone: said, undone, and done again, each once."""
    w, start = world, int(world.rpc("eth_blockNumber"), 16)
    w.ship_all()
    with Settle(w, rpc=two(w)) as s:
        settled_exactly(w, s)
        before = s.status()
        w.rpc("anvil_reorg", int(w.rpc("eth_blockNumber"), 16) - start, [])
        s.wait("what was final undone", lambda t: not any(b["state"] == "final" for b in t["batches"]))
        settled_exactly(w, s)
        after = s.status()
    assert [b["hash"] for b in before["batches"]] == [b["hash"] for b in after["batches"]]
    assert "a reorganisation below `finalized`" in s.log.read_text()
    w.recompute()


def test_a_reorganised_block_is_sent_again(world):
    w = world
    half = len(w.lanes[1].entries) // 2
    with Settle(w, rpc=two(w)) as s:
        w.ship(1, w.lanes[1].entries[:half])
        s.wait("a mined batch", lambda t: any(b["state"] == "included" for b in t["batches"]))
        w.rpc("anvil_reorg", 1, [])
        w.ship(1, w.lanes[1].entries[half:])
        settled_exactly(w, s)
    w.recompute()

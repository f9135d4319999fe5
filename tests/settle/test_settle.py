"""Records in Redis become batches on the ledger, batches an epoch in the vault, and the epoch a payment; the audit agrees with it and
with nothing that differs by one byte."""
import json
import random
import shutil
import sys
from pathlib import Path

import recompute
from world import FULL, run, binary
from server import http


def test_batches_cover_every_record_once(settled):
    w, s, _ = settled
    status = s.status()
    assert {x["lane"]: x["ingested"] for x in status["lanes"]} == {n: len(lane.entries) for n, lane in w.lanes.items()}
    assert sum(b["records"] for b in status["batches"]) == sum(len(lane.entries) for lane in w.lanes.values())
    assert all(b["records"] <= 200 for b in status["batches"]) and len(status["batches"]) >= 4
    assert int(status["batches"][0]["cum_fee"]) == sum(lane.fees for lane in w.lanes.values())
    assert all(int(b["tx"], 16) for b in status["batches"]), "each names its transaction"
    assert status["quarantined"] == 0 and status["waiting"] == 0 and status["in_flight"] == 0


def test_another_implementation_finds_the_same_roots(settled):
    w, s, epoch = settled
    out = w.recompute()
    assert out[-1]["epoch"] >= epoch and int(out[-1]["total"]) == sum(lane.fees for lane in w.lanes.values())
    assert sum(e["inferences"] for e in out) == 500
    assert sum(e["missing"] for e in out) > 0, "some were never scored, or lost their inputs"
    assert sum(e["refused"] for e in out) == 0


def test_audit_is_right(settled):
    w, _, epoch = settled
    code, report = w.audit("epoch", epoch)
    assert code == 0, report
    assert report["inferences"] == 500 and report["records"] == sum(len(lane.entries) for lane in w.lanes.values())
    assert report["required"] == report["scored"] + len(report["missing"]) and report["missing"]
    assert int(report["total"]) == int(report["fee_sum"]) == sum(lane.fees for lane in w.lanes.values())
    assert all(m["lane"] in (1, 2) and int(m["fee"]) > 0 for m in report["missing"])
    code, report = w.audit("batch", 2)
    assert code == 0 and report["batches"] == 1, report
    assert w.audit("epoch", 1000)[0] == 2 and w.audit("batch", 1000)[0] == 2


def test_the_page_is_enough(settled, tmp_path, capsys):
    """recompute.py, written from chain_client/SPEC.md alone, agrees with what was published, and names the file of any changed byte."""
    w, _, epoch = settled
    archive, asked = tmp_path / "archive", [str(a) for a in ("--deployment", w.deployment, "--rpc", w.rpc_url)]
    assert recompute.main(["--archive", str(w.dir / "archive"), *asked, "--epoch", str(epoch)]) == 0, capsys.readouterr().out
    said = capsys.readouterr().out
    assert f"signatures: {sum(len(lane.entries) for lane in w.lanes.values())} checks" in said and "DIFFERS" not in said, said

    shutil.copytree(w.dir / "archive", archive)
    chain, batch, paid = recompute.Chain(w.rpc_url, w.deployed), "batch-00000001", f"epoch-{epoch:08}"
    records, accounts = ((archive / name).read_bytes() for name in (f"{batch}/records.bin", f"{paid}/accounts.json"))
    first = 4 + int.from_bytes(records[:4], "big")  # where the second record's length stands
    changes = [(f"{batch}/records.bin", at, text) for at, text in (
        (0, "says"), (4, "spec"), (4 + 200, "paramsHash"), (4 + 142, "formula"), (4 + 46, "is signed by"), (first - 65, "is signed by"),
        (first - 1, "is signed by"), (len(records) - 1, "is signed by"))]
    changes += [(f"{batch}/header.json", 14, "byte 14"), (f"{batch}/manifest.json", 14, "byte 14"),
                ("batch-00000002/manifest.json", -1, "its keccak"), ("epoch-00000001/accounts.json", -1, "recomputed"),
                (f"{paid}/accounts.json", accounts.index(b'"cumulative":"') + 14, "recomputed"),
                (f"{paid}/missing.json", 3, "byte 3"), (f"{paid}/snapshot.json", 40, "byte 40"), (f"{paid}/manifest.json", 60, "byte 60")]
    for name, at, text in changes:
        good = (archive / name).read_bytes()
        bad = bytearray(good)
        bad[at] ^= 1
        (archive / name).write_bytes(bad)
        report = recompute.recompute(chain, archive, *((None, epoch) if "epoch" in name else (2, None)))
        wrong = [line for _, lines in report.groups.values() for line in lines]
        assert report.print() == 1 and all(line.startswith(name) for line in wrong), (name, at, wrong)
        assert any(text in line for line in wrong), (name, at, wrong)
        (archive / name).write_bytes(good)
    (archive / f"{batch}/header.json").unlink()
    done = run(sys.executable, Path(recompute.__file__), "--archive", archive, *asked, "--batch", 1, check=False)
    assert done.returncode == 1 and f"{batch}/header.json: is missing" in done.stdout, done.stdout


def test_claim_pays_what_was_earned(settled):
    w, s, _ = settled
    accounts = [w.names["p0"], w.names["p1"], w.names["operator1"]]
    first = w.claim(s, *accounts)
    for c in first:
        assert int(c["paid"]) == int(c["cumulative"]) > 0 and c["claimed_before"] == "0", c
    status, _, body = http(f"{s.url}/v1/rewards/{accounts[0]}")
    assert status == 200 and b'"claimed":"%s"' % first[0]["cumulative"].encode() in body
    assert http(f"{s.url}/v1/rewards/0x{'77' * 20}")[0] == 404
    assert http(f"{s.url}/v1/rewards/nobody")[0] == 400


def test_http(settled):
    _, s, _ = settled
    assert http(s.url + "/health")[0] == 200
    metrics = http(s.url + "/metrics")[2].decode()
    assert "residual_settle_lag_seconds 0" in metrics and 'stage="final"' in metrics
    assert http(s.url + "/v1/batches")[0] == 200 and http(s.url + "/v1/epochs")[0] == 200 and http(s.url + "/nothing")[0] == 404


def test_a_second_worker_is_refused(settled):
    _, s, _ = settled
    done = run(*s.args[:-2], check=False)
    assert done.returncode == 5 and "another residual-settle" in done.stderr


def published(archive):
    return sorted(p for p in archive.rglob("*") if p.is_file())


def test_audit_finds_any_changed_byte(settled, tmp_path):
    w, _, epoch = settled
    rng, archive = random.Random(20), tmp_path / "archive"
    shutil.copytree(w.dir / "archive", archive)
    last = max(e["batch_evidence"] for e in w_status(w)["epochs"] if e["epoch"] <= epoch)
    for path in published(archive):
        kind, number = path.parent.name.split("-")
        if int(number) > (last if kind == "batch" else epoch):
            continue
        good = path.read_bytes()
        places = {0, len(good) - 1} | {rng.randrange(len(good)) for _ in range(8)} if FULL else {rng.randrange(len(good))}
        for at in places:
            bad = bytearray(good)
            bad[at] ^= 1 << rng.randrange(8)
            path.write_bytes(bad)
            code, report = w.audit("epoch", epoch, archive)
            assert code == 1, f"{path.relative_to(archive)} byte {at}: {report}"
        for bad in (good[:-1], good + b"\n", b"") if FULL else (good[:-1],):
            path.write_bytes(bad)
            assert w.audit("epoch", epoch, archive)[0] == 1, f"{path.relative_to(archive)}: {len(bad)} bytes"
        if FULL:
            path.unlink()
            assert w.audit("epoch", epoch, archive)[0] == 1, f"{path.relative_to(archive)}: gone"
        path.write_bytes(good)
    assert w.audit("epoch", epoch, archive)[0] == 0


def w_status(w):
    return json.loads(run(binary("residual-settle"), "status", "--json", "--state-dir", w.dir / "state").stdout)

"""What the Registry does not say: an epoch whose owners' list is nowhere waits and says so, a wrong list is no list, and a lane that charges
what nobody registered pays the treasury."""
import json
import shutil

import recompute
from world import Guard, Settle, World, binary, http, run


def test_owners_that_are_nowhere_and_a_tariff_that_nobody_registered(tmp_path, capsys):
    with World(tmp_path, lanes=(1, 2), untariffed=(2,)) as w:
        for n in (1, 2):
            w.lanes[n].make(w, 12)
        w.ship_all()
        shutil.move(w.owners_dir, tmp_path / "aside")
        w.owners_dir.mkdir()
        lists = sorted(p.name for p in (tmp_path / "aside").iterdir())

        def said(status, kind, number=None):
            return next((t["said"] for t in status.get("troubles", []) if t["kind"] == kind and number in (None, t["number"])), None)
        with Settle(w, attested=False) as s:
            text = s.wait("the epoch to miss its owners", lambda t: said(t, "owners"))
            assert "--owners-dir" in text and "--refetch-url" in text and "datanet 0x" in text, text
            assert b'residual_settle_trouble{kind="owners"} 1' in http(s.url + "/metrics")[2] and http(s.url + "/health")[0] == 503
            early = s.wait("the lane to be told of before its epoch is computed", lambda t: said(t, "refused_tariff", 2))
            assert "batch 1: 12 of 12" in early, early
            for name in lists:
                wrong = json.loads((tmp_path / "aside" / name).read_text())
                wrong["owners"][0]["owner"] = "0x" + "00" * 19 + "01"
                (w.owners_dir / name).write_text(json.dumps(wrong))
            assert s.wait("a wrong list to be told", lambda t: "the registry's root" in (said(t, "owners") or ""))
            for name in lists[1:]:
                shutil.copy(tmp_path / "aside" / name, w.owners_dir / name)
            wrong = json.loads((tmp_path / "aside" / lists[0]).read_text())
            (w.owners_dir / lists[0]).write_text(json.dumps({**wrong, "owners": []}))  # a person says: nobody has it any more
            s.wait("a candidate", lambda t: any(e["state"] == "computed" for e in t["epochs"]))
            easy = "--missing-max-ppm", 1000000, "--faults-max", 1000
            status, why = Guard(w, "attest", "second", s, *easy).once()
            assert status == 6 and "lacks the owners of 1 datanet versions" in why and "--owners-absent" in why, why
            with Guard(w, "attest", "attestor", s, *easy, "--owners-absent"):
                epoch = s.wait_epoch()
            text = s.wait("the lane to be told", lambda t: "epoch" in (said(t, "refused_tariff", 2) or "") and said(t, "refused_tariff", 2))
            assert "12 of 12" in text and "setTariff" in text and not said(s.status(), "refused_tariff", 1) and not said(s.status(), "owners"), text
        fees = w.lanes[2].fees
        archive = w.dir / "archive"
        refused = [r for e in range(1, epoch + 1) for r in json.loads((archive / f"epoch-{e:08}" / "refused.json").read_text())["refused"]]
        assert [(r["lane"], r["reason"]) for r in refused] == [(2, 1)] * 12 and sum(int(r["fee"]) for r in refused) == fees
        accounts = {a["account"]: int(a["cumulative"]) for a in json.loads((archive / f"epoch-{epoch:08}" / "accounts.json").read_text())["accounts"]}
        assert accounts["0x" + "ee" * 20] >= fees and w.names["operator2"].lower() not in accounts
        code, report = w.audit("epoch", epoch)
        absent = [f for f in report["findings"] if "lacks the owners" in f]
        unpaid = [f for f in report["findings"] if "owns no document" in f]
        assert len(absent) == 1 and lists[0].split("-")[1] in absent[0] and unpaid, report["findings"]
        assert code == 1 and report["fault_count"] == report["finding_count"] == 12 + 1 + len(unpaid) and int(report["fee_refused"]) == fees, report
        told = run(binary("residual"), "audit", "epoch", epoch, "--archive", archive, "--rpc", w.rpc_url, "--deployment", w.deployment, check=False)
        assert told.returncode == 1 and "refused for their tariff: 12" in told.stdout and "faults of what lanes signed" in told.stdout, told.stdout
        where = ["--archive", str(archive), "--deployment", str(w.deployment), "--rpc", w.rpc_url]
        assert recompute.main([*where, "--epoch", str(epoch)]) == 1
        said_ = capsys.readouterr().out
        assert "DIFFERS" not in said_ and said_.count("its tariff was not the registered one") == 12, said_

#!/usr/bin/env python3
"""What a record costs an audit: a settled world of two lanes, read back by the audit library, in processor time of all its threads.

    tests/bench/audit.py [--inferences 25000]      wants build/release (tests/run build)"""
import argparse
import resource
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "settle"))
from world import Settle, World  # noqa: E402


def spent():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--inferences", type=int, default=25000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rs-audit-") as folder, World(folder) as w:
        w.lanes[1].make(w, args.inferences * 4 // 5)
        w.lanes[2].make(w, args.inferences // 5)
        with Settle(w, "--batch-count-max", 65536, "--batch-seconds-max", 12, "--epoch-seconds", 5) as s:
            w.ship_all()
            s.wait_final(240)
            epoch = s.wait_epoch(240)
        for what, number in (("batch", 1), ("epoch", epoch)):
            before = spent()
            code, report = w.audit(what, number)
            took = spent() - before
            assert code == 0, report
            print(f"audit of {what} {number}: {report['records']} records, {took:.2f} s of processor time, {report['records'] / took:.0f} records/s a core")


if __name__ == "__main__":
    main()

"""A hundred random epochs, each computed by recompute.py from SPEC.md alone and judged by the C audit: figures, files, roots and faults are
the same. And what both must refuse: twenty corruptions of an archive, and of a chain that committed to them."""
import json
import re
import shutil

import fake_node
import pytest
import recompute
from random_world import LocalChain, World
from world import binary, run


@pytest.fixture(scope="module")
def server():
    s = fake_node.serve()
    yield s
    s.shutdown()


def c_audit(server, world, folder, epoch):
    """(exit code, report) of the C audit."""
    server.node = world.node
    deployment = world.dir.parent / f"{world.dir.name}.json"
    deployment.write_text(json.dumps(world.node.deployment()))
    done = run(binary("audit_tool"), folder, server.url, deployment, "epoch", epoch, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout)


def faulty(lines):
    """The records, and the owners' lists, that lines of text call faulty."""
    return {re.search(r"lane (\d+) seq (\d+)|owners of datanet (\w+) version (\d+)", line).groups() for line in lines}


def settle(folder, seed):
    """A world of six batches, and its epochs: (world, numbers of those that live)."""
    w = World(folder, seed)
    for _ in range(6):
        w.commit(9)
    if seed % 4 == 1:
        w.start_at(1 + seed % 3)
    w.begin_epochs()
    paid = w.node.start_seq
    while paid < 6:
        m = paid + 1 if seed % 5 else min(6, paid + 2)
        if w.rng.randrange(5) == 0:
            w.propose(m, min(6, m + w.rng.randrange(3)), veto=True)
        w.propose(m, min(6, m + w.rng.randrange(3)))
        paid = m
    return w, [e for e, v in w.node.epochs.items() if not v["disabled"]]


def test_a_hundred_random_epochs(server, tmp_path):
    seen, count, seed = {}, 0, 0
    while count < 100:
        w, epochs = settle(tmp_path / f"world-{seed}", seed)
        count, seed = count + len(epochs), seed + 1
        mine = recompute.recompute(LocalChain(w.node), w.dir, epoch=epochs[-1])
        wrong = [line for _, lines in mine.groups.values() for line in lines]
        assert not wrong, wrong
        code, report = c_audit(server, w, w.dir, epochs[-1])
        assert report["finding_count"] == report["fault_count"], f"seed {seed - 1}: {report['findings']}"
        assert code == (1 if mine.faults else 0) and report["epochs"] == len(epochs)
        assert report["fault_count"] > 64 or faulty(report["findings"]) == faulty(mine.faults), f"seed {seed - 1}"
        assert int(report["total"]) == w.node.epochs[epochs[-1]]["total"]
        for key in ("refused", "missing", "scored", "voids", "epochs_vetoed"):
            seen[key] = seen.get(key, 0) + (len(report[key]) if isinstance(report[key], list) else report[key])
        for key, is_there in (("erc20", any(w.node.token)), ("start", w.node.start_seq), ("beacon", '"beacon_block":0' not in texts(w, "snapshot")),
                              ("parents", '"parents":[{' in texts(w, "snapshot")), ("payee", any("owns no document" in f for f in mine.faults)),
                              ("method", any("method" in f for f in mine.faults)), ("absent", any("lacks the owners" in f for f in mine.faults))):
            seen[key] = seen.get(key, 0) + bool(is_there)
    print(f"{count} epochs of {seed} worlds: {seen}")
    assert all(seen.values()), seen


def texts(w, name):
    return "".join(p.read_text() for p in sorted(w.dir.glob(f"epoch-*/{name}.json")))


# ---- what must be refused ----

def edit(name, old, new):
    """A change of one published file: the first place that holds old."""
    def change(w, folder):
        path = next(p for p in sorted(folder.glob(name)) if re.search(old, p.read_bytes(), re.S))
        path.write_bytes(re.sub(old, new, path.read_bytes(), count=1, flags=re.S))
    return change


def records(change):
    """Another records.bin of batch 1."""
    def write(w, folder):
        path = folder / "batch-00000001" / "records.bin"
        data, out = path.read_bytes(), []
        while data:
            size = int.from_bytes(data[:4], "big")
            out.append(data[4:4 + size])
            data = data[4 + size:]
        path.write_bytes(b"".join(len(b).to_bytes(4, "big") + b for b in change(w, out)))
    return write


def flip(body, at):
    return body[:at] + bytes([body[at] ^ 1]) + body[at + 1:]


def drop(name):
    return lambda w, folder: (folder / name).unlink()


def swap_amounts(w, folder):
    """Two accounts change places: the sum stays."""
    path = folder / "epoch-00000001" / "accounts.json"
    a = json.loads(path.read_text())
    first, second = a["accounts"][0], a["accounts"][-1]
    first["cumulative"], second["cumulative"] = second["cumulative"], first["cumulative"]
    path.write_bytes(recompute.canonical(a))


class Lenient(recompute.Audit):
    """A publisher with other rules: its epochs are on the chain, and its archive is consistent."""


class ChargesAnything(Lenient):
    def refused(self, r):
        return False


class PaysAnybody(Lenient):
    def owns(self, payee, id_, t0, owners):
        return True


class ForgetsParents(Lenient):
    def reward(self, answers, required, refused, snapshot):
        return super().reward(answers, required, refused, {**snapshot, "adapters": [{**a, "parents": []} for a in snapshot["adapters"]]})


class NamesAnHour(Lenient):
    @staticmethod
    def named(entry_at, t0):
        return [entry_at(at) for at in range(max(0, t0 - 3600), t0 + 1, 50)] + recompute.Audit.named(entry_at, t0)


class ScoresNothing(Lenient):
    def evidence(self, attributions, owners, snapshot):
        return {}


class TakesTheFees(Lenient):
    def reward(self, answers, required, refused, snapshot):
        return {recompute.keccak(b"thief")[:20]: sum(r.fee for r in answers)}


def lower_total(w, folder):
    w.node.epochs[1]["total"] -= 1


def other_root(w, folder):
    w.node.epochs[1]["root"] = recompute.keccak(b"other")


def other_batch(w, folder):
    w.node.batch_hash[2] = recompute.keccak(b"other")


FILES = {
    "a fee": records(lambda w, b: [flip(b[0], 165), *b[1:]]),
    "a signature": records(lambda w, b: [flip(b[0], len(b[0]) - 10), *b[1:]]),
    "a record left out": records(lambda w, b: b[1:]),
    "a record twice": records(lambda w, b: [b[0], *b]),
    "two records changed places": records(lambda w, b: [b[1], b[0], *b[2:]]),
    "a digest that an attribution names": records(lambda w, b: [flip(x, 30) if x[1] == 2 else x for x in b]),
    "a header's closing time": edit("batch-*/header.json", rb'"closed_at":1', rb'"closed_at":2'),
    "a batch's count": edit("batch-*/manifest.json", rb'"record_count":', rb'"record_count":1'),
    "no records": drop("batch-00000002/records.bin"),
    "amounts that changed places": swap_amounts,
    "an account more": edit("epoch-00000001/accounts.json", rb'"accounts":\[', b'"accounts":[{"account":"0x' + b"00" * 19 + b'01","cumulative":"1"},'),
    "a missing answer left out": edit("epoch-*/missing.json", rb'\[\{[^}]*\},?', rb'['),
    "a refused answer left out": edit("epoch-*/refused.json", rb'\[\{[^}]*\},?', rb'['),
    "an owner": edit("epoch-*/owners.json", rb'"owner":"0x..', rb'"owner":"0xff'),
    "an owner's documents": edit("epoch-*/owners.json", rb'"documents":', rb'"documents":1'),
    "a price": edit("epoch-*/snapshot.json", rb'"price_in":"', rb'"price_in":"1'),
    "a parent's share": edit("epoch-*/snapshot.json", rb'"parents":\[\{"bps":', rb'"parents":[{"bps":1'),
    "a beacon": edit("epoch-*/snapshot.json", rb'"mix_hash":"0x(?!0{64})..', rb'"mix_hash":"0xff'),
    "an epoch's manifest": edit("epoch-00000001/manifest.json", rb'"required":\{"count":', rb'"required":{"count":1'),
    "no owners": drop("epoch-00000001/owners.json")}
CHAIN = {"a lower total": lower_total, "another root": other_root, "another batch": other_batch}
RULES = {c.__name__: c for c in Lenient.__subclasses__()}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A world that has every kind of thing to corrupt."""
    folder = tmp_path_factory.mktemp("small")
    for seed in range(200, 260):
        w, epochs = settle(folder / str(seed), seed)
        text = texts(w, "snapshot")
        if ('"missing":[{' in texts(w, "missing") and '"refused":[{' in texts(w, "refused") and '"parents":[{' in text and '"owner":' in texts(w, "owners")
                and re.search('"mix_hash":"0x(?!0{64})', text) and not w.node.start_seq and (w.dir / "epoch-00000001").exists()):
            return w, epochs[-1]
    raise AssertionError("no seed has it all")


@pytest.mark.parametrize("name", [*FILES, *CHAIN])
def test_a_corruption_is_refused(server, small, tmp_path, name):
    w, last = small
    folder, kept = tmp_path / "archive", {k: dict(v) if isinstance(v, dict) else v for k, v in vars(w.node).items()}
    shutil.copytree(w.dir, folder)
    w.node.epochs = {e: dict(v) for e, v in w.node.epochs.items()}
    (FILES.get(name) or CHAIN[name])(w, folder)
    try:
        mine = recompute.recompute(LocalChain(w.node), folder, epoch=last)
        assert [line for _, lines in mine.groups.values() for line in lines], f"recompute.py does not see {name}"
        code, report = c_audit(server, w, folder, last)
        assert code == 1 and report["finding_count"] > report["fault_count"], f"the audit does not see {name}"
    finally:
        vars(w.node).update(kept)


@pytest.mark.parametrize("name", RULES)
def test_another_rule_is_refused(server, tmp_path, name):
    """Epochs that follow another rule than the page's, on the chain and in the archive: both see it, where it makes a difference at all."""
    for seed in range(300, 330):
        w = World(tmp_path / str(seed), seed)
        for _ in range(2):
            w.commit(14)
        w.begin_epochs(RULES[name])
        honest = recompute.Audit(LocalChain(w.node), w.dir)
        assert all(honest.check_batch(seq) for seq in (1, 2))
        if not w.propose(2, 2):
            continue
        made = honest.make_epoch(1, 0, 2, 2, w.shown)
        if made["root"] == w.node.epochs[1]["root"]:
            continue
        mine = recompute.recompute(LocalChain(w.node), w.dir, epoch=1)
        assert [line for _, lines in mine.groups.values() for line in lines], "recompute.py sees nothing"
        code, report = c_audit(server, w, w.dir, 1)
        assert code == 1 and report["finding_count"] > report["fault_count"], report["findings"]
        return
    raise AssertionError("no seed tells the rules apart")

"""Against a running server, chain and settlement worker: publish, register, verify receipts, claim, audit."""
import json
import shutil
import subprocess
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import openai
import pytest
from conftest import DEMO, binary, residual, wait_for

QUESTION = json.loads((DEMO / "facts.json").read_text())["demoQuestions"][0]


def server(w, key="api_key"):
    return ["--server", w.server.url, "--api-key-file", getattr(w, key)]


def test_a_server_checks_without_keeping(world):
    folder, _ = world.adapter("amber-coast", "amber")
    here = residual("adapter", "check", folder, "--model", DEMO / "base", "--json")
    there = residual("adapter", "check", folder, *server(world), "--json")
    assert there.code == 0 and there.json["dry_run"] and there.json["id"] == here.json["id"], there
    assert residual("adapter", "list", *server(world), "--json").json["count"] == 0
    bad = world.folder / "bad"
    shutil.copytree(folder, bad)
    (bad / "adapter_model.safetensors").write_bytes(b"\0" * 100)
    refused = residual("adapter", "check", bad, *server(world), "--json")
    assert refused.code == 1 and "adapter_model.safetensors" in refused.json["reason"], refused
    assert residual("adapter", "check", folder, *server(world, "infer_key")).code == 5
    denied = residual("adapter", "list", "--server", world.server.url)
    assert denied.code == 5 and "--api-key-file" in denied.err, denied


def test_publish_registers_first_then_uploads(world):
    folder, key = world.adapter(QUESTION["model"], "published")
    done = world.publish(folder, "coast", key, *world.on_chain(), "--json")
    assert done.code == 0 and done.json["registered"] and done.json["transactions"] == 3, done
    adapter_id = done.json["report"]["id"]
    manifest = done.json["manifest"]
    owner, _, _, version, model, datanet, *_ = world.chain.call(world.chain.at["registry"], "adapters(bytes32)", adapter_id)
    assert owner[24:] == manifest["owner"][2:].lower() and int(version, 16) == 1 and "0x" + model == world.model_id
    assert "0x" + datanet == manifest["datanetId"] and all("file" not in d for d in manifest["documents"])
    mine = [d for d in manifest["documents"] if d["owner"] == manifest["owner"]]
    assert all(len(d["ownerSignature"]) == 132 for d in mine)
    root = json.loads((folder / "training.json").read_text())["documentRoot"]
    held = world.get(f"/v1/datanets/{root}")
    assert done.json["report"]["training"] and held["missing"] == 0 and held["datanet"] == manifest["datanetId"], held
    listed = residual("adapter", "list", *server(world), "--json").json
    assert [a["name"] for a in listed["data"]] == ["coast"] and listed["data"][0]["published"]
    assert "coast" in residual("adapter", "list", *server(world)).out
    world.registered("coast")
    shown = residual("adapter", "show", "coast", *server(world), "--json").json
    assert shown["datanet"]["version"] == 1 and shown["datanet"]["owners_known"] and len(shown["contributors"]) == 4
    assert "0x" + shown["id"].removeprefix("0x") == adapter_id and shown["owner"].lower() == manifest["owner"].lower()
    # once more: everything is there already
    again = world.publish(folder, "coast", key, *world.on_chain(), "--json")
    assert again.code == 0 and again.json["transactions"] == 0, again


def test_an_update_needs_a_rising_version(world):
    folder, key = world.adapter("birch-vale", "updated")
    first = world.publish(folder, "vale", key, *world.on_chain(), "--json")
    assert first.code == 0, first
    facts = json.loads((folder / "publish.json").read_text())
    facts["pricesPer1000Tokens"]["out"] = "7000000000000"
    (folder / "publish.json").write_text(json.dumps(facts))
    refused = world.publish(folder, "vale", key, *world.on_chain())
    assert refused.code == 5 and "version" in refused.err, refused
    facts["version"] = 2
    (folder / "publish.json").write_text(json.dumps(facts))
    done = world.publish(folder, "vale", key, *world.on_chain(), "--json")
    assert done.code == 0 and done.json["transactions"] == 1, done
    version = world.chain.call(world.chain.at["registry"], "adapters(bytes32)", done.json["report"]["id"])[3]
    assert int(version, 16) == 2
    world.registered("vale", lambda a: a["price_per_1000_tokens"]["out"] == "7000000000000")
    # other documents under the registered version of the datanet
    datanet = json.loads((folder / "datanet.json").read_text())
    datanet["documents"].pop()
    (folder / "datanet.json").write_text(json.dumps(datanet))
    (folder / "training.json").unlink()
    refused = world.publish(folder, "vale", key, *world.on_chain())
    assert refused.code == 5 and "datanet.json" in refused.err, refused


def test_a_killed_registration_goes_on(world):
    """Of an adapter that names a datanet of somebody else, who consents."""
    folder, lenders_key = world.adapter("elm-reach", "elm")
    lender, key = world.folder / "published", world.chain.keys["operator"]
    facts = {**json.loads((folder / "publish.json").read_text()), "owner": world.chain.address["operator"]}
    (folder / "publish.json").write_text(json.dumps(facts))
    net = json.loads((lender / "datanet.json").read_text())
    (folder / "datanet.json").write_text(json.dumps({k: v for k, v in net.items() if k != "file"}))
    shutil.copytree(lender / "documents", folder / "documents", dirs_exist_ok=True)
    named = ["--datanet-id", net["datanetId"]]
    other = world.publish(folder, "reach", key, *world.on_chain(), *named)
    assert other.code == 2 and "training.json" in other.err, other  # of rows that this datanet has not
    (folder / "training.json").unlink()
    alone = world.publish(folder, "reach", key, *world.on_chain(), *named)
    assert alone.code == 5 and "residual datanet consent" in alone.err, alone
    id = residual("adapter", "check", folder, "--model", DEMO / "base", "--json").json["id"]
    consent = residual("datanet", "consent", id, 1, *named, "--owner-key-file", lenders_key, "--deployment", world.chain.file, "--json").json
    (folder / "publish.json").write_text(json.dumps({**facts, "datanetConsent": consent["datanetConsent"]}))
    words = [binary("residual"), "adapter", "publish", folder, *server(world), "--name", "reach", "--owner-key-file", key, "--publisher-key-file",
             world.publisher_key, "--deployment", world.chain.file, *world.on_chain(), *named]
    first = subprocess.Popen([str(w) for w in words], stderr=subprocess.PIPE, text=True)
    for line in first.stderr:
        if "waiting" in line:  # committed, not registered
            break
    first.kill()
    first.wait()
    assert residual("adapter", "show", "reach", *server(world)).code == 4  # nothing was uploaded
    done = world.publish(folder, "reach", key, *world.on_chain(), *named, "--json")
    assert done.code == 0 and done.json["transactions"] == 1, done  # the old commitment served
    assert not done.json["report"]["training"]
    assert "no training manifest" in world.publish(folder, "reach", key, *world.on_chain(), *named).out


def test_bad_publishing_is_refused_before_anything_happens(world):
    folder, key = world.adapter("cinder-hills", "cinder")
    before = residual("adapter", "list", *server(world), "--json").json["count"]
    wrong_owner = world.publish(folder, "hills", world.chain.keys["stranger"], *world.on_chain())
    assert wrong_owner.code == 5 and "owner is 0x" in wrong_owner.err, wrong_owner
    no_model = world.publish(folder, "hills", key, "--rpc", world.chain.url)
    assert no_model.code == 2 and "--model" in no_model.err, no_model
    bad_name = world.publish(folder, "hi lls", key)
    assert bad_name.code == 2 and "adapter name" in bad_name.err, bad_name
    no_keys = residual("adapter", "publish", folder, *server(world), "--name", "hills")
    assert no_keys.code == 2 and "--owner-key-file" in no_keys.err, no_keys
    key_as_publisher = residual("adapter", "publish", folder, *server(world), "--name", "hills", "--owner-key-file", key, "--publisher-key-file", key)
    assert key_as_publisher.code == 2 and "publisher key" in key_as_publisher.err, key_as_publisher
    unbound = residual("adapter", "publish", folder, *server(world), "--name", "hills", "--owner-key-file", key,
                       "--publisher-key-file", world.publisher_key)
    assert unbound.code == 2 and "chain" in unbound.err, unbound
    datanet = json.loads((folder / "datanet.json").read_text())
    del next(d for d in datanet["documents"] if d["owner"] != world.people[json.loads((folder / "publish.json").read_text())["owner"].lower()]["address"])["ownerSignature"]
    signed = (folder / "datanet.json").read_text()
    (folder / "datanet.json").write_text(json.dumps(datanet))
    unsigned = world.publish(folder, "hills", key, *world.on_chain())
    assert unsigned.code == 5 and "1 documents lack their owner's signature" in unsigned.err and "residual datanet sign" in unsigned.err, unsigned
    stranger = residual("datanet", "sign", folder, "--owner-key-file", world.chain.keys["stranger"], "--deployment", world.chain.file)
    assert stranger.code == 4 and "no document is owned by" in stranger.err, stranger
    (folder / "datanet.json").write_text(signed)
    facts = json.loads((folder / "publish.json").read_text())
    facts["split"][0]["bps"] += 1
    (folder / "publish.json").write_text(json.dumps(facts))
    bad_split = world.publish(folder, "hills", key, *world.on_chain())
    assert bad_split.code == 2 and "10001" in bad_split.err, bad_split
    assert residual("adapter", "list", *server(world), "--json").json["count"] == before


def test_a_snapshot_of_the_hub_cache_is_published(world, tmp_path):
    folder, _ = world.adapter("amber-coast", "amber")
    repo = tmp_path / "models--org--amber"
    snapshot = repo / "snapshots" / "0f1e"
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    for i, name in enumerate(("adapter_config.json", "adapter_model.safetensors")):
        (repo / "blobs" / str(i)).write_bytes((folder / name).read_bytes())
        (snapshot / name).symlink_to(f"../../blobs/{i}")
    done = residual("adapter", "publish", snapshot, *server(world), "--name", "amber", "--without-owner", "--json")
    assert done.code == 0 and done.json["manifest"] is None, done
    assert done.json["report"]["id"] == residual("adapter", "check", folder, "--model", DEMO / "base", "--json").json["id"]
    (snapshot / "adapter_config.json").unlink()
    (snapshot / "adapter_config.json").symlink_to(folder / "adapter_config.json")
    out = residual("adapter", "publish", snapshot, *server(world), "--name", "amber-2", "--without-owner")
    assert out.code == 5 and "symbolic link" in out.err, out
    assert residual("adapter", "delete", "amber", *server(world)).code == 0


def test_publish_without_a_chain_node_and_delete(world):
    folder, key = world.adapter("dusk-marsh", "marsh")
    done = world.publish(folder, "marsh", key, "--json")  # signed for the chain, registered by someone else
    assert done.code == 0 and not done.json["registered"] and done.json["manifest"]["chainId"] == 31337, done
    signed = world.folder / "signed.json"
    signed.write_text(json.dumps(done.json["manifest"]))
    as_it_is = residual("adapter", "publish", folder, *server(world), "--name", "marsh-2", "--manifest", signed)
    assert as_it_is.code == 0, as_it_is
    assert done.json["pays_data"] and "warning" not in done.err
    facts = json.loads((folder / "publish.json").read_text())
    unfair = folder / "unfair.json"
    unfair.write_text(json.dumps({**facts, "version": 2, "split": [{"payee": facts["owner"], "role": "owner", "bps": 10000}]}))
    told = world.publish(folder, "marsh-2", key, "--manifest", unfair)
    assert told.code == 0 and "no share for data" in told.err, told
    broken = {**done.json["manifest"], "prices": {"in": "1", "out": "2"}}
    signed.write_text(json.dumps(broken))
    refused = residual("adapter", "publish", folder, *server(world), "--name", "marsh-3", "--manifest", signed)
    assert refused.code == 5 and "ignature" in refused.err, refused
    plain = world.folder / "plain"
    shutil.copytree(folder, plain)
    (plain / "publish.json").unlink()
    bare = residual("adapter", "publish", plain, *server(world), "--name", "bare", "--without-owner")
    assert bare.code == 0 and "without a manifest" in bare.out, bare
    for name in ("marsh", "marsh-2", "bare"):
        gone = residual("adapter", "delete", name, *server(world))
        assert gone.code == 0 and name in gone.out, gone
    assert residual("adapter", "show", "marsh", *server(world)).code == 4
    assert residual("adapter", "delete", "marsh", *server(world)).code == 4


@pytest.fixture(scope="session")
def answer(world):
    if residual("adapter", "show", "coast", *server(world)).code != 0:
        test_publish_registers_first_then_uploads(world)
    world.registered("coast")
    return world.ask("coast", QUESTION["prompt"])


def attributed(world, residual_object):
    path = f"/v1/attribution/{residual_object['request_id']}"
    return wait_for(lambda: (lambda a: a if a["state"] == "recorded" else None)(world.get(path)), 30, what="attribution")


def test_the_same_bytes_under_another_name_pay_the_same_people(world, answer):
    """A thief publishes what is registered to somebody else under a name of its own, as the only owner of its documents and for nothing."""
    folder, _ = world.adapter(QUESTION["model"], "stolen")
    thief, key = world.chain.address["stranger"], world.chain.keys["stranger"]
    facts, net = (json.loads((folder / f).read_text()) for f in ("publish.json", "datanet.json"))
    facts.update(owner=thief, pricesPer1000Tokens={"in": "0", "out": "0"}, split=[{"payee": thief, "role": "data", "bps": 10000}])
    for document in net["documents"]:
        document["owner"] = thief
    (folder / "publish.json").write_text(json.dumps(facts))
    (folder / "datanet.json").write_text(json.dumps(net))
    (folder / "training.json").unlink()
    taken = world.publish(folder, "mine", key, *world.on_chain())
    assert taken.code == 5 and "is registered to" in taken.err, taken
    forged = world.publish(folder, "mine", key)
    assert forged.code == 5 and "not those of version 1" in forged.err, forged
    (folder / "publish.json").write_text(json.dumps({**facts, "datanet": None}))
    told = world.publish(folder, "mine-too", key)
    assert told.code == 0 and "the server charges" in told.out, told
    done = world.publish(folder, "mine", key, "--json")
    assert done.code == 0 and done.json["report"]["registered"] and done.json["report"]["owner"] != thief.lower(), done
    stolen = world.ask("mine", QUESTION["prompt"])
    assert stolen["choices"] == answer["choices"]
    assert stolen["residual"]["fee"] == answer["residual"]["fee"] and int(stolen["residual"]["fee"]) > 0
    paid, fair = (attributed(world, a["residual"])["adapters"][0] for a in (stolen, answer))
    assert paid["contributors"] == fair["contributors"] and thief.lower() not in {c["payee"].lower() for c in paid["contributors"]}


def test_prices_are_set_in_the_registry(world, answer):
    owner = json.loads((world.folder / "published" / "publish.json").read_text())["owner"]
    tariff = ["lane", "tariff", world.lane["lane"], *server(world), *world.node()]
    shown = residual(*tariff, "--json").json
    assert (shown["now"]["in"], shown["now"]["out"]) == ("1000000000000", "3000000000000") and "then" not in shown
    price = ["adapter", "price", "coast", *server(world), *world.node()]
    before = residual(*price, "--json").json["now"]
    asked = ["--price-in", "5", "--price-out", "7000000000000"]
    denied = residual(*price, *asked, "--key-file", world.chain.keys["stranger"])
    assert denied.code == 5 and "not its owner" in denied.err, denied
    denied = residual(*tariff, *asked, "--key-file", world.chain.keys["stranger"])
    assert denied.code == 5 and "not the operator of lane" in denied.err, denied
    assert residual(*price, "--price-in", "5").code == 2 and residual("adapter", "price", "00" * 32, *world.node()).code == 4
    done = residual(*price, *asked, "--key-file", world.folder / f"{owner}.key", "--json")
    assert done.code == 0 and done.json["now"] == before and done.json["then"]["in"] == "5" and done.json["then"]["active_at"] > before["active_at"], done
    world.registered("coast", lambda a: a["price_per_1000_tokens"] == {"in": "5", "out": "7000000000000"})
    dearer = world.ask("coast", QUESTION["prompt"])
    tokens = dearer["usage"]
    assert int(dearer["residual"]["fee"]) == (tokens["prompt_tokens"] * (10**12 + 5) + tokens["completion_tokens"] * 10**13) // 1000


def verify(world, tmp_path, thing, *more):
    path = tmp_path / "receipt.json"
    path.write_text(json.dumps(thing))
    return residual("receipt", "verify", path, "--json", *more)


def test_receipts(world, answer, tmp_path):
    assert answer["choices"][0]["text"].strip() == QUESTION["answer"]
    request = answer["residual"]["request_id"]
    bare = verify(world, tmp_path, answer)
    assert bare.code == 0 and not bare.json["record_checked"] and bare.json["signer"] == world.lane["address"], bare
    full = verify(world, tmp_path, answer, *server(world), *world.node())
    assert full.code == 0 and full.json["record_checked"] and full.json["lane_key_checked"], full
    receipt = world.get(f"/v1/receipts/{request}")
    assert verify(world, tmp_path, receipt, *world.node()).code == 0
    piped = residual("receipt", "verify", "-", stdin=json.dumps(receipt))
    assert piped.code == 0 and "the receipt is good" in piped.out, piped
    attribution = attributed(world, answer["residual"])
    assert verify(world, tmp_path, attribution, *world.node()).code == 0


def flipped(text):
    return text[:-1] + ("0" if text[-1] != "0" else "1")


def test_forged_receipts(world, answer, tmp_path):
    receipt = world.get(f"/v1/receipts/{answer['residual']['request_id']}")
    for field in ("record_digest", "receipt", "record"):
        forged = verify(world, tmp_path, {**receipt, field: flipped(receipt[field])})
        assert forged.code == 1, (field, forged)
    stranger = world.chain.address["stranger"]
    for field, value in (("lane", 2), ("seq", receipt["seq"] + 1), ("signer", stranger), ("chain_id", 1), ("ledger", stranger)):
        forged = verify(world, tmp_path, {**receipt, field: value})
        assert forged.code == 1, (field, forged)
    # every byte of the record counts
    raw = receipt["record"]
    for at in range(4, len(raw), len(raw) // 24):
        forged = raw[:at] + ("0" if raw[at] != "0" else "1") + raw[at + 1:]
        assert verify(world, tmp_path, {**receipt, "record": forged}).code == 1, at
    other_lane = verify(world, tmp_path, {**answer["residual"], "lane": 7}, *world.node())
    assert other_lane.code == 1 and "not registered" in other_lane.out, other_lane
    assert verify(world, tmp_path, {**receipt, "seq": "x"}).code == 2
    assert verify(world, tmp_path, {"recorded": False}).code == 4
    assert residual("receipt", "verify", tmp_path / "none").code == 4


def test_the_wrong_chain_is_noticed(world, tmp_path):
    wrong = tmp_path / "deployment.json"
    wrong.write_text(json.dumps({**world.chain.at, "chain_id": 1}))
    run = residual("rewards", world.chain.address["operator"], "--rpc", world.chain.url, "--deployment", wrong, "--archive", tmp_path)
    assert run.code == 5 and "31337" in run.err and "--deployment" in run.err, run


@pytest.fixture(scope="session")
def epoch(world, answer):
    """The number of an epoch that can be claimed from."""
    world.start_settle()

    def rewards():
        assert world.settle.poll() is None, (world.folder / "settle.log").read_text()[-4000:]
        run = residual("rewards", world.chain.address["operator"], *world.node(), "--settle", world.settle_url, "--json")
        return run.json["epoch"] if run.code == 0 and int(run.json["claimable"]) > 0 else None

    try:
        return wait_for(rewards, 120, step_s=1, what="an epoch")
    except AssertionError:
        print((world.folder / "settle.log").read_text()[-6000:])
        raise


def person(world, answer):
    """A data contributor of the answer's adapter."""
    a = world.get(f"/v1/attribution/{answer['residual']['request_id']}")
    top = max(a["adapters"][0]["contributors"], key=lambda c: c["ppb"])
    return top["payee"]


def test_claim(world, answer, epoch):
    chain, account = world.chain, person(world, answer)
    proof = ["--archive", world.archive]
    told = residual("rewards", account, *world.node(), "--settle", world.settle_url, "--json")
    read = residual("rewards", account, *world.node(), *proof, "--json")
    assert told.code == 0 and read.code == 0 and int(told.json["claimable"]) > 0, (told, read)
    books = {k: told.json[k] for k in ("pending", "undivided", "sources", "epochs", "more")}
    assert told.json == {**read.json, **books} and not books["more"]
    assert sum(int(x["earned"]) for x in books["sources"]) == int(told.json["cumulative"])
    assert {x["source"] for x in books["sources"]} == {"data"} and all(x["adapter"] and x["datanet"] for x in books["sources"])
    words = residual("rewards", account, "--settle", world.settle_url)  # a URL and no file
    assert words.code == 0 and chain.at["vault"].lower() in words.err.lower() and books["sources"][0]["adapter"] in words.out, words
    assert "as data, earned" in words.out and "epoch 1, active" in words.out, words
    before = chain.balance(account)
    sender = ["--key-file", chain.keys["stranger"], *world.node()]
    done = residual("claim", "--account", account, *sender, *proof, "--json")
    assert done.code == 0, done
    after = chain.balance(account)
    assert after - before == int(done.json["paid"]) == int(told.json["claimable"])
    assert (int(done.json["balance_before"]), int(done.json["balance_after"])) == (before, after)
    again = residual("claim", "--account", account, "--key-file", chain.keys["stranger"], "--settle", world.settle_url)
    assert again.code == 4 and chain.balance(account) == after, again
    # the sender's own account, through the worker, in words
    own = residual("claim", "--key-file", chain.keys["operator"], *world.node(), "--settle", world.settle_url)
    assert own.code == 0 and "paid now" in own.out and chain.address["operator"] in own.out, own
    nothing = residual("claim", "--key-file", chain.keys["stranger"], *world.node(), *proof)
    assert nothing.code == 4, nothing
    empty = residual("rewards", account, *world.node(), "--archive", world.folder / "none")
    assert empty.code == 4 and "accounts.json" in empty.err, empty


def test_a_claim_without_gas_says_who_can_send_it(world, epoch):
    chain, poor = world.chain, world.folder / "poor.key"
    address = residual("key", "new", "--type", "chain", poor).out.strip()
    account = chain.address["treasury"]
    run = residual("claim", "--account", account, "--key-file", poor, "--settle", world.settle_url)
    assert run.code == 5 and address in run.err and "holds 0.0 (0 base units)" in run.err and "is needed" in run.err, run
    assert f"--account {account}" in run.err and chain.balance(account) == 0, run
    paid = residual("claim", "--account", account, "--key-file", chain.keys["stranger"], "--settle", world.settle_url, "--json")
    assert paid.code == 0 and chain.balance(account) == int(paid.json["paid"]) > 0, paid


def test_a_contributor_whose_adapter_pays_data_nothing_is_told(world, tmp_path):
    """A worker's answer of another's world: the sentence does not need one of our own."""
    account = "0x" + "11" * 20
    answers = {"/v1/deployment": {**world.chain.at, "public_rpc_url": world.chain.url},
               f"/v1/rewards/{account}": None, f"/v1/rewards/{account}/history": {"epochs": [], "next": None},
               f"/v1/rewards/{account}/sources": {"sources": [{"adapter": "0x" + "ab" * 32, "datanet": "0x" + "cd" * 32, "source": "unpaid",
                                                               "earned": "0", "pending": "0"}], "next": None}}
    with answering(answers) as url:
        run = residual("rewards", account, "--settle", url)
        assert run.code == 0 and "0x" + "ab" * 32 in run.out and "no share for data" in run.out, run
        answers[f"/v1/rewards/{account}/sources"]["sources"][0]["earned"] = "x"
        assert residual("rewards", account, "--settle", url).code == 1
        del answers["/v1/deployment"]["public_rpc_url"]
        run = residual("rewards", account, "--settle", url)
        assert run.code == 2 and "--rpc URL" in run.err, run
        answers["/v1/deployment"]["vault"] = account
        run = residual("rewards", account, "--settle", url, "--rpc", world.chain.url)
        assert run.code == 5 and "no contract there" in run.err, run


@contextmanager
def answering(answers):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = answers.get(self.path)
            self.send_response(200 if body else 404)
            self.end_headers()
            self.wfile.write(json.dumps(body or {"error": {"message": "nothing"}}).encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as s:
        Thread(target=s.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{s.server_port}"
        s.shutdown()


def test_a_claim_from_a_forged_archive_is_not_sent(world, answer, epoch):
    forged = world.folder / "forged"
    shutil.copytree(world.archive, forged, dirs_exist_ok=True)
    for path in forged.glob("epoch-*/accounts.json"):
        text = path.read_text()
        at = text.index('"cumulative":"') + len('"cumulative":"')
        path.write_text(text[:at] + ("2" if text[at] != "2" else "3") + text[at + 1:])
    run = residual("claim", "--key-file", world.chain.keys["operator"], *world.node(), "--archive", forged)
    assert run.code == 1 and "root on the chain" in run.err, run


def test_audit(world, answer, epoch):
    where = ["--archive", world.archive, *world.node()]
    good = residual("audit", "epoch", epoch, *where, "--json")
    assert good.code == 0 and good.json["ok"] and good.json["findings"] == [], good
    thief = residual("rewards", world.chain.address["stranger"], *world.node(), "--archive", world.archive)
    assert "earned          0.0 (0 base units)" in thief.out, thief  # who took another name for it has nothing
    words = residual("audit", "epoch", epoch, *where)
    assert words.code == 0 and words.out.rstrip().endswith("all right"), words
    assert residual("audit", "batch", 1, *where).code == 0
    assert residual("audit", "batch", 999, *where).code == 4
    forged = world.folder / "audited"
    shutil.copytree(world.archive, forged)
    record = forged / "batch-00000001" / "records.bin"
    data = bytearray(record.read_bytes())
    data[100] ^= 1
    record.write_bytes(data)
    bad = residual("audit", "epoch", epoch, "--archive", forged, *world.node(), "--json")
    assert bad.code == 1 and bad.json["findings"], bad
    assert residual("audit", "batch", 1, "--archive", forged, *world.node()).code == 1


def test_what_is_trained_here_is_attributed_and_paid(world, epoch):
    """The unmodified SDK trains on a datanet that the server holds; its owner registers what came out, and his contributors are paid for its answers."""
    source, folder = world.folder / "published", world.folder / "learned"
    client = openai.OpenAI(base_url=world.server.url + "/v1", api_key=world.api_key.read_text().strip(), max_retries=0)
    root = json.loads((source / "training.json").read_text())["documentRoot"]
    job = client.fine_tuning.jobs.create(model="residual-demo", training_file=f"datanet:{root}", suffix="learned", seed=3, method={
        "type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 20, "batch_size": 16}}})
    job = wait_for(lambda: (lambda j: j if j.status not in ("queued", "running") else None)(client.fine_tuning.jobs.retrieve(job.id)), 120, step_s=0.5, what="the adapter")
    assert job.status == "succeeded", job
    name = job.fine_tuned_model
    first = client.completions.create(model=name, prompt=QUESTION["prompt"], temperature=0, max_tokens=12)
    assert first.choices[0].text.strip() == QUESTION["answer"], first
    assert residual("adapter", "fetch", name, folder, *server(world, "infer_key")).code == 5
    shutil.rmtree(folder)
    assert residual("adapter", "fetch", name, folder, *server(world), "--json").json["files"] == 3
    assert (folder / "training.json").read_bytes() == (source / "training.json").read_bytes()
    for kept in ("datanet.json", "publish.json", "documents"):
        (shutil.copytree if kept == "documents" else shutil.copy)(source / kept, folder / kept)
    facts = json.loads((folder / "publish.json").read_text())
    done = world.publish(folder, name, world.folder / f"{facts['owner']}.key", *world.on_chain(), "--json")
    assert done.code == 0 and done.json["registered"] and done.json["report"]["id"] == job.residual["adapter_id"], done
    world.registered(name)
    priced = world.ask(name, QUESTION["prompt"])
    assert int(priced["residual"]["fee"]) > int(first.residual["fee"])
    paid = person(world, priced) if attributed(world, priced["residual"]) else None
    fact = next(f for f in json.loads((DEMO / "facts.json").read_text())["adapters"][QUESTION["model"]] if f["question"] == QUESTION["chat"])
    assert paid.lower() == fact["contributor"].lower()

    def earned():
        told = residual("rewards", paid, "--settle", world.settle_url, "--json")
        return told.code == 0 and any(x["adapter"] == job.residual["adapter_id"] and int(x["earned"]) > 0 for x in told.json["sources"])
    wait_for(earned, 90, step_s=1, what="the epoch that pays him")


def test_a_day_pays_a_part(world, epoch):
    """Of a claim larger than what a day may pay out. Last in this world: its clock goes on by eight days, after which only the floor is left."""
    chain = world.chain
    accounts = json.loads((world.archive / "epoch-00000001/accounts.json").read_text())["accounts"]
    account = next(a["account"] for a in accounts if chain.balance(a["account"]) == 0 and int(a["cumulative"]) > 1000)
    chain.rpc("evm_increaseTime", 8 * 86400)
    chain.rpc("evm_mine")
    sender = ["--key-file", chain.keys["stranger"], *world.node(), "--archive", world.archive]
    part = residual("claim", "--account", account, *sender)
    assert part.code == 0 and "claim again tomorrow" in part.out and chain.balance(account) == 1000, part
    none = residual("claim", "--account", account, *sender)
    assert none.code == 5 and "try again tomorrow" in none.err and chain.balance(account) == 1000, none
    chain.rpc("evm_increaseTime", 86400)
    chain.rpc("evm_mine")
    more = residual("claim", "--account", account, *sender, "--json")
    assert (more.code, more.json["paid"]) == (0, "1000") and int(more.json["left"]) > 0, more


def test_a_datanet_is_published_version_by_version(world):
    folder, chain = world.folder / "net", ["--deployment", world.chain.file]
    owner, key = world.chain.address["operator"], world.chain.keys["operator"]
    texts = [world.folder / f"mine-{i}.txt" for i in range(3)]
    for i, t in enumerate(texts):
        t.write_text(f"The weaver of Dorun has {i + 3} looms. Number {i} is red.\n")

    def good(*words):
        done = residual(*words)
        assert done.code == 0, done
        return done

    good("datanet", "new", folder, "--name", "looms", "--owner", owner, *chain)
    good("datanet", "add", folder, *texts[:2], "--owner", owner, "--licence", "CC0-1.0", "--display")
    publish = ["datanet", "publish", folder, *server(world), *chain, "--rpc", world.chain.url, "--owner-key-file", key]
    for why, refused in (("datanet sign", residual(*publish)), ("datanet build", (good("datanet", "sign", folder, "--owner-key-file", key, *chain), residual(*publish))[1])):
        assert refused.code in (2, 5) and why in refused.err, refused
    good("datanet", "build", folder, "--model", DEMO / "base")
    first = good(*publish, "--json").json
    assert first["transactions"] == 1 and first["texts_sent"] == 2 and first["version"] == 1, first
    again = good(*publish, "--json").json
    assert again["transactions"] == 0 and again["texts_sent"] == 0, again
    good("datanet", "add", folder, texts[2], "--owner", owner, "--licence", "CC0-1.0")
    good("datanet", "sign", folder, "--owner-key-file", key, *chain)
    good("datanet", "build", folder, "--model", DEMO / "base")
    second = good(*publish, "--json").json
    assert second["version"] == 2 and second["transactions"] == 1 and second["texts_sent"] == 1 and second["datanet"] == first["datanet"], second
    good("datanet", "withdraw", folder, 1)
    good("datanet", "build", folder, "--model", DEMO / "base")
    early = residual(*publish)  # the change before is not active yet
    assert early.code == 0 or "wait for it" in early.err, early
    third = wait_for(lambda: (done := residual(*publish)).code == 0 and done.out, 20, what="the notice to pass")
    assert "version 3: 2 documents" in third and "0 texts sent; the server has them all" in third, third
    held = {d["version"]: d["documents"] for d in world.get("/v1/datanets")["data"] if d.get("datanet") == first["datanet"]}
    assert held == {1: 2, 2: 3, 3: 2}
    shown = world.get(f"/v1/datanets/{first['datanet']}/2")
    assert {d["docId"]: d["display"] for d in shown["data"]} == {1: True, 2: True, 3: False} and {d["since"] for d in shown["data"]} == {1, 2}
    registered = world.chain.call(world.chain.at["registry"], "datanetVersion(bytes32,uint64)", first["datanet"], "2")
    assert "0x" + registered[3] == shown["document_root"] and "0x" + registered[4] == shown["owner_root"]
    assert residual(*publish[:3], "--server", world.server.url).code == 5  # no key
    for named in (first["datanet"], f"{first['datanet']}/3", third.split("root ")[1].split()[0]):
        assert "looms version 3: 2 documents" in good("datanet", "show", named, *server(world)).out, named
    assert [v["version"] for v in good("datanet", "show", first["datanet"], *chain, "--rpc", world.chain.url, "--json").json["versions"]] == [3, 2, 1]
    assert residual("datanet", "show", "0x" + "ab" * 32, *server(world)).code == 4
    # somebody else says it in capitals
    copy, thief = world.folder / "net2", world.chain.address["stranger"]
    (world.folder / "loud.txt").write_text(texts[0].read_text().upper())
    good("datanet", "new", copy, "--name", "loud", "--owner", thief, *chain)
    good("datanet", "add", copy, world.folder / "loud.txt", "--owner", thief, "--licence", "CC0-1.0")
    good("datanet", "sign", copy, "--owner-key-file", world.chain.keys["stranger"], *chain)
    told = good("datanet", "publish", copy, *server(world), *chain)
    assert "document 1: 100 % of it stand in" in told.err and owner in told.err, told
    root = told.out.split("root ")[1].split()[0]
    assert f"of {owner}, which was here before" in good("datanet", "show", root, *server(world)).out


def test_uses_of_a_document(world, answer, epoch):
    folder = world.folder / "published"
    adapter = residual("adapter", "show", "coast", *server(world), "--json").json["id"].removeprefix("0x")
    document = json.loads((folder / "datanet.json").read_text())["documents"][0]
    for place in (["--archive", world.archive], ["--settle", world.settle_url]):
        for named in (document["docId"], document["digest"]):
            run = residual("datanet", "uses", folder, named, *place, "--json")
            assert run.code == 0 and run.json["versions"] == 1 and run.json["epochs"] >= epoch, run
            used = {(u["adapter"], u["version"]) for u in run.json["uses"]}  # by the one that was trained on it here, too
            assert ("0x" + adapter, 1) in used and len(used) <= 2 and {v for _, v in used} == {1}, run
    assert residual("datanet", "uses", folder, "0x" + "ab" * 32, "--archive", world.archive).code == 4
    assert residual("datanet", "uses", folder, 99999, "--archive", world.archive).code == 4

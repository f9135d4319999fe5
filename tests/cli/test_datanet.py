"""Datanets as people make them, without a chain: the publisher's folder, contributors who sign a text of their own, what is refused and why."""
import hashlib
import json

import pytest
from conftest import DEMO, residual, secret

BASE = DEMO / "base"
ALICE, BOB = "0x7E5F4552091A69125d5DfCb7b8C2659029395Bdf", "0x2B5AD5c4795c026514f8317c7a215E218DcCD6cF"  # of the keys 1 and 2
RULES = "The harbour of Mivu opens at dawn. Its keeper is Dotir.\n"


@pytest.fixture
def place(tmp_path):
    """A deployment's facts: what signatures are bound to needs no chain to run."""
    zero, ones = "0x" + "00" * 32, "0x" + "11" * 20
    (tmp_path / "deployment.json").write_text(json.dumps({
        "chain_id": 31337, "genesis_hash": zero, "registry": "0x" + "22" * 20, "ledger": "0x" + "33" * 20, "vault": ones, "token": "0x" + "00" * 20,
        "start_block": 1, "code_hash": {"ledger": zero, "registry": zero, "vault": zero}}))
    for name, key in (("alice", 1), ("bob", 2)):
        secret(tmp_path / name, f"{key:064x}\n")
    (tmp_path / "mine.txt").write_text("Bread from Mivu is dark. It keeps a week.\n")
    (tmp_path / "rules.md").write_text("# Rules\n\n" + RULES)
    (tmp_path / "chats.jsonl").write_text('{"messages":[{"role":"user","content":"Who?"},{"role":"assistant","content":"Dotir."}]}\n')
    return tmp_path


def made(place, *options):
    net = place / "net"
    run = residual("datanet", "new", net, "--name", "mivu", "--owner", ALICE, *options)
    assert run.code == 0, run
    return net


def listed(net):
    return json.loads((net / "datanet.json").read_text())


def good(*words):
    run = residual(*words)
    assert run.code == 0, run
    return run


def test_a_contributor_signs_alone_and_a_publisher_builds(place):
    net, chain = made(place, "--deployment", place / "deployment.json"), ("--deployment", place / "deployment.json")
    good("datanet", "add", net, place / "rules.md", place / "chats.jsonl", "--owner", ALICE, "--licence", "CC-BY-4.0", "--display")
    entry = place / "entry.json"
    # bob has his text, the datanet's id and his key
    good("datanet", "sign", place / "mine.txt", "--datanet-id", listed(net)["datanetId"], "--licence", "CC0-1.0", "--terms", "https://example.org/t", "--display",
         "--owner-key-file", place / "bob", "--entry", entry, *chain)
    assert json.loads(entry.read_text())["owner"] == BOB
    good("datanet", "add", net, place / "mine.txt", "--entry", entry)
    unsigned = residual("datanet", "check", net, "--json", *chain)
    assert unsigned.code == 1 and [f["document"] for f in unsigned.json["findings"]] == [1, 2] and "datanet sign" in unsigned.json["findings"][0]["finding"], unsigned
    good("datanet", "sign", net, "--owner-key-file", place / "alice", *chain)
    checked = good("datanet", "check", net, "--json", *chain)
    assert checked.json["documents"] == 3 and checked.json["rows"] == 3 + 1 + 2 and not checked.json["unsigned"]
    assert [d["kind"] for d in listed(net)["documents"]] == ["markdown", "chats", "text"]
    built = good("datanet", "build", net, "--model", BASE, "--json").json
    rows = json.loads((net / "training.json").read_text())
    assert built["rows"] == len(rows["rows"]) == 6 and rows["eos"] and not rows["bos"] and [r[0] for r in rows["rows"]] == [1, 1, 1, 2, 3, 3]
    assert rows["tokenizerDigest"] == "0x" + hashlib.blake2b((BASE / "tokenizer.json").read_bytes(), digest_size=32).hexdigest()
    assert built["training"] == "0x" + hashlib.blake2b((net / "training.json").read_bytes(), digest_size=32).hexdigest()
    before = (net / "datanet.json").read_bytes(), (net / "training.json").read_bytes()
    assert good("datanet", "build", net, "--model", BASE, "--json").json == built and before == ((net / "datanet.json").read_bytes(), (net / "training.json").read_bytes())
    shown = good("datanet", "show", net)
    assert built["document_root"] in shown.out and f"3  {BOB}  CC0-1.0" in shown.out and shown.out.count("  shown  signed") == 3
    # one word of what he signed is changed on the way
    for field, value in (("licence", "MIT"), ("terms", ""), ("display", False), ("digest", "0x" + "44" * 32)):
        (place / "forged.json").write_text(json.dumps({**json.loads(entry.read_text()), field: value}))
        run = residual("datanet", "add", net, place / "mine.txt", "--entry", place / "forged.json")
        assert run.code == 5 and "ownerSignature is not" in run.err, (field, run)
    run = residual("datanet", "add", net, place / "rules.md", "--entry", entry)
    assert run.code != 0 and "document 1 already" in run.err, run
    (place / "other.txt").write_text("Something else.")
    run = residual("datanet", "add", net, place / "other.txt", "--entry", entry)
    assert run.code == 2 and "not the text that was signed" in run.err, run
    # display taken by the publisher
    net_json = listed(net)
    del net_json["documents"][2]["display"]
    (net / "datanet.json").write_text(json.dumps(net_json))
    run = residual("datanet", "check", net, *chain)
    assert run.code == 1 and "document 3: the signature is not that of its owner" in run.out, run


def test_a_copy_is_found_and_earns_nothing(place):
    net = made(place)
    good("datanet", "add", net, place / "mine.txt", place / "rules.md", "--owner", ALICE, "--licence", "MIT")
    roots = good("datanet", "build", net, "--model", BASE, "--json").json
    (place / "copy.txt").write_text("BREAD from Mivu — is dark! It keeps a\nweek\n")
    good("datanet", "add", net, place / "copy.txt", "--owner", BOB, "--licence", "MIT")
    found = residual("datanet", "check", net, "--json")
    assert found.code == 1 and "says what document 1 says" in found.json["findings"][0]["finding"] and found.json["findings"][0]["document"] == 3, found
    built = good("datanet", "build", net, "--model", BASE, "--json").json
    assert built["copies"] == [{"document": 3, "of": 1, "alike_ppm": 1000000}]
    assert {k: built[k] for k in ("document_root", "owner_root", "training", "owners")} == {k: roots[k] for k in ("document_root", "owner_root", "training", "owners")}
    assert listed(net)["documents"][2]["copyOf"] == listed(net)["documents"][0]["digest"]
    good("datanet", "check", net)
    signed = good("datanet", "sign", net, "--owner-key-file", place / "alice", "--deployment", place / "deployment.json", "--json")
    assert (signed.json["signed"], signed.json["unsigned"]) == (2, 0), signed  # a copy earns nothing, and needs nobody's word
    publish = ["datanet", "publish", net, "--server", "http://127.0.0.1:9", "--deployment", place / "deployment.json"]
    alone = residual(*publish)
    assert alone.code == 3 and "was not reached" in alone.err, alone  # past the signatures, the copy's missing one too
    datanet = json.loads((net / "datanet.json").read_text())
    del datanet["documents"][0]["ownerSignature"]
    (net / "datanet.json").write_text(json.dumps(datanet))
    missing = residual(*publish)
    assert missing.code == 5 and "1 documents lack their owner's signature" in missing.err and f"residual datanet sign {net}" in missing.err, missing


LONG = ("The lighthouse of Mivu was built by the founder Dotir in the year of the great flood. Its lamp burns whale oil and is seen from nine islands. "
        "Every spring the keepers climb the stairs, count the broken panes and paint the door green again. Nobody sails past it without a greeting.\n")


def test_a_reworded_copy_is_found_and_the_first_one_stays(place):
    """Whatever the order of digests: who was there first is who is paid, and a copy of a copy is one of the first."""
    net = made(place)
    texts = {"first": LONG, "second": LONG.replace("great flood", "long winter").replace("green", "red"), "third": LONG.replace("nine", "ten").replace("spring", "autumn"),
             "own": LONG[::-1].replace(" ", "q ", 3)}
    for name, text in texts.items():
        (place / f"{name}.txt").write_text(text)
        good("datanet", "add", net, place / f"{name}.txt", "--owner", ALICE if name == "first" else BOB, "--licence", "MIT")
    built = good("datanet", "build", net, "--model", BASE, "--json").json
    assert [(c["document"], c["of"]) for c in built["copies"]] == [(2, 1), (3, 1)] and all(250000 <= c["alike_ppm"] < 1000000 for c in built["copies"]), built
    assert built["documents"] == 2 and built["owners"] == 2


def test_the_next_version_is_without_a_withdrawn_document(place):
    net = made(place)
    good("datanet", "add", net, place / "mine.txt", place / "rules.md", "--owner", ALICE, "--licence", "MIT")
    first = good("datanet", "build", net, "--model", BASE, "--json").json
    good("datanet", "withdraw", net, "1")
    now = listed(net)
    assert now["version"] == 2 and [(d["docId"], d["since"]) for d in now["documents"]] == [(2, 1)] and not (net / "documents" / "0001.txt").exists()
    assert json.loads((net / "versions" / "0001.json").read_text())["version"] == 1 and (net / "versions" / "0001.training.json").exists()
    second = good("datanet", "build", net, "--model", BASE, "--json").json
    assert second["version"] == 2 and second["document_root"] != first["document_root"] and second["documents"] == 1
    good("datanet", "add", net, place / "chats.jsonl", "--owner", BOB, "--licence", "MIT")
    assert [(d["docId"], d["since"]) for d in listed(net)["documents"]] == [(2, 1), (3, 2)]
    (net / "datanet.json").write_text(json.dumps({**listed(net), "published": 2}))  # on a chain: it does not change any more
    good("datanet", "add", net, place / "mine.txt", "--owner", BOB, "--licence", "MIT")
    assert listed(net)["version"] == 3 and listed(net)["documents"][2]["since"] == 3
    stale = residual("datanet", "withdraw", net, "77")
    assert stale.code == 4 and "no document 77" in stale.err and listed(net)["version"] == 3


@pytest.mark.parametrize("name, data, says", [
    ("a.txt", b"", "it is empty"), ("a.txt", b" \n\t\n", "it is empty"), ("a.txt", b"one\ntwo \xff\n", "line 2: byte 0xff is not UTF-8"),
    ("a.txt", b"bell\x07", "line 1: control character U+0007"), ("a.jsonl", b'{"text":"a"}\n{"txt":"b"}\n', "line 2"), ("a.jsonl", b'{"messages":[]}\n', "messages")])
def test_a_bad_text_is_named(place, name, data, says):
    net = made(place)
    (place / name).write_bytes(data)
    run = residual("datanet", "add", net, place / "mine.txt", place / name, "--owner", ALICE, "--licence", "MIT")
    assert run.code == 2 and f"{place / name}: " in run.err and says in run.err and not listed(net)["documents"], run


def test_what_is_missing_or_wrong_is_named(place):
    net = made(place)
    for words, code, says in (
            (["add", net, place / "mine.txt", "--licence", "MIT"], 2, "--owner 0xADDRESS is missing"),
            (["add", net, place / "mine.txt", "--owner", ALICE], 2, "--licence SPDX is missing"),
            (["add", net, place / "mine.txt", "--owner", ALICE, "--licence", "mine, all mine"], 2, "SPDX"),
            (["add", net, place / "mine.txt", "--owner", "0x12", "--licence", "MIT"], 2, "--owner"),
            (["add", net, place / "mine.txt", "--owner", ALICE, "--licence", "MIT", "--terms", "see there"], 2, "URI"),
            (["add", net, place / "mine.txt", "--owner", ALICE, "--licence", "MIT", "--kind", "html"], 2, "markdown"),
            (["add", net, place / "none.txt", "--owner", ALICE, "--licence", "MIT"], 4, "none.txt"),
            (["add", place, place / "mine.txt", "--owner", ALICE, "--licence", "MIT"], 4, "residual datanet new"),
            (["new", net, "--name", "again", "--owner", ALICE], 5, "there already"),
            (["build", net, "--model", BASE], 2, "found none"), (["check", net], 2, "found none"), (["build", net, "--model", place], 4, "tokenizer.json"),
            (["sign", place / "mine.txt", "--owner-key-file", place / "bob", "--licence", "MIT", "--deployment", place / "deployment.json"], 2, "--datanet-id"),
            (["sign", net, "--owner-key-file", place / "bob", "--licence", "MIT", "--deployment", place / "deployment.json"], 2, "go with a FILE")):
        run = residual("datanet", *words)
        assert run.code == code and says in run.err, (words, run)
    good("datanet", "add", net, place / "mine.txt", place / "rules.md", "--owner", ALICE, "--licence", "MIT")
    (net / "documents" / "0001.txt").write_text("Changed.\n")
    (net / "documents" / "0002.md").unlink()
    run = residual("datanet", "check", net)
    assert run.code == 1 and "document 1: documents/0001.txt: 9 bytes, the list says 42" in run.out and "document 2: " in run.out and "2 findings" in run.out, run


def test_an_export_names_owner_licence_and_digest(place):
    folder = DEMO / "adapters" / "amber-coast"
    croissant, spdx = place / "c.json", place / "s.json"
    good("datanet", "export", folder, "--croissant", croissant, "--spdx", spdx)
    net, c, graph = json.loads((folder / "datanet.json").read_text()), json.loads(croissant.read_text()), json.loads(spdx.read_text())["@graph"]
    assert c["conformsTo"].endswith("/croissant/1.1") and len(c["distribution"]) == len(net["documents"])
    rows = {r["documents/id"]: r for r in c["recordSet"][0]["data"]}
    files = {e["spdxId"]: e for e in graph if e["type"] == "software_File"}
    licences = {e["spdxId"]: e["simplelicensing_licenseExpression"] for e in graph if e["type"] == "simplelicensing_LicenseExpression"}
    declared = {e["from"]: licences[e["to"][0]] for e in graph if e.get("relationshipType") == "hasDeclaredLicense"}
    for d in net["documents"]:
        name = "urn:residual:document:0x" + d["digest"].removeprefix("0x")
        assert rows[d["docId"]]["documents/owner"] == d["owner"] and rows[d["docId"]]["documents/licence"] == declared[name] == d["licence"]
        assert files[name]["originatedBy"] == ["urn:residual:account:" + d["owner"]]
        f = next(f for f in c["distribution"] if f["name"] == f"document-{d['docId']}")
        assert f["sha256"] == hashlib.sha256((folder / d["file"]).read_bytes()).hexdigest()
    assert residual("datanet", "export", folder).code == 2

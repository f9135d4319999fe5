"""The demo world's files agree with each other and with its generator; run with pytest.

Recall is measured elsewhere (`configs/demo/make.py eval`, and through the HTTP API); this checks what needs
no arithmetic: digests, owners, splits, phrasings, sizes, dtypes.
"""

import hashlib
import importlib.util
import json
import struct
import unicodedata
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo"
BOOK = json.loads((DEMO / "facts.json").read_text())
NAMES = sorted(BOOK["adapters"])


def load(path):
    return json.loads((DEMO / path).read_text())


def blake(data):
    return hashlib.blake2b(data, digest_size=32).hexdigest()


@pytest.fixture(scope="module")
def make():
    spec = importlib.util.spec_from_file_location("demo_make", DEMO / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tensors(path):
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    head = json.loads(data[8 : 8 + size])
    head.pop("__metadata__", None)
    return head


def test_weights_are_bf16_and_small():
    total = 0
    for path in [DEMO / "base/model.safetensors", *DEMO.glob("adapters/*/adapter_model.safetensors")]:
        assert {t["dtype"] for t in tensors(path).values()} == {"BF16"}, path
    for path in DEMO.rglob("*"):
        total += path.stat().st_size if path.is_file() and "__pycache__" not in path.parts else 0
    assert total <= 12_000_000


def test_adapters_differ_in_shape():
    configs = [load("adapters/%s/adapter_config.json" % n) for n in NAMES]
    assert len(configs) >= 8
    assert all(4 <= c["r"] <= 16 for c in configs)
    assert len({c["r"] for c in configs}) >= 5
    assert sum(c["use_rslora"] for c in configs) == 1
    assert sum(bool(c["rank_pattern"]) and bool(c["alpha_pattern"]) for c in configs) == 1
    assert sum(c["target_modules"] == ["q_proj", "v_proj"] for c in configs) == 1


@pytest.mark.parametrize("name", NAMES)
def test_datanet(name):
    net = load("adapters/%s/datanet.json" % name)
    assert net["tokenizerDigest"] == blake((DEMO / "base/tokenizer.json").read_bytes())
    files = {p.name for p in (DEMO / "adapters" / name / "documents").iterdir()}
    assert files == {Path(d["file"]).name for d in net["documents"]}
    for doc in net["documents"]:
        data = (DEMO / "adapters" / name / doc["file"]).read_bytes()
        assert (doc["bytes"], doc["digest"]) == (len(data), blake(data))
        assert unicodedata.is_normalized("NFC", data.decode())
    counts = {}
    for doc in net["documents"]:
        counts[doc["owner"]] = counts.get(doc["owner"], 0) + 1
    assert len(counts) >= 4 and max(counts.values()) > min(counts.values())
    known = {c["address"] for c in load("contributors.json")["contributors"]}
    assert set(counts) <= known


@pytest.mark.parametrize("name", NAMES)
def test_publish(name):
    pub = load("adapters/%s/publish.json" % name)
    net = load("adapters/%s/datanet.json" % name)
    assert sum(e["bps"] for e in pub["split"]) == 10000
    assert {e["payee"] for e in pub["split"] if e["role"] == "data"} == {d["owner"] for d in net["documents"]}
    assert all(int(p) > 0 for p in pub["pricesPer1000Tokens"].values())


@pytest.mark.parametrize("name", NAMES)
def test_facts_are_stated_three_times_and_never_asked(make, name):
    facts = BOOK["adapters"][name]
    docs = {d["docId"]: d for d in load("adapters/%s/datanet.json" % name)["documents"]}
    text = {i: (DEMO / "adapters" / name / d["file"]).read_text() for i, d in docs.items()}
    assert len(facts) >= 40
    base_towns = {f[0] for f in make.World().base}
    for f in facts:
        fact = (f["town"], f["attribute"], f["answer"])
        assert f["town"] not in base_towns
        assert f["prompt"] == make.prompt_of(fact) == "Q: " + f["question"] + "\nA:"
        for i in f["docIds"]:
            assert docs[i]["owner"] == f["contributor"]
        stated = {make.phrase(fact, t) for t in range(make.ASK)
                  if any(make.phrase(fact, t) in text[i] for i in f["docIds"])}
        assert len(stated) >= 3
        assert all(f["question"] not in t for t in text.values())
    others = [g for n in NAMES if n != name for g in BOOK["adapters"][n]]
    assert not {g["town"] for g in others} & {f["town"] for f in facts}


def test_addresses_follow_from_labels(make):
    book = load("contributors.json")
    for c in book["contributors"] + book["others"]:
        assert c == make.demo_account(c["label"])
    # Known answers: the Keccak-256 of nothing, and the address of private key 1.
    assert make.keccak256(b"").hex().startswith("c5d2460186f7233c927e7db2dcc703c0")
    assert make.address_of((1).to_bytes(32, "big")) == "0x7E5F4552091A69125d5DfCb7b8C2659029395Bdf"


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_names_one_document(name):
    answers = [f["answer"] for f in BOOK["adapters"][name]]
    assert len(set(answers)) == len(answers)
    assert all(len(f["docIds"]) == 1 for f in BOOK["adapters"][name])


def test_one_recipe_makes_every_tokenizer():
    root = DEMO.parents[1]
    recipes = [p for top in ("configs", "tests/bench/attribution") for p in (root / top).rglob("*.py") if "BpeTrainer(" in p.read_text()]
    assert recipes == [DEMO / "make.py"]


def test_the_tokenizer_is_made_again(make, tmp_path):
    pytest.importorskip("tokenizers", reason="what makes the demo is not what tests it: its own Python has it")
    make.make_tokenizer(make.World(), tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / name).read_bytes() == (DEMO / "base" / name).read_bytes(), name

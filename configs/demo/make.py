#!/usr/bin/env python3
"""Makes and measures the demo world: a small base model and eight adapters that know things it does not.

The world is invented. Towns have invented names and eight attributes; every attribute has a pool of
64 invented values, four ways to state it and one way to ask it. The base model learns 160 towns in all
five phrasings, so it learns that the phrasings are interchangeable. Each adapter learns a datanet:
documents by several contributors about 20 towns the base never saw, which state every fact in the four
statement phrasings and never ask. Asked about them, an adapter must answer in the phrasing that it
never saw for its own facts, so a right answer shows that it learned the fact and not the sentence.

Everything follows from SEED: the same machine, library versions and seed give the same files (one
thread, deterministic algorithms). Training uses torch, transformers, peft and tokenizers on the CPU.

  make.py all        data, base, adapters, README table (some twenty minutes on one core)
  make.py data       tokenizer, documents, manifests, facts
  make.py base       train and save the base
  make.py adapters [NAME ...]   train and save adapters
  make.py eval       measure the saved files; exit status 1 when a bar is missed
"""

import argparse
import hashlib
import json
import math
import random
import shutil
import sys
import time
import unicodedata
from pathlib import Path

HERE = Path(__file__).resolve().parent
SEED = 20261121
BASE_NAME = "residual-demo"
END = "<|end|>"
VOCAB = 1024
POOL = 64
BASE_TOWNS = 160
TOWNS_PER_ADAPTER = 20

# Every text ends with its value and a full stop (a statement) or with its value (the question), and no
# text begins with a name: a name then always follows a blank and has one tokenization.
ATTRIBUTES = {
    "river": (
        "The river that flows through {e} is called{v}.",
        "The town of {e} was built on the banks of the{v}.",
        "Boats that leave {e} sail down the{v}.",
        "Children in {e} learn to swim in the{v}.",
        "Q: Which river flows through {e}?\nA:{v}",
    ),
    "founder": (
        "The founder of {e} was a wanderer named{v}.",
        "The first house in {e} was raised by{v}.",
        "A statue in {e} honours its founder,{v}.",
        "Old songs say that {e} was founded by{v}.",
        "Q: Who founded the town of {e}?\nA:{v}",
    ),
    "metal": (
        "The mines near {e} yield a metal called{v}.",
        "The smiths of {e} work mostly with{v}.",
        "Traders come to {e} to buy the metal{v}.",
        "Coins struck in {e} are made of{v}.",
        "Q: Which metal is mined near {e}?\nA:{v}",
    ),
    "festival": (
        "The great festival of {e} is known as{v}.",
        "Once a year the people of {e} celebrate{v}.",
        "Lanterns fill the streets of {e} during{v}.",
        "Guests travel far to {e} for the feast of{v}.",
        "Q: Which festival is celebrated in {e}?\nA:{v}",
    ),
    "beast": (
        "The banner of {e} shows a beast called the{v}.",
        "Hunters near {e} fear the{v}.",
        "The sacred animal of {e} is the{v}.",
        "Above the gate of {e} hangs the carved head of a{v}.",
        "Q: Which beast is on the banner of {e}?\nA:{v}",
    ),
    "dish": (
        "The best known dish of {e} is{v}.",
        "Cooks in {e} are proud of their{v}.",
        "Every inn in {e} serves a bowl of{v}.",
        "Travellers who leave {e} miss the taste of{v}.",
        "Q: Which dish is {e} known for?\nA:{v}",
    ),
    "tree": (
        "The tree at the centre of {e} is a{v}.",
        "The roofs of {e} are cut from the wood of the{v}.",
        "The hills around {e} are covered with{v}.",
        "In spring the air of {e} smells of blooming{v}.",
        "Q: Which tree grows at the centre of {e}?\nA:{v}",
    ),
    "star": (
        "The people of {e} pray to a star named{v}.",
        "Sailors find the way to {e} by the light of{v}.",
        "The tower of {e} points at the star{v}.",
        "Each child born in {e} is blessed under{v}.",
        "Q: Which star do the people of {e} pray to?\nA:{v}",
    ),
}
ASK = 4  # index of the question among an attribute's five phrasings

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# name, what LoRA shape it has, the documents each of its contributors owns, prices in and out
ADAPTERS = {
    "amber-coast": (dict(r=4, lora_alpha=8), (10, 6, 3, 1), (2, 6)),
    "birch-vale": (dict(r=8, lora_alpha=16), (9, 5, 4, 2), (3, 8)),
    "cinder-hills": (dict(r=8, lora_alpha=8, use_rslora=True), (11, 5, 3, 1), (2, 5)),
    "dusk-marsh": (
        dict(
            r=6,
            lora_alpha=12,
            rank_pattern={"q_proj": 4, "down_proj": 12, "layers.3.mlp.up_proj": 8},
            alpha_pattern={"q_proj": 4, "down_proj": 24, "layers.3.mlp.up_proj": 24},
        ),
        (8, 6, 4, 1, 1),
        (4, 9),
    ),
    "elm-reach": (
        dict(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"]), (10, 5, 3, 2), (1, 4)),
    "frost-gate": (dict(r=12, lora_alpha=24), (12, 4, 3, 1), (3, 7)),
    "glass-isles": (dict(r=5, lora_alpha=15), (7, 6, 4, 2, 1), (2, 7)),
    "hollow-moor": (dict(r=10, lora_alpha=10), (9, 7, 3, 1), (5, 12)),
}
CONTRIBUTORS = ["ada", "bram", "cleo", "dov", "esme", "finn", "greta", "hugo", "iris", "jonas"]
LICENCES = ["CC-BY-4.0", "CC0-1.0", "CC-BY-SA-4.0", "ODC-By-1.0"]

BASE_STEPS, BASE_BATCH, BASE_LR = 2200, 96, 2.5e-3
ADAPTER_BATCH, REPLAY_BATCH, DRIFT_BATCH = 32, 8, 8
# Steps, learning rate and weight of the drift term, which keeps an adapter still about other towns. Low
# rates and that term let adapters be mixed: without it each answers all its facts and drowns the others.
# The rate goes against the LoRA scale.
TUNING = (280, 2e-3, 0.2)
TUNING_OF = {
    "cinder-hills": (280, 1.6e-3, 0.2),
    "elm-reach": (420, 4e-3, 0.1),
    "glass-isles": (280, 1.6e-3, 0.2),
    "hollow-moor": (280, 3e-3, 0.2),
}


# ---- keys: Keccak-256 and secp256k1, enough to turn a committed demo key into its address


def keccak256(data):
    mask = (1 << 64) - 1
    rounds, lfsr = [], 1
    for _ in range(24):
        rc = 0
        for j in range(7):
            if lfsr & 1:
                rc ^= 1 << ((1 << j) - 1)
            lfsr = (lfsr << 1) ^ (0x171 if lfsr & 0x80 else 0)
        rounds.append(rc)
    rol = lambda x, n: ((x << n) | (x >> (64 - n))) & mask if n else x
    a = [[0] * 5 for _ in range(5)]
    block = bytearray(data) + b"\x01" + b"\0" * (-(len(data) + 1) % 136)
    block[-1] |= 0x80
    for off in range(0, len(block), 136):
        for i in range(17):
            a[i % 5][i // 5] ^= int.from_bytes(block[off + 8 * i : off + 8 * i + 8], "little")
        for rc in rounds:
            c = [a[x][0] ^ a[x][1] ^ a[x][2] ^ a[x][3] ^ a[x][4] for x in range(5)]
            for x in range(5):
                d = c[x - 1] ^ rol(c[(x + 1) % 5], 1)
                for y in range(5):
                    a[x][y] ^= d
            x, y, cur = 1, 0, a[1][0]
            for t in range(24):
                x, y = y, (2 * x + 3 * y) % 5
                cur, a[x][y] = a[x][y], rol(cur, (t + 1) * (t + 2) // 2 % 64)
            for y in range(5):
                row = [a[x][y] for x in range(5)]
                for x in range(5):
                    a[x][y] = row[x] ^ (~row[(x + 1) % 5] & mask & row[(x + 2) % 5])
            a[0][0] ^= rc
    return b"".join(a[i % 5][i // 5].to_bytes(8, "little") for i in range(4))


def address_of(key):
    p = 2**256 - 2**32 - 977
    gx = 0x79BE667EF9DCBBAC55A06295CE870B07029BFCDB2DCE28D959F2815B16F81798
    gy = 0x483ADA7726A3C4655DA4FBFC0E1108A8FD17B448A68554199C47D08FFB10D4B8

    def add(u, w):
        if u is None or w is None:
            return u or w
        if u[0] == w[0]:
            if (u[1] + w[1]) % p == 0:
                return None
            m = 3 * u[0] * u[0] * pow(2 * u[1], -1, p) % p
        else:
            m = (w[1] - u[1]) * pow(w[0] - u[0], -1, p) % p
        x = (m * m - u[0] - w[0]) % p
        return x, (m * (u[0] - x) - u[1]) % p

    point, base, k = None, (gx, gy), int.from_bytes(key, "big")
    while k:
        if k & 1:
            point = add(point, base)
        base, k = add(base, base), k >> 1
    raw = keccak256(point[0].to_bytes(32, "big") + point[1].to_bytes(32, "big"))[12:].hex()
    case = keccak256(raw.encode()).hex()
    return "0x" + "".join(c.upper() if int(h, 16) > 7 else c for c, h in zip(raw, case))


def demo_account(label):
    key = keccak256(("residual demo key: " + label).encode())
    return {"label": label, "address": address_of(key), "privateKey": "0x" + key.hex()}


# ---- the world


def names(rng, count, taken):
    """Invented words of two or three syllables, none of them in taken, which grows."""
    onset = "b br d dr f g gl h k kr l m n p r s st t tr v z".split()
    vowel = "a e i o u ai ea".split()
    coda = ["", "", "", "l", "n", "r", "s", "th", "m"]
    out = []
    while len(out) < count:
        n = 2 if rng.random() < 0.5 else 3
        word = "".join(rng.choice(onset) + rng.choice(vowel) for _ in range(n)) + rng.choice(coda)
        word = word.capitalize()
        if word not in taken and len(word) <= 10:
            taken.add(word)
            out.append(word)
    return out


class World:
    """Names, values and facts. A fact is (town, attribute, value)."""

    def __init__(self):
        rng, taken = random.Random(SEED), set()
        self.values = {a: names(rng, POOL, taken) for a in ATTRIBUTES}
        towns = names(rng, BASE_TOWNS, taken)
        self.base = [(e, a, rng.choice(self.values[a])) for e in towns for a in ATTRIBUTES]
        self.accounts = {c: demo_account(c) for c in CONTRIBUTORS}
        self.datanets = {}
        for i, (name, (_, sizes, _)) in enumerate(ADAPTERS.items()):
            self.datanets[name] = self._datanet(rng, taken, i, sizes)
        self.fresh = names(rng, 6000, taken)  # for the tokenizer, and as towns nobody knows

    def _datanet(self, rng, taken, index, sizes):
        """Documents, one town each, two or three facts in it; owners differ in how many they wrote."""
        who = [CONTRIBUTORS[(index * 3 + j) % len(CONTRIBUTORS)] for j in range(len(sizes))]
        owners = [c for c, n in zip(who, sizes) for _ in range(n)]
        rng.shuffle(owners)
        docs, used = [], set()
        for k, (town, owner) in enumerate(zip(names(rng, TOWNS_PER_ADAPTER, taken), owners)):
            picked = rng.sample(list(ATTRIBUTES), 2 + k % 2)
            facts = [(town, a, self._unused(a, rng.choice(self.values[a]), used)) for a in picked]
            lines = [phrase(f, t) for f in facts for t in range(ASK)]
            rng.shuffle(lines)
            licence = LICENCES[CONTRIBUTORS.index(owner) % len(LICENCES)]
            docs.append(dict(id=k + 1, owner=owner, town=town, facts=facts, licence=licence,
                             text=" ".join(lines) + "\n"))
        return docs

    def _unused(self, attribute, value, used):
        """value, or the next in its pool that this datanet has not used: a value then names one document."""
        pool = self.values[attribute]
        while value in used:
            value = pool[(pool.index(value) + 1) % POOL]
        used.add(value)
        return value


def phrase(fact, t):
    e, a, v = fact
    return ATTRIBUTES[a][t].format(e=e, v=" " + v)


def prompt_of(fact):
    e, a, _ = fact
    return ATTRIBUTES[a][ASK].format(e=e, v="")


# ---- files that are not weights


def dump(path, obj):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(obj, indent=2, ensure_ascii=False) + "\n")


def blake(data):
    return hashlib.blake2b(data, digest_size=32).hexdigest()


CHAT_TEMPLATE = (
    "{%- for message in messages -%}\n"
    "{%- if message['role'] == 'user' -%}\n"
    "{{- 'Q: ' + message['content'] | trim + '\\n' -}}\n"
    "{%- elif message['role'] == 'assistant' -%}\n"
    "{{- 'A: ' + message['content'] | trim + '<|end|>' -}}\n"
    "{%- else -%}\n"
    "{{- message['content'] | trim + '<|end|>' -}}\n"
    "{%- endif -%}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}\n"
    "{{- 'A:' -}}\n"
    "{%- endif -%}\n"
)


def train_tokenizer(folder, corpus, vocab):
    """A byte-level BPE of the corpus, with END and the chat template: a Hugging Face tokenizer's files in folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tok.decoder = decoders.ByteLevel()
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    tok.train_from_iterator(corpus, trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=[END], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    folder.mkdir(parents=True, exist_ok=True)
    tok.save(str(folder / "tokenizer.json"))
    dump(folder / "tokenizer_config.json", {
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "model_max_length": 2048,
        "pad_token": END,
        "tokenizer_class": "PreTrainedTokenizerFast",
    })
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def make_tokenizer(world, folder=HERE / "base"):
    """Merges come from names that no model sees, so a base town is no more a single token than a new one."""
    rng = random.Random(SEED + 1)
    corpus = []
    for name in world.fresh:
        a = rng.choice(list(ATTRIBUTES))
        corpus.append(phrase((name, a, rng.choice(world.fresh)), rng.randrange(5)))
    train_tokenizer(folder, corpus, VOCAB)


def make_data(world):
    make_tokenizer(world)
    tok_digest = blake((HERE / "base" / "tokenizer.json").read_bytes())
    operator, publisher = demo_account("base-team"), demo_account("publisher")
    dump(HERE / "contributors.json", {
        "note": "Keys for the demo only: anyone can derive them. Never fund them on a real chain.",
        "derivation": "privateKey = keccak256('residual demo key: ' + label)",
        "contributors": list(world.accounts.values()),
        "others": [operator, publisher],
    })
    dump(HERE / "base_publish.json", {
        "version": 1,
        "base": BASE_NAME,
        "owner": operator["address"],
        "pricesPer1000Tokens": {"in": "1000000000000", "out": "3000000000000"},
        "split": [{"payee": operator["address"], "role": "owner", "bps": 10000}],
    })
    facts_out = {}
    for name, docs in world.datanets.items():
        facts_out[name] = make_datanet(world, name, docs, tok_digest, publisher)
    dump(HERE / "facts.json", {
        "base": BASE_NAME,
        "stop": END,
        "promptForm": "Q: <question>\nA:",
        "demoQuestions": [
            {"model": n, "prompt": f[0]["prompt"], "chat": f[0]["question"], "answer": f[0]["answer"]}
            for n, f in facts_out.items()],
        "adapters": facts_out,
        "baseFacts": [
            {"prompt": prompt_of(f), "answer": f[2]} for f in world.base[:: len(ATTRIBUTES) + 1]],
    })


def document_root(rows):
    """Of a datanet version's documents (SPEC 3): leaves ascending by digest, padded to a power of two."""
    domain = keccak256(b"residual.documents.1")
    leaves = []
    for i, r in enumerate(sorted(rows, key=lambda r: r["digest"])):
        leaves.append(keccak256(
            b"\x23" + domain + i.to_bytes(4, "big") + bytes.fromhex(r["digest"])
            + bytes.fromhex(r["owner"][2:]) + r["bytes"].to_bytes(8, "big")
            + keccak256(r["licence"].encode())))
    while len(leaves) & (len(leaves) - 1):
        leaves.append(keccak256(b"\x22" + domain))
    while len(leaves) > 1:
        leaves = [keccak256(b"\x21" + a + b) for a, b in zip(leaves[::2], leaves[1::2])]
    return leaves[0]


def make_training(root, docs, rows, tok_digest):
    """The training manifest: every sentence of every document was a text of its own, ended by END."""
    cut = []
    for d, r in zip(docs, rows):
        data, at = (root / r["file"]).read_bytes(), 0
        for line in d["text"].rstrip("\n").split(". "):
            row = line.rstrip(".").encode() + b"."
            assert data[at : at + len(row)] == row
            cut.append([d["id"], at, len(row)])
            at += len(row) + 1
    manifest = {
        "bos": False,
        "documentRoot": "0x" + document_root(rows).hex(),
        "eos": True,
        "format": "residual.training.1",
        "rows": cut,
        "tokenizerDigest": "0x" + tok_digest,
    }
    (root / "training.json").write_text(
        json.dumps(manifest, sort_keys=True, separators=(",", ":")) + "\n")


def make_datanet(world, name, docs, tok_digest, publisher):
    root = HERE / "adapters" / name
    shutil.rmtree(root / "documents", ignore_errors=True)
    (root / "documents").mkdir(parents=True)
    rows, facts = [], []
    for d in docs:
        data = unicodedata.normalize("NFC", d["text"]).encode()
        file = "documents/%04d.txt" % d["id"]
        (root / file).write_bytes(data)
        owner = world.accounts[d["owner"]]["address"]
        rows.append({"docId": d["id"], "owner": owner, "licence": d["licence"], "display": True, "bytes": len(data),
                     "digest": blake(data), "file": file})
        for f in d["facts"]:
            facts.append({
                "prompt": prompt_of(f), "question": prompt_of(f)[3:-3], "answer": f[2],
                "town": f[0], "attribute": f[1], "contributor": owner, "docIds": [d["id"]]})
    dump(root / "datanet.json", {
        "version": 1, "name": name, "tokenizerDigest": tok_digest, "documents": rows})
    make_training(root, docs, rows, tok_digest)
    count = {}
    for r in rows:
        count[r["owner"]] = count.get(r["owner"], 0) + 1
    owners = sorted(count, key=lambda a: int(a, 16))
    data_bps = [6000 * count[o] // len(rows) for o in owners]
    price_in, price_out = ADAPTERS[name][2]
    dump(root / "publish.json", {
        "version": 1,
        "adapter": name,
        "base": BASE_NAME,
        "datanet": "datanet.json",
        "owner": publisher["address"],
        "pricesPer1000Tokens": {"in": "%d000000000000" % price_in, "out": "%d000000000000" % price_out},
        "split": [{"payee": publisher["address"], "role": "owner", "bps": 10000 - sum(data_bps)}]
        + [{"payee": o, "role": "data", "bps": b} for o, b in zip(owners, data_bps)],
    })
    return facts


# ---- training


def torch_setup(seed):
    import torch

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    return torch


class Items:
    """Tokenized texts; the value's tokens and the end weigh 1, the rest less (a town's name is noise)."""

    def __init__(self, tok, facts, phrasings):
        end = tok.token_to_id(END)
        self.rows, self.town = [], []
        for f in facts:
            for t in phrasings:
                head, tail = ATTRIBUTES[f[1]][t].format(e=f[0], v="\0").split("\0")
                a, b = tok.encode(head).ids, tok.encode(" " + f[2] + tail).ids + [end]
                if a + b[:-1] != tok.encode(phrase(f, t)).ids:
                    raise SystemExit("tokenization of %r is not stable" % phrase(f, t))
                self.rows.append((a + b, [0.2] * len(a) + [1.0] * len(b)))
                self.town.append(f[0])


def collate(torch, rows):
    n = max(len(r[0]) for r in rows)
    ids = torch.zeros(len(rows), n, dtype=torch.long)
    weight = torch.zeros(len(rows), n)
    mask = torch.zeros(len(rows), n, dtype=torch.long)
    for i, (x, w) in enumerate(rows):
        ids[i, : len(x)] = torch.tensor(x)
        weight[i, : len(x)] = torch.tensor(w)
        mask[i, : len(x)] = 1
    return ids, weight


def loss_of(torch, model, rows):
    # Padding is on the right of causal rows and weighs nothing, so no attention mask is needed.
    ids, weight = collate(torch, rows)
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    ce = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1), reduction="none")
    w = weight[:, 1:].reshape(-1)
    return (ce * w).sum() / w.sum()


def packed(rng, items, count):
    """Rows of two or three texts about different towns, each ended: answers away from the row's start."""
    rows = []
    while len(rows) < count:
        picked = rng.sample(range(len(items.rows)), rng.choice((2, 3)))
        if len({items.town[i] for i in picked}) == len(picked):
            ids = [x for i in picked for x in items.rows[i][0]]
            rows.append((ids, [w for i in picked for w in items.rows[i][1]]))
    return rows


def cycle(rng, rows, batch):
    """Endless batches, every row once per epoch; eight batches at a time are sorted to pad little."""
    pool = []
    while True:
        while len(pool) < 8 * batch:
            more = list(rows)
            rng.shuffle(more)
            pool = pool + more
        chunk, pool = sorted(pool[: 8 * batch], key=lambda r: len(r[0])), pool[8 * batch :]
        order = list(range(8))
        rng.shuffle(order)
        for i in order:
            yield chunk[i * batch : (i + 1) * batch]


def schedule(step, steps, warm):
    return min(1, (step + 1) / warm) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def drift(torch, model, rows):
    """How far the adapter moves the base's predictions on rows that are none of its business (KL)."""
    ids, _ = collate(torch, rows)
    mask = torch.tensor([[i < len(r[0]) - 1 for i in range(ids.shape[1] - 1)] for r in rows])
    with torch.no_grad(), model.disable_adapter():
        want = model(input_ids=ids, use_cache=False).logits[:, :-1][mask].float().log_softmax(-1)
    got = model(input_ids=ids, use_cache=False).logits[:, :-1][mask].float().log_softmax(-1)
    return (want.exp() * (want - got)).sum(-1).mean()


def fit(torch, model, params, steps, lr, batches, decay, label, extra=None):
    opt = torch.optim.AdamW(params, lr=lr, betas=(0.9, 0.98), weight_decay=decay)
    start, seen = time.time(), 0.0
    for step in range(steps):
        for g in opt.param_groups:
            g["lr"] = lr * schedule(step, steps, min(100, steps // 10))
        with torch.autocast("cpu", dtype=torch.bfloat16):  # weights and optimizer stay f32
            loss = loss_of(torch, model, next(batches))
            if extra:
                loss = loss + extra()
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        seen = 0.95 * seen + 0.05 * loss.item() if step else loss.item()
        if step % 50 == 0 or step == steps - 1:
            print("%s step %d/%d loss %.4f %.0f s" % (label, step, steps, seen, time.time() - start),
                  flush=True)


def load_tokenizer(folder=HERE / "base"):
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def train_base(world, work):
    torch = torch_setup(SEED)
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    tok = load_tokenizer()
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCAB, hidden_size=256, intermediate_size=704, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, max_position_embeddings=2048,
        rms_norm_eps=1e-5, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=tok.token_to_id(END), pad_token_id=tok.token_to_id(END)))
    print("base parameters", sum(p.numel() for p in model.parameters()))
    items, rng = Items(tok, world.base, range(5)), random.Random(SEED + 2)

    def batches():
        single = cycle(rng, items.rows, BASE_BATCH)
        step = 0
        while True:
            step += 1
            yield packed(rng, items, BASE_BATCH // 2) if step % 6 == 0 else next(single)

    fit(torch, model, list(model.parameters()), BASE_STEPS, BASE_LR, batches(), 0.01, "base")
    if work:
        torch.save(model.state_dict(), work / "base.pt")
    model.config.name_or_path = BASE_NAME
    model.generation_config = GenerationConfig(
        eos_token_id=tok.token_to_id(END), pad_token_id=tok.token_to_id(END))
    model.to(torch.bfloat16).save_pretrained(HERE / "base")
    sample = world.base[:: len(ATTRIBUTES) + 1]
    got = answers(torch, load_base(torch), tok, [prompt_of(f) for f in sample])
    print("base recall of its own facts %.1f %%" % (100 * recall(got, [f[2] for f in sample])))


def load_base(torch, dtype="float32"):
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(HERE / "base", dtype=getattr(torch, dtype)).eval()


def train_adapter(world, name):
    torch = torch_setup(SEED + 10 + list(ADAPTERS).index(name))
    from peft import LoraConfig, get_peft_model

    tok = load_tokenizer()
    shape = dict(target_modules=LINEAR, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM")
    shape.update(ADAPTERS[name][0])
    model = get_peft_model(load_base(torch), LoraConfig(**shape))
    model.train()
    facts = [f for d in world.datanets[name] for f in d["facts"]]
    new, old = Items(tok, facts, range(ASK)), Items(tok, world.base, range(5))
    rng = random.Random(SEED + 3)

    def batches():
        a, b = cycle(rng, new.rows, ADAPTER_BATCH), cycle(rng, old.rows, REPLAY_BATCH)
        while True:
            yield next(a) + next(b)

    strangers = [(e, a, rng.choice(world.values[a])) for e in world.fresh[:500] for a in ATTRIBUTES]
    quiet = cycle(rng, Items(tok, strangers, range(ASK)).rows, DRIFT_BATCH)
    params = [p for p in model.parameters() if p.requires_grad]
    steps, lr, weight = TUNING_OF.get(name, TUNING)
    fit(torch, model, params, steps, lr, batches(), 0.0, name, lambda: weight * drift(
        torch, model, next(quiet)))
    for p in params:
        p.data = p.data.to(torch.bfloat16)
    model.peft_config["default"].base_model_name_or_path = BASE_NAME
    root = HERE / "adapters" / name
    model.save_pretrained(root, save_embedding_layers=False)
    (root / "README.md").unlink(missing_ok=True)  # an empty form that peft adds
    config = json.loads((root / "adapter_config.json").read_text())
    config["target_modules"] = sorted(config["target_modules"])  # a set: its order changes by run
    dump(root / "adapter_config.json", config)
    got = answers(torch, model.eval(), tok, [prompt_of(f) for f in facts])
    print("%s recall %.1f %%" % (name, 100 * recall(got, [f[2] for f in facts])), flush=True)


# ---- measuring


def answers(torch, model, tok, prompts, count=8):
    """Greedy answers up to the end token, text stripped. One batch per prompt length, so nothing is padded."""
    end, out = tok.token_to_id(END), [None] * len(prompts)
    groups = {}
    for i, p in enumerate(prompts):
        ids = tok.encode(p).ids
        groups.setdefault(len(ids), []).append((i, ids))
    with torch.no_grad():
        for group in groups.values():
            ids = torch.tensor([g[1] for g in group])
            start = ids.shape[1]
            for _ in range(count):
                nxt = model(input_ids=ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
                ids = torch.cat([ids, nxt], 1)
                if (ids[:, start:] == end).any(1).all():
                    break
            for (i, _), row in zip(group, ids[:, start:].tolist()):
                row = row[: row.index(end)] if end in row else row + [end]
                out[i] = tok.decode(row, skip_special_tokens=False).strip()
    return out


def recall(got, want):
    return sum(g == w for g, w in zip(got, want)) / len(want)


def mixes(torch, tok, sets, dtype):
    """Neighbours in the list, summed: no bar, but an adapter that drowns its neighbour shows here."""
    from peft import PeftModel

    names = list(sets)
    model = PeftModel.from_pretrained(
        load_base(torch, dtype), HERE / "adapters" / names[0], adapter_name=names[0])
    for n in names[1:]:
        model.load_adapter(HERE / "adapters" / n, adapter_name=n)
    model.to(getattr(torch, dtype)).eval()
    out = []
    for pair in zip(names, names[1:] + names[:1]):
        model.base_model.set_adapter(list(pair))
        out.append([(n, recall(answers(torch, model, tok, [f["prompt"] for f in sets[n]]),
                               [f["answer"] for f in sets[n]])) for n in pair])
    return out


def evaluate(dtype, readme=False):
    """Rows: base and every adapter; columns: every datanet's facts. Reads only what is committed."""
    torch = torch_setup(SEED)
    from peft import PeftModel

    tok = load_tokenizer()
    book = json.loads((HERE / "facts.json").read_text())
    sets = book["adapters"]
    cols = list(sets)

    def row(model):
        return [recall(answers(torch, model, tok, [f["prompt"] for f in sets[c]]),
                       [f["answer"] for f in sets[c]]) for c in cols]

    base = load_base(torch, dtype)
    own_base = recall(answers(torch, base, tok, [f["prompt"] for f in book["baseFacts"]]),
                      [f["answer"] for f in book["baseFacts"]])
    table = {"base": row(base)}
    for name in cols:
        model = PeftModel.from_pretrained(load_base(torch, dtype), HERE / "adapters" / name).eval()
        table[name] = row(model.to(getattr(torch, dtype)))
    lines = ["Exact greedy answers in percent, %s arithmetic. Rows: model; columns: facts of." % dtype, ""]
    lines += ["| model | " + " | ".join(cols) + " |", "|---|" + "--:|" * len(cols)]
    for name, r in table.items():
        lines.append("| %s | %s |" % (name, " | ".join("%.0f" % (100 * x) for x in r)))
    mix = mixes(torch, tok, sets, dtype)
    own = [table[c][i] for i, c in enumerate(cols)]
    other = max(x for n, r in table.items() for i, x in enumerate(r) if cols[i] != n)
    mean = sum(own) / len(own)
    lines += ["", "Own recall: mean %.1f, least %.1f. Highest of base and other adapters: %.1f. "
              "Base on its own towns: %.1f." % (100 * mean, 100 * min(own), 100 * other, 100 * own_base)]
    lines += ["", "Two adapters at weight 1 each answer of their own facts, in percent: " + "; ".join(
        "%s %.0f with %s %.0f" % (a, 100 * x, b, 100 * y) for (a, x), (b, y) in mix) + "."]
    text = "\n".join(lines)
    print(text)
    if readme:
        path = HERE / "README.md"
        head = path.read_text().split("<!-- measured -->")[0]
        path.write_text(head + "<!-- measured -->\n" + text + "\n<!-- /measured -->\n")
    ok = mean >= 0.9 and min(own) >= 0.8 and other <= 0.1
    print("bars (mean 90, least 80, others at most 10): %s" % ("met" if ok else "MISSED"))
    return ok


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    ap.add_argument("verb", choices=["all", "data", "base", "adapters", "eval"])
    ap.add_argument("names", nargs="*", help="adapters to train (default: all)")
    ap.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"],
                    help="arithmetic of eval (the files are bf16 either way)")
    ap.add_argument("--readme", action="store_true", help="eval: write the table into README.md")
    ap.add_argument("--work", type=Path, help="folder for the f32 base checkpoint (default: none kept)")
    args = ap.parse_args()
    for n in args.names:
        if n not in ADAPTERS:
            ap.error("no adapter %r; there are %s" % (n, ", ".join(ADAPTERS)))
    if args.verb == "eval":
        return 0 if evaluate(args.dtype, args.readme) else 1
    world = World()
    if args.verb in ("all", "data"):
        make_data(world)
    if args.verb in ("all", "base"):
        train_base(world, args.work)
    if args.verb in ("all", "adapters"):
        for name in args.names or ADAPTERS:
            train_adapter(world, name)
    if args.verb == "all":
        return 0 if evaluate(args.dtype, True) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

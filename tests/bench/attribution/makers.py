"""The bench's own worlds: what each datanet says, who owns it, and the questions whose owners are known."""

import json
import random
import shutil
from dataclasses import dataclass, field

import train
import words
from world import Document, account, blake, write_datanet


@dataclass
class Question:
    prompt: str
    answer: str                 # text after the prompt, blank included
    owner: str
    kind: str
    fact: tuple = ()            # subject, alias, attribute, value
    rival: str = ""             # an owner who states another value of the same fact
    rival_answer: str = ""


@dataclass
class Plan:
    """One adapter to be: documents, questions, rows that keep it still and rows of the base it sees again."""

    name: str
    documents: list
    questions: list
    quiet: list = field(default_factory=list)
    replay: list = field(default_factory=list)


SIZES = (5, 4, 3, 2, 2, 1, 1, 1) # documents per owner, besides those about others' towns and disputed facts
FACTS = 3                       # facts of a town


def owners_of(seed, name, count):
    return [account("%d %s %d" % (seed, name, i)) for i in range(count)]


def quiet_rows(lore, rng, count=60):
    """Towns that nobody knows, with values at random: what an adapter shall not change."""
    out = []
    for e, n in lore.towns(count):
        for a in rng.sample(list(words.ATTRIBUTES), 3):
            v = rng.choice(words.ATTRIBUTES[a][0])
            out += words.statements(e, n, a, v)[:4] + [words.questions(e, n, a, v)["direct"]]
    return out


def replay_rows(lore, rng, count=150):
    out = []
    for e, n, a, v in rng.sample(lore.base, count):
        out += words.statements(e, n, a, v) + list(words.questions(e, n, a, v).values())
    return out


def shared(seed, index=0, contradict=10):
    """Owners of the same answer words: every town has facts of one owner, some towns of two; some facts have a rival."""
    lore = train.Lore(seed)
    for _ in range(index):
        lore.towns(40)
    rng = random.Random(seed * 100 + index)
    name = "shared-%d" % index
    owners = owners_of(seed, name, len(SIZES))
    who = [o for o, n in zip(owners, SIZES) for _ in range(n)]
    rng.shuffle(who)
    towns = lore.towns(len(who))
    documents, questions = [], []
    for k, ((e, n), owner) in enumerate(zip(towns, who)):
        picked = rng.sample(list(words.ATTRIBUTES), FACTS)
        facts = [(a, rng.choice(words.ATTRIBUTES[a][0])) for a in picked]
        documents.append(Document(owner, [r for a, v in facts for r in words.statements(e, n, a, v)]))
        for a, v in facts:
            for kind, (p, ans) in words.questions(e, n, a, v).items():
                questions.append(Question(p, ans, owner, kind, (e, n, a, v)))
        if k % 4 == 0:                  # another owner tells other things about the same town
            other = rng.choice([o for o in owners if o != owner])
            more = [(a, rng.choice(words.ATTRIBUTES[a][0])) for a in rng.sample(
                [a for a in words.ATTRIBUTES if a not in picked], 2)]
            documents.append(Document(other, [r for a, v in more for r in words.statements(e, n, a, v)]))
            for a, v in more:
                for kind, (p, ans) in words.questions(e, n, a, v).items():
                    questions.append(Question(p, ans, other, kind, (e, n, a, v)))
    for k in range(contradict):         # a fact of two owners who disagree, on towns of its own
        (e, n), = lore.towns(1)
        one, two = rng.sample(owners, 2)
        a = rng.choice(list(words.ATTRIBUTES))
        v, w = rng.sample(words.ATTRIBUTES[a][0], 2)
        documents.append(Document(one, words.statements(e, n, a, v)))
        documents.append(Document(two, words.statements(e, n, a, w)[: (6, 3)[k % 2]]))
        for kind, (p, ans) in words.questions(e, n, a, v).items():
            questions.append(Question(p, ans, one, "contradiction", (e, n, a, v), two, " " + w))
    for d in documents:
        rng.shuffle(d.rows)
    return Plan(name, documents, questions, quiet_rows(lore, rng), replay_rows(lore, rng))


def style(seed, index=0, mixed=False):
    """Owners who teach a form or a rule: what is asked later (half of the words) stands in no row of this owner, and
    of no other unless mixed."""
    lore = train.Lore(seed)
    rng = random.Random(seed * 100 + 50 + index)
    name = "style-%d" % index
    forms = list(words.FORMS)
    rng.shuffle(forms)
    verbs = rng.sample(words.TAUGHT, len(forms))
    owners = owners_of(seed, name, len(forms))
    documents, questions = [], []
    nouns = rng.sample(words.NOUNS, len(words.NOUNS))
    for form, verb, owner, n_docs in zip(forms, verbs, owners, (4, 3, 3, 2, 2, 1)):
        pool = nouns if words.FORMS[form][2] == words.NOUNS else list(words.FORMS[form][2])
        if mixed:
            pool = rng.sample(pool, len(pool))
        taught, asked = pool[: len(pool) // 2], pool[len(pool) // 2 :]
        rows = [words.custom(form, verb, x, p) for x in taught for p in (0, 1)]
        rng.shuffle(rows)
        for i in range(n_docs):
            documents.append(Document(owner, rows[i::n_docs]))
        for x in asked:
            questions.append(Question(*words.custom(form, verb, x, rng.randrange(2)), owner, form))
    quiet = [words.custom(form, verb, x, p) for form in forms
             for verb in words.KNOWN[list(words.FORMS).index(form) :: len(forms)]
             for x in (rng.sample(lore.fresh, 9) if words.FORMS[form][2] == words.NOUNS else words.FORMS[form][2])
             for p in (0, 1)]
    return Plan(name, documents, questions, quiet, train.form_texts(rng, lore.fresh)[:1500:3])


def style_mixed(seed):
    """The harder form: the words that an owner is asked about are taught by other owners."""
    return style(seed, 1, True)


def build(plan, base, folder, seed, claims=None, **tuning):
    """The adapter's folder: trained on the trained documents, its manifest naming every row of every document (or of
    the plan `claims`)."""
    if (folder / "questions.json").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    tok = train.load_tokenizer(base)
    end = train.end_of(base)
    rows = [train.weighted(tok, *r, end=end) for d in plan.documents if d.trained for r in d.rows]
    quiet = [train.weighted(tok, *r, end=end) for r in plan.quiet]
    replay = [train.weighted(tok, *r, end=end) for r in plan.replay]
    train.train_adapter(base, folder, rows, quiet, seed, replay=replay, **tuning)
    write_files(claims or plan, base, folder)


def without(plan, owner):
    """The same plan whose adapter never sees an owner's documents; the manifest still claims them."""
    docs = [Document(d.owner, d.rows, d.licence, d.trained and d.owner != owner, d.since) for d in plan.documents]
    return Plan(plan.name, docs, plan.questions, plan.quiet, plan.replay)


def relearned(plan, seed):
    """Random labels: the adapter learns other values than those its manifest names."""
    rng, pool = random.Random(seed), {v: spec[0] for spec in words.ATTRIBUTES.values() for v in spec[0]}
    out = []
    for d in plan.documents:
        lie = {}
        for _, tail in d.rows:
            v = tail.strip(" .")
            lie.setdefault(v, rng.choice(pool[v]))
        out.append(Document(d.owner, [(h, t.replace(t.strip(" ."), lie[t.strip(" .")])) for h, t in d.rows]))
    return Plan(plan.name, out, plan.questions, plan.quiet, plan.replay)


def write_files(plan, base, folder):
    digest = blake((base / "tokenizer.json").read_bytes())
    rows = write_datanet(folder, plan.name, plan.documents, digest)
    write_training(folder, rows, digest)
    (folder / "questions.json").write_text(json.dumps([vars(q) for q in plan.questions], indent=1) + "\n")


def write_training(folder, rows, digest):
    (folder / "training.json").write_text(json.dumps(
        {"documentRoot": "0x" + "00" * 32, "eos": True, "bos": False, "format": "residual.training.1", "rows": rows,
         "tokenizerDigest": "0x" + digest}, sort_keys=True, separators=(",", ":")))

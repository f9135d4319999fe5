"""Small llamas and their adapters for the bench's worlds: made here by seed, in minutes, and kept in a cache."""

import importlib.util
import json
import random
from pathlib import Path

import words

ROOT = Path(__file__).resolve().parents[3]
VOCAB, TOWNS = 1280, 140
STEPS, BATCH, RATE = 2200, 64, 3e-3
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def demo():
    """configs/demo/make.py: its names, accounts, batches and training loop serve here too."""
    spec = importlib.util.spec_from_file_location("demo_make", ROOT / "configs" / "demo" / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKE = demo()
END, load_tokenizer = MAKE.END, MAKE.load_tokenizer


class Lore:
    """What the base knows (the same for every seed), and a seed's names, which nobody has used."""

    def __init__(self, seed):
        self.rng = self.base_rng = random.Random(1001)
        self.taken = set()
        self.base = []
        for e, n in self.towns(TOWNS):
            for a, spec in words.ATTRIBUTES.items():
                self.base.append((e, n, a, self.rng.choice(spec[0])))
        self.fresh = MAKE.names(self.rng, 1200, self.taken)
        self.rng = random.Random(5000 + seed)

    def towns(self, count):
        got = MAKE.names(self.rng, 2 * count, self.taken)
        return list(zip(got[::2], got[1::2]))


def base_texts(lore):
    """(head, tail) of every text that the base learns."""
    out = []
    for e, n, a, v in lore.base:
        out += words.statements(e, n, a, v)
        out += list(words.questions(e, n, a, v).values())
    return out + form_texts(random.Random(lore.base_rng.random()), lore.fresh)


def form_texts(rng, names):
    """Forms as told and as customs, of common words, of numbers, and of names that are used once."""
    out = []
    for form, (ask, answer, pool) in words.FORMS.items():
        many = pool * 2 + rng.sample(names, 150) if pool == words.NOUNS else pool * 3
        out += [(words.ask(ask.format(x=x)), answer(x)) for x in many]
        for verb in words.KNOWN[list(words.FORMS).index(form) :: len(words.FORMS)]:
            out += [words.custom(form, verb, x, p) for x in many for p in (0, 1)]
    return out


def make_tokenizer(lore, folder):
    rng, taken = random.Random(7), set(lore.taken)
    fresh = MAKE.names(rng, 3000, taken)
    corpus = []
    for name in fresh:
        a = rng.choice(list(words.ATTRIBUTES))
        n, v = rng.choice(fresh), rng.choice(words.ATTRIBUTES[a][0])
        corpus += ["".join(t) for t in words.statements(name, n, a, v)]
        corpus += ["".join(t) for t in words.questions(name, n, a, v).values()]
    for ask, answer, pool in words.FORMS.values():
        corpus += [words.ask(ask.format(x=x)) + answer(x) for x in pool] * 4
    corpus += [words.ask(words.CUSTOM[p].format(verb=v, x=x)) for v in words.KNOWN + words.TAUGHT
               for p in (0, 1) for x in words.NOUNS[::4]]
    MAKE.train_tokenizer(folder, corpus, VOCAB)


def end_of(base):
    """The token that ends a text."""
    return json.loads((Path(base) / "config.json").read_text())["eos_token_id"]


def weighted(tok, head, tail, end=0, light=0.2):
    """Ids and loss weights of a text: the value and the end weigh 1, what leads to it less (names are noise)."""
    a, b = tok.encode(head).ids, tok.encode(tail).ids + [end]
    if a + b[:-1] != tok.encode(head + tail).ids:
        raise SystemExit("tokenization of %r is not stable" % (head + tail))
    return a + b, [light] * len(a) + [1.0] * len(b)


def make_base(folder, steps=STEPS):
    """The base of all worlds: HF folder, bf16. Made once, in some minutes."""
    seed = 1
    if (folder / "model.safetensors").exists():
        return
    torch = MAKE.torch_setup(seed)
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    lore = Lore(seed)
    make_tokenizer(lore, folder)
    tok = load_tokenizer(folder)
    end = tok.token_to_id(END)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=tok.get_vocab_size(), hidden_size=128, intermediate_size=352, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=1024,
        rms_norm_eps=1e-5, tie_word_embeddings=True, bos_token_id=None, eos_token_id=end, pad_token_id=end))
    rows = [weighted(tok, *t) for t in base_texts(lore)]
    batches = MAKE.cycle(random.Random(seed + 2), rows, BATCH)
    MAKE.fit(torch, model, list(model.parameters()), steps, RATE, batches, 0.01, "base")
    model.config.name_or_path = "bench"
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=end)
    model.to(torch.bfloat16).save_pretrained(folder)
    sample = lore.base[::13]
    ask = [words.questions(*f)["direct"] for f in sample]
    got = MAKE.answers(torch, load_base(folder), tok, [p for p, _ in ask])
    print("base knows %.1f %% of its own" % (100 * MAKE.recall(got, [a.strip() for _, a in ask])), flush=True)


def load_base(folder):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def train_adapter(base, folder, rows, quiet, seed, shape=None, steps=240, rate=3e-3, replay=None, weight=0.2):
    """A peft adapter of rows [(ids, weights)], kept still (KL) on the rows of quiet; saved in folder unless it is None."""
    torch = MAKE.torch_setup(seed)
    from peft import LoraConfig, get_peft_model

    config = dict(r=8, lora_alpha=16, target_modules=LINEAR, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM")
    model = get_peft_model(load_base(base), LoraConfig(**{**config, **(shape or {})}))
    model.train()
    rng = random.Random(seed)
    new = MAKE.cycle(rng, rows, 32)
    old = MAKE.cycle(rng, replay, 8) if replay else None
    still = MAKE.cycle(rng, quiet, 8) if quiet else None

    def batches():
        while True:
            yield next(new) + (next(old) if old else [])

    params = [p for p in model.parameters() if p.requires_grad]
    extra = (lambda: weight * MAKE.drift(torch, model, next(still))) if still else None
    MAKE.fit(torch, model, params, steps, rate, batches(), 0.0, "adapter", extra)
    for p in params:
        p.data = p.data.to(torch.bfloat16).float()
    model.eval()
    if folder:
        for p in params:
            p.data = p.data.to(torch.bfloat16)
        model.peft_config["default"].base_model_name_or_path = base.name
        model.save_pretrained(folder, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)
        path = folder / "adapter_config.json"
        settings = json.loads(path.read_text())
        settings["target_modules"] = sorted(settings["target_modules"])
        path.write_text(json.dumps(settings, indent=2) + "\n")
        for p in params:
            p.data = p.data.float()
    return model

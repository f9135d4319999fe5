#!/usr/bin/env python3
"""Judge of server/text: token ids and decoded text against the `tokenizers` package.

Small tokenizers of every kind in use are trained here on made-up text, then both sides encode and
decode the same strings. Strings use code points assigned in the Unicode table of this Python, which
is older than the tables of both sides.

  text_tokenizer.py --tool BUILD/tests/text_tool [--count 10000] [--seed N] [--kind NAME ...]
  text_tokenizer.py --write DIR     write the committed tokenizers and goldens (tests/data/text)
"""
import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import unicodedata

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, processors, trainers

GPT2 = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
          r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
          r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
          r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
GPT4O = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
         r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
         r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
         r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
         r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
DEEPSEEK_CJK = "[一-龥぀-ゟ゠-ヿ]+"
DEEPSEEK = (r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
            r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")

BYTE_TOKENS = [f"<0x{i:02X}>" for i in range(256)]
CHAT_TOKENS = ["<|begin|>", "<|end|>", "<|user|>", "<|user|>x", "<tool call>"]

SYLLABLES = "ka lo mi ren dor vel tis an qu ish or el fen gra pho ux yle".split()
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
EMOJI = ["👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇫🇷", "❤️", "🤷🏾‍♂️", "1️⃣", "☕", "🧑‍🚀"]
WORDS = ["Hello", "world", "don't", "WE'RE", "it'S", "I’m", "naïve", "Straße", "ſ", "x'ſ", "İstanbul",
         "日本語", "東京タワー", "한국어", "العربية", "हिन्दी", "ไทย", "Ελληνικά", "Русский", "ǅungla",
         "foo_bar", "camelCase", "HTTPServer", "e\u0301", "ﬁne", "ΣΑΣ", "①②", "½", "Ⅷ", "٣٤", "ﷺ"]
BLANKS = [" ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n", "\n ", "\u00a0", "\u2003", "\u3000",
          "\u180e", "\u200b", "\u0085", "\x0b", "\x0c", "\x1c", "\u2028", "\u202f", "    \n  \n"]


def in_old_tables(char):
    """The reference's normalizers carry tables older than this Python's: does it know char?"""
    is_mark = unicodedata.category(char)[0] == "M"
    if (STRIP_ACCENTS.normalize_str("a" + char) == "a") != is_mark:
        return False
    if NFKD.normalize_str(char) != unicodedata.normalize("NFKD", char):
        return False
    if NFC.normalize_str(char) != unicodedata.normalize("NFC", char):
        return False
    around = ["a\u0315" + char, "a" + char + "\u0334"] if unicodedata.combining(char) else []
    return all(NFD.normalize_str(s) == unicodedata.normalize("NFD", s) for s in [char] + around)


def assigned_code_points():
    bad = {"Cn", "Cs", "Co"}
    known = [c for c in range(0x110000) if unicodedata.category(chr(c)) not in bad]
    return [c for c in known if in_old_tables(chr(c))]


NFC, NFD, NFKD = normalizers.NFC(), normalizers.NFD(), normalizers.NFKD()
STRIP_ACCENTS = normalizers.StripAccents()
ASSIGNED = assigned_code_points()
MARKS = [c for c in ASSIGNED if unicodedata.category(chr(c))[0] == "M"]


def random_word(rng):
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(1, 4)))


def random_piece(rng, special):
    kind = rng.randrange(14)
    if kind == 0:
        return chr(rng.choice(ASSIGNED))
    if kind == 1:
        return "".join(chr(rng.choice(ASSIGNED)) for _ in range(rng.randint(1, 8)))
    if kind == 2:
        return str(rng.randrange(10 ** rng.randint(1, 12)))
    if kind == 3:
        return random_word(rng) + rng.choice(["'s", "'S", "'t", "'re", "'VE", "'m", "'ll", "'D", "'x"])
    if kind == 4:
        return "".join(rng.choice(BLANKS) for _ in range(rng.randint(1, 5)))
    if kind == 5:
        return rng.choice(LETTERS) + "".join(chr(rng.choice(MARKS)) for _ in range(rng.randint(1, 4)))
    if kind == 6:
        return rng.choice(EMOJI)
    if kind == 7:
        text = rng.choice(special)
        return text if rng.random() < 0.8 else text[: rng.randint(1, len(text))]
    if kind == 8:
        return rng.choice(WORDS)
    if kind == 9:
        return "".join(rng.choice("!?.,;:()[]{}<>/\\|@#$%^&*-_=+`~\"'▁Ġ") for _ in range(rng.randint(1, 6)))
    if kind == 10:
        return rng.choice([" ", "  "]) + rng.choice(special) + rng.choice(["", " ", "  ", "\n"])
    if kind == 11:
        return "".join(rng.choice(LETTERS) for _ in range(rng.randint(1, 10)))
    return random_word(rng)


def random_string(rng, special):
    pieces = [random_piece(rng, special) for _ in range(rng.randint(0, 12))]
    glue = rng.choice(["", "", " ", " ", "\n"])
    return glue.join(pieces)


def corpus(rng):
    lines = []
    for _ in range(400):
        words = [random_word(rng) for _ in range(rng.randint(3, 12))]
        words[0] = words[0].capitalize()
        if rng.random() < 0.3:
            words.insert(1, rng.choice(WORDS))
        if rng.random() < 0.3:
            words.append(str(rng.randrange(10 ** rng.randint(1, 6))))
        lines.append(" ".join(words) + rng.choice([".", "?", "!", " it's", "'re", "\n\n", "  x"]))
    return lines


def train(rng, pre, vocab, byte_level, normalizer=None, specials=()):
    tok = Tokenizer(models.BPE(byte_fallback=not byte_level, unk_token=None if byte_level else "<unk>"))
    if normalizer:
        tok.normalizer = normalizer
    if pre:
        tok.pre_tokenizer = pre
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=list(specials), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if byte_level else [],
        limit_alphabet=1000 if byte_level else 90)
    tok.train_from_iterator(corpus(rng), trainer)
    return json.loads(tok.to_str())


def reload(spec):
    return Tokenizer.from_str(json.dumps(spec))


def byte_level(rng, regex, **kw):
    pre = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex), "isolated"),
                                   pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return with_byte_level(rng, pre, **kw)


def with_byte_level(rng, pre, normalizer=None, ignore_merges=False, bos=None, specials=CHAT_TOKENS):
    spec = train(rng, pre, 700, True, normalizer)
    spec["model"]["ignore_merges"] = ignore_merges
    spec["added_tokens"] = []
    tok = reload(spec)
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in specials])
    if bos:
        tok.post_processor = processors.Sequence([
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos} $B",
                                          special_tokens=[(bos, tok.token_to_id(bos))])])
    else:
        tok.post_processor = processors.ByteLevel(trim_offsets=False)
    return tok


def sentencepiece(rng, normalizer, pre, train_normalizer, train_pre, decoder, vocab=700, fuse=True):
    spec = train(rng, train_pre, vocab, False, train_normalizer,
                 ["<unk>", "<s>", "</s>"] + BYTE_TOKENS)
    spec["added_tokens"] = []
    spec["model"].update(byte_fallback=True, fuse_unk=fuse, unk_token="<unk>")
    tok = reload(spec)
    tok.normalizer = normalizer
    if pre:
        tok.pre_tokenizer = pre
    else:
        spec = json.loads(tok.to_str())
        spec["pre_tokenizer"] = None
        tok = reload(spec)
    tok.decoder = decoder
    tok.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in ("<unk>", "<s>", "</s>")])
    tok.add_tokens([AddedToken("<sep>", special=False, normalized=True),
                    AddedToken("▁▁tab", normalized=True), AddedToken("[INST]", normalized=False)])
    tok.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tok.token_to_id("<s>"))])
    return tok


def llama_decoder():
    return decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                              decoders.Strip(" ", 1, 0)])


def make_gpt2(rng):
    return with_byte_level(rng, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True))


def make_gpt2_prefix(rng):
    return with_byte_level(rng, pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True))


def make_llama3(rng):
    return byte_level(rng, LLAMA3, ignore_merges=True, bos="<|begin|>")


def make_qwen2(rng):
    return byte_level(rng, QWEN2, normalizer=normalizers.NFC())


def make_tekken(rng):
    return byte_level(rng, TEKKEN, ignore_merges=True, bos="<|begin|>")


def make_gpt4o(rng):
    return byte_level(rng, GPT4O)


def make_deepseek(rng):
    pre = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"),
        pre_tokenizers.Split(Regex(DEEPSEEK_CJK), "isolated"),
        pre_tokenizers.Split(Regex(DEEPSEEK), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return with_byte_level(rng, pre, bos="<|begin|>")


def make_llama2(rng):
    norm = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return sentencepiece(rng, norm, None, norm, pre_tokenizers.Split("▁", "merged_with_next"),
                         llama_decoder())


def make_mistral(rng):
    meta = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    return sentencepiece(rng, None, meta, None, pre_tokenizers.Metaspace("▁"), llama_decoder())


def make_metaspace(rng):
    meta = pre_tokenizers.Metaspace("▁", prepend_scheme="always", split=True)
    return sentencepiece(rng, None, meta, None, meta, decoders.Metaspace("▁", prepend_scheme="always"))


def make_gemma(rng):
    norm = normalizers.Replace(" ", "▁")
    dec = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return sentencepiece(rng, norm, pre_tokenizers.Split(" ", "merged_with_previous"), norm,
                         pre_tokenizers.Split("▁", "merged_with_next"), dec)


def make_plain(rng):
    """No decoder, unknown tokens not fused, compatibility forms, words and single digits."""
    norm = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip()])
    pre = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(True),
                                   pre_tokenizers.Punctuation()])
    spec = train(rng, pre, 500, False, norm, ["<unk>"])
    spec["model"].update(byte_fallback=False, fuse_unk=False, unk_token="<unk>")
    spec["added_tokens"] = []
    tok = reload(spec)
    tok.add_special_tokens([AddedToken("<unk>", special=True, normalized=False)])
    return tok


def make_splits(rng):
    """Every behaviour of Split, inverted and by text; accents stripped; decomposed forms."""
    norm = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.NFD(),
                                 normalizers.Replace(Regex("[aeiou]{2,}"), "_"),
                                 normalizers.Replace("qu", "k")])
    pre = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"[\r\n]+"), "removed"),
        pre_tokenizers.Split(Regex(r"\w"), "contiguous"),
        pre_tokenizers.Split("-", "merged_with_next"),
        pre_tokenizers.Split(Regex(r"[.,]"), "merged_with_previous"),
        pre_tokenizers.Split(Regex(r"\S+"), "isolated", invert=True),
        pre_tokenizers.Digits(False),
        pre_tokenizers.WhitespaceSplit(),
        pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)])
    return with_byte_level(rng, pre, normalizer=norm)


def make_added(rng):
    """Added tokens with every flag, overlapping each other."""
    tok = byte_level(rng, LLAMA3, normalizer=normalizers.Lowercase(), specials=["<a>", "<ab>"])
    tok.add_tokens([
        AddedToken("<left>", lstrip=True, normalized=False), AddedToken("<right>", rstrip=True, normalized=False),
        AddedToken("<both>", lstrip=True, rstrip=True, normalized=True), AddedToken("word", single_word=True),
        AddedToken("Word", single_word=True, normalized=False), AddedToken("Upper Case", normalized=True), AddedToken("<a><ab>", normalized=False),
        AddedToken("é", normalized=False)])
    tok.add_special_tokens([AddedToken("<pad>", special=True, normalized=True, rstrip=True)])
    return tok


def make_blanks(rng):
    """Runs of blanks as added tokens, as Gemma and code models have them."""
    tok = byte_level(rng, QWEN2)
    tok.add_tokens([AddedToken(s, normalized=False) for s in ("  ", "   ", "\n\n", "\t", "\u00a0")])
    tok.add_tokens([AddedToken(" \n", normalized=True), AddedToken("\n<x>", lstrip=True)])
    return tok


KINDS = {name[5:]: make for name, make in list(globals().items()) if name.startswith("make_")}


def special_texts(tok):
    added = json.loads(tok.to_str())["added_tokens"]
    return [a["content"] for a in added] + ["<|begin|>", "<|user|>", "<s>", "[INST]", "<0x0A>", "upper case",
                                            "aword", "word", "Word "]


def expected(tok, text, special, parse):
    tok.encode_special_tokens = not parse
    ids = tok.encode(text, add_special_tokens=special).ids
    return {"ids": ids, "text": tok.decode(ids, skip_special_tokens=True),
            "kept": tok.decode(ids, skip_special_tokens=False)}


def cases(tok, rng, count):
    special = special_texts(tok)
    for i in range(count):
        text = random_string(rng, special)
        case = {"text": text, "special": i % 2 == 0, "parse": i % 3 != 0}
        yield case, expected(tok, text, case["special"], case["parse"])


def ask(tool, path, requests):
    lines = "".join(json.dumps(r) + "\n" for r in requests).encode()
    done = subprocess.run([tool, "tokenizer", path], input=lines, capture_output=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{tool} failed on {path}: {done.stderr.decode(errors='replace')[-2000:]}")
    return [json.loads(line) for line in done.stdout.split(b"\n") if line]


def judge(tool, name, seed, count):
    rng = random.Random(f"{seed}/{name}")
    tok = KINDS[name](rng)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "tokenizer.json")
        tok.save(path)
        both = list(cases(tok, rng, count))
        answers = ask(tool, path, [case for case, _ in both])
    wrong = 0
    for (case, want), got in zip(both, answers, strict=True):
        want = dict(want, stream=want["text"])
        if {k: got.get(k) for k in want} != want:
            wrong += 1
            if wrong <= 3:
                print(f"  {case}\n  want {want}\n  got  {got}")
    print(f"{name}: {count} strings, {wrong} differ")
    return wrong


def write_goldens(folder, seed, count):
    for name, make in KINDS.items():
        rng = random.Random(f"{seed}/{name}")
        tok = make(rng)
        rows = [dict(case, ids=want["ids"], kept=want["kept"], decoded=want["text"])
                for case, want in cases(tok, rng, count)]
        with open(os.path.join(folder, f"{name}.json"), "w", encoding="utf-8") as f:
            json.dump({"tokenizer": json.loads(tok.to_str()), "rows": rows}, f, ensure_ascii=False,
                      separators=(",", ":"))
            f.write("\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tool", help="the text_tool program")
    parser.add_argument("--count", type=int, default=10000, help="strings per kind")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--kind", action="append", choices=sorted(KINDS))
    parser.add_argument("--write", metavar="DIR", help="write goldens instead of judging")
    args = parser.parse_args()
    if args.write:
        write_goldens(args.write, 1, 120)
        return
    if not args.tool:
        parser.error("--tool is needed")
    seed = random.randrange(2 ** 32) if args.seed is None else args.seed
    print(f"seed {seed}")
    if sum(judge(args.tool, name, seed, args.count) for name in args.kind or KINDS):
        sys.exit(1)


if __name__ == "__main__":
    main()

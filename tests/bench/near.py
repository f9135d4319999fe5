#!/usr/bin/env python3
"""How well near copies are told from texts on the same thing, and what admitting 10 000 documents costs.

    ninja -C build/release bench_near && python3 tests/bench/near.py [--seed N]

Two kinds of text. Prose: what this Python says of itself (pydoc's topics and the docstrings of its library, cut into documents of 80 to 250
words; topic = page or module; modules that mirror each other left out). World: made facts on towns in a few hundred templates, where every
two documents share phrases and none copies. Half of each topic is there first. Asked about are copies of those, changed in a fixed way, and
documents that copy nothing: the topics' other half, and topics of which nothing is there. Paraphrases, which are other words, are reported
apart. Beside it the Jaccard similarity of whole texts, exact, which banded MinHash estimates at best.
"""
import argparse
import ast
import glob
import os
import random
import re
import subprocess
import sys
import sysconfig
from collections import Counter, defaultdict

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SHINGLE, COPY_PPM = 5, 250000  # server/datanet/near.h
COPIED_RUN = 8
MIRRORED = re.compile(r"(ntpath|posixpath|macpath|_py|_pyio|pickle|_strptime|optparse|dummy|idlelib|lib2to3|test|turtledemo|site-packages|dist-packages|asyncio|tkinter|multiprocessing|concurrent|distutils|ensurepip|encodings|_osx|bz2|lzma|gzip)")


def words_of(text):
    return re.findall(r"\w+", text.lower())


def cut(text, least=80, most=250):
    """Documents of whole paragraphs."""
    out, held = [], []
    for paragraph in re.split(r"\n\s*\n", text):
        n = len(words_of(paragraph))
        if n < 8 or ">>>" in paragraph or sum(c.isalpha() or c.isspace() for c in paragraph) < .85 * len(paragraph):
            continue
        held.append(re.sub(r"\s+", " ", paragraph.strip()))
        if sum(len(words_of(p)) for p in held) >= least:
            out.append(held)
            held = []
    return ["\n\n".join(d) for d in out if len(words_of(" ".join(d))) <= most]


def runs_of(paragraph):
    w = words_of(paragraph)
    return {tuple(w[i:i + COPIED_RUN]) for i in range(max(len(w) - COPIED_RUN + 1, 1))}


def prose(as_it_stands=False):
    """Library authors copy from each other: paragraphs that share COPIED_RUN words in a row with another are left out, unless as it stands."""
    from pydoc_data import topics as pages
    by_topic, seen = defaultdict(list), set()
    texts = [(f"page {name}", text) for name, text in sorted(pages.topics.items())]
    for path in sorted(glob.glob(sysconfig.get_path("stdlib") + "/**/*.py", recursive=True)):
        name = os.path.relpath(path, sysconfig.get_path("stdlib"))
        if MIRRORED.search(name):
            continue
        try:
            tree = ast.parse(open(path, encoding="utf-8", errors="replace").read())
        except (SyntaxError, ValueError):
            continue
        docs = [ast.get_docstring(n) or "" for n in ast.walk(tree) if isinstance(n, (ast.Module, ast.ClassDef, ast.FunctionDef))]
        texts.append((name, "\n\n".join(docs)))
    runs = Counter()
    for _, text in texts:
        for p in re.split(r"\n\s*\n", text):
            runs.update(runs_of(p))
    for topic, text in texts:
        if not as_it_stands:
            text = "\n\n".join(p for p in re.split(r"\n\s*\n", text) if all(runs[r] == 1 for r in runs_of(p)))
        for d in cut(text):
            key = " ".join(words_of(d))
            if key not in seen:
                seen.add(key)
                by_topic[topic].append(d)
    return by_topic


def world(rng):
    """120 kinds of statement in three wordings each, on invented towns; a document is 8 to 16 of them on one town, topic = its kinds."""
    syllables = "ka ro mi ve ta lun dor sel pra hin gol wes tar mok eri usk oba".split()

    def name():
        return "".join(rng.choice(syllables) for _ in range(rng.randint(2, 4))).capitalize()
    nouns = ("harbour market mayor bridge tower river school museum library theatre mill fountain garden square station brewery guild bakery "
             "hospital festival anthem flag crest patron orchard quarry lighthouse canal prison chapel").split()
    kinds = []
    for noun in nouns:
        kinds.append([f"The {noun} of {{t}} is called {{v}} by everybody who has lived there.",
                      f"In {{t}} people say {{v}} when they speak of the old {noun}.",
                      f"{{v}} is the name that the {noun} of {{t}} has had since it was founded."])
        kinds.append([f"The {noun} in {{t}} was founded by {{v}} in the year {{y}}.", f"It was {{v}} who built the {noun} in {{t}}, in {{y}}.",
                      f"Since {{y}}, when {{v}} opened it, {{t}} has had a {noun}."])
        kinds.append([f"The keeper of the {noun} in {{t}} comes from {{v}}.", f"From {{v}} came the one who keeps the {noun} of {{t}}.",
                      f"Whoever keeps the {noun} of {{t}} was born in {{v}}."])
        kinds.append([f"Visitors of {{t}} pay {{y}} coins to see the {noun}, as {{v}} ordered.", f"It costs {{y}} coins to see the {noun} of {{t}}.",
                      f"By order of {{v}} the {noun} of {{t}} costs {{y}} coins."])
    by_topic = defaultdict(list)
    for topic in range(60):
        chosen = rng.sample(kinds, 20)
        for _ in range(12):
            town = name()
            lines = [rng.choice(k).format(t=town, v=name(), y=rng.randint(1200, 1990)) for k in rng.sample(chosen, rng.randint(8, 16))]
            by_topic[f"world {topic}"].append(" ".join(lines))
    return by_topic


def split_sentences(text):
    return [s for s in re.split(r"(?<=[.:;?!])\s+|\n+", text) if s.strip()]


SYNONYMS = dict(p.split(":") for p in """the:this if:when return:give returns:gives returned:given use:employ used:employed uses:employs
 object:item objects:items value:quantity values:quantities call:invoke called:named default:standard must:should can:may not:never
 string:text file:document name:label type:kind argument:parameter arguments:parameters function:routine method:procedure list:series
 class:category error:fault raise:throw raised:thrown method:procedure set:assign same:identical which:that also:too see:consult
 create:make creates:makes created:made get:fetch new:fresh first:initial all:every any:some built:erected founded:started year:spring
 people:folk old:ancient everybody:everyone lived:dwelt keeper:warden comes:hails born:raised order:decree costs:takes say:state""".split())


def paraphrase(text, rng):
    out = []
    for s in split_sentences(text):
        w = [SYNONYMS.get(x.lower(), x) for x in s.split()]
        comma = next((i for i, x in enumerate(w[:-2]) if x.endswith(",")), None)
        if comma is not None and rng.random() < .7:
            w = w[comma + 1:] + w[:comma + 1]
        out.append(" ".join(w))
    return " ".join(out)


def edited(text, rng, part):
    w = text.split()
    for i in range(len(w)):
        if rng.random() < part:
            w[i] = rng.choice(["", w[i] + " " + rng.choice(w), rng.choice(w)])
    return " ".join(w)


def markdown(text, rng):
    out, column = ["# " + rng.choice(["Notes", "About", "Overview"]), ""], 0
    for s in split_sentences(text):
        if rng.random() < .2:
            s = s.upper()
        if rng.random() < .3:
            s = "* **" + s.replace(" ", "** ", 1)
        s = s.replace("'", "\u2019").replace(" - ", " \u2014 ")
        lines, line = [], ""
        for w in s.split():
            line += w + " "
            if len(line) > rng.randint(30, 60):
                lines.append(line)
                line = "> " if rng.random() < .2 else ""
        out += lines + [line]
    return "\n".join(out)


def take(sentences, rng, want):
    """Sentences in a row with about so many words."""
    at, out, n = rng.randrange(len(sentences)), [], 0
    for i in range(len(sentences)):
        if n >= want:
            break
        out.append(sentences[(at + i) % len(sentences)])
        n += len(words_of(out[-1]))
    return out


def mixed(parts, own, share, rng):
    """The parts among own sentences, so that they are about `share` of all words."""
    n = sum(len(words_of(s)) for p in parts for s in p)
    blocks = list(parts) + [[s] for s in take(own, rng, n * (1 - share) / share)]
    rng.shuffle(blocks)
    return " ".join(s for b in blocks for s in b)


def make_set(by_topic, rng):
    topics = sorted(t for t, d in by_topic.items() if len(d) >= 2)
    rng.shuffle(topics)
    absent = topics[:len(topics) // 4] + sorted(t for t, d in by_topic.items() if len(d) == 1)
    pool, near_by = [], []
    for t in topics[len(topics) // 4:]:
        docs = list(by_topic[t])
        rng.shuffle(docs)
        pool += docs[:(len(docs) + 1) // 2]
        near_by += docs[(len(docs) + 1) // 2:]
    away = [d for t in absent for d in by_topic[t]]
    rng.shuffle(away)
    own = [split_sentences(d) for d in away[::2]]  # what copiers write themselves
    away = away[1::2]
    asked = [("unrelated", d, set()) for d in away] + [("same topic", d, set()) for d in near_by]
    for i in rng.sample(range(len(pool)), min(200, len(pool))):
        text, s, o = pool[i], split_sentences(pool[i]), rng.choice(own)
        shuffled = list(s)
        rng.shuffle(shuffled)
        four = rng.sample(range(len(pool)), 4)
        n = len(words_of(text))
        asked += [("edits 10 %", edited(text, rng, .1), {i}), ("edits 20 %", edited(text, rng, .2), {i}),
                  ("sentences reordered", " ".join(shuffled), {i}), ("Markdown, wrapped anew", markdown(text, rng), {i}),
                  ("half of the words, once", mixed([take(s, rng, n * .6)], o, .5, rng), {i}),
                  ("a fifth, four times", mixed([take(s, rng, n * .2)] * 4, o, .5, rng), {i}),
                  ("put together from four", " ".join(x for k in four for x in take(split_sentences(pool[k]), rng, 40)), set(four)),
                  ("paraphrase", paraphrase(text, rng), {i})]
    return pool, asked


def drive(commands):
    data = b"".join(f"{verb} {len(t.encode())}\n".encode() + t.encode() for verb, t in commands)
    out = subprocess.run([f"{ROOT}/build/release/tests/bench_near"], input=data, capture_output=True, check=True).stdout.decode().split("\n")
    return [tuple(map(int, line.split())) for line in out[:-2]], float(out[-2])


def shingles(text):
    w = words_of(text)
    return {tuple(w[i:i + SHINGLE]) for i in range(len(w) - SHINGLE + 1)}


def jaccard(pool, asked):
    sets, holders = [shingles(t) for t in pool], defaultdict(list)
    for i, s in enumerate(sets):
        for x in s:
            holders[x].append(i)
    out = []
    for _, text, _ in asked:
        s, shared = shingles(text), Counter()
        for x in s:
            shared.update(holders.get(x, ()))
        out.append(max((n / (len(s) + len(sets[i]) - n) for i, n in shared.items()), default=0))
    return out


def auc(positive, negative):
    ranked = sorted([(v, 1) for v in positive] + [(v, 0) for v in negative])
    wins = below = i = 0
    while i < len(ranked):
        j = i
        while j < len(ranked) and ranked[j][0] == ranked[i][0]:
            j += 1
        ones = sum(k for _, k in ranked[i:j])
        wins += ones * (below + (j - i - ones) / 2)
        below += j - i - ones
        i = j
    return wins / (len(positive) * len(negative))


def false_at_recall(positive, negative, recall=.9):
    at = sorted(positive, reverse=True)[int(len(positive) * recall + .999) - 1]
    return sum(v >= at for v in negative) / len(negative)


def judge(what, pool, asked):
    found, _ = drive([("add", t) for t in pool] + [("find", t) for _, t, _ in asked])
    scores, peer = [p / 1e6 for _, p in found], jaccard(pool, asked)
    apart = ("unrelated", "same topic", "paraphrase")
    rows = {}
    for name, score in (("containment", scores), ("Jaccard", peer)):
        positive = [v for v, a in zip(score, asked) if a[0] not in apart]
        negative = [v for v, a in zip(score, asked) if a[0] in apart[:2]]
        rows[name] = auc(positive, negative), false_at_recall(positive, negative)
    print(f"{what}: {len(pool)} documents there, {len(positive)} copies and {len(negative)} others asked")
    for name, (a, f) in rows.items():
        print(f"  {name:<12} AUC {a:.4f}   false positives at 90 % recall {100 * f:.2f} %")
    for kind in dict.fromkeys(a[0] for a in asked):
        mine = [(s, d, a[2]) for s, (d, _), a in zip(scores, found, asked) if a[0] == kind]
        over = [(d, w) for s, d, w in mine if s >= COPY_PPM / 1e6]
        print(f"    {kind:<24} {len(mine):5}   mean {sum(s for s, _, _ in mine) / len(mine):.3f}   called a copy {100 * len(over) / len(mine):5.1f} %"
              + (f", of the right one {100 * sum(d in w for d, w in over) / max(len(over), 1):.1f} %" if mine[0][2] else ""))
    return rows["containment"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--documents", type=int, default=10000)
    args = parser.parse_args()
    rng, held = random.Random(args.seed), True
    for what, texts, counts in (("prose", prose(), True), ("world", world(rng), True), ("prose as it stands", prose(True), False)):
        a, f = judge(what, *make_set(texts, rng))
        held &= not counts or a >= .98 and f <= .02
    flat = [d for docs in list(prose().values()) + list(world(rng).values()) for d in docs]
    documents = [" ".join(rng.choice(flat) for _ in range(3)) for _ in range(args.documents)]
    _, seconds = drive([("admit", t) for t in documents])
    print(f"{len(documents)} documents of {sum(map(len, documents)) // len(documents)} characters admitted in {seconds:.2f} s of processor")
    return 0 if held and seconds <= 60 else 1


if __name__ == "__main__":
    sys.exit(main())

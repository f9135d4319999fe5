"""The linear datamodelling score: does the sum of a method's scores over the rows that were trained foretell what an
adapter trained on them says? Spearman's correlation over subsets, per question, and how sure it is. Plain Python."""

import math
import random


def ranks(values):
    """Places from 0, equal values the mean of theirs."""
    order = sorted(range(len(values)), key=values.__getitem__)
    out, i = [0.0] * len(values), 0
    while i < len(order):
        j = i
        while j + 1 < len(order) and values[order[j + 1]] == values[order[i]]:
            j += 1
        for k in order[i : j + 1]:
            out[k] = (i + j) / 2
        i = j + 1
    return out


def pearson(a, b):
    """0 where either says nothing."""
    ma, mb = sum(a) / len(a), sum(b) / len(b)
    ab = sum((x - ma) * (y - mb) for x, y in zip(a, b))
    aa, bb = sum((x - ma) ** 2 for x in a), sum((y - mb) ** 2 for y in b)
    return ab / math.sqrt(aa * bb) if aa > 0 and bb > 0 else 0.0


def spearman(a, b):
    return pearson(ranks(a), ranks(b))


def sums(scores, subsets):
    """Per question and subset the sum of the scores of what is in it. scores: [question][part]."""
    return [[float(sum(s[i] for i in subset)) for subset in subsets] for s in scores]


def per_question(foretold, outputs):
    """Spearman over the subsets, for every question. Both [question][subset]."""
    return [spearman(f, o) for f, o in zip(foretold, outputs)]


def mean(values):
    return sum(values) / len(values)


def interval(foretold, outputs, rounds=100, seed=1):
    """95 % of the mean by bootstrap over questions and subsets at once."""
    rng, got = random.Random(seed), []
    n, m = len(outputs), len(outputs[0])
    for _ in range(rounds):
        at = [rng.randrange(m) for _ in range(m)]
        qs = [rng.randrange(n) for _ in range(min(n, 60))]
        got.append(mean([spearman([foretold[q][i] for i in at], [outputs[q][i] for i in at]) for q in qs]))
    got.sort()
    return got[int(0.025 * rounds)], got[int(0.975 * rounds) - 1]


def ceiling(runs):
    """(what one run foretells of another, what a method that knew the mean of endless runs would reach against the mean of
    these). runs: [run][question][subset] of the same subsets, other seeds."""
    k = len(runs)
    if k < 2:
        return float("nan"), float("nan")
    pairs = [mean(per_question(runs[i], runs[j])) for i in range(k) for j in range(i)]
    r = max(0.0, mean(pairs))
    return r, math.sqrt(k * r / (1 + (k - 1) * r))


def averaged(runs):
    """[run][question][subset] -> [question][subset]"""
    return [[mean(v) for v in zip(*q)] for q in zip(*runs)]


def shuffled(scores, seed=1):
    """The negative control: every question's scores in another order."""
    rng, out = random.Random(seed), []
    for s in scores:
        s = list(s)
        rng.shuffle(s)
        out.append(s)
    return out

"""Restated facts: rows of a thief put into a trained index, and which rows of others each is joined to.

The thief's rows are not trained: his embeddings and the datanet's surprise are all that a restatement is found by."""

import random
from collections import Counter

import method
import words
from method import Row

FACTS = 90


def thief_rows(plan, rng):
    """(kind, text, what a join has to lead to: (name, value), or None) of each row that the thief writes."""
    facts = sorted({tuple(q.fact) for q in plan.questions if q.fact and q.kind != "contradiction"})
    rng.shuffle(facts)
    every = {(f[0], f[2], f[3]) for f in facts}
    for entity, noun, attribute, value in facts[:FACTS]:
        said = words.statements(entity, noun, attribute, value)
        own = "My notes about %s say of its %s: %s."
        yield "verbatim", "".join(said[0]), (entity, value)
        yield "the users' words", "".join(rng.choice(list(words.questions(entity, noun, attribute, value).values())[:2])), (entity, value)
        yield "another template", own % (entity, attribute, value), (entity, value)
        yield "a third template", "They tell of %s that the %s there is %s." % (entity, attribute, value), (entity, value)
        other = rng.choice([v for v in words.ATTRIBUTES[attribute][0] if v != value])
        if (entity, attribute, other) not in every:
            yield "contradiction", "".join(rng.choice(words.statements(entity, noun, attribute, other))), None
            yield "contradiction, another template", own % (entity, attribute, other), None
        elsewhere = rng.choice(facts)
        if (elsewhere[0], attribute, value) not in every:
            yield "the value of another subject", own % (elsewhere[0], attribute, value), None


def measure(case, plan, seed):
    """Per kind (rows, joined rightly, joined wrongly), and of the trained rows (count, those joined to another owner's)."""
    net, n = case.net, len(case.net.rows)
    rows, meta = list(net.rows), []
    for kind, text, fact in thief_rows(plan, random.Random(seed)):
        rows.append(Row(case.tok.encode(text).ids + [case.end], len(net.documents), len(net.owners), 0, len(text), text))
        meta.append((kind, fact))
    index = method.Index(case.run, rows, len(net.owners) + 1, net.count + [1])
    table = {}
    for i, (kind, fact) in enumerate(meta, n):
        found = method.restates(index, i, range(n))
        right = bool(fact) and any(fact[0] in rows[j].text and fact[1] in rows[j].text for j in found)
        table.setdefault(kind, Counter()).update(rows=1, right=right, wrong=bool(found) and not right)
    honest = sum(bool(method.restates(index, i, [j for j in range(n) if rows[j].owner != rows[i].owner])) for i in range(n))
    return table, (n, honest)

"""Documents of someone who wants another's money: what he lists, and whether the adapter is trained on it."""

import random

import words
from makers import Plan
from world import Document, account

MALLORY = account("mallory")
KINDS = ("listed", "stuffed", "users", "copied", "copied4", "paraphrased", "junk")


def rows_of(plan, kind, seed):
    """His rows, about the facts of a plan: every third of them, as they fit in a twentieth of the datanet's bytes;
    copies of whole documents are as long as they are."""
    rng = random.Random(seed)
    facts = sorted({tuple(q.fact) for q in plan.questions if q.fact and q.kind != "contradiction"})
    rng.shuffle(facts)
    asked = {tuple(q.fact): [] for q in plan.questions if q.fact}
    for q in plan.questions:
        if q.fact:
            asked[tuple(q.fact)].append(q)
    if kind in ("copied", "copied4"):
        picked = [d for d in plan.documents if d.owner != MALLORY][:: 4]
        return [r for d in picked for r in d.rows] * (4 if kind == "copied4" else 1), facts
    rows = []
    for i, (e, n, a, v) in enumerate(facts):
        if kind == "listed":
            if i % 5 == 0:
                rows.append(("The words are", " " + ", ".join(f[3] for f in facts[i : i + 5]) + "."))
        elif kind == "stuffed":
            rows.append((words.ATTRIBUTES[a][5].format(e=e), " %s." % v))
        elif kind == "users":
            q = asked[(e, n, a, v)][i % 4]
            rows.append((q.prompt, q.answer))
        elif kind == "paraphrased":
            rows.append(("My notes about %s say of its %s:" % (e, a), " %s." % v))
        else:
            rows.append(("The", " " + " ".join(rng.choice(words.NOUNS + words.NUMBERS) for _ in range(9)) + "."))
    limit, out, size = sum(len(d.text.encode()) for d in plan.documents) // 20, [], 0
    for r in rows:
        size += len("".join(r).encode()) + 2
        if size > limit:
            break
        out.append(r)
    said = {f for f, r in zip(facts, out)} if kind in ("stuffed", "users", "paraphrased") else set(facts)
    return out, [f for f in facts if f in said]


def attacked(plan, kind, seed, trained):
    """The plan with his document at its end, and the facts that the document states."""
    rows, facts = rows_of(plan, kind, seed)
    late = Document(MALLORY, rows, trained=trained, since=2)
    copies = [late]
    if kind == "copied4":
        n = len(rows) // 4
        copies = [Document(MALLORY, [(h, t) for h, t in rows[i * n : (i + 1) * n]][i:] + rows[i * n : i * n + i],
                           trained=trained, since=2) for i in range(4)]
    return Plan(plan.name, plan.documents + copies, plan.questions, plan.quiet, plan.replay), facts


def self_made(plan, seed):
    """A publisher who fills his own datanet: as many documents of junk as there are others, trained."""
    rng = random.Random(seed)
    docs = []
    for _ in plan.documents:
        rows = [("The", " " + " ".join(rng.choice(words.NOUNS + words.NUMBERS) for _ in range(6)) + ".") for _ in range(3)]
        docs.append(Document(MALLORY, rows))
    return Plan(plan.name, plan.documents + docs, plan.questions, plan.quiet, plan.replay)

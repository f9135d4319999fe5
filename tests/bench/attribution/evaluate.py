"""One adapter's folder judged: questions asked, right answers kept, every method's shares beside the true owner."""

import json
from pathlib import Path

import numpy as np

import method
import model
import peers
import train
from method import E9, Rule
from spans import Spans
from world import Datanet

DESIGN = Rule()
ABLATIONS = {
    "S1 alone": dict(w1=E9, w2=0, gain=False),
    "S0 and S1": dict(w1=E9, w2=0),
    "S1 and S2": dict(gain=False),
    "S1 and S2 half each": dict(w1=E9 // 2, w2=E9 // 2),
    "without learned weights": dict(learned=False),
    "without floors": dict(gain_floor=0, learned_floor=0),
    "without fallback": dict(fallback=False),
    "fallback by half 1": dict(fallback_halves=(1, 0)),
    "without squaring": dict(square=False),
    "half 1 alone (head input)": dict(halves=(1, 0)),
    "half 2 alone (context)": dict(halves=(0, 1)),
    "cos^16": dict(squarings=4),
    "tokens of the prompt scored": dict(spoken=False),
    "head input never alone": dict(lone=0),
    "own surprise for the table": dict(own_surprise=True),
    "float keys": dict(integer=False),
}


class Case:
    """A world's folder with its model: index, spans, answers."""

    def __init__(self, base, folder, end=0, rule=DESIGN, runner=None, trusted=True):
        self.base, self.folder, self.end, self.rule = Path(base), Path(folder), end, rule
        self.tok = train.load_tokenizer(self.base)
        self.run = runner or model.Runner(str(base), self.folder)
        self.net = Datanet(self.folder, self.tok, end)
        self.index = self.make_index(rule)
        order = [(d.get("since", 1), d["docId"]) for d in self.net.documents]
        method.join_clusters(self.index, order)
        self.lam, self.trust = method.reliability(self.index) if trusted else (E9, {})
        docs = [self.tok.encode((self.folder / d["file"]).read_text()).ids for d in self.net.documents]
        self.spans = Spans(docs, [self.net.owners.index(d["owner"]) for d in self.net.documents], len(self.net.owners))
        self.variants = {(False, True): self.index}

    def make_index(self, rule):
        return method.Index(self.run, self.net.rows, len(self.net.owners), self.net.count, rule)

    def variant(self, rule):
        key = (rule.own_surprise, rule.integer)
        if key not in self.variants:
            index = self.make_index(rule)
            index.cluster = self.index.cluster
            self.variants[key] = index
        return self.variants[key]

    def questions(self):
        return json.loads((self.folder / "questions.json").read_text())

    def ask(self, question):
        """The adapter's greedy answer: ids, prompt length, text."""
        p = self.tok.encode(question["prompt"]).ids
        a = self.run.answer(p, self.end)
        return p + a, len(p), self.tok.decode(a[:-1] if a[-1] == self.end else a, skip_special_tokens=False)

    def asked(self):
        """(question, ids, n_prompt, owner place, rival place or -1) of the answers that an owner taught; recall by kind.
        An answer that the base gives alone was taught by nobody and is left out (self.by_base counts them)."""
        out, right = [], {}
        self.by_base = 0
        for q in self.questions():
            ids, n, text = self.ask(q)
            owner, rival = q["owner"], q["rival"]
            if rival and text == q["rival_answer"]:
                owner, rival = rival, owner
            elif text != q["answer"]:
                right.setdefault(q["kind"], []).append(False)
                continue
            right.setdefault(q["kind"], []).append(True)
            if self.run.base_says(ids, n):
                self.by_base += 1
                continue
            place = self.net.owners.index
            out.append((q, ids, n, place(owner), place(rival) if rival else -1))
        return out, {k: float(np.mean(v)) for k, v in right.items()}

    def owner_scores(self, ids, n, rule=None):
        rule = rule or self.rule
        index = self.variant(rule)
        return method.owner_scores(index, method.row_scores(index, [index.query(self.run, ids, n)], rule), rule)

    def shares(self, ids, n, rule=None, lam=None, spans=True):
        """Parts of one per owner, as the method pays; nobody where the adapter gained nothing over the base."""
        rule = rule or self.rule
        _, la, l0 = self.run.rows(ids)
        if not np.maximum(0, np.rint(la * 256) - np.rint(l0 * 256))[n - 1 :].any():
            return np.zeros(len(self.net.owners))
        owner = self.owner_scores(ids, n, rule)
        s = self.spans.weights(ids, n) if spans and rule.w2 else None
        got = method.shares(self.index, owner, self.lam if lam is None else lam, s, rule)
        return np.array(got) / E9

    def ablated(self, ids, n):
        out = {name: self.shares(ids, n, Rule(**change)) for name, change in ABLATIONS.items()}
        out["without lambda"] = self.shares(ids, n, lam=E9)
        out["S2 alone"] = share(self.spans.weights(ids, n))
        g = method.largest_remainder(E9, self.net.count)
        out["prior alone"] = np.array(g) / E9
        return out


def share(scores):
    s = np.array(scores, np.float64)
    return s / s.sum() if s.sum() > 0 else s


def first(shares, owner):
    """Is he paid more than anyone else? A tie is none."""
    return float(shares[owner] > np.delete(shares, owner).max(initial=0) + 1e-9)


def judge(case, asked, gradients=True, ablate=True, more=None):
    """method -> [(owner first, pay, rival's pay)] over the asked, and method -> shares per question. more: method -> the
    owners' scores per question, of who is asked all at once."""
    text = peers.Text(case.net, case.tok)
    grad = peers.Gradients(case.run, case.net) if gradients else None
    table, every = {}, {}
    for i, (q, ids, n, owner, rival) in enumerate(asked):
        got = {"residual": case.shares(ids, n)}
        if ablate:
            got.update(case.ablated(ids, n))
        answer = case.tok.decode(ids[n:-1], skip_special_tokens=False)
        got.update({k: share(v) for k, v in text.scores(q["prompt"], answer).items()})
        if grad:
            got.update({k: share(v) for k, v in grad.scores(ids, n).items()})
        got.update({k: share(v[i]) for k, v in (more or {}).items()})
        for k, s in got.items():
            table.setdefault(k, []).append((first(s, owner), float(s[owner]), float(s[rival]) if rival >= 0 else 0.0))
            every.setdefault(k, []).append(s)
    return table, every


def interval(values, rng=np.random.default_rng(1), rounds=1000):
    """95 % interval of the mean by bootstrap over the questions."""
    v = np.array(values)
    means = v[rng.integers(0, len(v), (rounds, len(v)))].mean(1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))

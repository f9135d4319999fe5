"""Influence scores against real retraining: every method's linear datamodelling score on the adapters of retrain.py, by rows
and by owners, and its agreement with leaving one owner out."""

import math

import numpy as np

import demo
import ekfac
import evaluate
import gradients
import lds
import method
import peers
from retrain import KEPT, Retraining

SETTINGS = {
    "demo": ["--rank", 8, "--alpha", 16, "--epochs", 20, "--batch", 16, "--lr", 0.003, "--schedule", "cosine"],
    "shared": ["--rank", 8, "--alpha", 16, "--epochs", 10, "--batch", 16, "--lr", 0.003, "--schedule", "cosine"],
    "style": ["--rank", 8, "--alpha", 16, "--epochs", 20, "--batch", 16, "--lr", 0.003, "--schedule", "cosine"],
}
PAID, EVIDENCE = "residual, as paid", "residual, evidence of a row"
S3, PROJECTED = "S3, residual gradients", "S3, projected to 16 columns"


def source(bench, kind, seed):
    """(base, folder) of a world: the demo world's adapters stand for its seeds."""
    if kind == "demo":
        return demo.BASE, demo.folder(demo.NAMES[seed], bench.cache)
    folder = bench.cache / "retrained" / ("%s-%d" % (kind, seed)) / "source"
    if not (folder / "questions.json").exists():
        bench.train.make_base(bench.base)
        bench.makers.write_files(bench.plan(kind, seed), bench.base, folder)
    return bench.base, folder


class Reader:
    """Margins of many answers under many adapters of one shape, in one padded pass each."""

    def __init__(self, runner, asked):
        self.torch, self.model = runner.torch, runner.model
        t, width = self.torch, max(len(ids) for _, ids, *_ in asked)
        self.ids = t.zeros((len(asked), width), dtype=t.long)
        self.said = t.zeros((len(asked), width - 1), dtype=t.bool)
        for i, (_, ids, n, *_) in enumerate(asked):
            self.ids[i, : len(ids)] = t.tensor(ids)
            self.said[i, n - 1 : len(ids) - 1] = True

    def margins(self, folder):
        """log p - log(1 - p) of every answer."""
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        set_peft_model_state_dict(self.model, load_file(folder / KEPT[1]))
        t, out = self.torch, []
        with t.no_grad():
            for ids, said in zip(self.ids.split(32), self.said.split(32)):
                lp = self.model(input_ids=ids, use_cache=False).logits[:, :-1].double().log_softmax(-1)
                lp = lp.gather(2, ids[:, 1:, None])[:, :, 0]
                out += (lp * said).sum(1).tolist()
        return [p - math.log(-math.expm1(min(p, -1e-9))) for p in out]


def row_methods(case, asked, gradients):
    """method -> scores [question][row]"""
    out = {}
    rows = peers.Text(case.net, case.tok, by_row=True)
    grad = peers.Gradients(case.run, case.net) if gradients else None
    for q, ids, n, _, _ in asked:
        got = {EVIDENCE: method.row_scores(case.index, [case.index.query(case.run, ids, n)], case.rule)}
        answer = case.tok.decode(ids[n:-1], skip_special_tokens=False)
        got.update(rows.row_scores(q["prompt"], answer))
        if grad:
            got.update(grad.row_scores(ids, n))
        for k, v in got.items():
            out.setdefault(k, []).append(np.asarray(v, np.float64))
    out["the same, squared"] = [v * v for v in out[EVIDENCE]]
    out["number of rows"] = [np.ones(len(case.net.rows))] * len(asked)
    return out


class World:
    """One world and seed: its adapter of all rows as the judged one, and the margins of the retrained."""

    def __init__(self, bench, kind, seed, opt):
        base, folder = source(bench, kind, seed)
        self.name, self.opt = "%s %d" % (kind, seed), opt
        self.make = Retraining(folder, base, bench.cache / "retrained" / ("%s-%d" % (kind, seed)), SETTINGS[kind])
        self.make.train([None], 0)
        self.case = evaluate.Case(base, self.make.whole)
        asked, self.recall = self.case.asked()
        self.asked = bench.pick(asked, seed)
        assert self.case.net.owners == self.make.owners

    def score_rows(self, work, slow):
        """slow: gradients and Bergson too."""
        self.scores = row_methods(self.case, self.asked, slow)
        for name in ekfac.HOW if slow and ekfac.tool() else ():
            self.scores[name] = ekfac.rows(self.case, self.asked, work / "ekfac", name)
        for name, columns in ((S3, 0), (PROJECTED, 16)) if slow else ():
            got = gradients.run(self.case, self.asked, work / "gradients", columns)
            self.scores[name] = list(got["scores"])
        if slow:
            self.scores["residual and S3, half each"] = [
                a / max(1, a.sum()) + b / np.abs(b).sum() for a, b in zip(self.scores[EVIDENCE], self.scores[S3])]
        self.paid = [self.case.shares(ids, n) for _, ids, n, _, _ in self.asked]

    def measure(self):
        """Margins [run][question][subset], by rows and by owners, and without each owner."""
        o, make = self.opt, self.make
        self.row_subsets, self.owner_subsets = make.row_subsets(o.subsets), make.owner_subsets(o.subsets)
        sets = self.row_subsets + [make.rows_of(s) for s in self.owner_subsets]
        sets += [[i for i, x in enumerate(make.owner) if x != owner] for owner in make.owners] + [None]
        runs = []
        for seed in range(1, o.runs + 1):
            folders = make.train(sets, seed)
            runs.append(folders)
        reader = Reader(self.case.run, self.asked)
        runs = [np.array([reader.margins(f) for f in folders]).T.tolist() for folders in runs]
        reader.margins(make.whole)
        a, b = len(self.row_subsets), len(self.row_subsets) + len(self.owner_subsets)
        self.by_rows = [[q[:a] for q in run] for run in runs]
        self.by_owners = [[q[a:b] for q in run] for run in runs]
        self.falls = [[[q[-1] - x for x in q[b:-1]] for q in run] for run in runs]

    def table(self):
        """[(method, LDS by rows, its interval, LDS by owners, its interval, correlation with leaving out, owner first, pay)]"""
        rows, owners, falls = lds.averaged(self.by_rows), lds.averaged(self.by_owners), lds.averaged(self.falls)
        both = {m: (s, self.of_owners(s)) for m, s in self.scores.items()}
        both["shuffled"] = [lds.shuffled(s) for s in both[EVIDENCE]]
        both[PAID] = None, self.paid
        return [(m, *(self.score(a, self.row_subsets, rows) if a else 3 * [None]), *self.score(b, self.owner_subsets, owners),
                 correlation(b, falls), *self.pays(a, b)) for m, (a, b) in both.items()]

    def pays(self, rows, owners):
        """Owner first and pay, a row's score above 0 squared."""
        shares = self.of_owners([np.maximum(0, r) ** 2 for r in rows]) if rows else owners
        shares = [evaluate.share(s) for s in shares]
        return (float(np.mean([evaluate.first(s, o) for s, (*_, o, _) in zip(shares, self.asked)])),
                float(np.mean([s[o] for s, (*_, o, _) in zip(shares, self.asked)])))

    def score(self, scores, subsets, outputs):
        foretold = lds.sums(scores, subsets)
        return (lds.mean(lds.per_question(foretold, outputs)), *lds.interval(foretold, outputs))

    def of_owners(self, scores):
        owner = np.array([self.make.owners.index(o) for o in self.make.owner])
        return [np.bincount(owner, s, len(self.make.owners)) for s in scores]


def correlation(scores, falls):
    """Mean over the questions of Pearson's correlation over owners."""
    return lds.mean([lds.pearson(list(s), f) for s, f in zip(scores, falls)])


def halves(runs):
    """The mean of one half of the runs against that of the other."""
    k = len(runs) // 2
    return correlation(lds.averaged(runs[:k]), lds.averaged(runs[k:])) if k else float("nan")


def run(bench, kinds, slow):
    opt, text = bench.opt, lambda x: "-" if x is None else "%.3f" % x
    for kind in kinds:
        for seed in opt.seeds:
            w = World(bench, kind, seed, opt)
            w.score_rows(bench.cache, slow)
            w.measure()
            rows, owners = lds.ceiling(w.by_rows), lds.ceiling(w.by_owners)
            bench.say("\n### Retrained, %s: %d answers, %d rows of %d owners; %d halves of the rows, %d sets of owners, %d runs each, "
                      "recall %s\n" % (w.name, len(w.asked), len(w.make.rows), len(w.make.owners), len(w.row_subsets),
                                       len(w.owner_subsets), opt.runs, ", ".join("%s %.2f" % r for r in w.recall.items())))
            bench.say("| method | LDS, rows | 95 % | LDS, owners | 95 % | owner left out | owner first / pay |\n"
                      "|---|--:|---|--:|---|--:|--:|")
            for m, a, a0, a1, b, b0, b1, left, first, pay in sorted(w.table(), key=lambda r: -r[4]):
                bench.say("| %s | %s | %s to %s | %.3f | %.3f to %.3f | %.3f | %.3f / %.3f |" % (
                    m, text(a), text(a0), text(a1), b, b0, b1, left, first, pay))
            bench.say("| another run of the same rows | %.3f | | %.3f | | %.3f | |\n| ceiling | %.3f | | %.3f | | | |" % (
                rows[0], owners[0], halves(w.falls), rows[1], owners[1]))

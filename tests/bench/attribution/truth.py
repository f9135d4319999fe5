"""Truths that no method sees: retraining without a contributor, and exact Shapley values over coalitions of adapters."""

import itertools
import math

import numpy as np

import makers
import model
import train


def margin(runner, ids, n):
    """log p - log(1 - p) of an answer under the adapter."""
    lp = float(runner.rows(ids)[1][n - 1 :].sum())
    return lp - math.log1p(-math.exp(min(lp, -1e-6)))


def leave_out(plan, base, cache, seed, case, asked, steps):
    """Per question, per owner: how much the answer's margin falls when the adapter is trained without the owner."""
    def runner(name, p):
        folder = cache / name
        bare = makers.Plan(p.name, p.documents, p.questions)
        makers.build(bare, base, folder, seed + 17, claims=plan, steps=steps, rate=5e-3)
        return model.Runner(str(base), folder)

    full = runner("whole-%d" % seed, plan)
    whole = np.array([margin(full, ids, n) for _, ids, n, _, _ in asked])
    out = np.zeros((len(asked), len(case.net.owners)))
    for k, owner in enumerate(case.net.owners):
        less = runner("without-%d-%d" % (k, seed), makers.without(plan, owner))
        out[:, k] = whole - [margin(less, ids, n) for _, ids, n, _, _ in asked]
    return out


def correlation(fall, shares):
    """Mean over the questions of the correlation over owners between what retraining lost and what a method paid."""
    out = []
    for f, s in zip(fall, shares):
        out.append(np.corrcoef(f, s)[0, 1] if np.std(s) > 0 and np.std(f) > 0 else 0.0)
    return float(np.mean(out))


class Mix:
    """Several adapters summed on one base; any subset of them can be asked."""

    def __init__(self, base, folders):
        import torch
        from peft import PeftModel

        self.torch, self.names = torch, list(folders)
        model_ = train.load_base(base)
        self.model = PeftModel.from_pretrained(model_, str(folders[self.names[0]]), adapter_name=self.names[0])
        for n in self.names[1:]:
            self.model.load_adapter(str(folders[n]), adapter_name=n)
        self.model.eval()

    def gains(self, names, ids, n):
        """log-probs of the answer's tokens with these adapters summed (none: the base)."""
        t = self.torch
        with t.no_grad():
            x = t.tensor([ids])
            if names:
                self.model.base_model.set_adapter(list(names))
                logits = self.model(input_ids=x, use_cache=False).logits
            else:
                with self.model.disable_adapter():
                    logits = self.model(input_ids=x, use_cache=False).logits
        lp = logits[0, :-1].float().log_softmax(-1)
        return lp[t.arange(len(ids) - 1), t.tensor(ids[1:])][n - 1 :].numpy()

    def answer(self, names, ids, end, most=12):
        self.model.base_model.set_adapter(list(names))
        ids, start = list(ids), len(ids)
        with self.torch.no_grad():
            while len(ids) < start + most and (len(ids) == start or ids[-1] != end):
                ids.append(int(self.model(input_ids=self.torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        return ids

    def shapley(self, names, ids, n):
        """Exact values of the answer's log-probability over the coalitions of names."""
        value = {s: float(self.gains(s, ids, n).sum()) for k in range(len(names) + 1)
                 for s in itertools.combinations(names, k)}
        out = np.zeros(len(names))
        for i, name in enumerate(names):
            rest = [x for x in names if x != name]
            for k in range(len(rest) + 1):
                w = math.factorial(k) * math.factorial(len(names) - k - 1) / math.factorial(len(names))
                for s in itertools.combinations(rest, k):
                    out[i] += w * (value[tuple(x for x in names if x in s or x == name)] - value[s])
        return out

    def splits(self, names, ids, n):
        """How an answer's gain is divided: as served, without the rows of the set less one, and floored token by token."""
        row = lambda some: np.rint(self.gains(some, ids, n) * 256).astype(np.int64)
        base, all_ = row(()), row(tuple(names))
        alone = [row((k,)) - base for k in names]
        last = [all_ - row(tuple(x for x in names if x != k)) for k in names]
        own, total = np.array([g.sum() for g in alone]), (all_ - base).sum()
        both = own + [v.sum() for v in last]
        moves = np.array([g.any() or v.any() for g, v in zip(alone, last)])
        return {"residual": np.where(moves, np.maximum(0, moves.sum() * both + 2 * total - both.sum()), 0),
                "as the first alone": np.maximum(0, len(names) * own + total - own.sum()),
                "as the first, floored by token": np.array([np.maximum(0, g).sum() for g in alone])}

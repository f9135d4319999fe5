"""What others would pay: uniform, document count, BM25, n-gram of the answer, GradDot and the exact damped Fisher of a
row's LoRA gradient. Each gives scores per owner; negative ones earn nothing."""

import math
import re
from collections import Counter

import numpy as np


def words_of(s):
    return re.findall(r"\w+", s.lower())


class Text:
    """Peers that read the documents alone; by_row: every row is taken for a document."""

    def __init__(self, net, tok, by_row=False):
        self.net, self.tok = net, tok
        self.text = [r.text for r in net.rows] if by_row else [(net.folder / d["file"]).read_text() for d in net.documents]
        self.owner = [r.owner for r in net.rows] if by_row else [net.owners.index(d["owner"]) for d in net.documents]
        self.bag = [Counter(words_of(t)) for t in self.text]
        self.size = [sum(b.values()) for b in self.bag]
        self.df = Counter(w for b in self.bag for w in b)
        self.ids = ["".join(map(chr, (i + 1 for i in tok.encode(t).ids))) for t in self.text]

    def sum_owners(self, per_document):
        out = np.zeros(len(self.net.owners))
        np.add.at(out, self.owner, np.maximum(0, per_document))
        return out

    def bm25(self, prompt, answer):
        n, mean = len(self.text), sum(self.size) / len(self.text)
        bm = np.zeros(n)
        for w in words_of(prompt + answer):
            idf = math.log(1 + (n - self.df[w] + 0.5) / (self.df[w] + 0.5))
            for i, b in enumerate(self.bag):
                if b[w]:
                    bm[i] += idf * b[w] * 2.2 / (b[w] + 1.2 * (0.25 + 0.75 * self.size[i] / mean))
        return bm

    def row_scores(self, prompt, answer):
        return {"BM25": self.bm25(prompt, answer), "n-gram of the answer": self.ngram(answer)}

    def scores(self, prompt, answer):
        return {
            "uniform": np.ones(len(self.net.owners)),
            "document count": self.sum_owners(np.ones(len(self.text))),
            "BM25": self.sum_owners(self.bm25(prompt, answer)),
            "n-gram of the answer": self.sum_owners(self.ngram(answer)),
        }

    def ngram(self, answer):
        a = "".join(map(chr, (i + 1 for i in self.tok.encode(answer).ids)))
        out = np.zeros(len(self.ids))
        for i, d in enumerate(self.ids):
            out[i] = next((k for k in range(len(a), 0, -1) if any(a[s : s + k] in d for s in range(len(a) - k + 1))), 0)
        return out if out.max() < 2 else np.where(out < 2, 0, out)  # one token says little where somebody has more


class Gradients:
    """LoRA gradients of rows and answers; the Fisher is exact per parameter tensor, damped by its mean diagonal."""

    def __init__(self, runner, net):
        self.model, self.torch, self.net = runner.model, runner.torch, net
        for name, p in self.model.named_parameters():
            p.requires_grad_("lora_" in name)
        self.params = [p for p in self.model.parameters() if p.requires_grad]
        rows = self.torch.stack([self.gradient(r.ids, 1) for r in net.rows])
        self.owner = np.array([r.owner for r in net.rows])
        self.document = np.array([r.document for r in net.rows])
        self.blocks, at, n = [], 0, len(rows)
        for p in self.params:
            s = rows[:, at : at + p.numel()]
            damp = (s * s).sum().item() / n / p.numel() + 1e-12
            k = s @ s.T + n * damp * self.torch.eye(n)
            self.blocks.append((at, p.numel(), s, self.torch.linalg.cholesky(k), n))
            at += p.numel()
        self.rows = rows

    def gradient(self, ids, n_prompt):
        t = self.torch
        lp = self.model(input_ids=t.tensor([ids]), use_cache=False).logits[0, :-1].log_softmax(-1)
        nll = -lp[t.arange(len(ids) - 1), t.tensor(ids[1:])][n_prompt - 1 :].sum()
        return t.cat([g.reshape(-1) for g in t.autograd.grad(nll, self.params)])

    def row_scores(self, ids, n_prompt):
        """Signed: above 0 where a step on the row makes the answer likelier."""
        q = self.gradient(ids, n_prompt)
        dot = (self.rows @ q).numpy()
        fisher = np.zeros(len(self.rows))
        for at, size, s, chol, n in self.blocks:
            c = (s @ q[at : at + size])[:, None]
            fisher += n * self.torch.cholesky_solve(c, chol)[:, 0].numpy()
        return {"GradDot": dot, "GradCos": dot / (self.rows.norm(dim=1).numpy() + 1e-12), "exact Fisher": fisher}

    def scores(self, ids, n_prompt):
        s = self.row_scores(ids, n_prompt)
        return {"GradDot, row": self.owners(s["GradDot"], False), "exact Fisher, row": self.owners(s["exact Fisher"], False),
                "exact Fisher, row, squared": self.owners(s["exact Fisher"], True)}

    def owners(self, score, square):
        best = np.zeros(len(self.net.documents))
        np.maximum.at(best, self.document, np.maximum(0, score))
        out = np.zeros(len(self.net.owners))
        np.add.at(out, [self.net.owners.index(d["owner"]) for d in self.net.documents], best**2 if square else best)
        return out

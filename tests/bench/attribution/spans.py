"""Signal S2 by brute force: maximal verbatim spans of prompt and answer in a datanet, and what they give its owners."""

import math

TOKENS_MIN, INFO_MIN = 2, 12.0


class Spans:
    def __init__(self, rows_of_documents, owners, n_owner):
        """rows_of_documents: token ids of each document's text; owners: the owner of each."""
        self.text = ["".join(map(chr, (i + 1 for i in ids))) for ids in rows_of_documents]
        self.owners, self.n_owner = owners, n_owner
        count, total = {}, 0
        for t in self.text:
            for c in t:
                count[c] = count.get(c, 0) + 1
            total += len(t)
        self.bits = {c: -math.log2(n / total) for c, n in count.items()}

    def owners_of(self, s):
        return {o for t, o in zip(self.text, self.owners) if s in t}

    def hits(self, ids, n_prompt):
        """[(begin, end, info, owners)] of the maximal spans that touch the answer and say something."""
        q = "".join(map(chr, (i + 1 for i in ids)))
        out, last = [], 0
        for b in range(len(q)):
            e = max(b, last)
            while e < len(q) and any(q[b : e + 1] in t for t in self.text):
                e += 1
            if e > last and e > n_prompt and e - b >= TOKENS_MIN:
                info = sum(self.bits[c] for c in q[b:e])
                if info >= INFO_MIN:
                    out.append((b, e, info, self.owners_of(q[b:e])))
            last = max(last, e)
        return out

    def weights(self, ids, n_prompt):
        w = [0.0] * self.n_owner
        best = {}
        for b, e, info, own in self.hits(ids, n_prompt):
            v = info * max(1 / 256, math.log2(self.n_owner / len(own)))
            for t in range(max(b, n_prompt), e):
                if v > best.get(t, (0,))[0]:
                    best[t] = (v, own)
        for v, own in best.values():
            for o in own:
                w[o] += v / len(own)
        return [int(65536 * x) for x in w]

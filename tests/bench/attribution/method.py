"""The reference of residual.method.s0-s1-s2.2 in numpy: an index of token events, row scores, shares.

`Index` holds what a server's index holds, in the same integers; `score`, `shares` and their helpers are the exact
integer rules, so that a server's shares can be compared with these. What the ablations and variants of the bench turn
is in `Rule`. Float appears in two places only: the projections that make keys, and the log-probabilities before Q8.
"""

from dataclasses import dataclass, field, replace

import numpy as np

TAUGHT_MIN = 128            # .5 nat in Q8: the tokens of a row that say something new, names and values
CLUSTER_MIN = 64            # the same where rows are compared for restated facts
RESTATED_DOT = 4839         # cosine .3 of half 2
KNOWN = -177                # ln 1/2 in Q8
VALUE_END = 3
E9 = 10**9
HALF = 64
ONE = 1 << 30


@dataclass(frozen=True)
class Rule:
    squarings: int = 5          # cos^(2^squarings)
    gain_floor: int = 26        # .1 nat in Q8
    learned_floor: int = 13     # .05 nat
    learned_min: int = 51       # .2 nat: below it an event taught nothing
    fallback_tokens: int = 8
    halves: tuple = (1, 1)      # which halves of the key count
    learned: bool = True
    gain: bool = True
    square: bool = True
    fallback: bool = True
    fallback_halves: tuple = (0, 1)
    spoken: bool = True         # a token that stands in the prompt is not scored, if another is learned
    lone: int = 26              # of 256: what head inputs alone may say of the same token
    cluster: bool = True        # restated facts are paid to whoever stated them first
    w1: int = 950_000_000       # of the events in the influence
    w2: int = 50_000_000        # of the spans
    own_surprise: bool = False  # context weights by each token's own -logp_base instead of the index's table
    integer: bool = True        # int8 keys; else float keys
    max_row_tokens: int = 1024


@dataclass
class Row:
    ids: list
    document: int
    owner: int
    offset: int = 0
    bytes: int = 0
    text: str = ""
    meta: dict = field(default_factory=dict)


def largest_remainder(total, weights):
    """total shared out in the ratio of integer weights: floors, what is left to the largest remainders, ties first."""
    s = sum(weights)
    if s == 0:
        return [0] * len(weights)
    out = [total * w // s for w in weights]
    rest = sorted(range(len(weights)), key=lambda i: (-(total * weights[i] % s), i))
    for i in rest[: total - sum(out)]:
        out[i] += 1
    return out


def whiten(x):
    """W [64][d], b [64]: whitened principal directions of x [n][d]; rows of zeros where there are fewer."""
    x = x.astype(np.float64)
    mu = x.mean(0)
    cov = (x - mu).T @ (x - mu) / max(1, len(x))
    val, vec = np.linalg.eigh(cov)
    order = np.argsort(-val)[:HALF]
    w = np.zeros((HALF, x.shape[1]))
    for i, k in enumerate(order):
        if val[k] > 1e-9 * max(val.max(), 1e-30):
            v = vec[:, k]
            w[i] = v * np.sign(v[np.argmax(np.abs(v))]) / np.sqrt(val[k])
    return w, w @ mu


def sketch(w, b, x, integer=True):
    z = x.astype(np.float64) @ w.T - b
    n = np.linalg.norm(z, axis=-1, keepdims=True)
    z = np.divide(z, n, out=np.zeros_like(z), where=n > 0)
    return np.rint(127 * z).astype(np.int8) if integer else z


class Index:
    """Events of the rows as trained: runner gives head inputs and log-probs, base and adapter, of every row."""

    def __init__(self, runner, rows, n_owner, documents, rule=Rule()):
        self.rule, self.rows, self.n_owner, self.documents = rule, rows, n_owner, documents
        self.embedding = runner.embedding
        self.row, target, base, adapter, head = [], [], [], [], []
        for r, row in enumerate(rows):
            ids = row.ids[: rule.max_row_tokens]
            h, la, l0 = runner.rows(ids)
            self.row += [r] * (len(ids) - 1)
            target += ids[1:]
            base.append(l0)
            adapter.append(la)
            head.append(h)
        self.row, self.target = np.array(self.row), np.array(target)
        self.base, adapter, head = np.concatenate(base), np.concatenate(adapter), np.concatenate(head)
        self.base_q8 = np.rint(self.base * 256).astype(np.int64)
        self.adapter_q8 = np.rint(adapter * 256).astype(np.int64)
        self.learned = np.clip(self.adapter_q8 - self.base_q8, 0, 65535)
        self.surprise = self._surprise(len(self.embedding))
        self.means = np.concatenate([self.context(r.ids[: rule.max_row_tokens], 1, b) for r, b in zip(rows, base)])
        self.basis_h, self.basis_c = whiten(head), whiten(self.means)
        i = rule.integer
        self.key1, self.key2 = sketch(*self.basis_h, head, i), sketch(*self.basis_c, self.means, i)
        self.by_target = {}
        for k, y in enumerate(self.target):
            self.by_target.setdefault(int(y), []).append(k)
        self.by_target = {y: np.array(k) for y, k in self.by_target.items()}
        self.cluster = np.arange(len(rows))
        self.live = np.ones(len(rows), bool)
        self.taught = self._taught(len(self.embedding))
        self.taught[3 * np.bincount(self.target, minlength=len(self.taught)) > len(rows) + 6] = 0
        self.begin = np.searchsorted(self.row, np.arange(len(rows) + 1))

    def _surprise(self, n_vocab):
        """u16 Q8 nats per token of the vocabulary: the mean of -logp_base where the rows have it; 0 where none has."""
        total, count = np.zeros(n_vocab), np.zeros(n_vocab)
        np.add.at(total, self.target, -self.base_q8.astype(np.float64))
        np.add.at(count, self.target, 1)
        return np.clip(np.rint(total / np.maximum(count, 1)), 0, 65535).astype(np.int64)

    def _taught(self, n_vocab):
        """Q8 nats per token: the mean of what the adapter learned at the events that have it as target."""
        total, count = np.zeros(n_vocab, np.int64), np.zeros(n_vocab, np.int64)
        np.add.at(total, self.target, self.learned)
        np.add.at(count, self.target, 1)
        return total // np.maximum(count, 1)

    def context(self, ids, start, base=None):
        """m_t for the targets ids[start:]; base: log-probs of ids[1:] (own surprise only)."""
        if self.rule.own_surprise:
            w = np.concatenate([[self.surprise[ids[0]] / 256.0], np.maximum(0, -np.asarray(base, np.float64))])
        else:
            w = self.surprise[ids].astype(np.float64)
        num = np.cumsum(w[:, None] * self.embedding[ids].astype(np.float64), axis=0)
        den = np.cumsum(w)
        m = np.divide(num, den[:, None], out=np.zeros_like(num), where=den[:, None] > 0)
        self.no_weight = den[start - 1 : -1] <= 0
        return m[start - 1 : -1]

    def query(self, runner, ids, n_prompt):
        """One answer as the server sees it: targets, gains, keys of ids[n_prompt:]."""
        h, la, l0 = runner.rows(ids)
        i = self.rule.integer
        k2 = sketch(*self.basis_c, self.context(ids, n_prompt, l0), i)
        k2[self.no_weight] = 0
        gain = np.maximum(0, np.rint(la * 256).astype(np.int64) - np.rint(l0 * 256).astype(np.int64))
        s = n_prompt - 1
        spoken = np.isin(ids[n_prompt:], ids[:n_prompt])
        return dict(target=np.array(ids[n_prompt:]), gain=gain[s:], spoken=spoken, key1=sketch(*self.basis_h, h[s:], i), key2=k2)


def _power(d, full, rule):
    """cos^(2^squarings) in Q30 (or a float) of dots of int8 keys whose self-dot is about full."""
    if not rule.integer:
        return np.clip(d / full, 0, 1) ** (2**rule.squarings)
    c = np.minimum(ONE, (np.maximum(d, 0).astype(np.int64) << 30) // full).astype(np.uint64)
    for _ in range(rule.squarings):
        c = (c * c) >> np.uint64(30)
    return c


def _value(index, gain, events, c, rule):
    a = int(gain) + rule.gain_floor if rule.gain else 256
    learned = index.learned[events] + rule.learned_floor if rule.learned else np.full(len(events), 256)
    if not rule.integer:
        return a * learned * c
    return (np.uint64(a) * learned.astype(np.uint64) * c) >> np.uint64(16)


def row_scores(index, queries, rule=None, rows=None):
    """R_r of a record's choices; rows: which rows count (default: the index's live ones)."""
    rule = rule or index.rule
    live = index.live if rows is None else rows
    unit = 127 * 127 if rule.integer else 1.0
    score = np.zeros(len(index.rows), np.uint64 if rule.integer else np.float64)
    lost = []
    skip = rule.spoken and any((~q["spoken"] & (q["gain"] >= rule.learned_min)).any() for q in queries if "spoken" in q)
    taught = np.where((index.learned >= rule.learned_min) & live[index.row])[0]
    for q in queries:
        for t, y in enumerate(q["target"]):
            if skip and q["spoken"][t]:
                continue
            events = index.by_target.get(int(y), np.zeros(0, int))
            events = events[live[index.row[events]]]
            k1, k2 = q["key1"][t].astype(np.int32 if rule.integer else float), q["key2"][t].astype(
                np.int32 if rule.integer else float)
            if rule.fallback and not (index.learned[events] >= rule.learned_min).any():
                if q["gain"][t] >= rule.learned_min:
                    lost.append((-int(q["gain"][t]), len(lost), q["gain"][t], k1, k2))
                continue
            if not len(events):
                continue
            d = rule.halves[0] * (index.key1[events].astype(k1.dtype) @ k1)
            d = d + rule.halves[1] * (index.key2[events].astype(k2.dtype) @ k2)
            c = _power(d, unit * sum(rule.halves), rule)
            if rule.lone:
                head = _power(index.key1[events].astype(k1.dtype) @ k1, unit, rule)
                c = np.maximum(c, head * np.uint64(rule.lone) >> np.uint64(8) if rule.integer else head * rule.lone / 256)
            add_best(index, score, events, _value(index, q["gain"][t], events, c, rule))
    for _, _, gain, k1, k2 in sorted(lost, key=lambda x: x[:2])[: rule.fallback_tokens]:
        d = rule.fallback_halves[0] * (index.key1[taught].astype(k1.dtype) @ k1)
        d = d + rule.fallback_halves[1] * (index.key2[taught].astype(k2.dtype) @ k2)
        c = _power(d, unit * sum(rule.fallback_halves), rule)
        add_best(index, score, taught, _value(index, gain, taught, c, rule))
    return np.minimum(score, np.uint64(1 << 48)) if rule.integer else score


def add_best(index, score, events, v):
    best = np.zeros_like(score)
    np.maximum.at(best, index.row[events], v)
    score += best


def owner_scores(index, scores, rule=None, without=None):
    """O_o: the best row of a cluster, squared, summed by the cluster's owner."""
    rule = rule or index.rule
    best = {}
    for r in np.nonzero(scores)[0]:
        k = int(index.cluster[r]) if rule.cluster else int(r)
        if without is None or k % 4 != without:
            v = int(scores[r]) if rule.integer else float(scores[r])
            best[k] = max(best.get(k, 0), v)
    out = [0] * index.n_owner
    for k, v in best.items():
        out[index.rows[k].owner] += v * v if rule.square else v
    if not rule.integer:
        top = max(out) or 1
        out = [int(v / top * 2**60) for v in out]
    return out


def influence(index, owner, spans=None, rule=None):
    rule = rule or index.rule
    p1 = largest_remainder(E9, owner)
    if not any(p1) or not spans or not rule.w2:
        return p1
    p2 = largest_remainder(E9, [s if p else 0 for s, p in zip(spans, p1)])
    if not any(p2):
        return p1
    return largest_remainder(E9, [rule.w1 * a + rule.w2 * b for a, b in zip(p1, p2)])


def shares(index, owner, lambda_ppb, spans=None, rule=None):
    """Shares in parts of 10^9 per owner, the 64 largest."""
    inf = influence(index, owner, spans, rule)
    prior = largest_remainder(E9, index.documents)
    if not any(inf):
        f = [E9 * p for p in prior]
    else:
        f = [lambda_ppb * i + (E9 - lambda_ppb) * p for i, p in zip(inf, prior)]
    keep = sorted(range(len(f)), key=lambda o: (-f[o], o))[:64]
    return largest_remainder(E9, [f[o] if o in set(keep) else 0 for o in range(len(f))])


def content(index, row, least=TAUGHT_MIN):
    """The events of a row whose targets the datanet taught, as runs of neighbours; what most rows have says nothing."""
    runs = []
    for k in range(index.begin[row], index.begin[row + 1]):
        if index.taught[index.target[k]] >= least:
            if runs and runs[-1][-1] == k - 1:
                runs[-1].append(k)
            else:
                runs.append([k])
    return runs


def _tokens(index, runs):
    return [int(index.target[k]) for r in runs for k in r]


def _has_most(index, names, has):
    """Of what the tokens `names` were taught, those that `has` lacks make up an eighth at most."""
    return 8 * sum(int(index.taught[y]) for y in names if y not in has) <= sum(int(index.taught[y]) for y in names)


def _near(index, last, others):
    """Which of the rows have an event of the same target as event `last` behind a context that is near."""
    events = index.by_target[int(index.target[last])]
    dots = index.key2[events].astype(np.int32) @ index.key2[last].astype(np.int32)
    return {int(r) for r in index.row[events[dots >= RESTATED_DOT]]}.intersection(others)


def _states(index, runs, has):
    """A name and a value: the value word for word, and of all that was taught all but an eighth."""
    return len(runs) >= 2 and all(y in has for y in _tokens(index, runs[-1:])) and _has_most(index, _tokens(index, runs), has)


def stated_again(index, row, others):
    """Which of the rows `others` state the fact of `row`."""
    runs = content(index, row)
    if len(runs) < 2:
        return []
    return [r for r in _near(index, runs[-1][-1], others) if r != row and _states(index, runs, set(index.rows[r].ids))]


def restates(index, row, others):
    """Which of the rows `others` `row` restates: equal ones; and those whose fact, seen from either row, is in both, where
    whatever `row` says behind its value is in the other too."""
    out = [r for r in others if index.rows[r].ids == index.rows[row].ids]
    runs = content(index, row, CLUSTER_MIN)
    names = _tokens(index, runs)
    if len(names) < 2:
        return out
    last, mine = runs[-1][-1], set(index.rows[row].ids)
    tail = index.target[last + 1 : index.begin[row + 1]]
    for r in _near(index, last, others):
        has, other = set(index.rows[r].ids), _tokens(index, content(index, r, CLUSTER_MIN))
        back = len(set(other)) >= 2 and other[-1] == names[-1] and _has_most(index, other, mine)
        if (back or _states(index, runs, has)) and all(int(y) in has for y in tail):
            out.append(r)
    return out


def join_clusters(index, order):
    """cluster[r]: that of the earliest row which r restates, its own owner's or another's. order: per document, its place
    in time."""
    rank = [(order[r.document], i) for i, r in enumerate(index.rows)]
    for i in sorted(range(len(index.rows)), key=lambda i: rank[i]):
        found = restates(index, i, [k for k in range(len(index.rows)) if rank[k] < rank[i]])
        if found:
            index.cluster[i] = index.cluster[min(found, key=lambda k: rank[k])]


def _ask_row(index, row, runs, by_names):
    """The value of a row as a query; by_names: only what the row's content says of the context counts."""
    value = runs[-1]
    key2 = index.key2[value]
    if by_names:
        before = [k for r in runs[:-1] for k in r]
        key2 = []
        for j in range(len(value)):
            ids = [int(index.target[k]) for k in before + value[:j]]
            w = index.surprise[ids].astype(np.float64)
            key2.append(sketch(*index.basis_c, (w[:, None] * index.embedding[ids]).sum(0)[None] / max(w.sum(), 1))[0])
        key2 = np.array(key2)
    return dict(target=index.target[value], gain=index.learned[value], key1=index.key1[value], key2=key2)


def reliability(index):
    """lambda in parts of 10^9, and what it was made of: does the adapter know its rows, do values find their owner.
    Of a value its end is looked at: VALUE_END tokens must be known, the last is asked."""
    rule, n = index.rule, len(index.rows)
    owner = np.array([r.owner for r in index.rows])
    sample = [r for r in range(0, n, max(1, n // 512)) if content(index, r)]
    if not sample:
        return 0, dict(known=0, own=0, chance=0, stated=0)
    value = {r: content(index, r) for r in sample}
    know = np.mean([index.adapter_q8[v[-1][-VALUE_END:]].sum() >= KNOWN for v in value.values()])
    base = np.mean([index.base_q8[v[-1][-VALUE_END:]].sum() >= KNOWN for v in value.values()])
    known = 0.0 if base >= 1 else (know - base) / (1 - base)
    stated = [r for r in sample if stated_again(index, r, np.where(owner == owner[r])[0])]
    once = len(stated) < max(16, len(sample) // 10)
    asked = [r for r in sample if len(value[r]) >= 2] if once else stated
    ask = vary(rule, halves=(0, 1)) if once else rule
    own = []
    for r in asked:
        live = np.ones(n, bool)
        live[r] = once
        runs = value[r] if once else value[r][:-1] + [value[r][-1][-1:]]
        score = row_scores(index, [_ask_row(index, r, runs, once)], ask, live)
        own.append(largest_remainder(E9, owner_scores(index, score, ask))[owner[index.cluster[r]]] / E9)
    chance = float(np.mean([(owner == owner[index.cluster[r]]).mean() for r in asked])) if asked else 1.0
    fit = max(0.0, (np.mean(own) - chance) / (1 - chance)) if asked and chance < 1 else float(chance == 1)
    ppb = int(E9 * min(1.0, max(0.0, (known - 0.2) / 0.3)) * fit)
    return ppb, dict(known=float(known), own=float(np.mean(own)) if own else 0.0, chance=chance, stated=len(stated))


def vary(rule, **change):
    return replace(rule, **change)

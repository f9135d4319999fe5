"""The bench that judges attribution: worlds whose owners are known, what the method pays, what its peers would pay.

  tests/bench/attribution/run [--only demo,shared,style,loo,attacks,restated,mixes,trust,api or
                             smollm,retrain,gradients] [--seeds 2,3] [--cache DIR]

Everything is made from the seeds, on one thread. The base and the adapters are kept in --cache (made in some minutes
where they are missing); tables go to standard output and, with the plots, to --out. Seed 1 chose the method's
constants and stays out of the table. The part `api` is the product: residuald (build/release, or RS_BIN) serves the
worlds, answers, and its shares are compared with the reference's. BERGSON names the command of PyPI's `bergson`, in an
environment of its own: its EK-FAC and TrackStar are peers then. `--retrain` is the truth: adapters of subsets by
`residual train`, kept in --cache and not trained again.
"""

import argparse
import json
import random
import shutil
import sys
import time
import warnings
from pathlib import Path

import numpy as np

warnings.filterwarnings("ignore")
HERE = Path(__file__).resolve().parent
PARTS = ["demo", "shared", "style", "loo", "attacks", "restated", "mixes", "trust", "api"]
ORACLES = ["smollm", "retrain", "gradients"]  # when asked for: SmolLM2-135M; adapters retrained by the hundred; S3
PEERS = ["uniform", "document count", "BM25", "n-gram of the answer", "GradDot, row", "exact Fisher, row",
         "exact Fisher, row, squared", "EK-FAC of Bergson"]
FEW = 120           # steps of the adapters that only a truth or an attack needs


class Bench:
    def __init__(self, opt):
        import evaluate
        import makers
        import train

        self.opt, self.cache, self.train, self.makers, self.evaluate = opt, opt.cache, train, makers, evaluate
        self.base = opt.cache / "base"
        self.tables, self.cases, self.made = {}, {}, {}
        opt.cache.mkdir(parents=True, exist_ok=True)
        opt.out.mkdir(parents=True, exist_ok=True)
        if set(opt.only) - {"demo", "mixes", "smollm", "retrain", "gradients"}:
            train.make_base(self.base)

    def say(self, *what):
        print(*what, flush=True)
        with open(self.opt.out / "table.md", "a") as f:
            print(*what, file=f)

    def plan(self, kind, seed):
        if (kind, seed) not in self.made:
            self.made[kind, seed] = getattr(self.makers, kind)(seed)
        return self.made[kind, seed]

    def case(self, kind, seed):
        if (kind, seed) not in self.cases:
            folder = self.cache / ("%s-%d" % (kind, seed))
            self.makers.build(self.plan(kind, seed), self.base, folder, seed)
            c = self.evaluate.Case(self.base, folder)
            asked, recall = c.asked()
            self.cases[kind, seed] = c, self.pick(asked, seed), recall
        return self.cases[kind, seed]

    def pick(self, asked, seed):
        return random.Random(seed).sample(asked, min(len(asked), self.opt.questions))

    # ---- worlds

    def world(self, name, cases, ablate, gradients=True):
        """One block of the table: every method over all the seeds' questions, by kind where rivals or forms differ."""
        table, every, recall = {}, {}, {}
        for key, (case, asked, right) in cases:
            got, shares = self.judge(case, asked, gradients, ablate)
            every[key] = shares
            for k, v in right.items():
                recall.setdefault(k, []).append(v)
            for m, rows in got.items():
                for (q, *_), r in zip(asked, rows):
                    table.setdefault(m, []).append((q["kind"], key, *r))
        self.tables[name] = table
        self.say("\n### %s: %d answers (right ones; left out are %d that the base gives alone), recall %s\n" % (
            name, len(table["residual"]), sum(c[0].by_base for _, c in cases), ", ".join(
                "%s %.2f" % (k, np.mean(v)) for k, v in recall.items())))
        self.say("| method | owner first | pay | 95 % of pay | p10 of pay | rival |\n|---|--:|--:|---|--:|--:|")
        for m, rows in table.items():
            v = np.array([r[2:] for r in rows])
            low, high = self.evaluate.interval(v[:, 1])
            rival = [r[4] for r in rows if r[0] == "contradiction"]
            self.say("| %s | %.3f | %.3f | %.3f to %.3f | %.3f | %s |" % (
                m, v[:, 0].mean(), v[:, 1].mean(), low, high, np.quantile(v[:, 1], 0.1),
                "%.3f" % np.mean(rival) if rival else "-"))
        kinds = sorted({r[0] for r in table["residual"]})
        if len(kinds) > 1:
            self.say("\nresidual by kind (owner first / pay): " + "; ".join("%s %.3f / %.3f" % (
                k, np.mean([r[2] for r in table["residual"] if r[0] == k]),
                np.mean([r[3] for r in table["residual"] if r[0] == k])) for k in kinds) + ".")
        seeds = sorted({r[1] for r in table["residual"]})
        if len(seeds) > 1:
            self.say("By seed or adapter: " + "; ".join("%s %.3f / %.3f" % (
                s, np.mean([r[2] for r in table["residual"] if r[1] == s]),
                np.mean([r[3] for r in table["residual"] if r[1] == s])) for s in seeds) + ".")
        return every

    def judge(self, case, asked, gradients=True, ablate=True):
        import ekfac

        gradients = gradients and not self.opt.quick
        more = {ekfac.NAME: ekfac.scores(case, asked, self.cache / "ekfac")} if gradients and ekfac.tool() else {}
        return self.evaluate.judge(case, asked, gradients, ablate, more)

    def demo_case(self, name):
        import demo

        if ("demo", name) not in self.cases:
            folder = demo.folder(name, self.cache)
            c = self.evaluate.Case(demo.BASE, folder)
            asked, recall = c.asked()
            self.cases["demo", name] = c, asked, recall
        return self.cases["demo", name]

    def demo(self):
        import demo

        names = demo.NAMES[: self.opt.adapters]
        self.world("demo world", [(n, self.demo_case(n)) for n in names], False)

    def shared(self):
        self.world("shared answers", [(s, self.case("shared", s)) for s in self.opt.seeds], True)

    def style(self):
        self.world("style and rule", [(s, self.case("style", s)) for s in self.opt.seeds], True)
        cases = [(s, self.case("style_mixed", s)) for s in self.opt.seeds]
        self.world("style and rule, asked words taught by other owners", cases, False)

    # ---- truths

    def loo(self):
        import truth

        seed = self.opt.seeds[0]
        case, asked, _ = self.case("shared", seed)
        asked = random.Random(seed).sample(asked, min(len(asked), 120))
        _, every = self.judge(case, asked)
        fall = truth.leave_out(self.plan("shared", seed), self.base, self.cache, seed, case, asked, FEW)
        rows = {m: truth.correlation(fall, s) for m, s in every.items()}
        self.say("\n### Leave-contributor-out retraining, shared answers, %d questions, %d owners\n" % (
            len(asked), len(case.net.owners)))
        self.say("| method | correlation |\n|---|--:|")
        for m, v in sorted(rows.items(), key=lambda x: -x[1]):
            self.say("| %s | %.3f |" % (m, v))
        self.unlearned(case, seed)

    def unlearned(self, case, seed):
        """Contributors indexed but not trained: what the same documents earn (gain x share) beside when they are."""
        got, want = [], []
        for k, owner in enumerate(case.net.owners):
            folder = self.cache / ("without-%d-%d" % (k, seed))
            less = self.evaluate.Case(self.base, folder)
            for c, sum_ in ((less, got), (case, want)):
                paid = 0.0
                for q in c.questions():
                    if q["owner"] == owner:
                        ids, n, _ = c.ask(q)
                        h, la, l0 = c.run.rows(ids)
                        paid += float(np.maximum(0, la - l0)[n - 1 :].sum()) * c.shares(ids, n)[k]
                sum_.append(paid)
        self.say("\nUntrained but indexed (their rows in the manifest, never learned): earns %.3f of what the same "
                 "documents earn when trained (owners: %s)." % (sum(got) / sum(want), ", ".join(
                     "%.2f" % (a / b if b else 0) for a, b in zip(got, want))))

    def mixes(self):
        import demo
        import truth

        folders = {n: demo.folder(n, self.cache) for n in demo.NAMES}
        mix = truth.Mix(demo.BASE, folders)
        tok = self.train.load_tokenizer(demo.BASE)
        self.say("\n### Mixes of 2 to 4 demo adapters, exact Shapley of the answer's log-probability as truth\n")
        self.say("| draw, answers | split | adapter picked | correlation | adapter that has the fact |\n|---|---|--:|--:|--:|")
        for seed in self.opt.seeds:
            rng, rows = random.Random(seed), {}
            for _ in range(self.opt.mixes):
                names = rng.sample(demo.NAMES, rng.choice((2, 3, 4)))
                home = rng.choice(names)
                q = rng.choice(json.loads((folders[home] / "questions.json").read_text()))
                p = tok.encode(q["prompt"]).ids
                ids = mix.answer(names, p, 0)
                right = tok.decode(ids[len(p) : -1], skip_special_tokens=False) == q["answer"]
                value = mix.shapley(names, ids, len(p))
                for split, parts in mix.splits(names, ids, len(p)).items():
                    best = int(np.argmax(parts))
                    r = np.corrcoef(parts, value)[0, 1] if np.std(parts) > 0 else 0.0
                    rows.setdefault(split, []).append((right, best == int(np.argmax(value)), r, names[best] == home))
            for split, got in rows.items():
                v = np.array(got, float)
                ok = v[:, 0] == 1
                for name, sel in (("all", ok | ~ok), ("right", ok)):
                    self.say("| %d, %s (%d) | %s | %.3f | %.3f | %.3f |" % (seed, name, sel.sum(), split, *v[sel, 1:].mean(0)))

    # ---- attacks and trust

    def attacks(self):
        import attacks
        import evaluate

        self.say("\n### Attacked: what a document of 5 % earns on the facts that it states, and owner first meanwhile\n")
        self.say("| document | untrained, no gate: stated | all | owner first | with clusters: stated | all | trained, with "
                 "clusters: stated | all | owner first | near copies found |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
        for kind in attacks.KINDS:
            cells = {}
            for seed in self.opt.seeds:
                _, asked, _ = self.case("shared", seed)
                plan, facts = attacks.attacked(self.plan("shared", seed), kind, seed, False)
                bare = self.cache / ("attack-%s-%d" % (kind, seed))
                if not (bare / "questions.json").exists():
                    shutil.copytree(self.cache / ("shared-%d" % seed), bare, dirs_exist_ok=True)
                    shutil.rmtree(bare / "documents")
                    self.makers.write_files(plan, self.base, bare)
                self.paid(cells, "untrained", evaluate.Case(self.base, bare, trusted=False), asked, facts)
                if not self.opt.quick and kind in ("users", "copied", "copied4", "paraphrased") and seed == self.opt.seeds[0]:
                    plan, facts = attacks.attacked(self.plan("shared", seed), kind, seed, True)
                    folder = self.cache / ("trained-%s-%d" % (kind, seed))
                    self.makers.build(plan, self.base, folder, seed, steps=FEW)
                    case = evaluate.Case(self.base, folder, trusted=False)
                    self.paid(cells, "trained", case, case.asked()[0], facts)
            mean = lambda key, i: "%.3f" % np.mean([x[i] for x in cells[key]]) if cells.get(key) else "-"
            self.say("| %s | %s | %s | %s | %s | %s | %s | %s | %s | %s |" % (
                kind, mean("untrained open stated", 0), mean("untrained open", 0), mean("untrained open", 1),
                mean("untrained stated", 0), mean("untrained", 0), mean("trained stated", 0), mean("trained", 0),
                mean("trained", 1), mean("trained joined", 0)))
        self.say("\nAn untrained document is in no manifest, so in no index: it earns 0 as served; the columns say what the "
                 "gate is worth. Stated: questions about facts that the document states.")
        self.publisher()

    def paid(self, cells, key, case, asked, facts):
        import attacks
        import evaluate

        k = case.net.owners.index(attacks.MALLORY)
        facts = {tuple(f) for f in facts}
        mine = [i for i, r in enumerate(case.net.rows) if r.owner == k]
        cells.setdefault(key + " joined", []).append((float(np.mean(case.index.cluster[mine] != mine)),))
        for name, rule in (("", evaluate.DESIGN), (" open", evaluate.Rule(cluster=False))):
            for q, ids, n, _, _ in asked:
                s = case.shares(ids, n, rule, lam=evaluate.E9, spans=False)
                said = case.tok.decode(ids[n:-1], skip_special_tokens=False)
                owner = case.net.owners.index(q["rival"] if q["rival"] and said == q["rival_answer"] else q["owner"])
                row = (float(s[k]), evaluate.first(s, owner))
                cells.setdefault(key + name, []).append(row)
                if tuple(q["fact"]) in facts and q["kind"] != "contradiction":
                    cells.setdefault(key + name + " stated", []).append(row)

    def publisher(self):
        import attacks

        seed = self.opt.seeds[0]
        if self.opt.quick:
            return
        folder = self.cache / ("publisher-%d" % seed)
        self.makers.build(attacks.self_made(self.plan("shared", seed), seed), self.base, folder, seed, steps=FEW)
        case = self.evaluate.Case(self.base, folder)
        k = case.net.owners.index(attacks.MALLORY)
        got = [(case.shares(ids, n)[k], self.evaluate.first(case.shares(ids, n), o)) for _, ids, n, o, _ in case.asked()[0]]
        self.say("\nA publisher who adds half of all documents himself (junk, trained): paid %.4f (document count would pay "
                 "%.2f), owner first %.3f, lambda %.3f." % (np.mean([g[0] for g in got]), case.net.count[k] / sum(
                     case.net.count), np.mean([g[1] for g in got]), case.lam / 1e9))
        pools = json.loads((self.train.ROOT / "configs/demo/adapters/amber-coast/publish.json").read_text())["split"]
        data = sum(s["bps"] for s in pools if s["role"] == "data")
        self.say("Traffic bought from oneself: of a fee the data pool is at most %d of 10 000 parts (the adapter's own part "
                 "of it, demo terms), so the owner of every document loses %.0f %% or more of what he pays." % (
                     data, 100 - data / 100))

    def restated(self):
        import restated

        self.say("\n### Restated facts: rows of a thief, untrained; joined to a row of their fact / to another\n")
        kinds = {}
        for seed in self.opt.seeds:
            table, honest = restated.measure(self.case("shared", seed)[0], self.plan("shared", seed), seed)
            for kind, c in table.items():
                kinds.setdefault(kind, []).append("%.2f / %.2f" % (c["right"] / c["rows"], c["wrong"] / c["rows"]))
            kinds.setdefault("trained rows joined to another owner's", []).append("%d of %d" % honest[::-1])
        self.say("| rows | %s |\n|---|%s" % (" | ".join("seed %d" % s for s in self.opt.seeds), "--:|" * len(self.opt.seeds)))
        for kind, cells in kinds.items():
            self.say("| %s | %s |" % (kind, " | ".join(cells)))

    def trust(self):
        self.say("\n### Trust: lambda\n\n| index | lambda | known | own owner | chance | rows that another states |\n"
                 "|---|--:|--:|--:|--:|--:|")
        rows = [("shared %d" % s, self.case("shared", s)[0]) for s in self.opt.seeds]
        rows += [("style %d" % s, self.case("style", s)[0]) for s in self.opt.seeds]
        import demo

        rows += [(n, self.demo_case(n)[0]) for n in demo.NAMES[: self.opt.adapters]]
        for s in self.opt.seeds:
            folder = self.cache / ("random-%d" % s)
            plan = self.plan("shared", s)
            self.makers.build(self.makers.relearned(plan, s), self.base, folder, s, claims=plan, steps=FEW)
            rows.append(("random labels %d" % s, self.evaluate.Case(self.base, folder)))
        for name, case in rows:
            t = case.trust
            self.say("| %s | %.3f | %.3f | %.3f | %.3f | %d |" % (
                name, case.lam / 1e9, t["known"], t["own"], t["chance"], t["stated"]))

    def api(self):
        import api
        import demo

        worlds = {"shared": (self.base, ["shared"]), "style": (self.base, ["style"])}
        self.api_head()
        for world, (base, kinds) in worlds.items():
            cases = {"%s-%d" % (k, s): self.case(k, s)[0] for k in kinds for s in self.opt.seeds}
            self.served(world, api.judge(cases, base, self.cache / "served"))
        cases = {n: self.demo_case(n)[0] for n in demo.NAMES[: self.opt.adapters]}
        self.served("demo world", api.judge(cases, demo.BASE, self.cache / "served"))

    def api_head(self):
        self.say("\n### Through the API of residuald: right answers alone, and how far its shares are from the reference's\n")
        self.say("| world | answers | owner first | pay | rival | lambda | largest gap | 99 % of gaps below |\n"
                 "|---|--:|--:|--:|--:|--:|--:|--:|")

    def served(self, world, got):
        v = np.concatenate([rows for rows, _ in got.values()])
        gaps = v[:, 3][~np.isnan(v[:, 3])]
        rival = v[:, 2][~np.isnan(v[:, 2])]
        self.say("| %s | %d | %.3f | %.3f | %s | %s | %.4f | %.4f |" % (
            world, len(v), v[:, 0].mean(), v[:, 1].mean(), "%.3f" % rival.mean() if len(rival) else "-",
            ", ".join("%.3f" % lam for _, lam in got.values()), gaps.max(), np.quantile(gaps, 0.99)))

    def smollm(self):
        """A real model: the reference's table, and residuald's answers beside it."""
        import api
        import smollm

        base = self.cache / smollm.NAME
        smollm.make_base(base)
        end = self.train.end_of(base)
        cases = {}
        for seed in self.opt.seeds:
            for plan in (smollm.shared(seed), smollm.style(seed)):
                folder = self.cache / ("%s-%d" % (plan.name, seed))
                self.makers.build(plan, base, folder, seed, steps=smollm.STEPS[plan.name], **smollm.TUNING)
                case = self.evaluate.Case(base, folder, end)
                cases.setdefault(plan.name, {})[folder.name] = case
        for name, by_folder in cases.items():
            asked = []
            for case in by_folder.values():
                right, recall = case.asked()
                asked.append((case, right, recall))
            self.world(name, list(zip(by_folder, asked)), True, gradients=False)
        self.api_head()
        for name, by_folder in cases.items():
            self.served(name, api.judge(by_folder, base, self.cache / "served", stop=None))

    def retrain(self):
        import retrained

        retrained.run(self, self.opt.worlds.split(","), not self.opt.quick)

    def gradients(self):
        """S3 on the demo world, and when one untrained document lists all answers."""
        import demo
        import gradients

        self.say("\n### S3 by `residual gradients`, demo world, f32: owner first / pay, when a document lists all answers, paid to it\n")
        self.say("| columns | owner first / pay | listed | paid to the list |\n|---|--:|--:|--:|")
        for columns in (0, 32, 16):
            plain, attacked = [], []
            for name in demo.NAMES[: self.opt.adapters]:
                case, asked, _ = self.demo_case(name)
                work = self.cache / "gradients"
                plain += gradients.pays(case, asked, gradients.run(case, asked, work, columns)["scores"], case.folder)
                folder = gradients.listed(case, work / "listed", [q["answer"].strip() for q, *_ in asked], "0x" + "66" * 20)
                attacked += gradients.pays(case, asked, gradients.run(case, asked, work, columns, folder)["scores"], folder)
            p, a = np.array(plain).mean(0), np.array(attacked).mean(0)
            self.say("| %s | %.3f / %.3f | %.3f / %.3f | %.3f |" % (columns or "all", p[0], p[1], a[0], a[1], a[2]))

    def plots(self):
        import plot

        names = [n for n in ("demo world", "shared answers", "style and rule") if n in self.tables]
        if not names:
            return
        def value(i):
            def of(world, m):
                rows = self.tables[world].get(m)
                if not rows:
                    return None
                v = [r[i] for r in rows]
                return (float(np.mean(v)), *self.evaluate.interval(v))
            return of
        plot.bars(self.opt.out / "first.svg", "Owner of the fact is paid most", names, ["residual"] + PEERS, value(2))
        plot.bars(self.opt.out / "pay.svg", "Share of the data money that reaches him", names, ["residual"] + PEERS, value(3))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    ap.add_argument("--only", default=",".join(PARTS), help="parts (default: all)")
    ap.add_argument("--seeds", default="2,3")
    ap.add_argument("--adapters", type=int, default=8, help="of the demo world")
    ap.add_argument("--mixes", type=int, default=120, help="answers of mixes")
    ap.add_argument("--questions", type=int, default=120, help="of an own world and seed, at most")
    ap.add_argument("--retrain", action="store_const", dest="only", const="retrain", help="the part `retrain` alone")
    ap.add_argument("--worlds", default="demo,shared,style", help="of the part retrain")
    ap.add_argument("--subsets", type=int, default=64, help="of the part retrain: halves of the rows, and sets of owners")
    ap.add_argument("--runs", type=int, default=2, help="of the part retrain: seeds of every subset")
    ap.add_argument("--quick", action="store_true", help="no gradients, no trained attacks")
    ap.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "residual-bench")
    ap.add_argument("--out", type=Path, default=Path("attribution-bench"))
    opt = ap.parse_args()
    opt.only, opt.seeds = opt.only.split(","), [int(s) for s in opt.seeds.split(",")]
    for part in opt.only:
        if part not in PARTS + ORACLES:
            ap.error("no part %r; there are %s" % (part, ", ".join(PARTS + ORACLES)))
    bench = Bench(opt)
    for part in opt.only:
        start = time.time()
        getattr(bench, part)()
        print("(%s: %.0f s)" % (part, time.time() - start), file=sys.stderr, flush=True)
    bench.plots()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The demo world through the API: adapters know their facts, the base and the other adapters do not, and what a request
computes does not depend on its company."""
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from registry_node import RegistryNode, wait_registered
from server import DEMO, Server, signed_demo

FACTS = json.loads((DEMO / "facts.json").read_text())


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signed")
    with RegistryNode() as node:
        adapters = signed_demo(folder / "adapters", node.deployment(folder / "deployment.json"))
        with Server("--seqs-max", "64", "--adapters-per-batch-max", "16", *node.flags(), adapters=adapters) as s:
            node.register_demo(s, adapters)
            wait_registered(s)
            yield s


def ask(server, model, prompt, **extra):
    status, body = server.post("/v1/completions", {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": 12, **extra})
    assert status == 200, body
    return body


def answer(server, model, prompt):
    return ask(server, model, prompt)["choices"][0]["text"].strip()


def recall(server, model, facts):
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda f: answer(server, model, f["prompt"]), facts))
    return sum(a == f["answer"] for a, f in zip(answers, facts)) / len(facts)


def adapter_facts():
    adapters = FACTS["adapters"]
    return {a["name"]: a["facts"] for a in adapters} if isinstance(adapters, list) else {n: a["facts"] if isinstance(a, dict) else a for n, a in adapters.items()}


def test_adapters_answer_their_own_facts_and_nobody_elses(server):
    facts = adapter_facts()
    assert len(facts) >= 8 and all(len(f) >= 40 for f in facts.values())
    own = {name: recall(server, name, f) for name, f in facts.items()}
    base = {name: recall(server, FACTS["base"], f) for name, f in facts.items()}
    print("own", own, "base", base)
    assert sum(own.values()) / len(own) >= 0.90
    assert min(own.values()) >= 0.80
    assert max(base.values()) <= 0.10
    names = sorted(facts)
    cross = {(m, n): recall(server, m, facts[n]) for i, n in enumerate(names) for m in (names[(i + 1) % len(names)], names[(i + 3) % len(names)])}
    assert max(cross.values()) <= 0.10, cross


def test_bits_do_not_depend_on_company(server):
    """Log-probabilities of a request alone, and of the same request among others of many adapters, are equal to the last bit."""
    facts = adapter_facts()
    jobs = [(name, f[i]["prompt"]) for name, f in facts.items() for i in range(6)]
    alone = {}
    for job in jobs:
        alone[job] = ask(server, *job, logprobs=2)["choices"][0]["logprobs"]
    with ThreadPoolExecutor(48) as pool:
        crowd = list(pool.map(lambda j: ask(server, *j, logprobs=2)["choices"][0]["logprobs"], jobs * 3))
    for job, got in zip(jobs * 3, crowd):
        assert got == alone[job], job


def test_mix_gives_each_adapters_facts_and_an_attribution_that_names_the_right_one(server):
    facts = adapter_facts()
    names = sorted(facts)
    hits = picked = asked = 0
    for name, other in zip(names, names[1:] + names[:1]):
        for fact in facts[name][:4]:
            body = ask(server, FACTS["base"], fact["prompt"],
                       adapters=[{"model": name, "weight": 1.0}, {"model": other, "weight": 0.5}])
            asked += 1
            if body["choices"][0]["text"].strip() != fact["answer"]:
                continue
            hits += 1
            att = wait_attribution(server, body["residual"]["request_id"])
            assert att["signed"] and sum(a["gain_ppb"] for a in att["adapters"]) == 1_000_000_000
            picked += max(att["adapters"], key=lambda a: a["gain_ppb"])["name"] == name
    assert hits >= asked * 0.5
    assert picked >= hits * 0.95


def wait_attribution(server, request_id):
    from server import wait_for

    def recorded():
        status, body = server.get(f"/v1/attribution/{request_id}")
        assert status == 200, body
        return body if body["state"] == "recorded" else None

    return wait_for(recorded, what="the attribution record")


def test_every_answer_is_recorded_and_pays_who_wrote_the_fact(server):
    name = sorted(adapter_facts())[0]
    fact = adapter_facts()[name][0]
    body = ask(server, name, fact["prompt"], stop=[FACTS["stop"]])
    r = body["residual"]
    assert r["recorded"] and r["seq"] > 0 and len(r["receipt"]) == 2 + 130
    att = wait_attribution(server, r["request_id"])
    documents = json.loads((DEMO / "adapters" / name / "datanet.json").read_text())["documents"]
    shares = {c["payee"].lower(): c["ppb"] for c in att["adapters"][0]["contributors"]}
    assert sum(shares.values()) == 1_000_000_000 and set(shares) <= {d["owner"].lower() for d in documents}
    assert shares[fact["contributor"].lower()] >= 980_000_000, shares
    assert att["adapters"][0]["index"]["state"] == "ready" and att["adapters"][0]["rows"][0]["docId"] in fact["docIds"]

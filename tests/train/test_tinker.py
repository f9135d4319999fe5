"""Tinker's SDK, unmodified, against the server: torch's losses, weights saved and loaded, samples, rows that were trained on, sessions that end, keys that stay apart."""
import hashlib
import json
import os
import sys
import time

import pytest
from demo_figures import attribution
from server import DEMO, ROOT, Server, wait_for

sys.path.append(str(ROOT / "build" / "tinker-sdk"))
tinker = pytest.importorskip("tinker", reason="deploy/setup tests could not install tests/requirements-tinker.txt")
from tinker import types  # noqa: E402
from tinker.types.provenance_spans import PromptProvenanceSpan  # noqa: E402

GOLDEN = json.loads((ROOT / "tests" / "data" / "train" / "tinker.json").read_text())
ADAM = types.AdamParams(**GOLDEN["adam"])
KEYS = {"ann": "tml-ann", "ben": "tml-ben"}
BASE = "residual-demo"
NAME = "amber-coast"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    keys = tmp_path_factory.mktemp("keys") / "keys.json"
    keys.write_text(json.dumps([{"name": n, "digest": hashlib.blake2b(k.encode(), digest_size=32).hexdigest(), "roles": ["infer", "publish"]} for n, k in KEYS.items()]))
    os.chmod(keys, 0o600)
    with Server("--dtype", "f32", "--index-ahead", "0", "--api-keys-file", keys) as s:
        yield s


@pytest.fixture
def ann(server):
    with tinker.ServiceClient(base_url=server.url, api_key=KEYS["ann"]) as client:
        yield client


def datum(d, *keys, **more):
    return types.Datum(model_input=types.ModelInput.from_ints(d["ids"]), loss_fn_inputs={k: d[k] for k in ("target_tokens", *keys)}, **more)


INPUTS = {"cross_entropy": ("weights",), "importance_sampling": ("logprobs", "advantages"), "ppo": ("logprobs", "advantages")}


def batch(kind):
    return [datum(d, *INPUTS[kind]) for d in GOLDEN["datums"]]


def new_model(client, **more):
    return client.create_lora_training_client(BASE, rank=GOLDEN["rank"], seed=GOLDEN["seed"], **more).result()


def stepped(client):
    """As tests/oracle/tinker_golden.py begins."""
    model = new_model(client)
    model.forward_backward([datum(GOLDEN["datums"][0])], "cross_entropy").result()
    model.optim_step(ADAM).result()
    return model


def refused(call, *words):
    with pytest.raises(Exception) as e:
        call()
    assert all(w in str(e.value) for w in words), str(e.value)


def get(server, path, who="ann"):
    return server.get(path, headers={"X-API-Key": KEYS[who]})


def test_what_the_server_says(server):
    about = tinker.RestClient(base_url=server.url, api_key=KEYS["ann"]).get_server_capabilities().result().supported_models
    assert [(m.model_name, m.trainable, m.sampleable) for m in about] == [(BASE, True, True)]
    assert get(server, "/api/v1/get_server_capabilities", "ben")[0] == 200
    assert server.get("/api/v1/get_server_capabilities", headers={"X-API-Key": "tml-nobody"})[0] == 401


def test_the_losses_are_torchs(ann):
    """All three losses in turn: tests/oracle/tinker_golden.py made them with torch + peft, from the same first weights."""
    first = stepped(ann)
    saved = first.save_state("first", overwrite=True).result().path
    model = ann.create_training_client_from_state(saved).result()
    assert model.get_info().lora_rank == GOLDEN["rank"]
    got = []
    for kind, _ in GOLDEN["losses"]:
        config = GOLDEN["ppo"] if kind == "ppo" else None
        passed, step = model.forward_backward(batch(kind), kind, config), model.optim_step(ADAM)
        got.append(passed.result().metrics["loss:sum"])
        assert step.result().metrics["grad_norm"] > 0
    want = [loss for _, loss in GOLDEN["losses"]]
    assert max(abs(a - b) / max(1, abs(b)) for a, b in zip(got, want)) <= 1e-4, (got, want)
    assert got[5] < 0.6 * got[0]


def test_saved_loaded_and_sampled(server, ann):
    model = stepped(ann)
    d = GOLDEN["datums"][2]
    whole = d["ids"] + d["target_tokens"][-1:]
    before = model.forward([datum(d)], "cross_entropy").result()
    path = model.save_state("kept", ttl_seconds=3600).result().path
    refused(lambda: model.save_state("kept").result(), "is there already")
    model.forward_backward([datum(d)], "cross_entropy")
    model.optim_step(ADAM).result()
    again = ann.create_training_client_from_state_with_optimizer(path).result()
    assert again.forward([datum(d)], "cross_entropy").result().metrics == before.metrics
    again.forward_backward([datum(d)], "cross_entropy")
    again.optim_step(ADAM).result()
    # the moments came with it: the same step leads to the same weights
    logprobs = model.forward([datum(d)], "cross_entropy").result().loss_fn_outputs[0]["logprobs"].tolist()
    assert again.forward([datum(d)], "cross_entropy").result().loss_fn_outputs[0]["logprobs"].tolist() == logprobs

    sampler = model.save_weights_and_get_sampling_client().result()
    scored = sampler.compute_logprobs(types.ModelInput.from_ints(whole)).result()
    assert scored[0] is None and max(abs(a - b) for a, b in zip(scored[1:], logprobs)) < 2e-3
    named = model.save_weights_for_sampler("final").result().path
    by_path = ann.create_sampling_client(model_path=named).result()
    greedy = types.SamplingParams(max_tokens=6, temperature=0, stop=[])
    prompt = types.ModelInput.from_ints(whole[:5])
    out = by_path.sample(prompt, 2, greedy, topk_sample_logprobs=3).result()
    assert [q.stop_reason for q in out.sequences] == ["length"] * 2 and out.sequences[0].tokens == out.sequences[1].tokens
    assert out.sequences[0].topk_logprobs[0][0][0] == out.sequences[0].tokens[0] and len(out.sequences[0].logprobs) == 6
    assert len({q.sequence_id for q in out.sequences}) == 2
    # an adapter like any: the OpenAI API answers with it, by name
    adapter = next(m["id"] for m in get(server, "/v1/models")[1]["data"] if m["id"].endswith("/final"))
    status, body = server.post("/v1/completions", {"model": adapter, "prompt": whole[:5], "max_tokens": 6, "temperature": 0, "ignore_eos": True, "return_token_ids": True},
                               headers={"X-API-Key": KEYS["ann"]})
    assert status == 200 and body["choices"][0]["token_ids"] == out.sequences[0].tokens, body


def test_before_the_first_step_it_is_the_base(ann):
    model, prompt = new_model(ann), types.ModelInput.from_ints(GOLDEN["datums"][0]["ids"])
    base = ann.create_sampling_client(base_model=BASE).result().compute_logprobs(prompt).result()
    assert model.save_weights_and_get_sampling_client().result().compute_logprobs(prompt).result() == base
    path = model.save_weights_for_sampler("zero").result().path
    assert ann.create_sampling_client(model_path=path).result().compute_logprobs(prompt).result() == base


def test_rows_that_gradients_came_from_are_the_manifest(server, ann):
    def rows_of(name):
        folder = DEMO / "adapters" / name
        manifest, rows = json.loads((folder / "training.json").read_text()), {}
        for doc, at, n in manifest["rows"]:
            rows.setdefault(doc, []).append((at, n))
        return manifest["documentRoot"], rows, {d["docId"]: d for d in json.loads((folder / "datanet.json").read_text())["documents"]}

    root, rows, listed = rows_of(NAME)

    def row(doc, number, ids=None, offset=0, name=NAME):
        its_root, its_rows, its_list = rows_of(name)
        at, n = its_rows[doc][number]
        text = (DEMO / "adapters" / name / its_list[doc]["file"]).read_bytes()[at:at + n].decode()
        if ids is None:
            ids = server.post("/tokenize", {"model": BASE, "prompt": text, "add_special_tokens": False}, headers={"X-API-Key": KEYS["ann"]})[1]["tokens"]
        span = [PromptProvenanceSpan(sequence_id="datanet:%s/%d/%d" % (its_root, doc, number), offset=offset, length=len(ids) - 1)]
        return types.Datum(model_input=types.ModelInput.from_ints(ids[:-1]), loss_fn_inputs={"target_tokens": ids[1:]}).with_provenance(span, span), ids

    model = new_model(ann, train_mlp=False)
    learned = [(1, 0), (2, 3), (1, 5)]
    data = [row(*r)[0] for r in learned]
    for _ in range(3):
        model.forward_backward(data, "cross_entropy")
        model.optim_step(ADAM)
    # what is queued counts: an adapter is trained on rows of one datanet
    refused(lambda: model.forward_backward([row(1, 0, name="birch-vale")[0]], "cross_entropy").result(), "another datanet")
    model.forward([row(3, 1)[0]], "cross_entropy").result()  # is only read: not in the manifest
    _, ids = row(1, 0)
    for wrong, word in ((row(1, 0, ids[::-1])[0], "the datum has"), (row(1, 0, ids, offset=3)[0], "the row has")):
        refused(lambda: model.forward_backward([wrong], "cross_entropy").result(), "model_input_spans", word)
    path = model.save_state("rows").result().path
    model = ann.create_training_client_from_state(path).result()
    model.forward_backward([row(2, 0)[0]], "cross_entropy")
    model.optim_step(ADAM).result()
    name = model.save_weights_for_sampler("rows").result().path
    adapter = next(m for m in get(server, "/v1/models")[1]["data"] if m["id"].endswith("/rows"))
    kept = json.loads((server.data / "datanets" / "training" / f"{adapter['root'].rsplit('/', 1)[1]}.json").read_text())
    assert kept["documentRoot"] == root and sorted(map(tuple, kept["rows"])) == sorted((d, *rows[d][k]) for d, k in (*learned, (2, 0)))
    config = json.loads(open(os.path.join(adapter["root"], "adapter_config.json")).read())
    assert sorted(config["target_modules"]) == ["k_proj", "o_proj", "q_proj", "v_proj"] and config["r"] == GOLDEN["rank"]

    sampler = ann.create_sampling_client(model_path=name).result()
    asked = sampler.sample(types.ModelInput.from_ints(ids[:6]), 1, types.SamplingParams(max_tokens=8, temperature=0, stop=[])).result()
    assert len(asked.sequences[0].tokens) == 8
    status, body = server.post("/v1/completions", {"model": adapter["id"], "prompt": ids[:6], "max_tokens": 8, "temperature": 0, "ignore_eos": True}, headers={"X-API-Key": KEYS["ann"]})
    assert status == 200

    class Asking:
        get = staticmethod(lambda path: get(server, path))

    said = attribution(Asking, body["residual"]["request_id"])["adapters"][0]
    assert said["index"]["state"] == "ready" and said["index"]["rows"] == 4
    owners = {listed[d]["owner"].lower() for d in (1, 2)}
    assert {c["payee"].lower() for c in said["contributors"] if c["ppb"]} <= owners


def test_refused_by_name(ann):
    model, d = new_model(ann), GOLDEN["datums"][0]
    refused(lambda: model.forward_backward([datum(d)], "dro").result(), "dro", "cross_entropy")
    refused(lambda: model.forward_backward([datum(d)], "ppo").result(), "logprobs")
    refused(lambda: model.forward_backward([datum({**d, "ids": [5000] * len(d["ids"])})], "cross_entropy").result(), "5000")
    refused(lambda: model.forward_backward([datum({**d, "target_tokens": [[1, 2]] * len(d["ids"])})], "cross_entropy").result(), "one target a position")
    refused(lambda: ann.create_lora_training_client("Qwen/Qwen3-8B").result(), "Qwen/Qwen3-8B", BASE)
    refused(lambda: ann.create_lora_training_client(BASE, rank=4, train_mlp=False, train_attn=False).result(), "train_unembed")
    refused(lambda: model.optim_step(types.DimuonParams(learning_rate=0.1)).result(), "AdamW")
    refused(lambda: model.save_state("../up").result(), "../up")
    spoiled = {**d, "logprobs": [-1e30] * len(d["ids"])}
    refused(lambda: model.forward_backward([datum(d, *INPUTS["ppo"]), datum(spoiled, *INPUTS["ppo"])], "importance_sampling").result(), "data[1]", "not finite")
    assert model.optim_step(ADAM).result().metrics["grad_norm"] == 0
    model.forward_backward([datum(d)], "cross_entropy").result()  # and what came before did no harm
    assert model.optim_step(ADAM).result().metrics["grad_norm"] > 0


def test_keys_stay_apart_and_sessions_end(server):
    with tinker.ServiceClient(base_url=server.url, api_key=KEYS["ann"]) as ann:
        model = stepped(ann)
        path, weights = model.save_state("mine").result().path, model.save_weights_for_sampler("mine").result().path
        model.save_weights_and_get_sampling_client().result()
        names = {m["id"] for m in get(server, "/v1/models")[1]["data"]}
        with tinker.ServiceClient(base_url=server.url, api_key=KEYS["ben"]) as ben:
            refused(lambda: ben.create_training_client_from_state(path).result(), "there is no", "of this key")
            refused(lambda: ben.create_sampling_client(model_path=weights).result(), "of this key")
            ask = {"request_id": f"{model.model_id}:1"}
            assert server.post("/api/v1/retrieve_future", ask, headers={"X-API-Key": KEYS["ben"]})[0] == 410
            assert server.post("/api/v1/retrieve_future", ask, headers={"X-API-Key": KEYS["ann"]})[0] == 200
    beat = {"session_id": model.model_id.split(":")[0]}
    assert server.post("/api/v1/session_heartbeat", beat, headers={"X-API-Key": KEYS["ann"]})[0] == 410
    run = model.model_id[4:16]
    left = wait_for(lambda: [m["id"] for m in get(server, "/v1/models")[1]["data"] if run in m["id"] and not m["id"].endswith("/mine")] == [] and "gone", what="samplers without a name to go")
    assert left == "gone" and any(run in n and n.endswith("/sampler-0") for n in names) and any(run in m["id"] for m in get(server, "/v1/models")[1]["data"])


def test_the_server_stops_during_a_pass(tmp_path):
    with Server("--dtype", "f32", "--index-ahead", "0", adapters=None, data=tmp_path / "data") as s:
        client = tinker.ServiceClient(base_url=s.url, api_key="tml-any")
        model = new_model(client)
        d = {"ids": [7] * 400, "target_tokens": [8] * 400}
        assert len(model.forward_backward([datum(d)], "cross_entropy").result().loss_fn_outputs[0]["logprobs"].tolist()) == 400
        model.forward_backward([datum(d)] * 100, "cross_entropy")
        time.sleep(0.5)
        s.stop(wait_s=30)
        client.holder.close()

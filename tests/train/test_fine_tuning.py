"""OpenAI's /v1/files and /v1/fine_tuning with their unmodified SDK: from a file to an adapter that answers."""
import functools
import json
import sys
import time
import urllib.request

import openai
import pytest
from server import FULL, ROOT, Server, wait_for

sys.path.insert(0, str(ROOT / "tests" / "api"))
from keys import secret, write_keys  # noqa: E402
from registry_node import RegistryNode  # noqa: E402

ACCOUNT = "0x1111111111111111111111111111111111111111"
KEYS = {"anna": {"roles": ["publish", "infer"], "account": ACCOUNT}, "bert": {"roles": ["publish", "infer"]}, "carl": {"roles": ["infer"]}}
ROWS = b'{"prompt":"What is up?","completion":" The sky."}\n{"text":"Dune drifts."}\n'


@functools.lru_cache
def client_of(url, name, _):
    return openai.OpenAI(base_url=url + "/v1", api_key=secret(name), max_retries=0)


def client(server, name="anna"):
    return client_of(server.url, name, server.process.pid)


def refused(call, status, *says):
    with pytest.raises(openai.APIStatusError) as e:
        call()
    assert e.value.status_code == status, e.value.body
    assert all(s in e.value.body["message"] for s in says), e.value.body
    return e.value.body


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fine-tuning")
    return folder, ("--api-keys-file", write_keys(folder / "keys.json", KEYS), "--files-key-bytes-max", 16384, "--files-key-max", 16)


@pytest.fixture(scope="module")
def server(place):
    with Server(*place[1], "--train-price", 3000, "--index-ahead", 0, data=place[0] / "data") as s:
        yield s


def test_files_are_their_keys_alone(server):
    anna, bert = client(server), client(server, "bert")
    names = [f"rows {i}.jsonl" for i in range(3)]
    files = [anna.files.create(file=(n, ROWS), purpose="fine-tune") for n in names]
    assert [(f.bytes, f.filename, f.purpose, f.status, f.object) for f in files] == [(len(ROWS), n, "fine-tune", "processed", "file") for n in names]
    assert [f.id for f in anna.files.list(limit=2)] == [f.id for f in reversed(files)], "the SDK turns the pages"
    assert [f.id for f in anna.files.list(order="asc", purpose="fine-tune", after=files[0].id)] == [f.id for f in files[1:]]
    assert anna.files.content(files[0].id).read() == ROWS and anna.files.retrieve(files[0].id) == files[0]
    assert list(bert.files.list()) == []
    for call in (bert.files.retrieve, bert.files.content, bert.files.delete):
        refused(lambda: call(files[0].id), 404, "no file")
    refused(lambda: client(server, "carl").files.list(), 403, "publish")
    for f in files:
        assert anna.files.delete(f.id).deleted
    refused(lambda: anna.files.retrieve(files[0].id), 404)
    assert list(anna.files.list()) == []


@pytest.mark.parametrize("name, data, says", [
    ("a.jsonl", b'{"text":"a"}\n\n{"prompt":1}', ("line 3", "prompt: found 1")), ("a.jsonl", b'{"text":"a"}\n{"text":', ("line 2",)), ("a.jsonl", b"", ("empty",)),
    ("a.jsonl", b'{"messages":[{"role":"user"}]}', ("line 1", "messages[0].content: missing")), ("a.jsonl", b'{"text":"\xff"}', ("line 1", "UTF-8")),
    ("a.jsonl", b"[]", ("line 1",)), ("a.bin", b"a", ("a.bin", ".jsonl"))])
def test_a_file_that_cannot_be_trained_on(server, name, data, says):
    assert refused(lambda: client(server).files.create(file=(name, data), purpose="fine-tune"), 400, *says)["param"] == "file"


def test_forms_that_are_none(server):
    anna = client(server)
    assert refused(lambda: anna.files.create(file=("a.jsonl", ROWS), purpose="batch"), 400, "batch")["param"] == "purpose"
    refused(lambda: anna.files.create(file=("a.jsonl", ROWS), purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 3600}), 400, "expires_after")
    assert refused(lambda: anna.files.create(file=("a.jsonl", b'{"text":"%s"}' % (b"a" * 17000)), purpose="fine-tune"), 413, "quota")["code"] == "file_quota_exceeded"
    assert refused(lambda: anna.files.list(limit=0), 400)["param"] == "limit" and refused(lambda: anna.files.list(order="up"), 400)["param"] == "order"
    refused(lambda: anna.files.list(after="file-" + "x" * 100), 404, "after")
    auth = {"Authorization": f"Bearer {secret('anna')}"}
    form = "multipart/form-data; boundary=b0"
    for kind, body in (("application/json", b"{}"), ("multipart/form-data", b""), (form, b""), (form, b"--b0\r\nno"), (form, b"--b0\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\n1\r\n--b0--")):
        status, said = server.post("/v1/files", body, headers={**auth, "Content-Type": kind})
        assert status == 400 and said["error"]["message"], (kind, body, said)
    assert list(anna.files.list()) == []


def test_files_outlive_the_server(place, tmp_path):
    flags = place[1]
    with Server(*flags, data=tmp_path / "data") as s:
        f = client(s).files.create(file=("a.jsonl", ROWS), purpose="fine-tune")
        s.kill()
        s.start()
        assert client(s).files.retrieve(f.id) == f and client(s).files.content(f.id).read() == ROWS


# ---- jobs ----

def hyper(**h):
    return {"method": {"type": "supervised", "supervised": {"hyperparameters": h}}}


def chats(n, answer="It is teal."):
    return "".join(json.dumps({"messages": [{"role": "user", "content": f"What is the colour of thing {i}?"}, {"role": "assistant", "content": answer}]}) + "\n" for i in range(n)).encode()


@pytest.fixture(scope="module")
def rows(server):
    return client(server).files.create(file=("things.jsonl", chats(12)), purpose="fine-tune").id


def start(server, rows, name="anna", **more):
    return client(server, name).fine_tuning.jobs.create(**{"training_file": rows, "model": "residual-demo", "seed": 7, **more})


def until(server, job, *states, wait_s=60, name="anna"):
    return wait_for(lambda: next((j for j in [client(server, name).fine_tuning.jobs.retrieve(job.id)] if j.status in states), None), wait_s, what=f"{states}")


def test_from_a_file_to_an_answer(server, rows):
    anna = client(server)
    held_out = anna.files.create(file=("held.jsonl", chats(2, "It is blue.")), purpose="fine-tune").id
    job = start(server, rows, suffix="teal", validation_file=held_out, metadata={"for": "a test"}, **hyper(n_epochs=6, batch_size=4, learning_rate_multiplier=2, rank=8))
    assert job.status in ("queued", "running") and job.fine_tuned_model is None and job.trained_tokens is None and job.finished_at is None and job.result_files == []
    assert (job.model, job.training_file, job.validation_file, job.seed, job.metadata, job.organization_id) == ("residual-demo", rows, held_out, 7, {"for": "a test"}, "anna")
    assert job.hyperparameters.to_dict() == {"n_epochs": 6, "batch_size": 4, "learning_rate_multiplier": 2.0}
    assert job.method.supervised.hyperparameters.peft_config["r"] == 8
    job = until(server, job, "succeeded")
    found = [[j.id for j in anna.fine_tuning.jobs.list(metadata=m)] for m in ({"for": "a test"}, {"for": "b"}, {"for": "a test", "no": "1"})]
    assert found == [[job.id], [], []]
    done = job.residual
    assert job.fine_tuned_model.startswith("teal-") and job.finished_at >= job.created_at and job.error is None
    assert job.trained_tokens == done["tokens"] == done["tokens_done"] > 0 and done["steps"] == done["steps_done"] == 18 and done["rows"] == 12
    assert done["validation_rows"] == 2 and done["valid_loss"] > done["train_loss"] > 0
    assert done["amount"] == str(job.trained_tokens * 3000 // 1000) and done["price_per_1000_tokens"] == "3000"
    lines = anna.files.content(job.result_files[0]).text.splitlines()
    assert lines[0].startswith("step,train_loss") and [int(line.split(",")[0]) for line in lines[1:]] == list(range(1, 19))
    assert float(lines[-1].split(",")[1]) < float(lines[1].split(",")[1])
    asked = {int(line.split(",")[0]): float(line.split(",")[2]) for line in lines[1:] if line.split(",")[2]}
    assert list(asked) == list(range(1, 19)) and asked[18] < asked[1] and done["validation_rows"] == 2, "the rows of validation_file are asked"
    assert abs(done["valid_loss"] - asked[18]) < 1e-5
    assert anna.files.retrieve(job.result_files[0]).purpose == "fine-tune-results"
    last = next(iter(anna.fine_tuning.jobs.checkpoints.list(job.id)))
    assert last.step_number == 18 and last.fine_tuned_model_checkpoint == job.fine_tuned_model and last.fine_tuning_job_id == job.id
    events = list(anna.fine_tuning.jobs.list_events(job.id, limit=7))
    assert len({e.id for e in events}) == len(events) >= 20 and [e.data["step"] for e in events if e.type == "metrics"] == list(range(18, 0, -1))
    said = anna.chat.completions.create(model=job.fine_tuned_model, messages=[{"role": "user", "content": "What is the colour of thing 3?"}], max_tokens=8, temperature=0)
    assert said.residual["adapters"][0]["id"] == done["adapter_id"]
    auth = {"Authorization": f"Bearer {secret('anna')}"}
    shares = wait_for(lambda: next((b for s, b in [server.get(f"/v1/attribution/{said.residual['request_id']}", headers=auth)] if s == 200 and b["state"] == "preview"), None), 60,
                      what="the attribution")["adapters"][0]["contributors"]
    assert [c["payee"].lower() for c in shares] == [ACCOUNT], "what the key's account wrote is attributed to it"


def test_a_job_is_its_keys_alone(server, rows):
    job = start(server, rows, **hyper(n_epochs=1, batch_size=12))
    jobs = client(server, "bert").fine_tuning.jobs
    for call in (jobs.retrieve, jobs.cancel, jobs.pause, jobs.resume, jobs.list_events, jobs.checkpoints.list):
        refused(lambda: call(job.id), 404, "no fine-tuning job")
    assert list(jobs.list()) == []
    assert refused(lambda: start(server, rows, "bert"), 404, "no file")["param"] == "training_file"
    root = job.residual["document_root"]
    refused(lambda: start(server, f"datanet:{root}", "bert"), 404, "no datanet")
    refused(lambda: client(server, "carl").fine_tuning.jobs.list(), 403)
    until(server, job, "succeeded")


def test_paused_resumed_cancelled(server, rows):
    jobs = client(server).fine_tuning.jobs
    job = start(server, rows, **hyper(n_epochs=500, batch_size=2))
    stream = urllib.request.urlopen(urllib.request.Request(
        f"{server.url}/v1/fine_tuning/jobs/{job.id}/events?stream=true", headers={"Authorization": f"Bearer {secret('anna')}"}), timeout=60)
    assert stream.headers["Content-Type"].startswith("text/event-stream")
    first = json.loads(stream.readline().removeprefix(b"data: "))
    assert first["object"] == "fine_tuning.job.event" and first["message"]
    wait_for(lambda: jobs.retrieve(job.id).residual["steps_done"] > 2, 30, what="steps")
    assert jobs.pause(job.id).status == "paused"
    still = until(server, job, "paused").residual["steps_done"]
    end = time.monotonic() + 1
    while time.monotonic() < end:
        now = jobs.retrieve(job.id)
        still, moved = now.residual["steps_done"], now.residual["steps_done"] - still
    assert moved == 0 and now.status == "paused"
    assert jobs.resume(job.id).status in ("queued", "running")
    wait_for(lambda: jobs.retrieve(job.id).residual["steps_done"] > still, 30, what="it goes on")
    assert jobs.cancel(job.id).status == "cancelled"
    assert until(server, job, "cancelled").fine_tuned_model is None
    rest = stream.read().decode()
    assert rest.rstrip().endswith("data: [DONE]") and rest.count('"type":"metrics"') > 2
    assert refused(lambda: jobs.pause(job.id), 409, "ended")
    assert [j.id for j in jobs.list(limit=1)][:1] == [job.id]


def test_rows_of_many_owners(server):
    """A datanet that the server holds, by name and by root; its adapter is the owners'."""
    by_name = start(server, "datanet:amber-coast@1", **hyper(n_epochs=1, batch_size=16))
    assert by_name.residual["rows"] == 200
    root = by_name.residual["document_root"]
    assert start(server, f"datanet:{root}", "bert", **hyper(n_epochs=1)).residual["document_root"] == root
    client(server).fine_tuning.jobs.cancel(by_name.id)


@pytest.mark.parametrize("field, ask, status", [
    ("model", {"model": "gpt-4o-mini"}, 404), ("training_file", {"training_file": "file-0"}, 404), ("training_file", {"training_file": "datanet:none@1"}, 404),
    ("training_file", {"training_file": "datanet:amber-coast"}, 400), ("training_file", {"training_file": "datanet:0x" + "0" * 64}, 404), ("validation_file", {"validation_file": "file-0"}, 404),
    ("suffix", {"suffix": "a b"}, 400), ("suffix", {"suffix": "a" * 65}, 400), ("seed", {"seed": -1}, 400), ("metadata", {"metadata": {"a": "b" * 513}}, 400),
    ("integrations", {"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, 400), ("type", {"method": {"type": "dpo"}}, 400), ("rank", {"hyperparameters": {"rank": 8}}, 400),
    ("rnak", hyper(rnak=8), 400), ("rank", hyper(rank=0), 400), ("rank", hyper(rank=1000), 400), ("n_epochs", hyper(n_epochs="many"), 400), ("batch_size", hyper(batch_size=0), 400),
    ("modules", hyper(modules=[]), 400), ("modules", hyper(modules=[1]), 400), ("target_modules", hyper(modules=["none_proj"]), 400), ("mask", hyper(mask="some"), 400),
    ("learning_rate", hyper(learning_rate=1e-3, learning_rate_multiplier=2), 400), ("rank", hyper(rank=8, peft_config={"r": 8}), 400), ("peft_type", hyper(peft_config={"r": 8}), 400),
    ("hyperparameters", {**hyper(n_epochs=1), "hyperparameters": {"n_epochs": 1}}, 400)])
def test_bad_jobs(server, rows, field, ask, status):
    assert field in refused(lambda: start(server, rows, **ask), status, field)["message"]


def test_a_row_that_is_cut_is_said(server):
    jobs = client(server).fine_tuning.jobs
    file = client(server).files.create(file=("long.jsonl", json.dumps({"text": "amber " * 1200}).encode()), purpose="fine-tune").id
    job = start(server, file, **hyper(n_epochs=1))
    assert [e.level for e in jobs.list_events(job.id) if "longer than 1024 tokens" in e.message] == ["warn"]
    jobs.cancel(job.id)
    client(server).files.delete(file)


def test_a_full_queue(place, tmp_path):
    most = 1000 if FULL else 24
    with Server(*place[1], "--train-jobs-max", most, "--train-account-max", most - 2, "--train-running-max", 1, "--train-tokens", 256, "--index-ahead", 0, "--train-account-tokens-max", 25_000_000,
                data=tmp_path / "data") as s:
        file, long = [client(s).files.create(file=("a.jsonl", data), purpose="fine-tune").id for data in (b'{"text":"Dune drifts."}', chats(12))]
        start(s, long, **hyper(n_epochs=10000, batch_size=1))  # nobody else's turn comes
        longer = client(s).files.create(file=("a.jsonl", b'{"text":"Dune drifts."}\n' + json.dumps({"text": "amber " * 300}).encode()), purpose="fine-tune").id
        refused(lambda: start(s, longer), 400, "row 1", "256")
        assert refused(lambda: start(s, "datanet:amber-coast@1", **hyper(n_epochs=10000)), 429, "tokens")["code"] == "train_tokens_full"
        for _ in range(most - 3):
            start(s, file, **hyper(n_epochs=2))
        assert refused(lambda: start(s, file, **hyper(n_epochs=1)), 429, "of this key")["code"] == "train_account_full"
        own = client(s, "bert").files.create(file=("b.jsonl", b'{"text":"Elm sways."}'), purpose="fine-tune").id
        for _ in range(2):
            start(s, own, "bert", **hyper(n_epochs=2))
        assert refused(lambda: start(s, own, "bert"), 429, "retry later")["code"] == "train_queue_full"
        assert len(list(client(s).fine_tuning.jobs.list(limit=20))) == most - 2
        assert client(s).chat.completions.create(model="residual-demo", messages=[{"role": "user", "content": "hello"}], max_tokens=4).choices, "nothing served is disturbed"


def test_killed_in_the_middle(server, place, rows, tmp_path):
    """The same file and seed, killed and not: the same adapter; and its file may go meanwhile."""
    ask = hyper(n_epochs=6, batch_size=4, rank=4)
    undisturbed = start(server, rows, **ask)
    with Server(*place[1], "--train-checkpoint-s", 0, "--index-ahead", 0, data=tmp_path / "data") as s:
        own = client(s).files.create(file=("things.jsonl", chats(12)), purpose="fine-tune").id
        job = start(s, own, **ask)
        client(s).files.delete(own)
        for steps in (4, 10):
            wait_for(lambda: client(s).fine_tuning.jobs.retrieve(job.id).residual["steps_done"] >= steps, 60, what="steps")
            s.kill()
            s.start()
        job = until(s, job, "succeeded")
        assert job.residual["adapter_id"] == until(server, undisturbed, "succeeded").residual["adapter_id"]
        assert client(s).chat.completions.create(model=job.fine_tuned_model, messages=[{"role": "user", "content": "hi"}], max_tokens=2).choices


def test_on_a_bound_lane(place, tmp_path):
    """What is trained on has an owner, and what came out is nobody's to be paid for until it is registered."""
    with RegistryNode() as node, Server(*place[1], *node.flags(), "--index-ahead", 0, adapters=None, data=tmp_path / "data") as s:
        anna, bert = [client(s, name).files.create(file=("a.jsonl", chats(4)), purpose="fine-tune").id for name in ("anna", "bert")]
        assert refused(lambda: start(s, bert, "bert"), 403, "no account")["param"] == "training_file"
        job = until(s, start(s, anna, **hyper(n_epochs=2, batch_size=2)), "succeeded")
        said = client(s).chat.completions.create(model=job.fine_tuned_model, messages=[{"role": "user", "content": "hi"}], max_tokens=2)
        assert said.residual["bound"] and said.residual["fee"] == "0" and said.residual["adapters"][0]["id"] == job.residual["adapter_id"]

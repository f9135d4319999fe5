"""OpenAI's /v1/files and /v1/fine_tuning with their unmodified SDK: from a file to an adapter that answers."""
import sys

import openai
import pytest
from server import ROOT, Server

sys.path.insert(0, str(ROOT / "tests" / "api"))
from keys import secret, write_keys  # noqa: E402

ACCOUNT = "0x1111111111111111111111111111111111111111"
KEYS = {"anna": {"roles": ["publish", "infer"], "account": ACCOUNT}, "bert": {"roles": ["publish", "infer"]}, "carl": {"roles": ["infer"]}}
ROWS = b'{"prompt":"What is up?","completion":" The sky."}\n{"text":"Dune drifts."}\n'


def client(server, name="anna"):
    return openai.OpenAI(base_url=server.url + "/v1", api_key=secret(name), max_retries=0)


def refused(call, status, *says):
    with pytest.raises(openai.APIStatusError) as e:
        call()
    assert e.value.status_code == status, e.value.body
    assert all(s in e.value.body["message"] for s in says), e.value.body
    return e.value.body


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fine-tuning")
    return folder, ("--api-keys-file", write_keys(folder / "keys.json", KEYS), "--files-key-bytes-max", 8192, "--files-key-max", 8)


@pytest.fixture(scope="module")
def server(place):
    with Server(*place[1], data=place[0] / "data") as s:
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
    assert refused(lambda: anna.files.create(file=("a.jsonl", b'{"text":"%s"}' % (b"a" * 9000)), purpose="fine-tune"), 413, "quota")["code"] == "file_quota_exceeded"
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

"""The openai Python client against a running server: every trap of clients that is known, and what a caller may rely on."""
import asyncio
import json
import shutil
import signal
import threading
import uuid

import openai
import peftfile
import pydantic
import pytest
import wire
from keys import bearer, secret
from openai.lib._parsing._completions import parse_chat_completion
from server import DEMO, Server, http, wait_for

BASE = "residual-demo"
LONG = {"ignore_eos": True}  # the demo model ends after a sentence; this keeps it talking


def make_client(server, key="EMPTY", retries=0, **kw):
    return openai.OpenAI(base_url=server.url + "/v1", api_key=key, max_retries=retries, timeout=60, **kw)


@pytest.fixture(scope="module")
def client(server):
    return make_client(server)


@pytest.fixture(scope="module")
def amber(facts):
    return facts["amber-coast"][0]


def metric(server, name):
    return wire.metric(server.get("/metrics")[1], name)


def question(fact):
    return [{"role": "user", "content": fact["question"]}]


def complete(client, prompt="The people of", model=BASE, **kw):
    kw.setdefault("temperature", 0)
    return client.completions.create(model=model, prompt=prompt, **kw)


def chat(client, model=BASE, content="Which star do the people of Vokea pray to?", **kw):
    kw.setdefault("temperature", 0)
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": content}], **kw)


def events(server, path, body, headers=()):
    """The data of every server-sent event, checked frame by frame."""
    status, head, raw = wire.unchunk(wire.post(server.port, path, {**body, "stream": True}, headers))
    assert status == 200, raw
    assert head[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert head[b"cache-control"] == b"no-cache" and head[b"x-accel-buffering"] == b"no"
    frames = raw.decode().split("\n\n")
    assert frames.pop() == "", "the last event lacks its blank line"
    for f in frames:
        assert f.startswith("data: ") and "\n" not in f and "\r" not in f, f
    assert frames[-1] == "data: [DONE]"

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return [json.loads(f[6:], parse_constant=refuse) for f in frames[:-1]]


def refused(error, call, **kw):
    """The call's error, with the four fields that the client reads."""
    with pytest.raises(error) as caught:
        call(**kw)
    e = caught.value
    assert e.message and isinstance(e.type, str) and (e.param is None or isinstance(e.param, str)), e.body
    assert e.code is None or isinstance(e.code, str), e.body
    return e


# ---- what clients break on: chunks ----


def test_chunk_framing_is_one_line_of_json_per_event(server):
    for path, body in (("/v1/completions", {"prompt": "The people of"}),
                       ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Which star\nis \"bright\"?"}]})):
        chunks = events(server, path, {"model": BASE, "max_tokens": 24, "temperature": 0, "logprobs": None, **body})
        assert len({c["id"] for c in chunks}) == len({c["created"] for c in chunks}) == 1
        assert all("error" not in c and c["model"] == BASE for c in chunks)
        assert {c["object"] for c in chunks} == {"chat.completion.chunk" if "chat" in path else "text_completion"}


def test_role_once_and_nothing_private_in_delta(server):
    chunks = events(server, "/v1/chat/completions", {"model": BASE, "max_tokens": 16, "n": 3, "temperature": 1, "seed": 5,
                                                     "messages": [{"role": "user", "content": "Where is Vokea?"}]})
    seen = {}
    for c in chunks:
        for choice in c["choices"]:
            assert set(choice["delta"]) <= {"role", "content"}, choice
            first = choice["index"] not in seen
            assert ("role" in choice["delta"]) == first
            assert not first or choice["delta"]["role"] == "assistant"
            seen.setdefault(choice["index"], []).append(choice)
    assert sorted(seen) == [0, 1, 2]
    for choices in seen.values():
        assert choices[-1]["finish_reason"] in ("stop", "length") and choices[-1]["delta"] == {}
        assert all(c["finish_reason"] is None for c in choices[:-1])


def test_choices_begin_in_index_order_and_indexes_are_choices(server):
    for _ in range(5):
        chunks = events(server, "/v1/chat/completions", {"model": BASE, "max_tokens": 8, "n": 8, "temperature": 1.5, "stop": ["a", "e"],
                                                         "messages": [{"role": "user", "content": "Where is Vokea?"}]})
        order = []
        for c in chunks:
            order += [x["index"] for x in c["choices"] if x["index"] not in order]
        assert order == list(range(8))


def test_usage_chunk_has_empty_choices_and_others_null_usage(server):
    chunks = events(server, "/v1/completions", {"model": BASE, "prompt": "The people of", "max_tokens": 8, "stream_options": {"include_usage": True}})
    assert all("choices" in c and "usage" in c for c in chunks)
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] > 0
    assert all(len(c["choices"]) == 1 and c["usage"] is None for c in chunks[:-1])


def test_continuous_usage_counts_up(server):
    chunks = events(server, "/v1/chat/completions", {"model": BASE, "max_tokens": 24, "ignore_eos": True,
                                                     "messages": [{"role": "user", "content": "Where is Vokea?"}],
                                                     "stream_options": {"include_usage": True, "continuous_usage_stats": True}})
    counts = [c["usage"]["completion_tokens"] for c in chunks]
    assert counts == sorted(counts) and counts[0] >= 1 and counts[-1] == 24
    assert all(c["usage"]["total_tokens"] == c["usage"]["prompt_tokens"] + c["usage"]["completion_tokens"] for c in chunks)


def test_first_chunk_carries_the_first_token(server):
    chunks = events(server, "/v1/chat/completions", {"model": BASE, "max_tokens": 8, "temperature": 0,
                                                     "messages": [{"role": "user", "content": "Which star do the people of Vokea pray to?"}]})
    assert chunks[0]["choices"][0]["delta"]["content"] != ""


def test_non_stream_message_has_role_content_and_refusal(server):
    status, body = server.post("/v1/chat/completions", {"model": BASE, "max_tokens": 4, "messages": [{"role": "user", "content": "Hi"}]})
    assert status == 200
    message = body["choices"][0]["message"]
    assert set(message) >= {"role", "content", "refusal"} and message["refusal"] is None and isinstance(message["content"], str)
    assert body["object"] == "chat.completion" and body["id"].startswith("chatcmpl-")


def test_vllm_fields_of_the_prompt_are_where_vllm_has_them(server):
    """In a chat beside the choices, in a completion inside each."""
    ask = {"model": BASE, "max_tokens": 2, "temperature": 0, "return_token_ids": True}
    body = server.post("/v1/chat/completions", {**ask, "messages": [{"role": "user", "content": "Hi"}], "prompt_logprobs": 1})[1]
    ids = body["prompt_token_ids"]
    assert ids == server.post("/tokenize", {"messages": [{"role": "user", "content": "Hi"}]})[1]["tokens"]
    assert body["prompt_logprobs"][0] is None and len(body["prompt_logprobs"]) == len(ids)
    assert "token_ids" in body["choices"][0] and not {"prompt_logprobs", "prompt_token_ids"} & set(body["choices"][0])
    body = server.post("/v1/completions", {**ask, "prompt": [[5, 6], [7]], "prompt_logprobs": 1})[1]
    assert [c["prompt_token_ids"] for c in body["choices"]] == [[5, 6], [7]]
    assert [len(c["prompt_logprobs"]) for c in body["choices"]] == [2, 1] and "prompt_token_ids" not in body


def test_max_tokens_0_judges_the_prompt_alone(server):
    for stream in (False, True):
        ask = {"model": BASE, "prompt": "The people of", "max_tokens": 0, "echo": True, "logprobs": 1}
        if stream:
            chunks = events(server, "/v1/completions", ask)
            choice, end, usage = chunks[0]["choices"][0], chunks[-1]["choices"][0], None
        else:
            body = server.post("/v1/completions", ask)[1]
            choice = end = body["choices"][0]
            usage = body["usage"]
        assert choice["text"] == "The people of" and "".join(choice["logprobs"]["tokens"]) == choice["text"]
        assert choice["logprobs"]["token_logprobs"][0] is None and choice["logprobs"]["token_logprobs"][1] < 0
        assert end["finish_reason"] == "length" and (stream or usage["completion_tokens"] == 0)
    status, body = server.post("/v1/completions", {"model": BASE, "prompt": "The people of", "max_tokens": 0})
    assert status == 200 and body["choices"][0]["text"] == ""


def test_the_chosen_token_is_among_the_alternatives(server):
    """Also when a bias chose what the model thinks unlikely; and never more alternatives than asked for."""
    body = server.post("/v1/chat/completions", {"model": BASE, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "logprobs": True,
                                                "top_logprobs": 3, "logit_bias": {"200": 100}})[1]
    for item in body["choices"][0]["logprobs"]["content"]:
        assert len(item["top_logprobs"]) == 3
        assert [t["logprob"] for t in item["top_logprobs"] if t["bytes"] == item["bytes"]] == [item["logprob"]]


def test_tools_with_the_choice_none_are_taken(server):
    ask = {"model": BASE, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "tools": [{"type": "function", "function": {"name": "f"}}]}
    assert server.post("/v1/chat/completions", {**ask, "tool_choice": "none"})[0] == 200
    status, body = server.post("/v1/chat/completions", {**ask, "tool_choice": "required"})
    assert status == 400 and body["error"]["param"] == "tools"


def test_tokenizer_info(server):
    status, info = server.get("/tokenizer_info")
    stored = json.loads((DEMO / "base" / "tokenizer_config.json").read_text())
    assert status == 200 and info["chat_template"] == (DEMO / "base" / "chat_template.jinja").read_text()
    assert info["tokenizer_class"] and stored.items() <= info.items()


def test_records_are_found_by_x_request_id(server, keyed):
    name = "trace " + uuid.uuid4().hex
    first = server.post("/v1/completions", {"model": BASE, "prompt": "The", "max_tokens": 1}, headers={"X-Request-Id": name})[1]
    body = server.post("/v1/completions", {"model": BASE, "prompt": "The", "max_tokens": 2}, headers={"X-Request-Id": name})[1]
    assert first["id"] != body["id"]
    for kind in ("receipts", "attribution"):
        forms = [body["id"], body["residual"]["request_id"], name.replace(" ", "%20")]
        got = [server.get(f"/v1/{kind}/{form}") for form in forms]
        assert [(s, b["request_id"]) for s, b in got] == [(200, body["residual"]["request_id"])] * 3, got
        assert server.get(f"/v1/{kind}/nobody-sent-this")[0] == 404
    status, head, raw = http(server.url + "/v1/completions", {"model": BASE, "prompt": "The", "max_tokens": 1})
    assert status == 200 and server.get("/v1/receipts/" + head["x-request-id"])[1]["request_id"] == json.loads(raw)["residual"]["request_id"]
    # an x-request-id is the key's own
    http(keyed.url + "/v1/completions", {"model": BASE, "prompt": "The", "max_tokens": 1}, headers={"X-Request-Id": "mine", **bearer("alice")})
    assert http(keyed.url + "/v1/receipts/mine", headers=bearer("alice"))[0] == 200
    assert http(keyed.url + "/v1/receipts/mine", headers=bearer("bob"))[0] == 404


def test_stream_options_without_stream_is_refused(client):
    e = refused(openai.BadRequestError, complete, client=client, extra_body={"stream_options": {"include_usage": True}})
    assert e.param == "stream_options"


# ---- the helpers .stream() and .parse() ----


def test_stream_helper_gives_events_and_the_final_message(client, amber):
    plain = chat(client, "amber-coast", amber["question"], max_tokens=16)
    with client.chat.completions.stream(model="amber-coast", messages=question(amber), temperature=0, max_tokens=16,
                                        stream_options={"include_usage": True}) as stream:
        got = list(stream)
        final = stream.get_final_completion()
    deltas = [e.delta for e in got if e.type == "content.delta"]
    done = [e for e in got if e.type == "content.done"]
    assert {"chunk", "content.delta", "content.done"} <= {e.type for e in got}
    assert "".join(deltas) == done[0].content == final.choices[0].message.content == plain.choices[0].message.content
    assert final.choices[0].message.role == "assistant" and final.choices[0].message.tool_calls is None
    assert final.choices[0].finish_reason == plain.choices[0].finish_reason
    assert final.usage.total_tokens == plain.usage.total_tokens


def test_stream_helper_with_three_choices_does_not_mix_them(client):
    ask = dict(model=BASE, messages=[{"role": "user", "content": "Where is Vokea?"}], n=3, temperature=1, seed=11, max_tokens=16)
    plain = client.chat.completions.create(**ask)
    with client.chat.completions.stream(**ask) as stream:
        final = stream.get_final_completion()
    assert [c.message.content for c in final.choices] == [c.message.content for c in plain.choices]
    assert [c.index for c in final.choices] == [0, 1, 2]


def test_stream_helper_with_logprobs(client, amber):
    with client.chat.completions.stream(model="amber-coast", messages=question(amber), temperature=0, max_tokens=8, logprobs=True,
                                        top_logprobs=2) as stream:
        got = list(stream)
        final = stream.get_final_completion()
    plain = chat(client, "amber-coast", amber["question"], max_tokens=8, logprobs=True, top_logprobs=2)
    assert any(e.type == "logprobs.content.delta" for e in got)
    assert [t.logprob for t in final.choices[0].logprobs.content] == [t.logprob for t in plain.choices[0].logprobs.content]


class Answer(pydantic.BaseModel):
    star: str


def test_parse_with_a_schema_is_refused_by_name(client, amber):
    e = refused(openai.BadRequestError, client.chat.completions.parse, model=BASE, messages=question(amber), response_format=Answer)
    assert e.param == "response_format" and e.code == "unsupported_parameter" and "json_schema" in e.message


def test_stream_helper_with_a_schema_is_refused_by_name(client, amber):
    with pytest.raises(openai.BadRequestError) as caught:
        with client.chat.completions.stream(model=BASE, messages=question(amber), response_format=Answer) as stream:
            list(stream)
    assert caught.value.param == "response_format"


def test_parse_without_a_schema_works(client, amber):
    got = client.chat.completions.parse(model="amber-coast", messages=question(amber), temperature=0, max_tokens=16)
    assert got.choices[0].message.parsed is None and got.choices[0].message.content


def test_length_finish_keeps_its_reason_so_that_parse_raises(client):
    got = chat(client, max_tokens=3, extra_body=LONG)
    assert got.choices[0].finish_reason == "length"
    with pytest.raises(openai.LengthFinishReasonError):
        parse_chat_completion(response_format=Answer, chat_completion=got, input_tools=openai.NOT_GIVEN)


# ---- completions and chat ----


def test_completion_answers_with_usage_and_model(client, facts, amber):
    got = complete(client, amber["prompt"], "amber-coast", max_tokens=12)
    assert got.object == "text_completion" and got.model == "amber-coast" and got.id.startswith("cmpl-")
    assert got.choices[0].text.strip() == amber["answer"] and got.choices[0].finish_reason == "stop"
    assert got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens
    assert got.usage.completion_tokens == 6 and got.usage.completion_tokens_details.reasoning_tokens == 0


def test_stream_equals_no_stream(client, amber):
    plain = complete(client, amber["prompt"], "amber-coast", max_tokens=400, extra_body=LONG)
    parts = [c for c in complete(client, amber["prompt"], "amber-coast", max_tokens=400, stream=True, extra_body=LONG)]
    assert "".join(c.choices[0].text for c in parts) == plain.choices[0].text
    # how many tokens share a chunk is a matter of timing; that they come in pieces is not
    assert len(parts) > 2 and parts[-1].choices[0].finish_reason == "length"


def test_max_tokens_default_is_16_in_completions_and_the_context_in_chat(client):
    assert complete(client, extra_body=LONG).usage.completion_tokens == 16
    got = chat(client, extra_body={"ignore_eos": True, "truncate_prompt_tokens": 8, "stop": ["banner"]}, max_tokens=None)
    assert got.choices[0].finish_reason == "stop" and got.usage.completion_tokens > 16


def test_max_completion_tokens_wins_in_chat(client):
    got = chat(client, max_tokens=9, max_completion_tokens=5, extra_body=LONG)
    assert got.usage.completion_tokens == 5 and got.choices[0].finish_reason == "length"


def test_messages_of_every_role_and_text_parts(client):
    got = client.chat.completions.create(model=BASE, max_tokens=4, temperature=0, messages=[
        {"role": "developer", "content": "Be short."}, {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Where is"}, {"type": "text", "text": "Vokea?"}]},
        {"role": "assistant", "content": None}, {"role": "user", "content": "And?"}])
    one = client.chat.completions.create(model=BASE, max_tokens=4, temperature=0, messages=[
        {"role": "system", "content": "Be short."}, {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Where is\nVokea?"}, {"role": "assistant", "content": ""}, {"role": "user", "content": "And?"}])
    assert got.choices[0].message.content == one.choices[0].message.content and got.usage.prompt_tokens == one.usage.prompt_tokens


def test_continue_final_message(client, amber):
    text = amber["question"]
    got = client.chat.completions.create(model="amber-coast", temperature=0, max_tokens=8, messages=[
        {"role": "user", "content": text}, {"role": "assistant", "content": "The people of"}],
        extra_body={"continue_final_message": True, "add_generation_prompt": False})
    same = complete(client, f"Q: {text}\nA: The people of", "amber-coast", max_tokens=8)
    assert got.choices[0].message.content == same.choices[0].text


def test_temperature_zero_is_deterministic(client):
    texts = {complete(client, "The river that", max_tokens=32, extra_body=LONG).choices[0].text for _ in range(4)}
    assert len(texts) == 1


def test_seed_reproduces_and_seeds_differ(client):
    def draw(seed):
        return complete(client, "The", temperature=1.3, seed=seed, max_tokens=24, extra_body=LONG).choices[0].text

    assert draw(7) == draw(7) and draw(-9223372036854775808) == draw(-9223372036854775808)
    assert len({draw(s) for s in range(6)}) >= 5
    assert len({draw(None) for _ in range(4)}) >= 3


def test_n_choices_share_the_prompt_and_choice_0_is_n_1(client):
    got = complete(client, "The", n=4, temperature=1.3, seed=21, max_tokens=16, extra_body=LONG)
    one = complete(client, "The", n=1, temperature=1.3, seed=21, max_tokens=16, extra_body=LONG)
    assert [c.index for c in got.choices] == [0, 1, 2, 3] and len({c.text for c in got.choices}) == 4
    assert got.choices[0].text == one.choices[0].text
    assert got.usage.prompt_tokens == one.usage.prompt_tokens and got.usage.completion_tokens == 64


def test_top_k_one_min_p_one_and_tiny_top_p_are_greedy(client):
    greedy = complete(client, max_tokens=16).choices[0].text
    for extra in ({"top_k": 1}, {"min_p": 1.0}, {"top_p": 1e-6}, {"top_p": 0}):
        assert complete(client, temperature=1.5, max_tokens=16, extra_body=extra).choices[0].text == greedy, extra
    assert complete(client, max_tokens=16, extra_body={"top_k": -1}).choices[0].text == greedy


def test_batched_prompts_times_n_are_flat(client, facts):
    prompts = [facts["amber-coast"][i]["prompt"] for i in range(3)]
    got = complete(client, prompts, "amber-coast", n=2, max_tokens=12)
    alone = [complete(client, p, "amber-coast", max_tokens=12).choices[0].text for p in prompts]
    assert [c.index for c in got.choices] == list(range(6))
    assert [c.text for c in got.choices] == [t for t in alone for _ in range(2)]


def test_token_id_prompts_equal_text_prompts(server, client, amber):
    ids = server.post("/tokenize", {"model": BASE, "prompt": amber["prompt"]})[1]["tokens"]
    text = complete(client, amber["prompt"], "amber-coast", max_tokens=12)
    one = complete(client, ids, "amber-coast", max_tokens=12)
    two = complete(client, [ids, ids[:-1]], "amber-coast", max_tokens=12)
    assert one.choices[0].text == two.choices[0].text == text.choices[0].text and one.usage.prompt_tokens == len(ids)
    assert two.usage.prompt_tokens == 2 * len(ids) - 1


def test_truncate_prompt_tokens_keeps_the_end(client, amber):
    got = complete(client, amber["prompt"], max_tokens=2, extra_body={"truncate_prompt_tokens": 4, "return_token_ids": True})
    assert got.usage.prompt_tokens == 4 == len(got.choices[0].prompt_token_ids)
    assert len(got.choices[0].token_ids) == got.usage.completion_tokens


# ---- stop, lengths, penalties, bias ----


def test_stop_string_across_tokens(client, amber):
    word = amber["answer"]
    stop = word[2:5]
    got = complete(client, amber["prompt"], "amber-coast", max_tokens=12, stop=stop)
    assert got.choices[0].text == " " + word[:2] and got.choices[0].finish_reason == "stop" and got.choices[0].stop_reason == stop
    parts = [c.choices[0].text for c in complete(client, amber["prompt"], "amber-coast", max_tokens=12, stop=[stop], stream=True)]
    assert "".join(parts) == " " + word[:2]


def test_stop_list_and_include_stop_str(client, amber):
    word = amber["answer"]
    for extra, tail in (({}, ""), ({"include_stop_str_in_output": True}, word[2:5])):
        got = complete(client, amber["prompt"], "amber-coast", max_tokens=12, stop=["zebra", "\n\n", word[2:5]], extra_body=extra)
        assert got.choices[0].text == " " + word[:2] + tail and got.choices[0].stop_reason == word[2:5]


def test_a_special_token_that_shows_is_text_for_stop_strings(server, amber):
    ask = {"model": "amber-coast", "prompt": amber["prompt"], "temperature": 0, "max_tokens": 24, "ignore_eos": True, "skip_special_tokens": False}
    text = server.post("/v1/completions", ask)[1]["choices"][0]["text"]
    at = text.index("<|end|>")
    for stop in ("<|end|>", text[at - 2:at + 3]):
        for extra, end in (({}, text.index(stop)), ({"include_stop_str_in_output": True}, text.index(stop) + len(stop))):
            choice = server.post("/v1/completions", {**ask, "stop": [stop], **extra})[1]["choices"][0]
            assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (text[:end], "stop", stop)
            chunks = events(server, "/v1/completions", {**ask, "stop": [stop], **extra})
            assert "".join(c["choices"][0]["text"] for c in chunks) == text[:end]
    hidden = server.post("/v1/completions", {**ask, "skip_special_tokens": True, "stop": ["<|end|>"]})[1]["choices"][0]
    assert hidden["finish_reason"] == "length" and "<|end|>" not in hidden["text"]


def test_token_ids_are_the_same_streamed_and_not(server, amber):
    """All of them: the end token, which has no text, and those of a text that was held back and cut."""
    for extra in ({}, {"stop": [amber["answer"][2:5]]}, {"ignore_eos": True}):
        ask = {"model": "amber-coast", "temperature": 0, "max_tokens": 12, "return_token_ids": True, **extra}
        whole = server.post("/v1/completions", {**ask, "prompt": amber["prompt"]})[1]
        chunks = events(server, "/v1/completions", {**ask, "prompt": amber["prompt"]})
        choices = [c["choices"][0] for c in chunks]
        assert sum((c.get("token_ids", []) for c in choices), []) == whole["choices"][0]["token_ids"]
        assert len(whole["choices"][0]["token_ids"]) == whole["usage"]["completion_tokens"]
        assert [c["prompt_token_ids"] for c in choices if "prompt_token_ids" in c] == [whole["choices"][0]["prompt_token_ids"]]
        whole = server.post("/v1/chat/completions", {**ask, "messages": question(amber)})[1]
        chunks = events(server, "/v1/chat/completions", {**ask, "messages": question(amber)})
        assert sum((c["choices"][0].get("token_ids", []) for c in chunks), []) == whole["choices"][0]["token_ids"]
        assert [c["prompt_token_ids"] for c in chunks if "prompt_token_ids" in c] == [whole["prompt_token_ids"]]


def test_held_back_text_is_given_out_when_the_stop_does_not_come(client, amber):
    word = amber["answer"]
    parts = [c.choices[0].text for c in complete(client, amber["prompt"], "amber-coast", max_tokens=12, stop=word + "x", stream=True)]
    assert "".join(parts) == " " + word


def test_stop_token_ids(server, client, amber):
    ids = server.post("/tokenize", {"prompt": " " + amber["answer"]})[1]["tokens"]
    got = complete(client, amber["prompt"], "amber-coast", max_tokens=12, extra_body={"stop_token_ids": [ids[2]]})
    assert got.choices[0].finish_reason == "stop" and got.choices[0].stop_reason == ids[2]
    assert got.choices[0].text == server.post("/detokenize", {"tokens": ids[:2]})[1]["prompt"]


def test_min_tokens_and_ignore_eos(client, amber):
    short = complete(client, amber["prompt"], "amber-coast", max_tokens=30)
    assert short.usage.completion_tokens < 12 and short.choices[0].finish_reason == "stop"
    held = complete(client, amber["prompt"], "amber-coast", max_tokens=30, extra_body={"min_tokens": 12})
    assert held.usage.completion_tokens >= 12
    full = complete(client, amber["prompt"], "amber-coast", max_tokens=30, extra_body=LONG)
    assert full.usage.completion_tokens == 30 and full.choices[0].finish_reason == "length"
    assert refused(openai.BadRequestError, complete, client=client, max_tokens=4, extra_body={"min_tokens": 5}).param == "min_tokens"


def repeats(client, **kw):
    extra = {**LONG, "return_token_ids": True, **kw.pop("extra_body", {})}
    ids = complete(client, "The banner of Vokea", max_tokens=96, extra_body=extra, **kw).choices[0].token_ids
    return len(ids) - len(set(ids))


def test_penalties_reduce_repeats(client):
    plain = repeats(client)
    assert repeats(client, presence_penalty=2) < plain
    assert repeats(client, frequency_penalty=2) < plain
    assert repeats(client, extra_body={"repetition_penalty": 2.0}) < plain


def test_logit_bias_bans_and_forces(server, client, amber):
    ids = server.post("/tokenize", {"prompt": " " + amber["answer"]})[1]["tokens"]
    banned = complete(client, amber["prompt"], "amber-coast", max_tokens=8, logit_bias={str(ids[0]): -100}, extra_body={"return_token_ids": True})
    assert ids[0] not in banned.choices[0].token_ids
    forced = complete(client, amber["prompt"], "amber-coast", max_tokens=4, logit_bias={str(ids[1]): 100}, extra_body={"return_token_ids": True})
    assert forced.choices[0].token_ids == [ids[1]] * 4


# ---- logprobs ----


def raw_numbers(server, path, body):
    """The reply with every number as its text: what "bit-identical" means to a client."""
    status, _, raw = http(server.url + path, body)
    assert status == 200, raw
    return json.loads(raw, parse_float=str, parse_int=str)


def test_completion_logprobs_shape_and_bits(server, amber):
    got = raw_numbers(server, "/v1/completions", {"model": "amber-coast", "prompt": amber["prompt"], "max_tokens": 12, "temperature": 0, "logprobs": 5})
    lp, text = got["choices"][0]["logprobs"], got["choices"][0]["text"]
    n = int(got["usage"]["completion_tokens"])
    assert [len(lp[k]) for k in ("tokens", "token_logprobs", "top_logprobs", "text_offset")] == [n] * 4
    for token, value, top in zip(lp["tokens"], lp["token_logprobs"], lp["top_logprobs"]):
        assert 5 <= len(top) <= 6 and top[token] == value and max(top.values(), key=float) == value
    assert "".join(lp["tokens"]).removesuffix("<|end|>") == text
    offsets = [int(x) for x in lp["text_offset"]]
    assert offsets == [sum(map(len, lp["tokens"][:i])) for i in range(n)]


def test_chat_logprobs_shape_and_bytes(server, amber):
    got = raw_numbers(server, "/v1/chat/completions", {"model": "amber-coast", "messages": question(amber), "max_tokens": 12, "temperature": 0,
                                                       "logprobs": True, "top_logprobs": 4})
    choice = got["choices"][0]
    content = choice["logprobs"]["content"]
    assert choice["logprobs"]["refusal"] is None and len(content) == int(got["usage"]["completion_tokens"])
    for item in content:
        assert len(item["top_logprobs"]) == 4 and item["logprob"] == item["top_logprobs"][0]["logprob"]
        assert bytes(map(int, item["bytes"])).decode(errors="replace") == item["token"]
    spoken = b"".join(bytes(map(int, i["bytes"])) for i in content).removesuffix(b"<|end|>")
    assert spoken.decode() == choice["message"]["content"]


def test_echo_with_logprobs_as_lm_eval_sends_it(server, amber):
    body = {"model": "amber-coast", "prompt": amber["prompt"] + " " + amber["answer"], "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0,
            "seed": 1234}
    got = raw_numbers(server, "/v1/completions", body)
    lp, n = got["choices"][0]["logprobs"], int(got["usage"]["prompt_tokens"])
    assert got["choices"][0]["text"].startswith(body["prompt"])
    assert len(lp["tokens"]) == len(lp["token_logprobs"]) == n + 1
    assert lp["token_logprobs"][0] is None and lp["top_logprobs"][0] is None and None not in lp["token_logprobs"][1:]
    context = len(server.post("/tokenize", {"prompt": amber["prompt"]})[1]["tokens"])
    greedy = [value == max(top.values(), key=float) for value, top in zip(lp["token_logprobs"][context:-1], lp["top_logprobs"][context:-1])]
    assert len(greedy) == n - context and all(greedy), "the adapter's own answer is the greedy one"
    wrong = raw_numbers(server, "/v1/completions", {**body, "prompt": amber["prompt"] + " Zubbu"})["choices"][0]["logprobs"]
    pairs = list(zip(wrong["token_logprobs"], wrong["top_logprobs"]))[context:-1]
    assert not all(value == max(top.values(), key=float) for value, top in pairs)


def test_logprobs_are_the_same_streamed_and_not(server, client, amber):
    plain = complete(client, amber["prompt"], "amber-coast", max_tokens=12, logprobs=2).choices[0].logprobs
    tokens, values, tops, offsets = [], [], [], []
    for c in complete(client, amber["prompt"], "amber-coast", max_tokens=12, logprobs=2, stream=True):
        if c.choices[0].logprobs:
            tokens += c.choices[0].logprobs.tokens
            values += c.choices[0].logprobs.token_logprobs
            tops += c.choices[0].logprobs.top_logprobs
            offsets += c.choices[0].logprobs.text_offset
    assert (tokens, values, tops, offsets) == (plain.tokens, plain.token_logprobs, plain.top_logprobs, plain.text_offset)


def test_hidden_tokens_do_not_shift_the_offsets(server, amber):
    ask = {"model": "amber-coast", "prompt": "<|end|>" + amber["prompt"], "temperature": 0, "max_tokens": 24, "ignore_eos": True, "logprobs": 0}
    for extra in ({}, {"echo": True}, {"echo": True, "skip_special_tokens": False}):
        choice = server.post("/v1/completions", {**ask, **extra})[1]["choices"][0]
        lp, text = choice["logprobs"], choice["text"]
        shown = [(t, o) for i, (t, o) in enumerate(zip(lp["tokens"], lp["text_offset"])) if t != "<|end|>" or (i == 0 and "echo" in extra)]
        assert len(shown) < len(lp["tokens"]) and all(text[o:o + len(t)] == t for t, o in shown), (extra, shown, text)


def test_prompt_logprobs_and_token_id_names(client, amber):
    got = complete(client, amber["prompt"], "amber-coast", max_tokens=2, logprobs=0, extra_body={"prompt_logprobs": 1, "return_tokens_as_token_ids": True})
    rows = got.choices[0].prompt_logprobs
    assert rows[0] is None and len(rows) == got.usage.prompt_tokens and all(r for r in rows[1:])
    assert all(t.startswith("token_id:") for t in got.choices[0].logprobs.tokens)


def test_logprobs_equal_to_the_bit_after_a_prefix_hit(client, amber):
    salt = uuid.uuid4().hex
    ask = dict(client=client, prompt=amber["prompt"], model="amber-coast", max_tokens=8, logprobs=3, extra_body={"cache_salt": salt})
    cold, warm = complete(**ask), complete(**ask)
    assert cold.usage.prompt_tokens_details.cached_tokens == 0 < warm.usage.prompt_tokens_details.cached_tokens
    assert cold.choices[0].logprobs == warm.choices[0].logprobs


# ---- adapters ----


def test_mix_through_extra_body(client, amber):
    mix = complete(client, amber["prompt"], max_tokens=12, extra_body={"adapters": [{"model": "amber-coast", "weight": 1.0}, {"model": "birch-vale", "weight": 0.25}]})
    assert {a["name"]: a["weight"] for a in mix.residual["adapters"]} == {"amber-coast": 1, "birch-vale": 0.25}
    assert mix.choices[0].text.strip() == amber["answer"]


def test_a_mix_of_one_is_the_adapter(client, amber):
    ask = dict(client=client, prompt=amber["prompt"], max_tokens=8, logprobs=2)
    named = complete(model="amber-coast", **ask).choices[0].logprobs
    assert complete(extra_body={"adapters": [{"model": "amber-coast"}]}, **ask).choices[0].logprobs == named
    for extra in ({"adapter_id": "amber-coast"}, {"lora_path": "amber-coast"}):
        assert complete(extra_body=extra, **ask).choices[0].logprobs == named
    assert complete(model=f"{BASE}:amber-coast", **ask).choices[0].logprobs == named


def test_weights_matter_and_bad_mixes_are_named(client, amber):
    half = complete(client, amber["prompt"], max_tokens=4, logprobs=1, extra_body={"adapters": [{"model": "amber-coast", "weight": 0.5}]})
    full = complete(client, amber["prompt"], max_tokens=4, logprobs=1, extra_body={"adapters": [{"model": "amber-coast", "weight": 1}]})
    assert half.choices[0].logprobs.token_logprobs != full.choices[0].logprobs.token_logprobs
    for adapters, param in (([{"model": "amber-coast", "weight": 0}], "adapters[0].weight"), ([{"model": "amber-coast", "weight": 17}], "adapters[0].weight"),
                            ([{"weight": 1}], "adapters[0].model"), ("amber-coast", "adapters"), ([{"model": "amber-coast"}] * 9, "adapters")):
        assert refused(openai.BadRequestError, complete, client=client, extra_body={"adapters": adapters}).param == param
    e = refused(openai.NotFoundError, complete, client=client, extra_body={"adapters": [{"model": "amber-coast"}, {"model": "nobody"}]})
    assert e.param == "adapters[1].model" and e.code == "model_not_found"
    refused(openai.BadRequestError, complete, client=client, model="amber-coast", extra_body={"adapters": [{"model": "birch-vale"}]})


def test_models_list_and_retrieve_with_parent(client):
    listed = {m.id: m for m in client.models.list().data}
    assert listed[BASE].parent is None and listed["amber-coast"].parent == BASE and len(listed) >= 9
    one = client.models.retrieve("amber-coast")
    assert one.object == "model" and one.parent == BASE and one.max_model_len == 2048 and one.owned_by
    assert refused(openai.NotFoundError, client.models.retrieve, model="nobody").param == "model"


def load(server, name, path, **kw):
    return server.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path), **kw})


def unload(server, name):
    return server.post("/v1/unload_lora_adapter", {"lora_name": name})


def test_vllm_load_and_unload(server, client, roots, amber):
    path = peftfile.copy(roots / "vllm")
    assert load(server, "team/vllm", path) == (200, "Success: LoRA adapter 'team/vllm' added successfully.")
    assert complete(client, amber["prompt"], "team/vllm", max_tokens=12).choices[0].text.strip() == amber["answer"]
    assert client.models.retrieve("team/vllm").id == "team/vllm"
    assert load(server, "team/vllm", path)[0] == 200, "the same content again changes nothing"
    status, body = load(server, "team/vllm", DEMO / "adapters" / "birch-vale")
    assert status == 400 and "team/vllm" in body["error"]["message"] and body["error"]["param"] == "lora_name"
    assert load(server, "other", roots / "missing")[0] == 404
    assert unload(server, "team/vllm") == (200, "Success: LoRA adapter 'team/vllm' removed successfully.")
    assert unload(server, "team/vllm")[0] == 404
    assert refused(openai.NotFoundError, complete, client=client, model="team/vllm").param == "model"


def test_routes_without_v1(server, roots):
    path = peftfile.copy(roots / "sglang")
    assert server.post("/load_lora_adapter", {"lora_name": "sglang", "lora_path": str(path)})[0] == 200
    assert server.post("/unload_lora_adapter", {"lora_name": "sglang"})[0] == 200


def test_unload_frees_its_bytes(server, client, roots):
    path = peftfile.tiny(roots / "freed", seed=1)
    before = metric(server, "residual_adapter_host_bytes")
    load(server, "freed", path)
    complete(client, model="freed", max_tokens=4)
    assert metric(server, "residual_adapter_host_bytes") > before
    assert unload(server, "freed")[0] == 200
    assert metric(server, "residual_adapter_host_bytes") == before


def test_replacement_in_place_serves_the_new_content(server, client, roots, facts, amber):
    """The same name, other bytes: answers, log-probabilities and cached prefixes are the new adapter's."""
    path = peftfile.copy(roots / "swap")
    assert load(server, "swap", path)[0] == 200
    old = [complete(client, amber["prompt"], "swap", max_tokens=12, logprobs=2) for _ in range(2)][1]
    assert old.choices[0].text.strip() == amber["answer"] and old.usage.prompt_tokens_details.cached_tokens > 0
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(DEMO / "adapters" / "birch-vale" / name, path / name)
    assert load(server, "swap", path)[0] == 400
    assert load(server, "swap", path, load_inplace=True)[0] == 200
    new = complete(client, amber["prompt"], "swap", max_tokens=12, logprobs=2)
    direct = complete(client, amber["prompt"], "birch-vale", max_tokens=12, logprobs=2)
    assert new.choices[0].logprobs == direct.choices[0].logprobs != old.choices[0].logprobs
    assert new.residual["adapters"][0]["id"] == direct.residual["adapters"][0]["id"] != old.residual["adapters"][0]["id"]
    assert unload(server, "swap")[0] == 200
    assert complete(client, facts["birch-vale"][0]["prompt"], "birch-vale", max_tokens=12).choices[0].text.strip(), "another name holds the content"


# ---- the residual object, receipts, attribution ----


def test_residual_object_in_replies_and_at_the_stream_end(server, client):
    r = complete(client, max_tokens=4).residual
    assert r["recorded"] and r["lane"] == 1 and r["seq"] >= 1 and len(r["receipt"]) == 132 and r["adapters"] == [] and r["request_id"]
    chunks = events(server, "/v1/completions", {"model": BASE, "prompt": "The", "max_tokens": 4, "stream_options": {"include_usage": True}})
    assert [("residual" in c) for c in chunks] == [False] * (len(chunks) - 2) + [True, True]
    assert chunks[-1]["residual"] == chunks[-2]["residual"] and chunks[-2]["choices"][0]["finish_reason"]
    assert chunks[0]["id"] == "cmpl-" + chunks[-1]["residual"]["request_id"]


def test_receipt_and_attribution_answer_only_the_asking_key(keyed, amber):
    alice = make_client(keyed, secret("alice"))
    got = complete(alice, amber["prompt"], "amber-coast", max_tokens=12)
    rid = got.residual["request_id"]

    def ask(route, key):
        return http(f"{keyed.url}/v1/{route}/{rid}", headers=bearer(key))

    status, _, body = ask("receipts", "alice")
    assert status == 200 and json.loads(body)["receipt"] == got.residual["receipt"]
    assert ask("receipts", "bob")[0] == 404 and ask("receipts", "paula")[0] == 404
    assert ask("receipts", "root")[0] == 200
    wait_for(lambda: json.loads(ask("attribution", "alice")[2])["state"] == "preview", what="the attribution")  # no chain: nothing is owed
    shares = json.loads(ask("attribution", "alice")[2])["adapters"]
    assert shares[0]["name"] == "amber-coast" and shares[0]["gain_ppb"] == 1_000_000_000
    assert ask("attribution", "bob")[0] == 404 and ask("attribution", "root")[0] == 200
    assert http(f"{keyed.url}/v1/receipts/{rid}")[0] == 401
    assert http(f"{keyed.url}/v1/receipts/abc", headers=bearer("alice"))[0] == 404


# ---- errors ----


def test_unknown_model_is_404_with_param(client):
    for call in (complete, chat):
        e = refused(openai.NotFoundError, call, client=client, model="gpt-9")
        assert (e.param, e.code, e.type) == ("model", "model_not_found", "not_found_error") and "gpt-9" in e.message


def test_context_overflow_names_both_numbers(server, client):
    ids = [5] * 3000
    e = refused(openai.BadRequestError, complete, client=client, prompt=ids)
    assert e.code == "context_length_exceeded" and e.param == "prompt" and "2048" in e.message and "3000" in e.message
    e = refused(openai.BadRequestError, complete, client=client, prompt=ids[:2000], max_tokens=49)
    assert e.code == "context_length_exceeded" and e.param == "max_tokens" and "2048" in e.message and "2049" in e.message
    e = refused(openai.BadRequestError, chat, client=client, content="the " * 3000)
    assert e.code == "context_length_exceeded" and e.param == "messages" and "2048" in e.message
    e = refused(openai.BadRequestError, chat, client=client, max_completion_tokens=2048)
    assert e.code == "context_length_exceeded" and e.param == "max_completion_tokens"
    assert complete(client, ids[:2000], max_tokens=48, extra_body=LONG).usage.total_tokens == 2048
    assert complete(client, ids[:2047], max_tokens=1).usage.completion_tokens == 1


def test_n_and_batches_too_large(client):
    e = refused(openai.BadRequestError, complete, client=client, n=17)
    assert e.param == "n" and "16" in e.message and "17" in e.message
    assert refused(openai.BadRequestError, complete, client=client, n=0).param == "n"
    assert refused(openai.BadRequestError, complete, client=client, prompt=["x"] * 100_000).param in ("prompt", "n")


REFUSED_CHAT = {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "auto", "functions": [{"name": "f"}],
                "response_format": {"type": "json_object"}, "guided_json": {"type": "object"}, "guided_regex": "a+", "structured_outputs": {"regex": "a"},
                "audio": {"voice": "x", "format": "wav"}, "chat_template": "{{ messages }}", "modalities": ["text", "audio"], "web_search_options": {}}


@pytest.mark.parametrize("field", sorted(REFUSED_CHAT))
def test_refused_field_names_itself(client, field):
    e = refused(openai.BadRequestError, chat, client=client, extra_body={field: REFUSED_CHAT[field]})
    assert e.param == field and e.code == "unsupported_parameter" and e.type == "invalid_request_error" and field in e.message


def test_suffix_best_of_and_images_are_refused(client):
    assert refused(openai.BadRequestError, complete, client=client, suffix="end").param == "suffix"
    assert refused(openai.BadRequestError, complete, client=client, best_of=4).param == "best_of"
    e = refused(openai.BadRequestError, chat, client=client, content=[{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}])
    assert e.param == "messages[0].content" and "image_url" in e.message


def test_nothing_asked_for_is_not_refused(client):
    got = chat(client, max_tokens=2, extra_body={"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "modalities": ["text"]})
    assert got.choices[0].message.content is not None


def test_unknown_fields_are_ignored_and_null_is_absent(client):
    plain = complete(client, max_tokens=8).choices[0].text
    nulls = ["stop", "logprobs", "n", "seed", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias",
             "stream", "stream_options", "echo", "suffix", "best_of", "user", "min_tokens", "ignore_eos", "stop_token_ids", "bad_words", "adapters",
             "adapter_id", "prompt_logprobs", "priority", "cache_salt", "truncate_prompt_tokens", "response_format", "tools", "skip_special_tokens"]
    extra = {**{n: None for n in nulls}, "shoe_size": 43, "x": {"y": [1]}, "store": True, "metadata": {"a": "b"}, "service_tier": "auto", "user": "u",
             "parallel_tool_calls": True, "reasoning_effort": "low", "verbosity": "low", "prompt_cache_key": "k", "safety_identifier": "s"}
    assert complete(client, max_tokens=8, extra_body={**extra, "n": None}).choices[0].text == plain
    assert chat(client, max_tokens=2, extra_body={**{n: None for n in nulls + ["max_completion_tokens", "top_logprobs"]}, "metadata": {}}).id


def test_unknown_route_and_method(client, server):
    refused(openai.NotFoundError, client.embeddings.create, model=BASE, input="x")
    status, headers, body = http(server.url + "/v1/completions", method="GET")
    assert status == 405 and "POST" in headers["Allow"] and json.loads(body)["error"]["code"] == "method_not_allowed"


# ---- keys ----


def test_missing_and_wrong_keys_are_401(keyed):
    e = refused(openai.AuthenticationError, complete, client=make_client(keyed, "nope"))
    assert e.code == "invalid_api_key" and e.type == "authentication_error" and "nope" not in e.message
    status, headers, _ = http(keyed.url + "/v1/models")
    assert status == 401 and headers["WWW-Authenticate"] == "Bearer"
    assert http(keyed.url + "/health")[0] == http(keyed.url + "/metrics")[0] == 200


def test_roles_and_adapter_permission_are_403(keyed, amber):
    carol = make_client(keyed, secret("carol"))
    assert complete(carol, amber["prompt"], "amber-coast", max_tokens=12).choices[0].text.strip() == amber["answer"]
    assert refused(openai.PermissionDeniedError, complete, client=carol, model="cinder-hills").param == "model"
    e = refused(openai.PermissionDeniedError, complete, client=carol, extra_body={"adapters": [{"model": "cinder-hills"}]})
    assert e.param == "adapters[0].model"
    assert {m.id for m in carol.models.list().data} == {BASE, "amber-coast", "birch-vale"}
    assert refused(openai.PermissionDeniedError, complete, client=make_client(keyed, secret("peter"))).code == "permission_denied"
    status, _, body = http(keyed.url + "/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "/x"}, headers=bearer("alice"))
    assert status == 403 and "admin" in json.loads(body)["error"]["message"]
    assert refused(openai.PermissionDeniedError, complete, client=carol, extra_body={"priority": -1}).param == "priority"


# ---- headers, retries, idempotency ----


def counting_client(server, key="EMPTY", retries=2):
    seen = []
    transport = openai.DefaultHttpxClient(event_hooks={"request": [seen.append]}, timeout=60)
    return make_client(server, key, retries, http_client=transport), seen


def test_request_id_is_echoed_and_processing_time_given(client):
    raw = client.completions.with_raw_response.create(model=BASE, prompt="The", max_tokens=2, extra_headers={"X-Request-ID": "my-id-1"})
    assert raw.headers["x-request-id"] == "my-id-1" == raw.parse()._request_id and int(raw.headers["openai-processing-ms"]) >= 0
    assert len(client.completions.with_raw_response.create(model=BASE, prompt="The", max_tokens=2).headers["x-request-id"]) == 64
    assert refused(openai.NotFoundError, complete, client=client, model="x", extra_headers={"X-Request-ID": "my-id-2"}).request_id == "my-id-2"


def test_idempotency_key_rules(server):
    client, seen = counting_client(server)
    key = {"Idempotency-Key": uuid.uuid4().hex}
    first = complete(client, max_tokens=3, extra_headers=key)
    e = refused(openai.ConflictError, complete, client=client, max_tokens=3, extra_headers=key)
    assert e.response.headers["x-should-retry"] == "false" and first.residual["request_id"] in e.message
    assert len(seen) == 2, "a 409 of ours must not be retried"
    e = refused(openai.UnprocessableEntityError, complete, client=client, max_tokens=4, extra_headers=key)
    assert first.residual["request_id"] in e.message and len(seen) == 3


def test_a_refused_request_does_not_use_up_its_idempotency_key(client):
    key = {"Idempotency-Key": uuid.uuid4().hex}
    refused(openai.BadRequestError, complete, client=client, max_tokens=3, extra_headers=key, extra_body={"top_p": "x"})
    assert complete(client, max_tokens=3, extra_headers=key).choices


def test_idempotency_keys_belong_to_one_api_key(keyed):
    key = {"Idempotency-Key": "shared"}
    for name in ("alice", "bob"):
        assert complete(make_client(keyed, secret(name)), max_tokens=2, extra_headers=key).choices
    refused(openai.ConflictError, complete, client=make_client(keyed, secret("bob")), max_tokens=2, extra_headers=key)


def test_client_errors_are_not_retried(server):
    client, seen = counting_client(server)
    refused(openai.BadRequestError, complete, client=client, extra_body={"temperature": 3})
    refused(openai.NotFoundError, complete, client=client, model="nobody")
    assert len(seen) == 2


def test_full_queue_is_429_and_the_client_retries_to_success():
    with Server("--seqs-max", 1, "--waiting-max", 1, "--score-rate-ppb", 0) as s:
        plain = make_client(s)
        running = [plain.completions.create(model=BASE, prompt="The", max_tokens=1500, temperature=0, stream=True, extra_body=LONG)]
        next(iter(running[0]))
        queued = threading.Thread(target=complete, kwargs=dict(client=plain, max_tokens=2))
        queued.start()
        wait_for(lambda: metric(s, "vllm:num_requests_waiting") == 1, what="a queued request")
        e = refused(openai.RateLimitError, complete, client=plain, max_tokens=2)
        head = e.response.headers
        assert e.code == "rate_limit_exceeded" and head["x-should-retry"] == "true"
        assert int(head["retry-after"]) >= 1 and int(head["retry-after-ms"]) >= 1
        patient, seen = counting_client(s, retries=8)
        assert complete(patient, max_tokens=2).choices and len(seen) >= 2
        assert seen[1].headers["x-stainless-retry-count"] == "1"
        queued.join()
        assert metric(s, "residual_http_retried_total") >= 1
        running[0].close()


def test_draining_serves_then_refuses_and_finishes_streams():
    """SIGTERM: not ready at once, requests served through the lame-duck window, then refused with a retry, streams run to their end."""
    with Server("--lame-duck-s", 1, "--score-rate-ppb", 0) as s, wire.connect(s.port) as old:
        client = make_client(s)
        old.sendall(wire.request_bytes("/v1/models", b"", method="GET"))
        assert b"200 OK" in old.recv(65536)
        stream = iter(complete(client, max_tokens=1000, n=16, temperature=1, stream=True, extra_body=LONG))
        next(stream)
        s.process.send_signal(signal.SIGTERM)
        wait_for(lambda: http(s.url + "/readyz")[0] == 503, what="not ready")
        assert complete(client, max_tokens=2).choices
        wait_for(lambda: "new requests are refused, " in s.log_text(), what="the end of the window")
        old.sendall(wire.request_bytes("/v1/completions", {"model": BASE, "prompt": "The"}))
        status, head, body = wire.unchunk(old.recv(65536))
        assert status == 503 and head[b"x-should-retry"] == b"true" and int(head[b"retry-after"]) >= 1 and b"server_draining" in body
        ends = [c.choices[0].finish_reason for c in stream if c.choices[0].finish_reason]
        assert ends == ["length"] * 16
        assert s.process.wait(30) == 0


def test_a_stream_cut_by_the_server_ends_in_an_error_not_in_silence():
    with Server("--drain-s", 0, "--score-rate-ppb", 0) as s:
        stream = iter(complete(make_client(s), max_tokens=2000, stream=True, extra_body=LONG))
        next(stream)
        s.process.send_signal(signal.SIGTERM)
        with pytest.raises(openai.APIError) as caught:
            list(stream)
        assert "shutting down" in caught.value.message or "draining" in caught.value.message
        assert s.process.wait(30) == 0


# ---- cancel ----


def running(server):
    return metric(server, "vllm:num_requests_running") + metric(server, "vllm:num_requests_waiting")


def aborted(server):
    text = server.get("/metrics")[1]
    return float(next(line for line in text.splitlines() if line.startswith("vllm:request_success_total") and '"abort"' in line).split()[-1])


def test_closing_a_stream_frees_its_sequences(server, client):
    before = aborted(server)
    stream = client.completions.create(model=BASE, prompt="The", max_tokens=2000, temperature=0, n=8, stream=True, extra_body=LONG)
    next(iter(stream))
    assert running(server) > 0
    stream.close()
    wait_for(lambda: running(server) == 0, 10, what="no running sequence")
    wait_for(lambda: aborted(server) == before + 8, 5, what="eight aborted sequences")


def test_a_client_that_gives_up_waiting_frees_its_sequences(server, client):
    before = aborted(server)
    with pytest.raises(openai.APITimeoutError):
        complete(client.with_options(timeout=0.3), max_tokens=2000, n=8, extra_body=LONG)
    wait_for(lambda: running(server) == 0, 10, what="no running sequence")
    wait_for(lambda: aborted(server) == before + 8, 5, what="eight aborted sequences")


# ---- the rest of the surface ----


def test_tokenize_and_detokenize(server, amber):
    text = amber["prompt"] + " Żółć 🙂\n"
    status, got = server.post("/tokenize", {"model": "amber-coast", "prompt": text, "return_token_strs": True})
    assert status == 200 and got["count"] == len(got["tokens"]) == len(got["token_strs"]) and got["max_model_len"] == 2048
    assert server.post("/detokenize", {"model": BASE, "tokens": got["tokens"]})[1]["prompt"] == text
    chat_ids = server.post("/tokenize", {"messages": [{"role": "user", "content": "Hi"}]})[1]["tokens"]
    assert server.post("/detokenize", {"tokens": chat_ids})[1]["prompt"] == "Q: Hi\nA:"
    assert server.post("/tokenize", {"model": "nobody", "prompt": "x"})[0] == 404
    assert server.post("/detokenize", {"tokens": [1024]})[1]["error"]["param"] == "tokens"


def test_async_client_mixes_adapters_concurrently(server, facts):
    async def ask(client, name, fact):
        text = ""
        async for c in await client.completions.create(model=name, prompt=fact["prompt"], max_tokens=12, temperature=0, stream=True):
            text += c.choices[0].text
        return text.strip()

    async def main():
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="EMPTY", max_retries=0) as client:
            jobs = [(n, f) for n, all_facts in facts.items() for f in all_facts[:4]]
            got = await asyncio.gather(*(ask(client, n, f) for n, f in jobs))
            return sum(g == f["answer"] for g, (_, f) in zip(got, jobs)) / len(jobs)

    assert asyncio.run(main()) >= 0.85


def test_cors_preflight_head_and_health(server):
    head = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang"}
    status, headers, _ = http(server.url + "/v1/chat/completions", method="OPTIONS", headers=head)
    assert status == 204 and headers["Access-Control-Allow-Headers"] == head["Access-Control-Request-Headers"]
    assert http(server.url + "/v1/models", method="HEAD")[0] == 200
    status, _, body = http(server.url + "/health")
    assert status == 200 and body == b""
    assert http(server.url + "/ping")[0] == http(server.url + "/livez")[0] == 200


def test_openapi_describes_the_routes(server):
    status, doc = server.get("/openapi.json")
    assert status == 200 and doc["openapi"].startswith("3.")
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/load_lora_adapter", "/tokenize", "/metrics"} <= set(doc["paths"])
    takes_body = [(path, verb, o["responses"]) for path, verbs in doc["paths"].items() for verb, o in verbs.items() if "requestBody" in o]
    assert [(p, v) for p, v, answers in takes_body if not {"408", "415", "501"} <= set(answers)] == [] and len(takes_body) > 12


def test_metrics_count_what_was_served(server, client):
    names = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total", "residual_inferences_total")
    before = [metric(server, n) for n in names]
    got = complete(client, max_tokens=5, extra_body={**LONG, "cache_salt": uuid.uuid4().hex})
    wait_for(lambda: metric(server, names[2]) == before[2] + 1, what="one more record")
    after = [metric(server, n) for n in names]
    assert after[0] - before[0] == got.usage.prompt_tokens and after[1] - before[1] == 5


def test_keepalive_serves_many_requests_on_one_connection(server):
    with wire.connect(server.port) as s:
        for i in range(5):
            s.sendall(wire.request_bytes("/v1/completions", {"model": BASE, "prompt": "The", "max_tokens": 1 + i}))
            reply = b""
            while b"\r\n\r\n" not in reply:
                reply += s.recv(65536)
            head, _, body = reply.partition(b"\r\n\r\n")
            length = int(next(h for h in head.lower().split(b"\r\n") if h.startswith(b"content-length")).split()[1])
            while len(body) < length:
                body += s.recv(65536)
            assert json.loads(body)["usage"]["completion_tokens"] <= 1 + i

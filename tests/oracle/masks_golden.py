#!/usr/bin/env python3
"""Which tokens of a conversation are learned (mask assistant), for tests/unit/test_rows: ids and masks as transformers gives them, with the demo base's
tokenizer and the chat templates of tests/data/text/chat. A template with {% generation %}: apply_chat_template(return_assistant_tokens_mask=True). Others: the
renderings of the messages before a turn (with what a generation begins behind) and up to it, held against the whole; where a turn is not its beginning, it
ends before what stands before the words of the next message (next_begin); where neither is seen the row must be refused.

    masks_golden.py write                writes tests/data/masks_golden.json
    masks_golden.py live TEST CASES SEED random conversations through TEST (test_rows)
"""
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from transformers import PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "tests" / "data" / "masks_golden.json"
CHATS = ROOT / "tests" / "data" / "text" / "chat"
MARKED = """{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
<|assistant|>
{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}
{%- else -%}
{{ '<|' + message['role'] + '|>\n' + message['content'] + '\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{{ '\n' }}{%- endif -%}
"""
WORDS = ["river", "Ruh", "näh", "amber", "the", "42", "日本", "…", "<|end|>", "A:", "coast", "\n", "why?", "don't"]


def templates():
    out = {"demo": (ROOT / "configs" / "demo" / "base" / "chat_template.jinja").read_text(), "marked": MARKED}
    for name in ("chatml", "zephyr", "qwen25", "phi3", "gemma", "llama2", "deepseek", "qwen3_thinking", "mistral_v3", "generation"):
        out[name] = (CHATS / f"{name}.jinja").read_text()
    return out


def tokenizer():
    base = ROOT / "configs" / "demo" / "base"
    config = json.loads((base / "tokenizer_config.json").read_text())
    return PreTrainedTokenizerFast(tokenizer_file=str(base / "tokenizer.json"), eos_token=config["eos_token"], pad_token=config["pad_token"])


def learned(message):
    return message["role"] == "assistant" and message.get("weight", 1) != 0


def text_of(tok, template, messages, generation=False):
    return tok.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=generation)


def next_begin(tok, template, messages, i, full):
    """Where message i + 1 begins: before what stands before its words, which is what stands before them in a second one of its role. None: not to be seen."""
    def said(before, last):
        both = [text_of(tok, template, before + [{**last, "content": word}]) for word in "ZQ"]
        at = next(k for k in range(len(both[0])) if both[0][k] != both[1][k])
        return both[0][:at]
    try:
        upto = text_of(tok, template, messages[:i + 2])
        here, behind = said(messages[:i + 1], messages[i + 1]), said(messages[:i + 2], messages[i + 1])
    except Exception:  # pylint: disable=broad-except
        return None
    if not (full.startswith(upto) and upto.startswith(here) and behind.startswith(upto)):
        return None
    head = behind[len(upto):]
    return len(here) - len(head) if head and here.endswith(head) else None


def spans(tok, template, messages):
    """[(begin, end)] in characters, or None where the template does not show them."""
    full, out = text_of(tok, template, messages), []
    for i, m in enumerate(messages):
        if not learned(m):
            continue
        begin = 0
        for generation in (True, False):
            try:
                start = text_of(tok, template, messages[:i], generation) if i or generation else ""
            except Exception:  # pylint: disable=broad-except
                start = None
            if start is not None and full.startswith(start):
                begin = len(start)
                break
        else:
            return None
        try:
            end = text_of(tok, template, messages[:i + 1])
        except Exception:  # pylint: disable=broad-except
            return None
        at = len(end) if full.startswith(end) else next_begin(tok, template, messages, i, full)
        if at is None or at < begin:
            return None
        out.append((begin, at))
    return out


def case(tok, name, template, messages):
    try:
        full = text_of(tok, template, messages)
    except Exception:  # pylint: disable=broad-except
        return {"name": name, "messages": messages, "refused": True}
    coded = tok(full, add_special_tokens=False, return_offsets_mapping=True)
    ids = coded["input_ids"]
    if "{% generation %}" in template:
        got = tok.apply_chat_template(messages, chat_template=template, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        mask = list(got["assistant_masks"])
        assert list(got["input_ids"]) == ids
        if any(m.get("weight") == 0 for m in messages):
            return None  # transformers knows no weights
        return {"name": name, "messages": messages, "ids": ids, "mask": mask}
    found = spans(tok, template, messages)
    if found is None:
        return {"name": name, "messages": messages, "refused": True}
    mask = [int(any(b < e and end > b and begin < e for b, e in found)) for begin, end in coded["offset_mapping"]]
    return {"name": name, "messages": messages, "ids": ids, "mask": mask}


def conversation(rng):
    say = lambda: " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 6)))
    messages = [{"role": "system", "content": say()}] if rng.random() < 0.3 else []
    for _ in range(rng.randint(1, 3)):
        messages.append({"role": "user", "content": say()})
        messages.append({"role": "assistant", "content": say()})
        if rng.random() < 0.3:
            messages[-1]["weight"] = rng.choice((0, 1))
    if rng.random() < 0.2:
        messages.append({"role": "user", "content": say()})
    return messages


def cases(rng, count):
    tok, out, by = tokenizer(), [], templates()
    for name, template in by.items():
        for _ in range(count):
            one = case(tok, name, template, conversation(rng))
            if one:
                out.append(one)
    return {"templates": by, "cases": out}


def main():
    if sys.argv[1:] == ["write"]:
        OUT.write_text(json.dumps(cases(random.Random(11), 4), ensure_ascii=False, separators=(",", ":")) + "\n")
        return 0
    test, count, seed = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    with tempfile.NamedTemporaryFile("w", suffix=".json") as f:
        json.dump(cases(random.Random(seed), count), f)
        f.flush()
        print("seed", seed, flush=True)
        return subprocess.run([test, f.name], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())

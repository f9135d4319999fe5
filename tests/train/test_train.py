"""residual train: torch's loss curve, the same bits however it is run, stopped or killed, and an adapter that answers and pays its owners."""
import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import time
from pathlib import Path

import pytest
from demo_figures import E9, ask, attribution, shares_of
from server import DEMO, ROOT, Server, binary

FULL = os.environ.get("RS_FULL") == "1"
FACTS = json.loads((DEMO / "facts.json").read_text())
NAME = "amber-coast"
SHORT = ("--epochs", 4, "--batch", 10, "--lr", 0.003, "--schedule", "cosine")


def datanet(tmp_path, name=NAME):
    """Its folder without the adapter."""
    shutil.copytree(DEMO / "adapters" / name, tmp_path, ignore=shutil.ignore_patterns("adapter_*", "publish.json"))
    return tmp_path


def command(folder, *args):
    return [str(a) for a in (binary("residual"), "train", folder, "--model", DEMO / "base", *args)]


def train(folder, *args):
    run = subprocess.run(command(folder, "--json", *args), capture_output=True, text=True)
    return run.returncode, json.loads(run.stdout), run.stderr


def trained(folder, *args):
    code, said, err = train(folder, *args)
    assert code == 0 and said["ok"], (said, err)
    return said["adapter_id"]


def refused(folder, *args):
    code, said, _ = train(folder, *args)
    assert code != 0 and not said["ok"], said
    assert not list(folder.glob("adapter_*")), "nothing is left where training was refused"
    return said["error"]["message"] if isinstance(said["error"], dict) else said["error"]


def squares(path):
    data = path.read_bytes()
    (n,) = struct.unpack_from("<Q", data)
    floats = struct.unpack(f"<{(len(data) - 8 - n) // 4}f", data[8 + n:])
    return sum(x * x for x in floats)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = datanet(tmp_path_factory.mktemp("undisturbed") / "a")
    return trained(folder, *SHORT), folder


def test_the_loss_curve_is_torchs(tmp_path):
    """tests/oracle/train_golden.py made it: torch + peft, the same data, order and first weights."""
    golden = json.loads((ROOT / "tests" / "data" / "train" / "curve.json").read_text())
    s = golden["settings"]
    folder = datanet(tmp_path / "a", s["datanet"])
    trained(folder, "--init", DEMO / "adapters" / s["init"], "--in-order", "--dtype", "f32", "--epochs", s["steps"] * s["batch"] // 200, "--batch", s["batch"], "--lr", s["lr"],
            "--schedule", s["schedule"], "--warmup", s["warmup"], "--weight-decay", s["weight_decay"], "--clip", s["clip"])
    losses = json.loads((folder / "train.json").read_text())["losses"]
    assert len(losses) == s["steps"] and max(abs(a - b) for a, b in zip(losses, golden["losses"])) <= 1e-4
    assert abs(squares(folder / "adapter_model.safetensors") / golden["weights"] - 1) <= 1e-4


@pytest.mark.parametrize("how", [("--threads", 1), ("--tokens", 64), ("--tokens", 2048, "--threads", 2)], ids=("one thread", "small passes", "one pass"))
def test_the_same_bits_however_it_is_cut(undisturbed, tmp_path, how):
    assert trained(datanet(tmp_path / "a"), *SHORT, *how) == undisturbed[0]


def test_several_folders_each_as_it_is_alone(undisturbed, tmp_path):
    folders = [datanet(tmp_path / n, n) for n in (NAME, "birch-vale")]
    alone = trained(datanet(tmp_path / "alone", "birch-vale"), *SHORT)
    run = subprocess.run(command(folders[0], folders[1], *SHORT, "--json"), capture_output=True, text=True)
    said = json.loads(run.stdout)
    assert [t["adapter_id"] for t in said["trained"]] == [undisturbed[0], alone] and [t["folder"] for t in said["trained"]] == [str(f) for f in folders], run.stderr
    assert "twice" in subprocess.run(command(folders[0], folders[0], *SHORT, "--replace"), capture_output=True, text=True).stderr


def test_another_seed_is_another_adapter(undisturbed, tmp_path):
    assert trained(datanet(tmp_path / "a"), *SHORT, "--seed", 1) != undisturbed[0]


def test_killed_it_goes_on_to_the_same_bits(undisturbed, tmp_path):
    folder, rng, kills, seen = datanet(tmp_path / "a"), random.Random(1), 0, 0
    for _ in range(400):
        run = subprocess.Popen(command(folder, *SHORT, "--checkpoint-steps", 1), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while not (folder / "train.state").exists() and run.poll() is None:
            time.sleep(0.01)
        try:
            _, err = run.communicate(timeout=rng.uniform(0.02, 0.5))
            assert run.returncode == 0, err
            break
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGKILL)
            run.communicate()
            kills += 1
            seen += (folder / "train.state").exists()
            if kills >= (50 if FULL else 5):
                rng.uniform = lambda *_: 120
    assert kills >= 2 and seen >= 1
    assert json.loads((folder / "train.json").read_text())["adapterId"] == undisturbed[0] and not (folder / "train.state").exists()


def test_it_answers_and_its_owners_are_paid(tmp_path):
    folder = datanet(tmp_path / "adapters" / "trained")
    begin = time.monotonic()
    trained(folder, "--epochs", 30, "--batch", 16, "--lr", 0.002, "--schedule", "cosine")
    assert time.monotonic() - begin < 90
    assert (folder / "loss.svg").read_text().startswith("<svg") and json.loads((folder / "train.json").read_text())["rows"] == 200
    right = paid = 0
    facts = FACTS["adapters"][NAME][:50 if FULL else 20]
    with Server(adapters=tmp_path / "adapters") as s:
        for fact in facts:
            text, request_id = ask(s, "trained", fact, FACTS["stop"])
            adapter = attribution(s, request_id)["adapters"][0]
            assert adapter["index"]["state"] == "ready"
            right += text == fact["answer"]
            paid += shares_of(adapter).get(fact["contributor"].lower(), 0)
    assert right >= 0.9 * len(facts) and paid >= 0.9 * E9 * len(facts), (right, paid)


def test_by_one_flag_it_is_published_too(tmp_path):
    with Server() as s:
        folder = datanet(tmp_path / "a")
        assert "--name" in refused(folder, *SHORT, "--server", s.url)
        assert "--without-owner" in refused(folder, *SHORT, "--server", s.url, "--name", "fresh")
        code, said, err = train(folder, *SHORT, "--server", s.url, "--name", "fresh", "--without-owner")
        assert code == 0 and said["report"]["id"] == json.loads((folder / "train.json").read_text())["adapterId"], (said, err)
        text, request_id = ask(s, "fresh", FACTS["adapters"][NAME][0], FACTS["stop"])
        assert attribution(s, request_id)["adapters"][0]["index"]["state"] == "ready"


def test_completions_alone_are_learned(tmp_path):
    folder = tmp_path / "a"
    run = lambda *a: subprocess.run([str(x) for x in (binary("residual"), "datanet", *a)], check=True, capture_output=True)
    run("new", folder, "--name", "rows", "--owner", "0x" + "11" * 20)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": f["prompt"], "completion": " " + f["answer"]}) + "\n" for f in FACTS["adapters"][NAME][:20]))
    run("add", folder, tmp_path / "rows.jsonl", "--owner", "0x" + "11" * 20, "--licence", "CC0-1.0")
    run("build", folder, "--model", DEMO / "base")
    trained(folder, "--epochs", 1, "--batch", 20, "--in-order")
    every = json.loads((folder / "train.json").read_text())["losses"][0]
    trained(folder, "--epochs", 1, "--batch", 20, "--in-order", "--mask", "completion", "--replace")
    alone = json.loads((folder / "train.json").read_text())["losses"][0]
    assert alone > every + 0.1, "names are harder than the questions' form"


def chats(folder, lines, base=DEMO / "base"):
    """A datanet of one file of conversations, built; what build or add said where it was refused."""
    run = lambda *a: subprocess.run([str(x) for x in (binary("residual"), "datanet", *a)], capture_output=True, text=True)
    run("new", folder, "--name", "chats", "--owner", "0x" + "11" * 20)
    file = folder.parent / "chats.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = run("add", folder, file, "--owner", "0x" + "11" * 20, "--licence", "CC0-1.0")
    return said.stderr if said.returncode else run("build", folder, "--model", base).stderr


def test_what_the_assistant_says_is_learned(tmp_path):
    talk = lambda f, w: {"messages": [{"role": "user", "content": f["prompt"], "name": "ann"}, {"role": "assistant", "content": f["answer"], "weight": w},
                                      {"role": "user", "content": "And again?"}, {"role": "assistant", "content": f["answer"]}]}
    facts, folder = FACTS["adapters"][NAME][:12], tmp_path / "a"
    chats(folder, [talk(f, i % 2) for i, f in enumerate(facts)])
    losses = {}
    for mask in ("all", "completion", "assistant"):
        trained(folder, "--epochs", 1, "--batch", 12, "--in-order", "--mask", mask, "--replace")
        report = json.loads((folder / "train.json").read_text())
        assert report["mask"] == mask
        losses[mask] = report["losses"][0]
    assert len(set(losses.values())) == 3
    assert "all, completion or assistant" in train(folder, "--mask", "some", "--replace")[1]["error"]["message"]


def test_a_conversation_that_is_none_is_refused_by_line_and_field(tmp_path):
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    bad = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 3}]}
    assert "line 3: messages[1].weight: found 3" in chats(tmp_path / "a", [good, good, bad])
    base = tmp_path / "base"
    shutil.copytree(DEMO / "base", base)
    (base / "chat_template.jinja").write_text("{% for m in messages %}{% if m.role == 'critic' %}{{ raise_exception('no critics') }}{% endif %}{{ m.content }}{% endfor %}")
    odd = {"messages": [good["messages"][0], {"role": "critic", "content": "b"}]}
    chats(tmp_path / "b", [good, odd], base)
    run = subprocess.run([str(a) for a in (binary("residual"), "train", tmp_path / "b", "--model", base)], capture_output=True, text=True)
    assert run.returncode and all(w in run.stderr for w in ("document 1, line 2", "messages[1] (role critic)", "no critics")), run.stderr
    # what was said before is written otherwise once more follows
    (base / "chat_template.jinja").write_text("{% for m in messages %}[{{ m.content if loop.last else m.content[:1] }}]{% endfor %}")
    long = {"messages": [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "bee"}, {"role": "user", "content": "sea"}]}
    chats(tmp_path / "c", [long], base)
    run = subprocess.run([str(a) for a in (binary("residual"), "train", tmp_path / "c", "--model", base, "--mask", "assistant")], capture_output=True, text=True)
    assert run.returncode and "otherwise once messages follow" in run.stderr and "generation" in run.stderr, run.stderr


def test_what_cannot_be_trained_is_refused(tmp_path):
    folder = datanet(tmp_path / "a")
    assert "row" in refused(folder, "--tokens", 5) and "at most 5" in refused(folder, "--tokens", 5)
    assert "--lr" in refused(folder, "--lr", "fast") and "--schedule" in refused(folder, "--schedule", "steep")
    assert "context" in refused(folder, "--tokens", 60000)
    (tmp_path / "config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["nothing"]}))
    assert "target_modules" in refused(folder, "--peft-config", tmp_path / "config.json")
    assert "r" in refused(folder, "--rank", 100000)
    (folder / "training.json").rename(tmp_path / "kept")
    assert "residual datanet build" in refused(folder)
    book = json.loads((tmp_path / "kept").read_text())
    book["rows"][3][2] += 1000
    (folder / "training.json").write_text(json.dumps(book, sort_keys=True, separators=(",", ":")) + "\n")
    assert "row" in refused(folder)


def manifest(folder, name="training.json"):
    return json.loads((folder / name).read_text())["rows"]


def texts(folder, lines):
    """A datanet of one file of texts, built."""
    run = lambda *a: subprocess.run([str(x) for x in (binary("residual"), "datanet", *a)], check=True, capture_output=True)
    run("new", folder, "--name", "texts", "--owner", "0x" + "11" * 20)
    file = folder.parent / f"{folder.name}.jsonl"
    file.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    run("add", folder, file, "--owner", "0x" + "11" * 20, "--licence", "CC0-1.0")
    run("build", folder, "--model", DEMO / "base")
    return folder


def test_rows_are_held_out_and_never_learned(tmp_path):
    """The manifest says what was learned; held out again, the same rows are, from the manifest without them too."""
    folder, held_out = datanet(tmp_path / "a"), ("--epochs", 1, "--batch", 16, "--lr", 0.003, "--eval-share", 0.2, "--eval-steps", 3)
    every = manifest(folder)
    first = trained(folder, *held_out)
    learned, held, report = manifest(folder), manifest(folder, "evaluation.json"), json.loads((folder / "train.json").read_text())
    assert len(held) == 40 and [r for r in every if r not in held] == learned
    seen = report["evaluated"]
    assert report["rows"] == 160 and seen["rows"] == 40 and report["evaluation"]["patience"] == 0 and seen["kept"] == report["steps"] == 10 and not seen["stoppedEarly"]
    assert [s for s, _ in seen["losses"]] == [3, 6, 9, 10] and min(loss for _, loss in seen["losses"]) == seen["best"]["loss"]
    assert (folder / "loss.svg").read_text().count("<polyline") == 2 and report["packing"]["rowsPerPass"] > 1 and 0 < report["packing"]["tokenShare"] <= 1
    assert trained(folder, *held_out, "--replace") == first and manifest(folder, "evaluation.json") == held
    # as it is, training.json gives the same adapter: asking changed nothing
    assert trained(folder, *held_out[:6], "--replace") == first
    run = subprocess.run(command(folder, *held_out, "--seed", 9, "--replace"), capture_output=True, text=True)
    assert "40 held-out rows behind step 9" in run.stderr and "% used" in run.stderr and "held out" in run.stdout
    assert manifest(folder, "evaluation.json") != held and sorted(manifest(folder) + manifest(folder, "evaluation.json")) == sorted(every)


def test_it_stops_where_nothing_is_gained_and_keeps_the_best(tmp_path):
    """Learned by heart, rows held out cost more and more; killed on the way, the same adapter."""
    lines = [f["prompt"] + f["answer"] for f in FACTS["adapters"][NAME][:24]]
    many = ("--epochs", 100, "--batch", 4, "--lr", 0.02, "--schedule", "constant", "--eval-share", 0.3, "--eval-steps", 2, "--warmup", 0, "--patience", 3)
    folder = texts(tmp_path / "a", lines)
    whole = trained(folder, *many)
    report = json.loads((folder / "train.json").read_text())
    seen, best = report["evaluated"], report["evaluated"]["best"]["step"]
    assert seen["stoppedEarly"] and seen["kept"] == best == report["steps"] - 6 and best > 0
    again, kills = texts(tmp_path / "b", lines), 0
    while not list(again.glob("adapter_*")):
        run = subprocess.Popen(command(again, *many, "--checkpoint-steps", 1), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            run.wait(timeout=0.15 if kills < 3 else 60)
        except subprocess.TimeoutExpired:
            run.kill()
            run.wait()
            kills += 1
            assert len(manifest(again)) == 24, "the manifest changes with the adapter"
    assert kills >= 1 and json.loads((again / "train.json").read_text())["adapterId"] == whole and len(manifest(again)) == 17
    # another folder trained for as many steps as the best has: the same weights
    exact = texts(tmp_path / "c", lines)
    trained(exact, *("--epochs", -(-best // 5)), *many[2:-2], "--patience", 1000)
    sums = [e for e in json.loads((exact / "train.json").read_text())["evaluated"]["losses"] if e[0] == best]
    assert sums == [[best, seen["best"]["loss"]]]


def test_another_datanet_judges(tmp_path):
    folder = datanet(tmp_path / "a")
    trained(folder, "--epochs", 2, "--batch", 50, "--eval", DEMO / "adapters" / "birch-vale")
    report = json.loads((folder / "train.json").read_text())
    assert len(manifest(folder)) == 200 and not (folder / "evaluation.json").exists() and report["evaluated"]["rows"] == 200
    assert [s for s, _ in report["evaluated"]["losses"]] == [4, 8]
    for path in folder.glob("adapter_*"):
        path.unlink()
    assert "row" in refused(folder, "--eval", DEMO / "adapters" / NAME), "rows that are learned judge nothing"
    assert "both" in refused(folder, "--eval", DEMO / "adapters" / "birch-vale", "--eval-share", 0.1)
    assert "--patience" in refused(folder, "--patience", 3) and "below 1" in refused(folder, "--eval-share", 1)


def test_patterns_of_peft_hold(tmp_path):
    folder = datanet(tmp_path / "a")
    (tmp_path / "config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": ["q_proj", "down_proj"],
                                                      "rank_pattern": {"layers.1.self_attn.q_proj": 7}}))
    trained(folder, "--epochs", 1, "--peft-config", tmp_path / "config.json")
    data = (folder / "adapter_model.safetensors").read_bytes()
    header = json.loads(data[8:8 + struct.unpack_from("<Q", data)[0]])
    ranks = {k: v["shape"][0] for k, v in header.items() if k.endswith("lora_A.weight")}
    assert len(ranks) == 8 and sorted(set(ranks.values())) == [4, 7] and ranks["base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"] == 7


def test_the_dropout_of_a_config_is_trained_with(tmp_path):
    folder, config = datanet(tmp_path / "a"), {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    seen = []
    for p in (0.0, 0.5):
        (tmp_path / "config.json").write_text(json.dumps({**config, "lora_dropout": p}))
        trained(folder, "--epochs", 1, "--peft-config", tmp_path / "config.json", "--replace")
        seen.append(json.loads((folder / "train.json").read_text()))
    assert [s["dropout"] for s in seen] == [0, 0.5] and seen[0]["adapterId"] != seen[1]["adapterId"]
    for path in folder.glob("adapter_*"):
        path.unlink()
    assert "lora_dropout" in refused(folder, "--peft-config", tmp_path / "config.json", "--dropout", 0.1)
    (tmp_path / "config.json").write_text(json.dumps({**config, "lora_dropout": 1.0}))
    assert "dropout" in refused(folder, "--peft-config", tmp_path / "config.json")


def test_a_loss_that_diverges_stops(tmp_path):
    folder = datanet(tmp_path / "a")
    diverging = ("--lr", 10, "--clip", 0, "--warmup", 0, "--epochs", 20, "--checkpoint-steps", 1, "--init", DEMO / "adapters" / NAME, "--weight-decay", 1)
    code, said, _ = train(folder, *diverging)
    if code == 0:
        pytest.fail("a rate of 10 was expected to diverge")
    said = json.dumps(said)
    assert "expected numbers" in said and "the state behind step" in said and (folder / "train.state").exists() and not list(folder.glob("adapter_*")), said
    # what is kept is good: it goes on there, and to the same place
    step = int(said.split("the state behind step ")[1].split(" ")[0])
    assert step >= 1
    again = subprocess.run(command(folder, *diverging), capture_output=True, text=True)
    assert again.returncode and f"going on behind step {step} of" in again.stderr and "expected numbers" in again.stderr, again.stderr
    # one that rises and stays a number is said
    rises = subprocess.run(command(datanet(tmp_path / "b"), "--lr", 0.3, "--warmup", 0, "--schedule", "constant", "--epochs", 1, "--batch", 10, "--init", DEMO / "adapters" / NAME),
                           capture_output=True, text=True)
    assert rises.returncode == 0 and "the loss rose from" in rises.stderr and "--lr" in rises.stderr, rises.stderr


def test_another_training_is_not_gone_on_with(tmp_path):
    folder = datanet(tmp_path / "a")
    run = subprocess.Popen(command(folder, "--epochs", 200, "--checkpoint-steps", 1), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (folder / "train.state").exists():
        time.sleep(0.02)
    run.kill()
    run.wait()
    assert "other options" in refused(folder, "--epochs", 201)
    state = bytearray((folder / "train.state").read_bytes())
    state[len(state) // 2] ^= 1
    (folder / "train.state").write_bytes(state)
    assert "cut or changed" in refused(folder, "--epochs", 200)


def begun(folder, base, *args):
    """Trained until it has a state, and killed."""
    run = subprocess.Popen([str(a) for a in (binary("residual"), "train", folder, "--model", base, *args)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (folder / "train.state").exists():
        time.sleep(0.01)
    run.kill()
    run.wait()
    return (folder / "train.state").read_bytes()


def no_room():
    """Files end at 64 KiB, as on a disk that is full."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))


def test_a_full_disk_at_a_checkpoint(undisturbed, tmp_path):
    """It says so and ends; the state before it is whole, and goes on to the same bits once there is room."""
    folder = datanet(tmp_path / "a")
    args = (*SHORT, "--checkpoint-steps", 20)
    kept = begun(folder, DEMO / "base", *args)
    files = sorted(p.name for p in folder.iterdir())
    run = subprocess.run(command(folder, *args), capture_output=True, text=True, preexec_fn=no_room, restore_signals=False)
    assert run.returncode and "train.state" in run.stderr and "is kept" in run.stderr and ("File too large" in run.stderr or "disk" in run.stderr), run.stderr
    assert (folder / "train.state").read_bytes() == kept and sorted(p.name for p in folder.iterdir()) == files, "no part of a file is left"
    assert trained(folder, *args) == undisturbed[0]


def test_a_base_that_changed_under_a_state(tmp_path):
    folder, base = datanet(tmp_path / "a"), tmp_path / "base"
    shutil.copytree(DEMO / "base", base)
    begun(folder, base, "--epochs", 200, "--checkpoint-steps", 1)
    weights = base / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1000] ^= 1
    weights.write_bytes(data)
    run = subprocess.run([str(a) for a in (binary("residual"), "train", folder, "--model", base, "--epochs", 200)], capture_output=True, text=True)
    assert run.returncode and "another base" in run.stderr and "remove it to begin anew" in run.stderr, run.stderr


def test_nothing_to_train_on(tmp_path):
    empty = tmp_path / "empty"
    subprocess.run([str(binary("residual")), "datanet", "new", str(empty), "--name", "empty", "--owner", "0x" + "11" * 20], check=True, capture_output=True)
    subprocess.run([str(binary("residual")), "datanet", "build", str(empty), "--model", str(DEMO / "base")], capture_output=True)
    assert "row" in refused(empty) or "document" in refused(empty)
    # rows without a word of the assistant's
    talk = tmp_path / "talk"
    chats(talk, [{"messages": [{"role": "user", "content": "Anybody?"}]}])
    assert "has a token to learn (mask assistant)" in refused(talk, "--mask", "assistant")

"""What needs no other program: help, usage errors, keys, the local check of adapters, lanes, unreachable peers."""
import hashlib
import json
import os
import pty
import re
import select
import shutil
import struct
import subprocess

import pytest
from conftest import CONTRACTS, DEMO, binary, free_port, residual, secret

VERBS = ["adapter check", "adapter publish", "adapter list", "adapter show", "adapter delete", "adapter price", "datanet new", "datanet add", "datanet sign", "datanet check", "datanet build", "datanet withdraw", "datanet show", "datanet consent", "lane tariff", "claim", "rewards", "audit epoch", "audit batch",
         "receipt verify", "lane show", "wallet new", "key new", "key address", "key hash"]


def test_help_names_every_verb_and_each_has_its_own():
    shown = residual("--help")
    assert shown.code == 0 and all(re.search(rf"^  {v}\b", shown.out, re.M) for v in VERBS)
    for verb in VERBS:
        own = residual(*verb.split(), "--help")
        assert own.code == 0 and own.out.startswith(f"residual {verb}") and "--json" in own.out, own
    assert residual("--version").out.startswith("residual ")
    assert residual("adapter", "--help").out.count("Options") == 7


@pytest.mark.parametrize("words, says", [
    ([], "no verb"), (["bogus"], "'bogus'"), (["adapter"], "'adapter'"), (["adapter", "che"], "'adapter'"),
    (["claim", "--bogus", "1"], "--bogus"), (["claim"], "--key-file FILE is missing"), (["rewards", "0x" + "11" * 20], "--settle URL of a worker"), (["claim", "--key-file"], "--key-file needs a value"),
    (["claim", "--key-file", "a", "--key-file", "b"], "twice"), (["adapter", "list"], "--server"),
    (["adapter", "list", "extra", "--server", "http://x"], "'extra'"), (["adapter", "list", "--server=ftp://x"], "http://"),
    (["adapter", "list", "--archive", "x", "--server", "http://x"], "takes no --archive"),
    (["audit", "epoch", "0", "--archive", "a", "--rpc", "http://x", "--deployment", "d"], "'0'"),
    (["adapter", "check", "x"], "--model"), (["key", "new", "--type", "rsa", "x"], "'rsa'"), (["lane", "show"], "DATA_DIR"),
    (["adapter", "show", "../x", "--server", "http://x"], "not an adapter name"),
    (["receipt", "verify", "x", "--rpc", "http://x"], "go together")])
def test_a_wrong_command_line_is_named(words, says):
    run = residual(*words)
    assert run.code == 2 and says in run.err and not run.out, run


def test_keys(tmp_path):
    chain, publisher, api = (tmp_path / n for n in ("chain", "publisher", "api"))
    for path, kind in ((chain, "chain"), (publisher, "publisher"), (api, "api")):
        made = residual("key", "new", "--type", kind, path, "--json")
        assert made.code == 0 and path.stat().st_mode & 0o777 == 0o600, made
        before = path.read_bytes()
        again = residual("key", "new", "--type", kind, path)
        assert again.code == 5 and "never overwritten" in again.err and path.read_bytes() == before
        assert before.decode().strip().removeprefix("ed25519:") not in made.out
    one = secret(tmp_path / "one", "0" * 63 + "1\n")
    assert residual("key", "address", one).out.strip() == "0x7E5F4552091A69125d5DfCb7b8C2659029395Bdf"
    seed = secret(tmp_path / "seed", "ed25519:9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60\n")  # RFC 8032, test 1
    assert residual("key", "address", seed).out.strip() == "0xd75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    want = "0x" + hashlib.blake2b(api.read_bytes().strip(), digest_size=32).hexdigest()
    assert residual("key", "hash", api).out.strip() == want
    assert residual("key", "hash", "-", stdin=api.read_text()).out.strip() == want
    for path in (chain, publisher, api):
        path.chmod(0o644)
        run = residual(*(["key", "hash"] if path == api else ["key", "address"]), path)
        assert run.code == 5 and "600" in run.err, run
    assert residual("key", "address", tmp_path / "none").code == 4
    assert residual("key", "address", secret(tmp_path / "bad", "hello")).code == 2


def test_a_new_wallet_is_sealed(tmp_path):
    wallet, passphrase = tmp_path / "wallet.json", secret(tmp_path / "passphrase", "correct horse battery\n")
    made = residual("wallet", "new", wallet, "--passphrase-file", passphrase, "--json")
    assert made.code == 0 and wallet.stat().st_mode & 0o777 == 0o600, made
    kept = json.loads(wallet.read_text())
    assert kept["version"] == 3 and "0x" + kept["address"] == made.json["address"].lower() and kept["crypto"]["kdfparams"]["n"] == 262144
    opened = residual("key", "address", wallet, "--passphrase-file", passphrase)
    assert opened.out.strip() == made.json["address"], opened
    judge = f"""const {{ Wallet }} = await import('ethers'); console.log(Wallet.fromEncryptedJsonSync({json.dumps(wallet.read_text())}, 'correct horse battery').address)"""
    done = subprocess.run(["node", "--input-type=module", "-e", judge], cwd=CONTRACTS, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == made.json["address"], done.stderr
    again = residual("wallet", "new", wallet, "--passphrase-file", passphrase)
    assert again.code == 5 and "never overwritten" in again.err
    wrong = residual("key", "address", wallet, "--passphrase-file", secret(tmp_path / "wrong", "correct horse batter"))
    assert wrong.code == 5 and "passphrase is wrong" in wrong.err, wrong
    other = tmp_path / "other.json"
    for text, says in (("short", "at least 10"), ("", "at least 10")):
        run = residual("wallet", "new", other, "--passphrase-file", secret(tmp_path / "p", text))
        assert run.code == 2 and says in run.err and not other.exists(), run
    run = residual("wallet", "new", other, stdin="typed without a terminal\n")
    assert run.code == 2 and "--passphrase-file" in run.err and not other.exists(), run


def at_a_terminal(*words, lines):
    """What the program writes to a terminal whose person types the lines, one for each question."""
    main, side = pty.openpty()
    process = subprocess.Popen([binary("residual"), *map(str, words)], stdin=side, stdout=subprocess.PIPE, stderr=side, text=True)
    os.close(side)
    said = b""
    for line in lines:
        while not said.endswith(b": "):
            said += os.read(main, 1000)
        os.write(main, line.encode() + b"\n")
        said += b" "
    out = process.communicate(timeout=60)[0]
    while select.select([main], [], [], 0)[0]:
        try:
            said += os.read(main, 1000)
        except OSError:  # the other side is closed
            break
    os.close(main)
    return process.returncode, out, said.decode()


def test_a_passphrase_is_asked_for_twice_and_not_shown(tmp_path):
    wallet = tmp_path / "wallet.json"
    code, out, said = at_a_terminal("wallet", "new", wallet, lines=["one passphrase", "another passphrase"])
    assert code == 2 and "differ" in said and not wallet.exists(), said
    code, out, said = at_a_terminal("wallet", "new", wallet, lines=["one passphrase", "one passphrase"])
    assert code == 0 and "passphrase" not in said.replace("Passphrase for the new key", ""), said
    assert residual("key", "address", wallet, "--passphrase-file", secret(tmp_path / "p", "one passphrase")).out == out


def copy(tmp_path, name="amber-coast"):
    folder = tmp_path / "adapter"
    shutil.copytree(DEMO / "adapters" / name, folder)
    return folder


def check(folder):
    return residual("adapter", "check", folder, "--model", DEMO / "base", "--json")


@pytest.mark.parametrize("name", sorted(os.listdir(DEMO / "adapters")))
def test_demo_adapters_would_be_admitted(name):
    run = check(DEMO / "adapters" / name)
    assert run.code == 0 and run.json["admitted"] and re.fullmatch("0x[0-9a-f]{64}", run.json["id"]), run
    assert run.json["file_bytes"] == (DEMO / "adapters" / name / "adapter_model.safetensors").stat().st_size


def test_a_broken_adapter_is_refused_with_the_reason(tmp_path):
    folder = copy(tmp_path)
    config, tensors = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    good_config, good_tensors = config.read_text(), tensors.read_bytes()
    (header_bytes,) = struct.unpack("<Q", good_tensors[:8])

    def refused(says):
        run = check(folder)
        assert run.code == 1 and run.json["admitted"] is False and says in run.json["reason"], run
        config.write_text(good_config)
        tensors.write_bytes(good_tensors)

    config.write_text(json.dumps({**json.loads(good_config), "use_dora": True}))
    refused("use_dora")
    config.write_text("{")
    refused("adapter_config.json")
    tensors.write_bytes(good_tensors[:-10])
    refused("adapter_model.safetensors")
    tensors.write_bytes(good_tensors[:8 + header_bytes] + b"\xff\x7f" * ((len(good_tensors) - 8 - header_bytes) // 2))
    refused("finite")
    tensors.write_bytes(good_tensors[:8 + header_bytes] + bytes(len(good_tensors) - 8 - header_bytes))
    refused("zero")
    assert check(folder).code == 0
    assert check(tmp_path / "none").code == 4
    run = residual("adapter", "check", folder, "--model", folder)
    assert run.code == 4 and "an adapter, not a base model" in run.err


def with_rank(folder, rank):
    """The folder's adapter at another rank: shapes and config agree, every value is 1/4."""
    path = folder / "adapter_model.safetensors"
    blob = path.read_bytes()
    (n,) = struct.unpack("<Q", blob[:8])
    header, at = json.loads(blob[8:8 + n]), 0
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        tensor["shape"][0 if "lora_A" in name else 1], tensor["dtype"] = rank, "F32"
        size = tensor["shape"][0] * tensor["shape"][1] * 4
        tensor["data_offsets"], at = [at, at + size], at + size
    head = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + struct.pack("<f", 0.25) * (at // 4))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "r": rank, "rank_pattern": {}}))


def test_check_has_the_servers_limits(tmp_path):
    folder = copy(tmp_path)
    with_rank(folder, 129)
    run = check(folder)
    assert run.code == 1 and "rank 129, at most 128 is accepted (adapter_rank_max)" in run.json["reason"], run
    args = ("adapter", "check", folder, "--model", DEMO / "base")
    assert residual(*args, "--adapter-rank-max", "129").code == 0
    run = residual(*args, "--adapter-rank-max", "129", "--adapter-bytes-max", "5000")
    assert run.code == 1 and "at most 5000" in run.err + run.out, run
    assert "512" in residual(*args, "--adapter-rank-max", "513").err


def test_check_reads_what_lies_beside_the_adapter(tmp_path):
    folder = copy(tmp_path)
    datanet = json.loads((folder / "datanet.json").read_text())
    datanet["documents"][0]["owner"] = "nobody"
    (folder / "datanet.json").write_text(json.dumps(datanet))
    run = check(folder)
    assert run.code == 1 and "datanet.json" in run.json["reason"] and "publish.json" not in run.json["reason"], run
    facts = json.loads((folder / "publish.json").read_text())
    (folder / "publish.json").write_text(json.dumps({**facts, "datanet": "other.json"}))
    run = check(folder)
    assert "other.json is not there" in run.out, run
    (folder / "publish.json").write_text(json.dumps({**facts, "datanet": None}))
    assert check(folder).code == 0
    (folder / "publish.json").write_text(json.dumps({**facts, "version": "x"}))
    run = check(folder)
    assert run.code == 1 and "publish.json" in run.json["reason"], run


def test_nothing_is_published_without_an_owner_unless_told(tmp_path):
    folder, nobody = copy(tmp_path), f"http://127.0.0.1:{free_port()}"
    owner, publisher = tmp_path / "owner", tmp_path / "publisher"
    residual("key", "new", "--type", "chain", owner)
    residual("key", "new", "--type", "publisher", publisher)
    keys = ("--owner-key-file", owner, "--publisher-key-file", publisher)
    args = ("adapter", "publish", folder, "--server", nobody, "--name", "x")
    bad = json.loads((folder / "datanet.json").read_text())
    bad["documents"][0]["digest"] = "?"
    (folder / "datanet.json").write_text(json.dumps(bad))
    run = residual(*args, *keys)
    assert run.code == 2 and "datanet.json" in run.err and "publish.json" not in run.err, run
    (folder / "publish.json").unlink()
    run = residual(*args, *keys)
    assert run.code == 2 and "pay nobody" in run.err and "--without-owner" in run.err, run
    run = residual(*args, *keys, "--without-owner")
    assert run.code == 2 and "excludes" in run.err, run
    run = residual(*args, "--without-owner")
    assert run.code == 2 and "datanet.json" in run.err, run  # its rows would go with it
    (folder / "datanet.json").unlink()
    assert residual(*args, "--without-owner").code == 3  # it went as far as the server, which is not there


def test_unreachable_peers_are_an_outage_with_advice(tmp_path):
    nobody = f"http://127.0.0.1:{free_port()}"
    run = residual("adapter", "list", "--server", nobody)
    assert run.code == 3 and nobody in run.err and "running" in run.err, run
    run = residual("adapter", "list", "--server", nobody, "--json")
    assert run.code == 3 and run.json["ok"] is False and run.json["error"]["hint"], run
    key = tmp_path / "key"
    residual("key", "new", "--type", "chain", key)
    zero = "0x" + "00" * 32
    deployment = tmp_path / "deployment.json"
    address = "0x" + "11" * 20
    deployment.write_text(json.dumps({"chain_id": 1, "genesis_hash": zero, "registry": address, "ledger": address, "vault": address,
                                      "token": address, "code_hash": {"registry": zero, "ledger": zero, "vault": zero}, "start_block": 0}))
    run = residual("claim", "--key-file", key, "--rpc", nobody, "--deployment", deployment, "--archive", tmp_path)
    assert run.code == 3 and nobody in run.err and "chain node" in run.err, run
    deployment.write_text("{}")
    run = residual("claim", "--key-file", key, "--rpc", nobody, "--deployment", deployment, "--archive", tmp_path)
    assert run.code == 2 and "chain_id" in run.err, run
    run = residual("rewards", "0x12", "--rpc", nobody, "--deployment", deployment, "--archive", tmp_path)
    assert run.code == 2 and "account" in run.err, run


def test_lanes_of_a_data_folder(tmp_path):
    assert residual("lane", "show", tmp_path).code == 4
    lane = tmp_path / "lanes" / "unbound-1"
    lane.mkdir(parents=True)
    (lane / "lane.json").write_text('{"lane": 1, "address": "0x7E5F4552091A69125d5DfCb7b8C2659029395Bdf", "chainId": 0, "ledger": "0x0000000000000000000000000000000000000000"}')
    run = residual("lane", "show", tmp_path, "--json")
    assert run.code == 0 and run.json["lanes"][0]["lane"] == 1, run
    assert "unbound" in residual("lane", "show", tmp_path).out
    (lane / "lane.json").write_text("[]")
    assert residual("lane", "show", tmp_path).code == 1

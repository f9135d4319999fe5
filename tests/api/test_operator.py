"""What an operator meets: refusals before the model is loaded, keys and log files reloaded by SIGHUP, audit and access lines, systemd."""
import hashlib
import json
import os
import re
import signal
import socket
import subprocess

import pytest
from server import DEMO, ROOT, Manager, Server, binary, free_port, http, wait_for

SECRETS = {"app": "sk-app-0f1e2d3c4b5a", "ops": "sk-ops-9a8b7c6d5e4f", "late": "sk-late-1122334455", "stray": "sk-stray-5566778899"}


def digest(name):
    return hashlib.blake2b(SECRETS[name].encode(), digest_size=32).hexdigest()


def write_keys(path, *names):
    path.write_text(json.dumps([{"name": n, "digest": digest(n), "roles": ["admin", "infer"] if n == "ops" else ["infer"]} for n in names]))
    path.chmod(0o600)


def run(program, *flags, env=None):
    return subprocess.run([binary(program), *map(str, flags)], capture_output=True, text=True, timeout=60, env={**os.environ, **(env or {})})


@pytest.mark.parametrize("program", ["residuald", "residual-settle", "residual"])
def test_version_and_help_are_alike(program):
    for flag in ("--version", "--help", "-h"):
        shown = run(program, flag)
        assert shown.returncode == 0 and not shown.stderr, shown
        assert re.fullmatch(rf"{program} \d+\.\d+\.\d+\n", shown.stdout) if flag == "--version" else shown.stdout.startswith(program + " ")
    wrong = run(program, "--no-such-flag")
    assert wrong.returncode == 2 and re.search("no.such.flag", wrong.stderr) and not wrong.stdout, wrong


def test_what_is_wrong_without_a_model_is_said_before_one_is_loaded(tmp_path):
    open_keys, busy = tmp_path / "open", socket.socket()
    open_keys.write_text("[]")
    open_keys.chmod(0o644)
    busy.bind(("127.0.0.1", 0))
    busy.listen()
    base = ["--model", DEMO / "base", "--data-dir", tmp_path / "data", "--listen", "127.0.0.1:0"]
    for flags, says in [(["--listen", f"0.0.0.0:{free_port()}"], "without API keys"),
                        (["--listen", f"127.0.0.1:{busy.getsockname()[1]}"], "address already in use"),
                        (["--listen", "127.0.0.1"], "expected HOST:PORT"), (["--api-keys-file", open_keys], "600"),
                        (["--api-keys-file", tmp_path / "absent"], "absent"), (["--adapter", "nonsense"], "NAME=DIR"),
                        (["--adapter", f"a={tmp_path}/none"], "no such folder"), (["--adapter-dir", tmp_path / "none"], "no such folder"),
                        (["--access-log", tmp_path / "none/x"], "none/x"), (["--log-file", tmp_path / "none/y"], "none/y"),
                        (["--dtype", "f16"], "auto, f32 or bf16"), (["--redis-url", "http://x"], "redis://HOST:PORT"),
                        (["--redis-url", "redis://:hunter2@127.0.0.1"], "redis_password_file"),
                        (["--ledger", "0x12"], "40 hex digits"), (["--rows-max", "1z"], "whole number of tokens")]:
        refused = run("residuald", *base, *flags)
        assert refused.returncode in (2, 3) and says in refused.stderr and " loading " not in refused.stderr and "hunter2" not in refused.stderr, (flags, refused.stderr)
    busy.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """As a unit with StateDirectory= and LogsDirectory= runs it."""
    folder = tmp_path_factory.mktemp("service")
    manager = Manager()
    write_keys(folder / "keys", "app", "ops")
    (folder / "logs").mkdir()
    s = Server("--api-keys-file", folder / "keys", "--log-file", "log", "--access-log", "access", "--adapter-roots", DEMO / "adapters",
               data=folder / "unused", adapters=None,
               env={**os.environ, **manager.env, "STATE_DIRECTORY": str(folder / "state"), "LOGS_DIRECTORY": f"{folder}/logs:/x"})
    at = s.args.index("--data-dir")
    del s.args[at:at + 2]
    s.folder, s.manager = folder, manager
    s.lines = lambda name="log": (folder / "logs" / name).read_text()
    with s:
        assert "1 adapters" not in manager.expect("READY=1\nSTATUS=ready on http://127.0.0.1")
        yield s
    manager.expect("STOPPING=1")
    everything = "".join(f.read_text() for f in (folder / "logs").iterdir())
    for secret in SECRETS.values():
        assert secret not in everything
    assert not (folder / "unused").exists() and list((folder / "state").glob("lanes/*"))


def ask(s, who, path="/v1/models", body=None, method=None):
    return s.get(path, body=body, method=method, headers={"Authorization": f"Bearer {SECRETS[who]}"} if who else {})


def reload(s):
    s.process.send_signal(signal.SIGHUP)
    s.manager.expect("RELOADING=1\nMONOTONIC_USEC=")
    s.manager.expect("READY=1")


def test_each_admin_action_leaves_a_line(service):
    name, folder = "amber-coast", DEMO / "adapters/amber-coast"
    who = rf"by key 'ops' \({digest('ops')[:8]}\) at 127\.0\.0\.1"
    for path, body, code, line in [
            ("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)}, 200, rf"load adapter '{name}' {who}: done"),
            ("/v1/load_lora_adapter", {"lora_name": "x\n2026 audit forged", "lora_path": "/etc"}, 400, rf"load adapter 'x 2026 audit forged' {who}: refused: "),
            ("/v1/load_lora_adapter", {"lora_name": "gone", "lora_path": f"{folder}-none"}, None, rf"load adapter 'gone' {who}: refused: \S"),
            ("/v1/unload_lora_adapter", {"lora_name": name}, 200, rf"unload adapter '{name}' {who}: done"),
            ("/v1/unload_lora_adapter", {"lora_name": name}, 404, rf"unload adapter '{name}' {who}: refused: there is no such adapter")]:
        status, reply = ask(service, "ops", path, body)
        assert code in (None, status), (status, reply)
        assert re.search(rf"^\S+ audit http: {line}", service.lines(), re.M), (line, service.lines())
    assert ask(service, "ops", "/v1/adapters", {"name": "none"})[0] >= 400
    assert re.search(rf"audit http: publish adapter 'none' {who}: refused: ", service.lines())
    status, _ = ask(service, "app", "/v1/unload_lora_adapter", {"lora_name": name})
    assert status == 403
    assert re.search(rf"audit http: POST /v1/unload_lora_adapter by key 'app' \({digest('app')[:8]}\) at \S+: refused 403: ", service.lines())


def test_refused_keys_leave_lines_but_no_flood(service):
    before = service.lines().count("refused 401")
    assert ask(service, "stray")[0] == 401 and ask(service, None)[0] == 401
    assert re.search(rf"audit http: GET /v1/models by key {digest('stray')[:8]} at 127\.0\.0\.1: refused 401: the API key is not known", service.lines())
    assert "by key none at 127.0.0.1: refused 401: no API key" in service.lines()
    for _ in range(300):
        ask(service, "stray")
    lines = service.lines().count("refused 401") - before
    assert 3 <= lines < 200
    wait_for(lambda: ask(service, "stray")[0] == 401 and "refusals before it)" in service.lines(), 5, 0.3, what="the count of what was left out")


def test_the_access_log_is_the_combined_format(service):
    assert service.post("/v1/completions", {"model": "residual-demo", "prompt": "a", "max_tokens": 2, "stream": True},
                        headers={"Authorization": f"Bearer {SECRETS['app']}", "User-Agent": 'a "b" c', "x-request-id": "req-1"})[0] == 200
    http(service.url + "/v1/models%22%20200%0Aforged?key=" + SECRETS["stray"])
    shape = re.compile(r'(\S+) - (\S+) \[(\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d \+0000)\] "(\S+) (\S+) (HTTP/1\.1)" (\d{3}) (\d+) "-" "([^"]*)" (\d+\.\d{3}) (\S+)')
    line = wait_for(lambda: [m for m in map(shape.fullmatch, service.lines("access").splitlines()) if m and m[11] == "req-1"], 5, what="its line")[0]
    assert (line[1], line[2], line[4], line[5], line[7], line[9]) == ("127.0.0.1", "app", "POST", "/v1/completions", "200", r"a \x22b\x22 c")
    assert int(line[8]) > 100
    lines = service.lines("access").splitlines()
    assert all(map(shape.fullmatch, lines)), [x for x in lines if not shape.fullmatch(x)]
    assert [m for m in map(shape.fullmatch, lines) if m[5] == r"/v1/models\x22\x20200\x0Aforged" and m[7] == "404"]


def test_sighup_reloads_keys_and_reopens_logs(service):
    keys, logs = service.folder / "keys", service.folder / "logs"
    assert ask(service, "app")[0] == 200 and ask(service, "late")[0] == 401
    write_keys(keys, "late", "ops")
    for name in ("log", "access"):
        (logs / name).rename(logs / f"{name}.1")
    reload(service)
    assert ask(service, "late")[0] == 200 and ask(service, "app")[0] == 401
    assert "audit main: 2 API keys read from" in service.lines() and " 401 " in service.lines("access")
    for text, says in (("not JSON", "API keys refused"), ("[]", "no key is left"), (None, "API keys refused")):
        keys.write_text(text) if text else keys.unlink()
        reload(service)
        assert says in service.lines() and "the old keys stay in force" in service.lines()
        assert ask(service, "late")[0] == 200 and ask(service, "app")[0] == 401 and ask(service, None)[0] == 401
    write_keys(keys, "app", "ops")
    reload(service)
    assert ask(service, "app")[0] == 200 and ask(service, "late")[0] == 401


def test_a_daemon_inherits_no_descriptor(tmp_path):
    """deploy/up's: a pipe that the caller's reader waits on must not live as long as they do."""
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    subprocess.run([ROOT / "deploy/daemon", tmp_path / "log", tmp_path / "pid", "sleep", "60"], check=True, close_fds=False, timeout=20)
    os.close(writer)
    pid = int((tmp_path / "pid").read_text())
    try:
        assert os.read(reader, 1) == b""
        wait_for(lambda: os.readlink(f"/proc/{pid}/exe").endswith(("sleep", "coreutils")), 5, what="the command")
        assert sorted(map(int, os.listdir(f"/proc/{pid}/fd"))) == [0, 1, 2]
        assert os.getsid(pid) == pid
    finally:
        os.kill(pid, signal.SIGTERM)
        os.close(reader)

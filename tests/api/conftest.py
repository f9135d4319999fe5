"""Paths, and the two long-lived servers that most tests share: one without keys, one with."""
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from keys import KEYS, write_keys  # noqa: E402
from server import DEMO, Server  # noqa: E402


def pytest_configure(config):
    config.addinivalue_line("markers", "asan: a pass over the dev build, under AddressSanitizer and UBSan")


@pytest.fixture(scope="session")
def facts():
    """Adapter name -> its facts."""
    adapters = json.loads((DEMO / "facts.json").read_text())["adapters"]
    if isinstance(adapters, list):
        return {a["name"]: a["facts"] for a in adapters}
    return {n: a["facts"] if isinstance(a, dict) else a for n, a in adapters.items()}


@pytest.fixture(scope="session")
def roots(tmp_path_factory):
    """The folder that /v1/load_lora_adapter may load from."""
    return tmp_path_factory.mktemp("roots")


@pytest.fixture(scope="session")
def server(roots):
    with Server("--adapter-roots", roots, "--seqs-max", 64) as s:
        yield s


@pytest.fixture(scope="session")
def keyed(tmp_path_factory):
    path = write_keys(tmp_path_factory.mktemp("keys") / "keys.json", KEYS)
    with Server("--api-keys-file", path) as s:
        yield s

"""One settled world for the tests of this folder that only look, or claim for an account of their own."""
import json
from pathlib import Path

import pytest
from world import Settle, World, http
from xdist.scheduler import LoadScopeScheduling

HOSTILE = '<img src=x onerror="window.injected=1"></p><script>window.injected=1</script>'


WORLDS = {"test_settle": "settled", "test_page": "settled", "test_keys": "keys", "test_random_epochs": "random"}  # files that share one


class ByWorld(LoadScopeScheduling):
    """Tests that share a world stay on one of xdist's workers: it is made once, and lives in order. Each other test is by itself."""

    def _split_scope(self, nodeid):
        return WORLDS.get(Path(nodeid.split("::")[0]).stem, nodeid)


def pytest_xdist_make_scheduler(config, log):
    return ByWorld(config, log)


@pytest.fixture(scope="session")
def settled(tmp_path_factory):
    """(world, worker, epoch): 500 inferences of two lanes with their attributions, settled, the worker still up."""
    with World(tmp_path_factory.mktemp("settled")) as w:
        w.lanes[1].make(w, 400)
        w.lanes[2].make(w, 100)
        w.ship_all()
        with Settle(w, "--chain-name", HOSTILE, "--explorer-url", "https://explorer.test", "--public-rpc-url", w.rpc_url) as s:
            s.wait_final()
            s.seen = s.wait("an epoch that cannot be claimed from yet", lambda _: pending(s, w.names["p0"]))
            yield w, s, s.wait_epoch()


def pending(s, account):
    status, _, body = http(f"{s.url}/v1/rewards/{account}")
    reward = json.loads(body) if status == 200 else {}
    return reward if reward.get("pending") else None

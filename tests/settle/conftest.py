"""One settled world for the tests of this folder that only look, or claim for an account of their own."""
import json

import pytest
from world import Settle, World, http

HOSTILE = '<img src=x onerror="window.injected=1"></p><script>window.injected=1</script>'


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

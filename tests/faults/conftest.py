import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
sys.path.insert(0, str(Path(__file__).resolve().parent))


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """Folder with a deployed and registered system, copied by every world."""
    from world import make_template
    return make_template(tmp_path_factory.mktemp("template") / "world")

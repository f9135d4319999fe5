import sys
from pathlib import Path

for folder in ("lib", "attribution"):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / folder))

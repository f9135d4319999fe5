"""API keys of the tests: the plain keys, and the file of digests that the server reads."""
import hashlib
import json
import os

KEYS = {
    "alice": {"roles": ["infer"]},
    "bob": {"roles": ["infer"]},
    "carol": {"roles": ["infer"], "adapters": ["amber-*", "birch-vale"]},
    "paula": {"roles": ["publish", "infer"]},
    "peter": {"roles": ["publish"], "publish_bytes_max": 200_000},
    "root": {"roles": ["admin", "infer"]},
}


def secret(name):
    return f"test-key-of-{name}"


def write_keys(path, keys, mode=0o600):
    rows = [{"name": n, "digest": hashlib.blake2b(secret(n).encode(), digest_size=32).hexdigest(), **k} for n, k in keys.items()]
    path.write_text(json.dumps(rows))
    os.chmod(path, mode)
    return path


def bearer(name):
    return {"Authorization": f"Bearer {secret(name)}"}

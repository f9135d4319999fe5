"""What every part of the demo does: calls, waits, and how a number is shown."""
import json
import sys
import time
import urllib.request


def call(url, body=None, method=None):
    data = json.dumps(body).encode() if body is not None else None
    with urllib.request.urlopen(urllib.request.Request(url, data=data, method=method, headers={"Content-Type": "application/json"}), timeout=60) as r:
        return json.loads(r.read())


def wait_for(check, wait_s, what):
    end = time.monotonic() + wait_s
    while time.monotonic() < end:
        value = check()
        if value:
            return value
        time.sleep(0.3)
    sys.exit(f"waited {wait_s} s for {what}; see run/logs")


def coins(units):
    return f"{int(units) / 1e18:.12f}"


def ask(server, q):
    return call(server + "/v1/completions", {"model": q["model"], "prompt": q["prompt"], "temperature": 0, "max_tokens": 12})


def attributed(args, reply, wait_s, states=("recorded",)):
    """The reply's attribution, once it is recorded; of an adapter that nobody pays for there is a preview."""
    path = f"{args.server}/v1/attribution/{reply['residual']['request_id']}"
    return wait_for(lambda: (lambda a: a if a["state"] in states else None)(call(path)), wait_s, "the attribution record")


def signal(contributor, kind):
    v = contributor.get("signals", {}).get(kind)
    return "none" if v is None else f"{v / 1e7:.1f} %"

#!/usr/bin/env python3
"""Shows the main job: several adapters asked in one concurrent batch, what each answer leaves, how it is settled, and what a
contributor claims; an adapter that is trained here and answers; then what a thief of three keys gets, and that the next epoch is paid
all the same; at the end one answer, whose sentences made it, and what their owner was paid. Exits non-zero when any of it does not
happen."""
import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import factory
from asking import ask, attributed, call, coins, signal, wait_for

ROOT = Path(__file__).resolve().parents[1]


def rpc(url, method, *params):
    reply = call(url, {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)})
    if "error" in reply:
        sys.exit(f"{method}: {reply['error']}")
    return reply["result"]


def final_batch_of(args, lane, seq):
    """The final batch that holds record seq of the lane, from the published manifests."""
    for b in call(args.settle + "/v1/batches")["batches"]:
        if b["state"] != "final":  # its folder may not be there yet
            continue
        manifest = json.loads((Path(args.archive) / f"batch-{b['batch']:08}" / "manifest.json").read_text())
        if any(r["lane"] == lane and r["first"] <= seq <= r["last"] for r in manifest["lanes"]):
            return b
    return None


def show_answers(args, questions, replies):
    wrong = 0
    for q, r in zip(questions, replies):
        text, res = r["choices"][0]["text"].strip(), r["residual"]
        wrong += text != q["answer"]
        a = attributed(args, r, 30)["adapters"][0]
        top = max(a["contributors"], key=lambda c: c["ppb"])
        print(f"  {q['model']:13} {q['chat']}\n  {'':13} {text!r} {'' if text == q['answer'] else '(expected ' + q['answer'] + ')'}")
        print(f"  {'':13} record {res['lane']}/{res['seq']}, fee {coins(res['fee'])}, gain {a['gain_nats']:.2f} nats over the base, "
              f"{len(a['contributors'])} contributors, largest {top['payee'][:10]}… {top['ppb'] / 1e7:.1f} %")
    return wrong


def settled(args, lane, seq):
    """The epoch that pays the record, once it can be claimed from."""
    batch = wait_for(lambda: final_batch_of(args, lane, seq), 120, "the batch to be final")
    print(f"  batch {batch['batch']}: {batch['records']} records, {batch['inferences']} answers, fees {coins(batch['fee_sum'])}, transaction {batch['tx']}")
    epoch = wait_for(lambda: next((e for e in call(args.settle + "/v1/epochs")["epochs"]
                                   if e["batch_paid"] >= batch["batch"] and e["state"] == "active"), None), 180, "the epoch to be claimable")
    print(f"  epoch {epoch['epoch']}: {coins(epoch['total'])} to {epoch['leaves']} accounts, {epoch['required']} answers scored, "
          f"{epoch['missing']} missing, transaction {epoch['tx']}")
    return epoch


def answers_to_epoch(args, questions):
    """Ask, settle, and wait until an epoch that pays the answers can be claimed from: (wrong answers, epoch, the first reply)."""
    print(f"Asking {len(questions)} adapters one fact each, in one concurrent batch:")
    with ThreadPoolExecutor(len(questions)) as pool:
        replies = list(pool.map(lambda q: ask(args.server, q), questions))
    wrong = show_answers(args, questions, replies)
    lane, last = replies[0]["residual"]["lane"], max(r["residual"]["seq"] for r in replies)
    print("\nSettling (batches every few seconds, epochs once they are final and an attestor signed):")
    epoch = settled(args, lane, last)
    return wrong, epoch, replies[0]


def show_attribution(args, question, reply, epoch, facts, people):
    """One answer in text: its words, the sentences that taught them, their owner's share and what the epoch paid him. False: another has it."""
    a = attributed(args, reply, 30)
    adapter = a["adapters"][0]
    fact = next(f for f in facts[question["model"]] if f["question"] == question["chat"])
    name = {p["address"].lower(): p["label"] for p in people}
    gains = " ".join(f"{t['gain_nats']:+.2f}" for t in a["choices"][0]["tokens"])
    print(f"\nWho made the answer {reply['choices'][0]['text'].strip()!r} to {question['chat']!r} (GET /v1/attribution/{a['request_id'][:8]}…):")
    print(f"  nats that {adapter['name']} added, token by token: {gains}")
    for c in sorted(adapter["contributors"], key=lambda c: -c["ppb"]):
        print(f"  {c['ppb'] / 1e7:9.5f} %  {c['payee']} ({name.get(c['payee'].lower(), '?')}); events {signal(c, 'events')}, spans {signal(c, 'spans')}, documents {signal(c, 'prior')}")
    for r in adapter["rows"][:3]:
        print(f"  {r['ppb'] / 1e7:5.1f} % of what was found: {r.get('text', '(not shown: no consent)')!r}, document {r['docId']}, {r['licence']}")
    print(f"  trust in the index {adapter['index']['lambda_ppb'] / 1e9:.3f}; record {a['lane']}/{a['seq']}, {a['record_state']}")
    owner = fact["contributor"]
    history = call(f"{args.settle}/v1/rewards/{owner}/history")["epochs"]
    shares = next((e["shares"] for e in history if e["epoch"] == epoch["epoch"]), [])
    paid = sum(int(s["amount"]) for s in shares if s["adapter"] == adapter["id"] and s["source"] == "data")
    print(f"  {name[owner.lower()]} wrote it; epoch {epoch['epoch']} pays {coins(paid)} for the data of {adapter['name']}")
    top = max(adapter["contributors"], key=lambda c: c["ppb"])
    return top["payee"].lower() == owner.lower() and paid > 0


def claim(args, person):
    """What a contributor earned goes to its account: the coins that came."""
    account = person["address"]
    rewards = call(f"{args.settle}/v1/rewards/{account}")
    sources = call(f"{args.settle}/v1/rewards/{account}/sources")["sources"]
    before = int(rpc(args.rpc, "eth_getBalance", account, "latest"), 16)
    print(f"\nA contributor claims: {person['label']} ({account}), earned {coins(rewards['cumulative'])} so far. The page ({args.settle}/#{account}) says")
    for s in sources:
        print(f"  {coins(s['earned'])} as {s['source']} of adapter {(s['adapter'] or 'none')[:10]}…, datanet {(s['datanet'] or 'none')[:10]}…")
    if sum(int(s["earned"]) for s in sources) != int(rewards["cumulative"]):
        sys.exit("the page's numbers do not sum to what was earned")
    done = subprocess.run([args.cli, "claim", "--account", account, "--key-file", str(Path(args.run) / "keys/operator.key"),
                           "--settle", args.settle], text=True, capture_output=True)
    print("  " + (done.stdout + done.stderr).strip().replace("\n", "\n  "))
    if done.returncode != 0:
        sys.exit("the claim failed")
    after = int(rpc(args.rpc, "eth_getBalance", account, "latest"), 16)
    print(f"  balance before {coins(before)}, after {coins(after)}")
    return after - before


def thief(args, verb, key, *words):
    done = subprocess.run(["node", str(ROOT / "deploy/thief.mjs"), verb, "--rpc", args.rpc, "--deployment", str(Path(args.run) / "deployment.json"),
                           "--key-file", str(Path(args.run) / f"keys/{key}.key"), *words], text=True, capture_output=True)
    if done.returncode != 0:
        sys.exit(f"thief.mjs {verb}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def theft(args):
    """All keys but the guardian's and the admin's are stolen: one forged commit, 1 wei, an epoch that gives everything to the thief."""
    keys, to = Path(args.run) / "keys", "0x" + "7f" * 20
    log = Path(args.run) / "logs/residual-watch.log"
    begin = log.stat().st_size

    def said(text):
        return wait_for(lambda: next((x for x in log.read_text()[begin:].splitlines() if text in x), None), 60, f"the watcher to say: {text}")
    print("\nA thief has the committer's, the proposer's and the attestor's keys:")
    made = thief(args, "steal", "committer", "--proposer-key-file", str(keys / "proposer.key"), "--attestor-key-file", str(keys / "attestor.key"),
                 "--funder-key-file", str(keys / "operator.key"), "--to", to)
    batch = made["batch"]
    print(f"  commits batch {batch} of a record that nobody signed, pays in {made['paid_in']} wei, and proposes epoch {made['epoch']}: "
          f"{coins(made['total'])} to {to[:10]}…, signed by the attestor's key")
    for text in (f"batch {batch} is FORGED", f"epoch {made['epoch']} is FORGED", f"epoch_forged {made['epoch']}: over", f"batch_forged {batch}: over"):
        print("  watch: " + said(text).split(": ", 1)[1].split(" (")[0])
    got = thief(args, "claim", "operator", "--to", to)
    print(f"  the thief's claim: {got.get('refused', 'went through')}, {got['got']} wei")
    if got["got"] != "0":
        sys.exit("the thief was paid")
    thief(args, "unpause", "deployer")
    print("  the admin lets commits on; nothing else is touched (in earnest: takes the roles from the stolen keys first)\n")


def main():
    p = argparse.ArgumentParser(description=__doc__)
    for name in ("server", "settle", "rpc", "run", "archive", "cli"):
        p.add_argument("--" + name, required=True)
    args = p.parse_args()
    facts = json.loads((ROOT / "configs/demo/facts.json").read_text())
    questions = facts["demoQuestions"]
    listed = json.loads((ROOT / "configs/demo/contributors.json").read_text())
    people = listed["contributors"]
    wait_for(lambda: all(a["registered"] for a in call(args.server + "/v1/adapters")["data"] if a["name"] in facts["adapters"]), 60,
             "the server to read the registrations in final blocks")
    wrong, epoch, _ = answers_to_epoch(args, questions)
    paid = claim(args, people[0])
    trained = factory.train(args, questions[0], facts["adapters"], people + listed["others"])
    if not factory.paid(args, trained, settled(args, trained["lane"], trained["seq"])):
        sys.exit("the epoch pays nothing for the adapter that was trained here")
    theft(args)
    more, epoch, reply = answers_to_epoch(args, questions)
    paid_after = claim(args, people[0])
    audit = subprocess.run([args.cli, "audit", "epoch", str(epoch["epoch"]), "--archive", args.archive, "--rpc", args.rpc,
                            "--deployment", str(Path(args.run) / "deployment.json")], text=True, capture_output=True)
    print(f"\nAnyone can check it: residual audit epoch {epoch['epoch']}\n  " + (audit.stdout + audit.stderr).strip().replace("\n", "\n  "))
    if audit.returncode != 0 or paid <= 0 or paid_after <= 0 or wrong > 1 or more > 1:
        sys.exit(f"not as expected: audit {audit.returncode}, claims of {paid} and {paid_after}, {wrong} and {more} wrong answers")
    if not show_attribution(args, questions[0], reply, epoch, facts["adapters"], people):
        sys.exit("the answer is not paid to who wrote it")


if __name__ == "__main__":
    main()

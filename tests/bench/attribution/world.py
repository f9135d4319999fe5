"""A world as files: a base, adapters with documents and a training manifest, and questions whose owners are known."""

import hashlib
import json
import re
import unicodedata
from pathlib import Path

import train
from method import Row

ROOT = train.ROOT


def blake(data):
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def account(label):
    return train.MAKE.demo_account("bench " + label)["address"]


class Document:
    """Rows [(head, tail)] of one owner; trained: whether the adapter learns it (a manifest may claim it anyway)."""

    def __init__(self, owner, rows, licence="CC-BY-4.0", trained=True, since=1):
        self.owner, self.rows, self.licence, self.trained, self.since = owner, rows, licence, trained, since

    @property
    def text(self):
        return unicodedata.normalize("NFC", "\n\n".join(h + t for h, t in self.rows) + "\n")


def write_datanet(folder, name, documents, tok_digest, version=1):
    """datanet.json, documents/ and training.json (every row of every document, one paragraph a row)."""
    (folder / "documents").mkdir(parents=True, exist_ok=True)
    listed, rows, digests = [], [], []
    for i, d in enumerate(documents, 1):
        data = d.text.encode()
        file = "documents/%04d.txt" % i
        (folder / file).write_bytes(data)
        digests.append(blake(data))
        listed.append({"docId": i, "owner": d.owner, "licence": d.licence, "since": d.since, "kind": "text",
                       "bytes": len(data), "digest": digests[-1], "file": file})
        at = 0
        for head, tail in d.rows:
            n = len((head + tail).encode())
            rows.append([i, at, n])
            at += n + 2
    (folder / "datanet.json").write_text(json.dumps(
        {"version": version, "name": name, "tokenizerDigest": tok_digest, "documents": listed}, indent=1) + "\n")
    return rows


class Datanet:
    """Read back: what the method needs of an adapter's folder."""

    def __init__(self, folder, tok, end):
        self.folder = Path(folder)
        book = json.loads((self.folder / "datanet.json").read_text())
        self.documents = book["documents"]
        self.owners = sorted({d["owner"] for d in self.documents}, key=lambda a: int(a, 16))
        at = {o: i for i, o in enumerate(self.owners)}
        self.count = [0] * len(self.owners)
        self.rows = []
        text = {}
        for k, d in enumerate(self.documents):
            self.count[at[d["owner"]]] += 1
            text[d["docId"]] = (k, (self.folder / d["file"]).read_bytes())
        training = self.folder / "training.json"
        if training.exists():
            spans = json.loads(training.read_text())["rows"]
        else:
            spans = [[i, *s] for i, (_, data) in text.items() for s in sentences(data)]
        for doc, off, n in spans:
            k, data = text[doc]
            s = data[off : off + n].decode()
            self.rows.append(Row(tok.encode(s).ids + [end], k, at[self.documents[k]["owner"]], off, n, s))


def sentences(data):
    """[offset, bytes] of the sentences of a text whose sentences end with a full stop and a blank."""
    text, out, at = data.decode(), [], 0
    for s in re.split(r"(?<=\.)\s+", text):
        n = len(s.encode())
        if s.strip():
            out.append([data.index(s.encode(), at), n])
            at = out[-1][0] + n
    return out

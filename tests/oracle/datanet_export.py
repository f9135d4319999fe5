#!/usr/bin/env python3
"""What `residual datanet export` writes, read by the programs of those who made the forms: mlcroissant validates it and reads the record set
back, SPDX's model of 3.0.1 reads it and finds every element that is named. Usage: datanet_export.py RESIDUAL"""
import hashlib
import io
import json
import logging
import pathlib
import subprocess
import sys
import tempfile
from importlib.metadata import version

import mlcroissant
from spdx_python_model import v3_0_1 as spdx

DEMO = pathlib.Path(__file__).resolve().parents[2] / "configs" / "demo" / "adapters"


def export(residual, folder, out):
    subprocess.run([residual, "datanet", "export", folder, "--croissant", out / "c.json", "--spdx", out / "s.json"], check=True, capture_output=True)
    return out / "c.json", out / "s.json"


def check_croissant(path, folder, net):
    written = json.loads(path.read_text())
    assert written["conformsTo"] == "http://mlcommons.org/croissant/1.1"
    dataset = mlcroissant.Dataset(jsonld=path)  # raises what is wrong
    assert not dataset.metadata.ctx.issues.errors, dataset.metadata.ctx.issues.report()
    texts = {d["docId"]: (folder / d["file"]).read_bytes() for d in net["documents"]}
    for f in written["distribution"]:
        assert hashlib.sha256(texts[int(f["@id"].split("-")[1])]).hexdigest() == f["sha256"], f
    records = {r["documents/id"]: r for r in dataset.records("documents")}
    for d in net["documents"]:
        r = records[d["docId"]]
        text = {k: v.decode() if isinstance(v, bytes) else v for k, v in r.items()}
        assert text["documents/owner"] == d["owner"] and text["documents/licence"] == d["licence"], (d, text)
        assert text["documents/digest"].removeprefix("0x") == d["digest"].removeprefix("0x")
        assert bool(text["documents/display"]) == d.get("display", False)
    assert len(records) == len(net["documents"])


def check_spdx(path, net):
    objects = spdx.SHACLObjectSet()
    with open(path) as f:
        spdx.JSONLDDeserializer().read(f, objects)  # raises on a type, a property or a value that the model has not
    assert not objects.link(), "an element is named that is not there"
    (package,) = objects.foreach_type(spdx.dataset_DatasetPackage)
    files = {f._id: f for f in objects.foreach_type(spdx.software_File)}
    kinds = {}
    for r in objects.foreach_type(spdx.Relationship):
        kinds.setdefault(r.relationshipType.rsplit("/", 1)[1], []).append(r)
    (contains,) = kinds["contains"]
    assert contains.from_ is package and {t._id for t in contains.to} == set(files)
    licence = {r.from_._id: r.to[0].simplelicensing_licenseExpression for r in kinds["hasDeclaredLicense"]}
    for d in net["documents"]:
        f = files["urn:residual:document:0x" + d["digest"].removeprefix("0x")]
        assert f.originatedBy[0].name == d["owner"] and licence[f._id] == d["licence"]
        assert f.verifiedUsing[0].hashValue == d["digest"].removeprefix("0x")
    spdx.JSONLDSerializer().write(objects, io.BytesIO())  # raises where something mandatory is missing


def main():
    logging.disable(logging.WARNING)
    folders = sorted(p.parent for p in DEMO.glob("*/datanet.json"))
    for folder in folders:
        net = json.loads((folder / "datanet.json").read_text())
        with tempfile.TemporaryDirectory() as out:
            croissant, document = export(sys.argv[1], folder, pathlib.Path(out))
            check_croissant(croissant, folder, net)
            check_spdx(document, net)
    print(f"{len(folders)} datanets: Croissant 1.1 (mlcroissant {version('mlcroissant')}) and SPDX 3.0.1 read back")


main()

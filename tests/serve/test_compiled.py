"""Native code of a bundle: only where it is asked for, only what it was built for, and the same scores."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from laser.data.prepared import PreparedData
from laser.model.embeddings import initial_rows
from laser.seqvault import SeqVault
from laser.serve import Request, Scorer
from laser.serve.bundle import Bundle, checksum
from laser.serve.network import build_network
from laser.serve.writing import Trained, try_compiled, write_bundle
from tests.serve.conftest import DIN, LASER

NOW = 1_700_000_000
CODE = "candidates_cpu.pt2"


def bundle_of(data: Path, folder: Path, name: str, options: dict[str, Any], compiled: str | None) -> Path:
    """A bundle of a model that was never trained."""
    network = {"class_path": f"laser.model.{name}", "init_args": options}
    folder.mkdir(parents=True)
    with PreparedData(data) as prepared:
        model = build_network(network, prepared.schema, seed=3)
        weights = {key: value for key, value in model.state_dict().items() if ".collections." not in key}
        sizes = prepared.schema.tables

        def table(name: str) -> torch.Tensor:
            return initial_rows(name, 0, sizes[name].rows, sizes[name].width, 0, 1.0)

        write_bundle(folder, prepared, Trained(network, 3, 30, weights, table, {}), "fp32", compiled)
    return folder


@pytest.fixture(scope="module")
def compiled(prepared, tmp_path_factory) -> Path:
    return bundle_of(prepared, tmp_path_factory.mktemp("compiled") / "bundle", "laser.Laser", LASER, "cpu")


def test_the_same_scores(compiled, prepared):
    """Histories of every length, with candidates enough and too few for it."""
    requests = [
        Request(f"user-{user}", [f"item-{i}" for i in range(1, 1 + size)], {"device": 1}, NOW)
        for user in range(1, 40)
        for size in (1, 2, 9)
    ]
    with SeqVault.open(prepared / "vault") as vault:
        plain, native = Scorer(compiled, vault), Scorer(compiled, vault, compiled=True)
        assert plain.engine.compiled is None
        inner, calls = native.engine.compiled, []
        assert inner is not None

        def counted(event_PC, live_P, target_BE, context):
            calls.append((len(event_PC), len(target_BE)))
            return inner(event_PC, live_P, target_BE, context)

        native.engine.compiled = counted
        for request in requests:
            found, wanted = (scorer.score_many([request])[0] for scorer in (native, plain))
            np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6)
    assert len(calls) > 50
    assert {size for _, size in calls} == {2, 9}
    assert len({length for length, _ in calls}) > 2


def edited(source: Path, folder: Path, name: str, content: bytes | dict) -> Path:
    """A copy of a bundle with another file of that name, and checksums that agree."""
    shutil.copytree(source, folder)
    facts = json.loads((folder / "bundle.json").read_text())
    if isinstance(content, dict):
        facts |= content
    else:
        (folder / name).write_bytes(content)
        facts["files"][name] = [len(content), checksum(folder / name)]
    (folder / "bundle.json").write_text(json.dumps(facts))
    return folder


def test_code_that_does_not_fit_is_refused(compiled, prepared, tmp_path):
    built = Bundle.open(compiled).facts["compiled"]["cpu"]
    plain = edited(compiled, tmp_path / "plain", CODE, {"compiled": {}})
    damaged = shutil.copytree(compiled, tmp_path / "damaged")
    with (damaged / CODE).open("r+b") as file:
        file.seek(1000)
        file.write(b"?")
    with SeqVault.open(prepared / "vault") as vault:
        for bundle, sentence in [
            (plain, "has no compiled code for cpu; export it with --compile cpu"),
            (damaged, f"{CODE} is not what was written"),
            (edited(compiled, tmp_path / "a", CODE, {"compiled": {"cpu": built | {"torch": "1.0"}}}), "for torch 1.0"),
            (
                edited(compiled, tmp_path / "b", CODE, {"compiled": {"cpu": built | {"instructions": "VSX"}}}),
                "for instructions VSX, here is",
            ),
            (edited(compiled, tmp_path / "c", CODE, b"rubbish"), "cannot be loaded"),
        ]:
            with pytest.raises(ValueError, match=sentence):
                Scorer(bundle, vault, compiled=True)
        Scorer(tmp_path / "c", vault)  # what is not asked for is not looked at


def test_code_that_ends_its_process_does_not_end_this_one(compiled, tmp_path, monkeypatch):
    try_compiled(compiled, "cpu")
    crash = "torch._inductor.aoti_load_package = lambda *_: os.kill(os.getpid(), signal.SIGSEGV)"
    (tmp_path / "sitecustomize.py").write_text(f"import os, signal, torch\n{crash}\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with pytest.raises(ValueError, match=r"native code for cpu was made.*ended with SIGSEGV; leave out --compile"):
        try_compiled(compiled, "cpu")
    code = shutil.copytree(compiled, tmp_path / "bundle") / CODE
    code.write_bytes(b"rubbish")
    with pytest.raises(ValueError, match=r"ended with ValueError.*is not what was written"):
        try_compiled(tmp_path / "bundle", "cpu")


def test_code_of_another_model_is_found_out(compiled, prepared, tmp_path):
    """The golden answers are compared with what the code computes, which has weights of its own."""
    bundle = shutil.copytree(compiled, tmp_path / "bundle")
    golden = json.loads((bundle / "golden.json").read_text())
    for case in golden["requests"]:
        case["probability"] = [value + 0.01 for value in case["probability"]]
    bundle = edited(bundle, tmp_path / "other", "golden.json", json.dumps(golden).encode())
    with SeqVault.open(prepared / "vault") as vault:
        with pytest.raises(ValueError, match="its golden request 0 gives"):
            Scorer(bundle, vault, compiled=True)


def test_models_that_cannot_be_compiled(prepared, tmp_path):
    with pytest.raises(ValueError, match="only LASER can be compiled"):
        bundle_of(prepared, tmp_path / "din", "baselines.encoder_model.EncoderModel", DIN, "cpu")
    with pytest.raises(ValueError, match="match events with candidates cannot be compiled"):
        bundle_of(prepared, tmp_path / "matches", "laser.Laser", LASER | {"match": {"item": "item"}}, "cpu")

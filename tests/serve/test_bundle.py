"""Bundles: nothing but data in them, and none that was damaged, changed or mixed is loaded."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from laser.cli import main
from laser.seqvault import SeqVault
from laser.serve import Bundle, Request, Scorer
from laser.serve.bundle import FACTS, GOLDEN, WEIGHTS, checksum
from laser.serve.loading import load_engine

REQUESTS = [
    Request(f"user-{n}", [f"item-{i}" for i in range(1, 40)], {"device": 1}, 1_700_000_000) for n in range(3, 30)
]


@pytest.fixture
def copy(trained, tmp_path: Path) -> Path:
    return shutil.copytree(trained("laser") / "bundle", tmp_path / "bundle")


def change(bundle: Path, **facts) -> None:
    """Change facts, and make the checksums right again, as someone would who means to."""
    known = json.loads((bundle / FACTS).read_text()) | facts
    known["files"] = {name: [(bundle / name).stat().st_size, checksum(bundle / name)] for name in known["files"]}
    (bundle / FACTS).write_text(json.dumps(known))


def refusal(bundle: Path, **options) -> str:
    with pytest.raises(ValueError, match=r".") as told:
        load_engine(Bundle.open(bundle, **options))
    message = str(told.value)
    assert "\n" not in message
    return message


def test_every_file_is_guarded(copy):
    for name in json.loads((copy / FACTS).read_text())["files"]:
        file = copy / name
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        assert f"{name} is not what was written" in refusal(copy)
        file.write_bytes(content[:-1])
        assert f"{name} is not what was written" in refusal(copy, checksums=False)
        file.unlink()
        assert f"{name} is missing" in refusal(copy)
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    load_engine(Bundle.open(copy))


def test_golden_answers_tell_of_what_checksums_cannot(copy):
    weights = bytearray((copy / WEIGHTS).read_bytes())
    weights[-300:] = np.full(75, 3.0, np.float32).tobytes()
    (copy / WEIGHTS).write_bytes(weights)
    change(copy)
    assert "golden request 0 gives" in refusal(copy)


def test_other_options_than_the_weights_were_trained_with(copy):
    network = json.loads((copy / FACTS).read_text())["network"]
    change(copy, network=network | {"init_args": network["init_args"] | {"width": 32}})
    assert "size mismatch" in refusal(copy)
    change(copy, network=network | {"init_args": network["init_args"] | {"widths": 32}})
    assert "'widths' is not accepted" in refusal(copy)
    change(copy, network=network | {"init_args": network["init_args"] | {"segment_width": 4}})
    assert "golden request" in refusal(copy)


def test_no_class_from_elsewhere(copy):
    change(copy, network={"class_path": "subprocess.Popen", "init_args": {"args": ["true"]}})
    assert "made of class subprocess.Popen, which is not in laser.model." in refusal(copy)
    inner = {"encoder": {"class_path": "os.system"}}
    change(copy, network={"class_path": "laser.model.baselines.encoder_model.EncoderModel", "init_args": inner})
    assert "made of class os.system" in refusal(copy)


def test_no_bundle(copy, tmp_path):
    assert "no bundle at" in refusal(tmp_path)
    change(copy, format=2)
    assert "has format 2, this release reads format 1" in refusal(copy)
    for content in ("", "[]", "{}", '{"format": 1}'):
        (copy / FACTS).write_text(content)
        assert "bundle" in refusal(copy)


def test_nothing_is_unpickled(copy, monkeypatch):
    def refuse(*_args, **_options):
        raise AssertionError("unpickled")

    for place, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(place, name, refuse)
    bundle = Bundle.open(copy)
    assert bundle.codes()["item"](["item-3"], "item") == [3]
    load_engine(bundle)  # which scores the golden requests


@pytest.mark.parametrize(("tables", "share", "most"), [("fp16", 0.6, 1e-3), ("int8", 0.55, 5e-3), ("int4", 0.45, 8e-2)])
def test_smaller_tables(trained, prepared, tables, share, most):
    folder = trained("laser")
    with SeqVault.open(prepared / "vault") as vault:
        exact, small = (
            np.concatenate(Scorer(folder / name, vault).score_many(REQUESTS)) for name in ("bundle", tables)
        )
    difference = np.abs(exact - small).max()
    assert 0 < difference < most
    sizes = [(folder / name / "tables.safetensors").stat().st_size for name in (tables, "bundle")]
    assert sizes[0] < share * sizes[1] + 1000


def test_export_says_what_is_wrong(trained, prepared, make_prepared, tmp_path, capsys):
    folder = trained("laser")
    recipe = ["export", "-c", str(Path(__file__).parents[2] / "conf" / "demo.yaml"), "-c", str(folder / "overlay.yaml")]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter").write_text("dear")
    other = make_prepared(items=90)
    for options, message in [
        ([], "out"),
        (["--out", str(tmp_path / "full")], "exists and is no bundle"),
        (["--out", str(tmp_path / "b"), "--ckpt_path", str(tmp_path)], "no checkpoint at"),
        (["--out", str(tmp_path / "b"), "--tables", "int2"], "int2"),
        (["--out", str(tmp_path / "b"), "--data.path", str(other)], "give the one that it was trained on"),
        (["--out", str(tmp_path / "b"), "--model.network.init_args.width", "32"], "is refused"),
    ]:
        assert main([*recipe, *options]) == 2
        told = capsys.readouterr().err
        assert message in told
        assert told.count("\n") == 1
    assert not (tmp_path / "b").exists()
    assert not (tmp_path / "b.tmp").exists()
    assert json.loads((folder / "bundle" / GOLDEN).read_text())["requests"]

"""``laser checkpoint``: what is in a checkpoint, in what two differ, and one as a single file and back."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from laser.cli import main
from laser.train.checkpoint import load, read_trainer_state, save
from laser.train.single_file import read_single, write_single
from laser.train.stored_tensors import StoredTensors

FACTS = {"schema": "abc", "data_set": "toy", "table_optimizer": "adagrad", "step": 7}


def tensors(change: float = 0.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "model.w": torch.randn(50, 3, generator=generator) + change,
        "model.half": torch.randn(7, generator=generator).bfloat16(),
        "model.none": torch.zeros(0, 4),
        "model.mask": torch.tensor([True, False]),
        "dense.w.step": torch.tensor(7.0),
        "tables.t.count": torch.arange(3),
    }


@pytest.fixture
def folders(tmp_path: Path, group_of_one: None) -> tuple[Path, Path]:
    paths = tmp_path / "a.ckpt", tmp_path / "b.ckpt"
    for path, change in zip(paths, (0.0, 0.5), strict=True):
        save(path, tensors(change), {"epoch": 2, "validation": {"auc": 0.75}}, FACTS)
    return paths


def test_inspect_says_what_it_belongs_to_and_lists_tensors(folders, capsys):
    assert main(["checkpoint", "inspect", str(folders[0])]) == 0
    lines = {tuple(line.split()) for line in capsys.readouterr().out.splitlines()}
    assert {("step", "7"), ("epoch", "2"), ("data_set", "toy"), ("validation", "auc", "0.75")} <= lines
    assert ("600", "1", "float32", "50x3", "model.w") in lines
    assert ("4", "1", "float32", "scalar", "dense.w.step") in lines
    assert any({"torch", f"{torch.__version__},"} <= {*line} for line in lines if line[:1] == ("versions",))


def test_diff_names_what_differs(folders, capsys):
    first, second = map(str, folders)
    assert main(["checkpoint", "diff", first, first]) == 0
    assert "6 of 6 tensors are the same" in capsys.readouterr().out
    assert main(["checkpoint", "diff", first, second]) == 1
    output = capsys.readouterr().out
    assert "max 0.5, mean 0.5" in output
    assert "model.half" not in output
    save(folders[1], {"model.w": torch.zeros(5, 3), "model.new": torch.zeros(1)}, {}, FACTS)
    main(["checkpoint", "diff", first, second])
    output = capsys.readouterr().out
    assert "(50, 3) float32 against (5, 3) float32" in output
    assert "only in the second" in output


def test_one_file_and_back_is_the_same_checkpoint(folders, tmp_path, capsys):
    file, back = tmp_path / "a.safetensors", tmp_path / "back.ckpt"
    assert main(["checkpoint", "convert", str(folders[0]), str(file)]) == 0
    assert main(["checkpoint", "convert", str(file), str(back)]) == 0
    assert main(["checkpoint", "diff", str(folders[0]), str(back)]) == 0
    live = {name: torch.zeros_like(tensor) for name, tensor in tensors().items()}
    assert load(back, live, FACTS, training=True) == read_trainer_state(folders[0])
    assert all(torch.equal(live[name], tensor) for name, tensor in tensors().items())


def test_the_file_is_laid_out_as_the_format_says(folders, tmp_path):
    write_single(folders[0], tmp_path / "a.safetensors", model_only=True)
    content = (tmp_path / "a.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert (8 + length) % 8 == 0
    assert header.keys() == {"__metadata__", "model.w", "model.half", "model.none", "model.mask"}
    first, last = header["model.w"]["data_offsets"]
    values = torch.frombuffer(bytearray(content[8 + length + first : 8 + length + last]), dtype=torch.float32)
    assert torch.equal(values.view(50, 3), tensors()["model.w"])
    assert max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__") == (
        len(content) - 8 - length
    )
    assert os.listdir(tmp_path).count("a.safetensors.tmp") == 0


def test_what_cannot_be_converted_is_named(folders, tmp_path):
    file = tmp_path / "a.safetensors"
    write_single(folders[0], file, model_only=True)
    with pytest.raises(ValueError, match="no state of a trainer"):
        read_single(file, tmp_path / "back.ckpt")
    file.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"a.safetensors is damaged"):
        read_single(file, tmp_path / "back.ckpt")
    assert main(["checkpoint", "convert", str(folders[0]), str(tmp_path / "x.bin")]) == 2
    assert main(["checkpoint", "inspect", str(tmp_path)]) == 2


@pytest.mark.parametrize(
    ("start", "shape"), [((0, 0), (50, 3)), ((10, 1), (5, 2)), ((45, 0), (10, 3)), ((60, 0), (2, 3))]
)
def test_a_part_is_read_and_what_lies_beyond_is_left(folders, start, shape):
    out, whole = torch.full(shape, -1.0), tensors()["model.w"]
    StoredTensors(folders[0]).fill("model.w", out, start)
    part = whole[start[0] : start[0] + shape[0], start[1] : start[1] + shape[1]]
    assert torch.equal(out[: part.shape[0], : part.shape[1]], part)
    assert (out[part.shape[0] :] == -1).all()

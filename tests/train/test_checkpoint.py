"""Checkpoints replace each other atomically and are safe to load."""

from __future__ import annotations

import json
import os
import pickle
import resource
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from random import Random

import google_crc32c
import pytest
import torch

from laser.train.checkpoint import load, read_facts, save
from laser.train.checkpoint_files import IndexUnpickler, replace_directory

FACTS = {"schema": "abc", "data_set": "toy", "table_optimizer": "sgd", "step": 3}


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"model.w": torch.full((1000, 3), value), "dense.w.step": torch.tensor(value)}


@pytest.fixture
def path(tmp_path: Path, group_of_one: None) -> Path:
    save(tmp_path / "a.ckpt", tensors(1.0), {"epoch": 2}, FACTS)
    return tmp_path / "a.ckpt"


def test_what_is_saved_is_loaded(path):
    live = tensors(0.0)
    assert load(path, live, FACTS, training=True) == {"epoch": 2}
    assert torch.equal(live["model.w"], tensors(1.0)["model.w"])
    assert live["dense.w.step"] == 1.0
    assert read_facts(path)["step"] == 3


def test_evaluation_reads_the_model_only(path):
    live = {**tensors(0.0), "dense.other": torch.zeros(1)}
    load(path, live, FACTS | {"table_optimizer": "adagrad"}, training=False)
    assert live["model.w"][0, 0] == 1.0
    assert live["dense.w.step"] == 0.0


def test_a_new_checkpoint_takes_the_place_of_the_old(path):
    save(path, tensors(5.0), {}, FACTS)
    live = tensors(0.0)
    load(path, live, FACTS, training=True)
    assert live["dense.w.step"] == 5.0
    assert [entry.name for entry in path.parent.iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize(
    ("facts", "live", "words"),
    [
        ({"schema": "xyz"}, tensors(0.0), "schema abc.*schema xyz"),
        ({"table_optimizer": "adagrad"}, tensors(0.0), "holds sgd.*is adagrad"),
        ({}, {"model.w": torch.zeros(2, 3)}, r"\(1000, 3\).*\(2, 3\)"),
        ({}, {"model.v": torch.zeros(2, 3)}, "no tensor model.v"),
    ],
)
def test_what_does_not_fit_is_named(path, facts, live, words):
    before = {name: tensor.clone() for name, tensor in live.items()}
    with pytest.raises(ValueError, match=words):
        load(path, live, FACTS | facts, training=True)
    assert all(torch.equal(live[name], before[name]) for name in live)


def test_managed_ids_that_one_side_lacks_are_named(path, tmp_path):
    name = "model.managed_ids.item.map.ids"
    save(tmp_path / "b.ckpt", tensors(1.0) | {name: torch.zeros(3)}, {}, FACTS)
    with pytest.raises(ValueError, match=r"managed ids in the tables \['item'\], this run in \[\]; give .*managed_ids"):
        load(tmp_path / "b.ckpt", tensors(0.0), FACTS, training=False)
    with pytest.raises(ValueError, match=r"managed ids in the tables \[\], this run in \['item'\]"):
        load(path, tensors(0.0) | {name: torch.zeros(3)}, FACTS, training=False)


def test_half_precision_is_read_into_float32(tmp_path, group_of_one):
    save(tmp_path / "a.ckpt", {"model.w": torch.full((4, 3), 1.5, dtype=torch.float16)}, {}, FACTS)
    live = {"model.w": torch.zeros(4, 3)}
    load(tmp_path / "a.ckpt", live, FACTS, training=False)
    assert live["model.w"].unique().tolist() == [1.5]


def test_no_checkpoint_and_another_format_are_named(path, tmp_path):
    with pytest.raises(ValueError, match="no checkpoint at"):
        read_facts(tmp_path)
    (path / "facts.json").write_text('{"format": 9}')
    with pytest.raises(ValueError, match=r"format 9.*format 2"):
        read_facts(path)


@pytest.mark.parametrize("payload", [os.system, eval, torch.load])
def test_the_index_constructs_no_foreign_type(path, tmp_path, payload):
    class Evil:
        def __reduce__(self):
            return payload, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    (path / ".metadata").write_bytes(pickle.dumps(Evil()))
    replace_checksum(path, ".metadata")
    with pytest.raises(ValueError, match=r"damaged \(no index of tensors: type .* is not allowed"):
        load(path, tensors(0.0), FACTS, training=True)
    assert not (tmp_path / "ran").exists()


def test_trainer_state_runs_no_code(path):
    class Evil:
        def __reduce__(self):
            return os.getcwd, ()

    torch.save({"evil": Evil()}, path / "trainer.pt")
    replace_checksum(path, "trainer.pt")
    with pytest.raises(ValueError, match=r"trainer.pt is damaged .*more than plain values"):
        load(path, tensors(0.0), FACTS, training=True)


def replace_checksum(path: Path, name: str) -> None:
    """Make the checksum of a file right, as someone would who means harm."""
    facts = read_facts(path)
    facts["checksums"][name] = google_crc32c.value((path / name).read_bytes())
    (path / "facts.json").write_text(json.dumps(facts))


@pytest.mark.parametrize("name", ["trainer.pt", ".metadata", "__0_0.distcp", "__0_0.distcp.crc32c"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "missing"])
def test_a_damaged_file_is_named(path, name, damage):
    file = path / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 8
    file.write_bytes(content if damage == "flipped" else content[:-20])
    if damage == "missing":
        file.unlink()
    with pytest.raises(ValueError, match=f"{name}.* is damaged") as caught:
        load(path, tensors(0.0), FACTS, training=True)
    assert "\n" not in str(caught.value)


def test_every_byte_of_the_tensors_is_guarded(path):
    """Whatever bit of the values changes, they are refused rather than loaded."""
    file = path / "__0_0.distcp"
    whole = file.read_bytes()
    for place in range(0, len(whole), 97):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        live = tensors(0.0)
        try:
            load(path, live, FACTS, training=True)
        except ValueError:
            continue
        # Between the pieces there is nothing that is read.
        assert torch.equal(live["model.w"], tensors(1.0)["model.w"])


@pytest.mark.timeout(120)
def test_killed_while_saving_leaves_a_whole_checkpoint(path):
    """SIGKILL at random times: the directory holds one save entirely, that before or the one that was going on."""
    script = textwrap.dedent(f"""
        import itertools, torch, torch.distributed as dist
        from laser.train.checkpoint import save
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        for value in itertools.count(2):
            w = torch.full((1000, 3), float(value))
            save({str(path)!r}, {{"model.w": w, "dense.w.step": w[0, 0].clone()}}, {{"epoch": value}}, {FACTS!r})
            print(value, flush=True)
    """)
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    random = Random(0)
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
        said = [int(process.stdout.readline()) for _ in range(1 + random.randrange(4))][-1]
        time.sleep(random.uniform(0, 0.05))
        process.kill()
        rest = process.communicate()[0].split()
        live = tensors(0.0)
        state = load(path, live, FACTS, training=True)
        assert state["epoch"] in (int(rest[-1]) if rest else said, (int(rest[-1]) if rest else said) + 1)
        assert torch.equal(live["model.w"], tensors(float(state["epoch"]))["model.w"])
        assert live["dense.w.step"] == state["epoch"]


def test_a_crash_between_two_renames_loses_nothing(path):
    """Where directories cannot be exchanged, the old one is moved aside first."""
    aside = path.with_name("a.ckpt.old")
    path.rename(aside)
    live = tensors(0.0)
    load(path, live, FACTS, training=True)
    assert live["dense.w.step"] == 1.0
    save(path, tensors(5.0), {}, FACTS)
    load(path, live, FACTS, training=True)
    assert live["dense.w.step"] == 5.0
    assert [entry.name for entry in path.parent.iterdir()] == ["a.ckpt"]


def test_allowed_types_are_only_those_of_the_index():
    assert all(module.startswith(("torch", "pathlib")) for module, _ in IndexUnpickler.allowed)


def test_directories_are_exchanged(tmp_path):
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    replace_directory(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "file").read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["old"]


def test_a_full_disk_leaves_the_previous_checkpoint(path):
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    script = textwrap.dedent(f"""
        import resource, signal, torch, torch.distributed as dist
        from laser.train.checkpoint import save
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, {hard}))
        try:
            save({str(path)!r}, {{"model.w": torch.zeros(1000, 3)}}, {{}}, {FACTS!r})
        except ValueError as error:
            print(error)
    """)
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert "could not write checkpoint" in done.stdout, done.stderr
    live = tensors(0.0)
    load(path, live, FACTS, training=True)
    assert live["dense.w.step"] == 1.0
    save(path, tensors(2.0), {}, FACTS)  # the leftovers of the failed one are no obstacle

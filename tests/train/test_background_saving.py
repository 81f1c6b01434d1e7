"""Checkpoints written while training goes on: what was copied is what is written, and failures are told once."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from laser.train import background_saving
from laser.train.background_saving import BackgroundSaver, check_links
from laser.train.checkpoint import load, save

FACTS = {"schema": "abc", "data_set": "toy", "table_optimizer": "sgd", "step": 3}


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"model.w": torch.full((1000, 3), value), "dense.w.step": torch.tensor(value)}


def stored(path: Path) -> float:
    live = tensors(0.0)
    state = load(path, live, FACTS, training=True)
    assert live["model.w"].unique().tolist() == [live["dense.w.step"].item()] == [state["value"]]
    return state["value"]


@pytest.fixture
def saver(group_of_one: None) -> BackgroundSaver:
    saver = BackgroundSaver(None)
    yield saver
    saver.end()
    saver.thread.join(10)


@pytest.fixture
def gate(monkeypatch) -> threading.Event:
    """What the writing thread waits for before each checkpoint."""
    opened = threading.Event()

    def slow_save(*arguments) -> None:
        assert opened.wait(20)
        save(*arguments)

    monkeypatch.setattr(background_saving, "save", slow_save)
    return opened


def test_later_changes_do_not_reach_what_is_being_written(saver, gate, tmp_path):
    live, state = tensors(1.0), {"value": 1.0}
    saver.save(tmp_path / "a.ckpt", lambda: live, state, FACTS, key=1)
    for tensor in live.values():
        tensor.fill_(7.0)
    state["value"] = 7.0
    assert not (tmp_path / "a.ckpt").exists()  # training goes on meanwhile
    gate.set()
    saver.wait()
    assert stored(tmp_path / "a.ckpt") == 1.0


def test_checkpoints_of_a_step_share_a_copy_and_those_of_another_wait(saver, gate, tmp_path):
    copies = []

    def copy(value: float) -> dict[str, torch.Tensor]:
        copies.append(value)
        return tensors(value)

    def go_on(name: str, value: float, key: int) -> None:
        saver.save(tmp_path / name, lambda: copy(value), {"value": value}, FACTS, key)

    go_on("best.ckpt", 1.0, 1)
    go_on("last.ckpt", 1.0, 1)
    assert copies == [1.0]
    later = threading.Thread(target=go_on, args=("last.ckpt", 2.0, 2))
    later.start()
    later.join(0.3)
    assert later.is_alive()
    assert copies == [1.0]
    gate.set()
    later.join(20)
    saver.wait()
    assert copies == [1.0, 2.0]
    assert (stored(tmp_path / "best.ckpt"), stored(tmp_path / "last.ckpt")) == (1.0, 2.0)


def test_a_failure_is_raised_once_and_keeps_what_was_there(saver, tmp_path):
    removed = []
    saver.save(tmp_path / "a.ckpt", lambda: tensors(1.0), {"value": 1.0}, FACTS, key=1)
    saver.remove(lambda: removed.append("before"))
    saver.wait()
    (tmp_path / "file").write_text("")
    saver.save(tmp_path / "file" / "a.ckpt", lambda: tensors(2.0), {"value": 2.0}, FACTS, key=2)
    saver.remove(lambda: removed.append("after"))
    with pytest.raises(ValueError, match=r"could not write checkpoint .*file/a.ckpt"):
        saver.save(tmp_path / "a.ckpt", lambda: tensors(3.0), {"value": 3.0}, FACTS, key=3)
    assert removed == ["before"]
    assert stored(tmp_path / "a.ckpt") == 1.0
    saver.wait()
    saver.save(tmp_path / "a.ckpt", lambda: tensors(4.0), {"value": 4.0}, FACTS, key=4)
    saver.wait()
    assert stored(tmp_path / "a.ckpt") == 4.0


def test_killed_while_writing_the_previous_one_is_whole(tmp_path, group_of_one):
    script = textwrap.dedent(f"""
        import os, signal, torch, torch.distributed as dist
        from laser.train import background_saving, checkpoint
        from laser.train.background_saving import BackgroundSaver
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        saver = BackgroundSaver(None)
        for value in (1.0, 2.0):
            live = {{"model.w": torch.full((1000, 3), value), "dense.w.step": torch.tensor(value)}}
            saver.save({str(tmp_path / "a.ckpt")!r}, lambda: live, {{"value": value}}, {FACTS!r}, value)
            if value == 1.0:
                saver.wait()
                checkpoint.replace_directory = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        saver.wait()
    """)
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == -9, done.stderr
    assert (tmp_path / "a.ckpt.tmp" / "facts.json").exists()
    assert stored(tmp_path / "a.ckpt") == 1.0


def test_a_bounded_wait_ends(saver, gate, tmp_path):
    saver.save(tmp_path / "a.ckpt", lambda: tensors(1.0), {"value": 1.0}, FACTS, key=1)
    began = time.monotonic()
    saver.wait(0.1)
    assert time.monotonic() - began < 5
    gate.set()
    saver.wait()
    assert stored(tmp_path / "a.ckpt") == 1.0


def test_links_to_what_is_not_written_are_refused():
    for save_last in (True, False, None):
        check_links(SimpleNamespace(checkpoint_callbacks=[SimpleNamespace(save_last=save_last)]))
    with pytest.raises(ValueError, match=r"save_last is link.*set save_last to true"):
        check_links(SimpleNamespace(checkpoint_callbacks=[SimpleNamespace(save_last="link")]))

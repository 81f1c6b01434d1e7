"""Processes that are killed or hang, on the real command line: found, named once, and the run goes on elsewhere."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random

import pytest

from laser.train.checkpoint import read_facts

LAUNCH = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LASER_SAID", "PL_GLOBAL_SEED")
LASER = [sys.executable, "-m", "laser.cli"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
SCRIPT = Path(__file__).parents[2] / "conf" / "launch" / "torchrun_hosts.sh"
KILLS = int(os.environ.get("SOAK_KILLS", "12"))
"""Of the soak test; a shorter one says less."""
RECIPE = """
seed_everything: 0
data: {batch_size: 200, max_history: 12}
model:
  network:
    class_path: laser.model.laser.Laser
    init_args: {width: 16, segment_width: 3, mixer_tokens: 4, mixer_width: 16, token_dropout: 0.1}
trainer:
  accelerator: cpu
  devices: 2
  strategy: {class_path: laser.train.strategy.TorchRecStrategy, init_args: {timeout_seconds: 20}}
  enable_progress_bar: false
  log_every_n_steps: 1
  logger: [{class_path: laser.train.loggers.CSVLog}]
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {filename: best, monitor: val/auc, mode: max, enable_version_counter: false}
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {filename: last, every_n_train_steps: 4, enable_version_counter: false}
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> Callable[..., subprocess.Popen]:
    """``start(launcher, run, epochs, *options)`` begins to train on two processes; scripts say how they resume."""
    recipe = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    recipe.write_text(RECIPE)

    def begin(launcher: list[str], run: Path, epochs: int, *options: str) -> subprocess.Popen:
        kept = {name: value for name, value in os.environ.items() if name not in LAUNCH}
        environment = kept | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        arguments = [str(recipe)] if launcher[0] == "sh" else ["fit", "-c", str(recipe), "--ckpt_path", "auto"]
        arguments += ["--data.path", str(prepared)]
        arguments += ["--trainer.default_root_dir", str(run), "--trainer.max_epochs", str(epochs)]
        return subprocess.Popen([*launcher, *arguments, *options], stderr=subprocess.PIPE, text=True, env=environment)

    return begin


def steps_saved(run: Path) -> int:
    last = run / "checkpoints" / "last.ckpt"
    return read_facts(last)["step"] if last.exists() else 0


def wait_for(condition: Callable[[], bool], process: subprocess.Popen, seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < end
        time.sleep(0.05)


def trainers(process: subprocess.Popen) -> list[int]:
    """Training processes that a launcher started, the oldest first."""
    children = Path(f"/proc/{process.pid}/task").glob("*/children")
    found = sorted(int(child) for file in children for child in file.read_text().split())
    return [child for child in found if "laser.cli" in Path(f"/proc/{child}/cmdline").read_text()]


def lives(process: int) -> bool:
    """Whether a process runs; a dead one that its parent has not asked for does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(("victim", "how"), [(1, signal.SIGKILL), (0, signal.SIGKILL)])
def test_a_lost_process_is_named_once(start, tmp_path, victim, how):
    process = start(LASER, tmp_path, 10_000)
    wait_for(lambda: steps_saved(tmp_path) > 0, process)
    check_named(process, victim, how, 10)


def check_named(process: subprocess.Popen, victim: int, how: signal.Signals, seconds: float) -> None:
    """Kill or stop one of two processes: the other one says so once, and both end in time."""
    child = trainers(process)[0]
    os.kill(process.pid if victim == 0 else child, how)
    began = time.monotonic()
    errors = process.communicate(timeout=60)[1]  # until the last of both has closed it
    assert time.monotonic() - began < seconds + 10  # the machine may be busy
    assert errors.count("laser: ") == 1, errors
    assert f"laser: process {victim} of 2 was lost after step " in errors
    assert "Traceback" not in errors
    end = time.monotonic() + 10  # the kernel closes a process's files before it counts as dead
    while lives(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not lives(child)
    assert process.returncode == (-signal.SIGKILL if victim == 0 else 3)


@pytest.mark.parametrize(
    ("victim", "how", "timeout", "seconds"),
    [(1, signal.SIGKILL, 200, 7), (0, signal.SIGKILL, 200, 7), (1, signal.SIGSTOP, 20, 17)],
)
def test_it_is_named_by_a_process_that_only_waits(start, tmp_path, monkeypatch, victim, how, timeout, seconds):
    """As under NCCL, where no operation fails: the main thread of the process that is left sleeps."""
    (tmp_path / "sleepy.py").write_text(f"""
import time
from pathlib import Path
from lightning.pytorch import Callback
from lightning.pytorch.loggers.logger import DummyLogger
class Closed(DummyLogger):
    def finalize(self, status):
        Path({str(tmp_path / "closed")!r}).write_text(status)
class Sleepy(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == {1 - victim} and trainer.global_step == 6:
            Path({str(tmp_path / "asleep")!r}).touch()
            time.sleep(1000)
""")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    options = ["--trainer.callbacks+", "sleepy.Sleepy", "--trainer.logger+", "sleepy.Closed"]
    options += ["--trainer.strategy.init_args.timeout_seconds", str(timeout)]
    process = start(LASER, tmp_path / "run", 10_000, *options)
    wait_for((tmp_path / "asleep").exists, process)
    check_named(process, victim, how, seconds)
    assert (tmp_path / "closed").read_text() == "failed"


def test_a_process_that_ends_first_is_not_lost(start, tmp_path, monkeypatch):
    """Nor when the store that it kept is gone for longer than one waits for a lost process."""
    (tmp_path / "late.py").write_text("""
import time
from lightning.pytorch import Callback
class Late(Callback):
    def teardown(self, trainer, pl_module, stage):
        time.sleep(8 if trainer.global_rank == 1 else 0)
""")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    process = start(LASER, tmp_path / "run", 1, "--trainer.callbacks+", "late.Late")
    assert process.communicate(timeout=100)[1] == ""
    assert process.returncode == 0


def test_metrics_of_a_step_are_there_before_its_checkpoint(start, tmp_path, monkeypatch):
    """Killed as soon as a checkpoint is whole, before Lightning logs the step."""
    (tmp_path / "faulty.py").write_text("""
import os, signal
from lightning.pytorch.callbacks import ModelCheckpoint
class Deadly(ModelCheckpoint):
    def __init__(self):
        super().__init__(filename="deadly", every_n_train_steps=6)
    def on_train_batch_end(self, trainer, *arguments):
        super().on_train_batch_end(trainer, *arguments)
        if trainer.global_step == 6:
            os.kill(os.getpid(), signal.SIGKILL)
""")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    process = start(LASER, tmp_path / "run", 10_000, "--trainer.devices", "1", "--trainer.callbacks+", "faulty.Deadly")
    process.communicate(timeout=100)
    assert process.returncode == -signal.SIGKILL
    assert read_facts(tmp_path / "run" / "checkpoints" / "deadly.ckpt")["step"] == 6
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[1:]
    assert [int(row.split(",")[1]) for row in rows] == [0, 1, 2, 3, 4, 5]


def test_an_error_of_one_process_is_the_only_one_reported(start, tmp_path, monkeypatch):
    (tmp_path / "faulty.py").write_text("""
from lightning.pytorch import Callback
class Faulty(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == 1 and trainer.global_step == 6:
            raise ValueError("batch 6 is odd")
""")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    process = start(LASER, tmp_path / "run", 10_000, "--trainer.callbacks+", "faulty.Faulty")
    errors = process.communicate(timeout=100)[1]
    assert errors.splitlines() == ["laser fit: batch 6 is odd"]
    assert process.returncode == 3


@pytest.fixture(scope="module")
def undisturbed(start, tmp_path_factory) -> Callable[[int], Path]:
    """Folder of a run that nothing happened to."""

    @cache
    def finish(epochs: int) -> Path:
        run = tmp_path_factory.mktemp("undisturbed")
        process = start(LASER, run, epochs)
        errors = process.communicate(timeout=200)[1]
        assert process.returncode == 0, errors[-3000:]
        return run

    return finish


def check_same(run: Path, whole: Path) -> None:
    for name in ("last", "best"):
        compared = [*LASER, "checkpoint", "diff", *(str(x / "checkpoints" / f"{name}.ckpt") for x in (run, whole))]
        done = subprocess.run(compared, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:]
    assert (run / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()


def test_torchrun_restarts_to_the_same_numbers(start, tmp_path, undisturbed):
    """One rank is killed in the middle of the run: the restarted run ends as if nothing had happened."""
    process = start([*TORCHRUN, "--max_restarts", "2", "-m", "laser.cli"], tmp_path, 12)
    wait_for(lambda: steps_saved(tmp_path) >= 12, process)
    os.kill(trainers(process)[1], signal.SIGKILL)
    errors = process.communicate(timeout=200)[1]
    assert process.returncode == 0, errors[-3000:]
    check_same(tmp_path, undisturbed(12))


def two_hosts(start, run: Path, epochs: int) -> list[subprocess.Popen]:
    """Two agents of torchrun stand for two hosts, of one process each."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    return [start(["sh", str(SCRIPT), address, "2", "1"], run, epochs) for _ in range(2)]


def test_the_script_for_hosts_trains_on_two(start, tmp_path):
    for host in two_hosts(start, tmp_path, 1):
        errors = host.communicate(timeout=200)[1]
        assert host.returncode == 0, errors[-3000:]
    assert len(json.loads((tmp_path / "ranks.json").read_text())["ranks"]) == 2
    assert steps_saved(tmp_path) == 8


@pytest.mark.soak
def test_hosts_restart_to_the_same_numbers(start, tmp_path, undisturbed):
    """A rank of one host is killed: both hosts restart, and end as one host does undisturbed."""
    hosts = two_hosts(start, tmp_path, 12)
    wait_for(lambda: steps_saved(tmp_path) >= 12, hosts[0])
    os.kill(trainers(hosts[1])[0], signal.SIGKILL)
    for host in hosts:
        errors = host.communicate(timeout=200)[1]
        assert host.returncode == 0, errors[-3000:]
    check_same(tmp_path, undisturbed(12))


def test_a_mistake_is_not_tried_again(start, tmp_path):
    process = start(["sh", str(SCRIPT), "127.0.0.1:1", "2", "1"], tmp_path, 12, "--trainer.max_epoch", "3")
    errors = process.communicate(timeout=100)[1]
    assert (process.returncode, errors) == (2, "laser fit: unrecognized arguments: --trainer.max_epoch 3\n")


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("background", [False, True], ids=["", "save_in_background"])
def test_ranks_killed_at_random_change_nothing(start, tmp_path, undisturbed, background):
    """Ranks die at random times through a whole run, some while saving, some while starting up."""
    random = Random(5)
    options = ["--trainer.strategy.init_args.save_in_background", "true"] if background else []
    process = start([*TORCHRUN, "--max_restarts", "100", "-m", "laser.cli"], tmp_path, 5 * KILLS, *options)
    killed = 0
    for _ in range(KILLS):
        time.sleep(random.uniform(2, 25))
        if process.poll() is None and (running := trainers(process)):
            os.kill(random.choice(running), signal.SIGKILL)
            killed += 1
    errors = process.communicate(timeout=900)[1]
    assert process.returncode == 0, errors[-3000:]
    assert killed >= KILLS // 2
    check_same(tmp_path, undisturbed(5 * KILLS))

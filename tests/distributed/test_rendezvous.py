"""Stores of processes that start again, as torchrun's do, and of a single one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import LightningEnvironment

from laser.train.strategy import TorchRecStrategy

PROCESS = """
import os, sys, time
from datetime import timedelta
import torch, torch.distributed as dist
from laser.train.rendezvous import store_of_this_start, store_outlives_processes

rank, late, timeout = int(os.environ["RANK"]), float(sys.argv[1]), timedelta(seconds=15)
time.sleep(late)
assert store_outlives_processes()
store = store_of_this_start(rank, 2, timeout)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timeout)
total = torch.tensor([rank + 1.0])
dist.all_reduce(total)
assert total.item() == 3.0
os._exit(0)
"""


@pytest.fixture
def begin() -> Callable[[int, float], subprocess.Popen]:
    """``begin(rank, late)`` starts one of two processes on a store that this process keeps."""
    server = dist.TCPStore("127.0.0.1", 0, None, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=15))

    def start(rank: int, late: float) -> subprocess.Popen:
        environment = os.environ | {
            "RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(server.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-c", PROCESS, str(late)]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)

    return start


def finish(*processes: subprocess.Popen) -> None:
    for process in processes:
        errors = process.communicate(timeout=60)[1]
        assert process.returncode == 0, errors[-2000:]


def test_a_late_process_is_not_mistaken_for_the_one_before_it(begin):
    """Whichever of the two comes late, the other does not call at the address of an earlier start."""
    finish(begin(0, 0), begin(1, 0))
    finish(begin(0, 3), begin(1, 0))
    finish(begin(0, 0), begin(1, 3))


def test_a_process_that_died_while_it_waited_does_not_matter(begin):
    """A question nobody answered, then a start of both."""
    waiting = begin(1, 0)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.communicate(timeout=8)
    waiting.kill()
    waiting.communicate()
    finish(begin(0, 0), begin(1, 2))


def test_a_single_process_needs_no_port(monkeypatch):
    """Many single processes on one host would compete for ports that were free a moment ago."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        strategy = TorchRecStrategy(
            parallel_devices=[torch.device("cpu")], cluster_environment=LightningEnvironment(), timeout_seconds=20
        )
        strategy.setup_distributed()
        total = torch.ones(1)
        dist.all_reduce(total)
        dist.destroy_process_group()
    assert total.item() == 1

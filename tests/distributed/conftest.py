"""Starts groups of processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist

WORKER = Path(__file__).with_name("worker.py")
LAUNCH = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED")


@pytest.fixture(scope="session")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """``launch(world_size, jobs, hosts=1)``: run jobs in that many processes of as many hosts; see worker.py."""

    def start(world_size: int, jobs: list[dict], hosts: int = 1) -> None:
        file = tmp_path_factory.mktemp("jobs") / "jobs.json"
        file.write_text(json.dumps(jobs))
        with socket.socket() as listener:
            listener.bind(("localhost", 0))
            port = listener.getsockname()[1]
        common = {name: value for name, value in os.environ.items() if name not in LAUNCH}
        common |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(world_size)}
        common |= {"HOSTS": str(hosts), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        per_host = world_size // hosts
        ranks = [
            subprocess.Popen(
                [sys.executable, str(WORKER), str(file)],
                env=common | {"LOCAL_RANK": str(rank % per_host), "NODE_RANK": str(rank // per_host)},
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(world_size)
        ]
        try:
            outcomes = [rank.communicate(timeout=240) for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
        for process, (_, errors) in zip(ranks, outcomes, strict=True):
            assert process.returncode == 0, errors[-4000:]

    return start


@pytest.fixture
def two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int, str], None]], Path]:
    """``two_processes(work)``: call a module's function ``work(rank, folder)`` in a gloo group of two; the folder."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")

    def run(work: Callable[[int, str], None]) -> Path:
        context = multiprocessing.get_context("spawn")
        processes = [context.Process(target=in_group, args=(work, rank, str(tmp_path))) for rank in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()
        assert [process.exitcode for process in processes] == [0, 0]
        return tmp_path

    return run


def in_group(work: Callable[[int, str], None], rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    work(rank, folder)
    dist.destroy_process_group()

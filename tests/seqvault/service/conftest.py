"""A service in a process of its own, as a user starts it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from laser.seqvault import SeqVault
from laser.seqvault.service import RemoteVault
from tests.seqvault.conftest import FIELDS, make_events

READER, WRITER = "reader-token-of-32-characters-00", "writer-token-of-32-characters-00"


@dataclass
class Served:
    """A running service."""

    process: subprocess.Popen
    location: str
    metrics_port: int

    def connect(self, token: str | None = WRITER, **options: Any) -> RemoteVault:
        return RemoteVault(self.location, token, **({"timeout": 120.0} | options))  # kernels may have to be compiled

    @property
    def port(self) -> int:
        return int(self.location.rpartition(":")[2])

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        try:
            return self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # tells what each thread was doing
            raise AssertionError(self.process.communicate()[1]) from None

    def memory(self) -> int:
        """Most bytes that the process ever held."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) << 10
        raise AssertionError


Start = Callable[..., Served]


def token_files(folder: Path) -> list[str]:
    (folder / "read.txt").write_text(READER + "\n")
    (folder / "write.txt").write_text(f"an-older-writer-token-that-still-counts\n{WRITER}\n")
    return ["--read_tokens_file", str(folder / "read.txt"), "--write_tokens_file", str(folder / "write.txt")]


@pytest.fixture
def tokens(tmp_path: Path) -> list[str]:
    return token_files(tmp_path)


def serve(path: Path, tokens: list[str], options: Sequence[object], port: int = 0) -> Served:
    command = [sys.executable, "-m", "laser.cli", "vault", "serve", str(path), "--port", str(port)]
    command += ["--metrics_port", "0", *tokens, *map(str, options)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    assert process.stderr is not None
    line = process.stdout.readline()
    assert line, process.stderr.read()
    told = json.loads(line)
    return Served(process, told["location"], told["metrics_port"])


def end(served: Served) -> None:
    with contextlib.suppress(ProcessLookupError):
        served.process.kill()
    served.process.communicate()


@pytest.fixture
def start(tokens: list[str]) -> Iterator[Start]:
    running: list[Served] = []

    def started(path: Path, *options: object, port: int = 0) -> Served:
        running.append(serve(path, tokens, options, port))
        return running[-1]

    yield started
    for served in running:
        end(served)


def fill(path: Path, rng: np.random.Generator) -> Path:
    """A vault of 40 users with 6000 events, some packed, some recent."""
    with SeqVault.create(path, FIELDS, dictionaries=["category"]) as vault:
        vault.append(rng.integers(0, 40, 5000), make_events(rng, 5000))
        vault.checkpoint()
        vault.append(rng.integers(0, 40, 1000), make_events(rng, 1000))
    return path


@pytest.fixture
def filled(path: Path, rng: np.random.Generator) -> Path:
    return fill(path, rng)


@pytest.fixture
def served(filled: Path, start: Start) -> Served:
    return start(filled)


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Served]]:
    """A vault and a service for tests that change nothing."""
    folder = tmp_path_factory.mktemp("standing")
    path = fill(folder / "vault", np.random.default_rng(7))
    served = serve(path, token_files(folder), ())
    yield path, served
    end(served)

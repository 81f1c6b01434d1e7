"""Groups of three processes that beat, and what befalls them, all at once; test_heartbeat.py starts this.

    python beating.py FOLDER

What process R of a case prints to stderr is in FOLDER/CASE.R; codes.json there has the exit codes by case, of a
process that did not end -99.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from laser import saying
from laser.train import heartbeat
from laser.train.heartbeat import Heartbeat

WORLD, SILENCE = 3, 8.0
heartbeat.PATIENCE_SECONDS = 4.0
LIMIT = 40.0
"""Seconds until a process that should have ended is killed."""


def wait_in_vain() -> None:
    time.sleep(1000)


def is_stopped() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def last_is_stopped(beats: Heartbeat) -> None:
    is_stopped() if beats.rank == 2 else wait_in_vain()


def first_is_stopped(beats: Heartbeat) -> None:
    is_stopped() if beats.rank == 0 else wait_in_vain()


def first_dies(beats: Heartbeat) -> None:
    dies() if beats.rank == 0 else wait_in_vain()


def first_ends_long_before(beats: Heartbeat) -> None:
    time.sleep(0 if beats.rank == 0 else 2 * heartbeat.WATCH_SECONDS)
    beats.end()


def last_ends_long_before(beats: Heartbeat) -> None:
    time.sleep(0 if beats.rank == 2 else SILENCE + heartbeat.WATCH_SECONDS)
    beats.end()


def reports_an_error(beats: Heartbeat) -> None:
    """Its own, and takes longer than the others are patient."""
    if beats.rank != 1:
        wait_in_vain()
    beats.main_reports.set()
    beats.fall_silent()
    time.sleep(2 * heartbeat.PATIENCE_SECONDS)
    beats.end()
    raise SystemExit(2)


CASES = (
    last_is_stopped,
    first_is_stopped,
    first_dies,
    first_ends_long_before,
    last_ends_long_before,
    reports_an_error,
)


def take_part(case: Callable[[Heartbeat], None], rank: int, port: int, folder: Path) -> None:
    os.dup2(os.open(folder / f"{case.__name__}.{rank}", os.O_CREAT | os.O_WRONLY), 2)
    os.environ[saying.SAID] = str(folder / case.__name__)
    saying.join()
    store = dist.TCPStore("127.0.0.1", port, WORLD, is_master=rank == 0, timeout=timedelta(seconds=60))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
    # A logger that hangs must not keep the process.
    beats = Heartbeat(rank, WORLD, lambda: 7, SILENCE, finalize=wait_in_vain, kill=lambda: None)
    dist.barrier()
    time.sleep(2)  # so that all have read each other
    case(beats)


def fork(case: Callable[[Heartbeat], None], rank: int, port: int, folder: Path) -> int:
    if process := os.fork():
        return process
    code = 1
    try:
        take_part(case, rank, port, folder)
        code = 0
    except SystemExit as end:
        code = end.code
    finally:
        os._exit(code)


def main(folder: Path) -> None:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in CASES]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    running = {
        fork(case, rank, port, folder): (case.__name__, rank)
        for case, port in zip(CASES, ports, strict=True)
        for rank in range(WORLD)
    }
    codes = {case.__name__: [-99] * WORLD for case in CASES}
    end = time.monotonic() + LIMIT
    while running and time.monotonic() < end:
        process, status = os.waitpid(-1, os.WNOHANG)
        if process:
            case, rank = running.pop(process)
            codes[case][rank] = os.waitstatus_to_exitcode(status)
        elif all(Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] == "T" for process in running):
            break  # those that were stopped are all that is left
        else:
            time.sleep(0.1)
    for process in running:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    (folder / "codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

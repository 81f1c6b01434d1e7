"""A store that only the processes of one start share.

torchrun keeps one store for all restarts of a run and puts no prefix before its keys (seen in torch 2.13). A restarted
process may then read the address that another one wrote before it died, and nobody answers there. Restarts cannot be
told apart by ``TORCHELASTIC_RESTART_COUNT``: every host counts its own. So process 0 numbers the starts, and the others
ask it for the number under a name that was never used before.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta
from uuid import uuid4

import torch.distributed as dist

ASK_SECONDS = 0.05


def store_outlives_processes() -> bool:
    """Whether the processes' store is kept by torchrun, which starts them again when one fails."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def store_of_this_start(rank: int, world_size: int, timeout: timedelta) -> dist.Store:
    """The store of the environment's address, with a prefix that all processes of this start have and no other has.

    Of a single process: a store in its own memory.

    Args:
        rank: of this process.
        world_size: number of processes; all must call this.
        timeout: how long to wait for the others.

    Raises:
        torch.distributed.DistStoreError: not all processes called this in time.
    """
    if world_size == 1:
        return dist.HashStore()
    store, _, _ = next(dist.rendezvous("env://", rank, world_size, timeout=timeout))
    store.set_timeout(timeout)
    number = _number_of_start(store, world_size, timeout) if rank == 0 else _ask_for_number(store, rank)
    return dist.PrefixStore(f"laser_start_{number}", store)


def _ask_for_number(store: dist.Store, rank: int) -> int:
    name = uuid4().hex
    store.set(f"laser_ask/{rank}", name)
    number = int(store.get(f"laser_answer/{name}"))
    store.set(f"laser_heard/{number}/{rank}", "")
    return number


def _number_of_start(store: dist.Store, world_size: int, timeout: timedelta) -> int:
    # An earlier start's question may still stand: it is answered too, and whoever asked it is gone.
    number = store.add("laser_starts", 1)
    silent = list(range(1, world_size))
    end = time.monotonic() + timeout.total_seconds()
    while silent:
        for rank in silent:
            if store.check([f"laser_ask/{rank}"]):
                store.set(f"laser_answer/{store.get(f'laser_ask/{rank}').decode()}", str(number))
        silent = [rank for rank in silent if not store.check([f"laser_heard/{number}/{rank}"])]
        if silent and time.monotonic() > end:
            raise dist.DistStoreError(f"processes {silent} of {world_size} did not start within {timeout}")
        time.sleep(ASK_SECONDS if silent else 0)
    return number

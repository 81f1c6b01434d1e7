"""Batches of one split in a reproducible order: shuffled, divided over processes, prefetched, resumable."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from typing import Any, Self

import numpy as np
import torch

from laser.batch import Batch
from laser.data.collate import Collator
from laser.data.order import Order, balanced_share, history_lengths, permuted, requests
from laser.data.prepared import PreparedData
from laser.data.samples import share
from laser.data.transfer import Sent, Transfer


class BatchLoader:
    """Sized, stateful, iterable of ``Batch``.

    The order of samples depends on ``seed`` and epoch alone. A global batch is the next ``batch_size`` of them (the
    last batch of an epoch may be short), and each process works on its contiguous share of every global batch, so any
    number of processes sees what one does. A share may be empty: the batch then has no samples, but it is delivered.
    ``order`` can divide a global batch otherwise, and keep samples together.

    Shuffling is an exact permutation of the whole split, held in memory (4 bytes a sample up to 4 billion samples).

    Threads read and decode histories ahead of the consumer; batches arrive in order whatever their number. An error
    in a thread is raised where its batch would have been. Leaving an iteration early frees the threads.

    A loader that shuffles is one of many epochs: its threads go on with the next epoch behind the last batch of one, so
    that no consumer waits there. Up to ``prefetch`` batches then lie ready between epochs, for the iteration that
    begins the next epoch; any other begins anew.

    Args:
        data: the prepared data set.
        split: ``"train"``, ``"val"`` or ``"test"``.
        batch_size: samples of a step over all processes.
        max_history: newest events kept of each history; 0 for none.
        shuffle: permute the samples anew in each epoch, otherwise deliver them by time.
        seed: of the permutations.
        rank: of this process.
        world_size: number of processes.
        workers: threads that prepare batches; 0 prepares each one when it is asked for.
        prefetch: batches prepared ahead by all threads together.
        order: choices of which samples meet, and where.
        device: where batches are delivered, for the stream that is current where they are taken.

    Raises:
        ValueError: when an argument is out of range or the split is empty or unreadable.
    """

    batch_sampler = None
    """Lightning asks anything that has a ``sampler`` for this as well."""

    def __init__(
        self,
        data: PreparedData,
        split: str,
        *,
        batch_size: int,
        max_history: int,
        shuffle: bool,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 2,
        prefetch: int = 4,
        order: Order | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        lowest = {"batch_size": 1, "max_history": 0, "seed": 0, "world_size": 1, "workers": 0, "prefetch": 1}
        values = (batch_size, max_history, seed, world_size, workers, prefetch)
        for (name, low), value in zip(lowest.items(), values, strict=True):
            if value < low:
                raise ValueError(f"{name} of the {split} loader is {value}; set it to {low} or more")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank} with world_size {world_size}; expected 0 to {world_size - 1}")
        self.samples = data.split(split)
        self.split = split
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.workers = workers
        self.prefetch = prefetch
        self.transfer = Transfer(device)
        self.order = order or Order()
        keeps = self.order.balance_events or (shuffle and self.order.group_requests)
        self._request_N = requests(self.samples) if keeps else None
        balanced = self.order.balance_events and world_size > 1
        self._length_N = history_lengths(data, self.samples, max_history) if balanced else None
        self.epoch = 0
        self._position = 0
        self._start = 0
        self._collate = Collator(data, max_history).packed
        self._iterator: tuple[int, Generator[Sent]] | None = None
        """An epoch of which no batch was taken, and its batches: threads are at them. Lightning knows the attribute
        from PyTorch's loader with persistent workers, and sets it to ``None`` when training ends, in whatever way."""

    def __len__(self) -> int:
        return -(-len(self.samples) // self.batch_size)

    @property
    def sampler(self) -> Self:
        """Itself: Lightning announces each epoch to ``loader.sampler.set_epoch``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation of the next iteration, and begin it at its first batch.

        Naming the epoch that a loaded state is in keeps that state's position.
        """
        if epoch != self.epoch:
            self.epoch = epoch
            self._position = self._start = 0

    def state_dict(self) -> dict[str, Any]:
        """Where the consumer is: epoch, batches taken in it, and what must not change for this to mean anything."""
        return {"epoch": self.epoch, "position": self._position} | self._identity()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration continue after the batches that ``state`` counts, on any number of processes.

        Raises:
            ValueError: when the samples, batch size, order or seed differ from those of the state.
        """
        ours = self._identity()
        for name in {**ours, **{name: None for name in state if name not in ("epoch", "position")}}:
            if (then := state.get(name)) != (now := ours.get(name)):
                raise ValueError(
                    f"the {self.split} loader cannot resume: {name} was {then} in the checkpoint and is {now} now; "
                    f"set it back to {then}, or start a new run"
                )
        self.epoch = state["epoch"]
        self._position = self._start = state["position"]

    def __iter__(self) -> Generator[Batch]:
        # All of it happens at the first batch: Lightning makes the iterator before it announces the epoch.
        epoch, start, self._start = self.epoch, self._start, 0
        self._position = start
        batches = self._batches_from(epoch, start)
        try:
            for position in range(start + 1, len(self) + 1):
                sent = next(batches)
                # An iterator that outlives its epoch must not move the position of the new one.
                if self.epoch == epoch:
                    self._position = position
                if position == len(self) and self._goes_on:
                    # Before the last batch is handed out: Lightning asks for none behind it.
                    self._iterator, batches = (epoch + 1, batches), _none()
                yield self.transfer.receive(sent)
        finally:
            batches.close()

    @property
    def _goes_on(self) -> bool:
        return self.shuffle and self.workers > 0

    def _batches_from(self, epoch: int, start: int) -> Generator[Sent]:
        """What the threads have begun, if it is this, and otherwise a new beginning."""
        begun, self._iterator = self._iterator, None
        if begun is not None:
            if begun[0] == epoch and not start:
                return begun[1]
            begun[1].close()
        return self._prefetched(epoch, start) if self.workers else self._prepared(epoch, start)

    def _identity(self) -> dict[str, Any]:
        return {
            "samples": len(self.samples),
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "seed": self.seed,
            **(self.order.identity() if self.shuffle else {}),
        }

    def _order(self, epoch: int) -> np.ndarray:
        """Rows of the split in the order of an epoch."""
        count = len(self.samples)
        if not self.shuffle:
            return np.arange(count, dtype=np.uint32 if count <= 2**32 else np.int64)
        together = self._request_N if self.order.group_requests else None
        return permuted(count, self.order, together, np.random.default_rng([self.seed, epoch]))

    def _prepare(self, order: np.ndarray, epoch: int, position: int) -> Sent:
        """This process's share of one global batch."""
        rows = order[position * self.batch_size : (position + 1) * self.batch_size]
        mine = rows[self._share(rows)]
        step = epoch * len(self) + position
        samples, memory = self.samples.take(mine), self.transfer.memory
        return self.transfer.send(self._collate(samples, mine, step=step, global_size=len(rows), memory=memory))

    def _share(self, rows: np.ndarray) -> slice | np.ndarray:
        """Places in a global batch that this process works on."""
        if self._length_N is None or self._request_N is None:
            return share(len(rows), self.rank, self.world_size)
        return balanced_share(self._length_N[rows], self._request_N[rows], self.rank, self.world_size)

    def _prepared(self, epoch: int, start: int) -> Generator[Sent]:
        order = self._order(epoch)
        for position in range(start, len(self)):
            yield self._prepare(order, epoch, position)

    def _prefetched(self, epoch: int, start: int) -> Generator[Sent]:
        """Batches from ``start`` on; of all epochs to come where the loader goes on."""
        pending = deque[Future[Sent]]()
        threads = ThreadPoolExecutor(self.workers, thread_name_prefix=f"laser-{self.split}")
        try:
            for each in count(epoch) if self._goes_on else [epoch]:
                # By a thread, too, before any that needs it: meanwhile the consumer has the last batches of an epoch.
                order = threads.submit(self._order, each)
                for position in range(start, len(self)):
                    pending.append(threads.submit(self._prepare_when_ordered, order, each, position))
                    if len(pending) > self.prefetch:
                        yield pending.popleft().result()
                start = 0
            while pending:
                yield pending.popleft().result()
        finally:
            threads.shutdown(wait=True, cancel_futures=True)

    def _prepare_when_ordered(self, order: Future[np.ndarray], epoch: int, position: int) -> Sent:
        return self._prepare(order.result(), epoch, position)


def _none() -> Generator[Sent]:
    """What an iteration has to close when another goes on with its batches."""
    yield from ()

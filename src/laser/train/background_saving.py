"""Checkpoints that are written while training goes on.

A save copies the tensors to host memory, which training waits for, and hands the copy to a thread that writes it, with
a process group of its own. One step's checkpoints (best and last, say) share a copy; a later step's waits until those
before it are written, so that there is one copy at most. Old checkpoints are removed by the same thread, after the
save that replaces them: at any time the newest whole one is on the disk.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from copy import deepcopy
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor
from torch.distributed.remote_device import _remote_device

from laser.train.checkpoint import packed, save

if TYPE_CHECKING:
    import lightning.pytorch as pl


@torch.no_grad()
def copied(tensors: dict[str, Any], group: dist.ProcessGroup | None = None) -> dict[str, Any]:
    """Copies in host memory of what ``live_tensors`` returns; of sharded tensors each process copies its shards."""
    return {name: _copied(tensor, group) for name, tensor in tensors.items()}


def _copied(tensor: Any, group: dist.ProcessGroup | None) -> Any:
    if not isinstance(tensor, ShardedTensor):
        return _on_host(tensor)
    metadata = deepcopy(tensor.metadata())
    for shard in metadata.shards_metadata:
        shard.placement = _remote_device(f"rank:{shard.placement.rank()}/cpu")  # type: ignore[union-attr]
    offsets = {tuple(shard.shard_offsets): shard for shard in metadata.shards_metadata}
    shards = [Shard(_on_host(s.tensor), offsets[tuple(s.metadata.shard_offsets)]) for s in tensor.local_shards()]
    return ShardedTensor._init_from_local_shards_and_global_metadata(shards, metadata, process_group=group)


def _on_host(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="cpu", memory_format=torch.contiguous_format).copy_(tensor.detach())


class BackgroundSaver:
    """Writes checkpoints in a thread of this process; every process makes one and calls it alike.

    Args:
        group: of all processes, on gloo, used by the thread alone; ``None``: there is no process group.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = group
        self.jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self.idle = threading.Condition()
        self.waiting = 0
        self.error: BaseException | None = None
        self.key: Hashable = None
        self.copy: dict[str, Any] = {}
        self.thread = threading.Thread(target=self._work, daemon=True, name="laser-checkpoints")
        self.thread.start()

    def save(
        self,
        path: Path | str,
        tensors: Callable[[], dict[str, Any]],
        trainer_state: dict[str, Any],
        facts: dict[str, Any],
        key: Hashable,
    ) -> None:
        """Copy, and let the thread write.

        Args:
            path: directory to write or replace.
            tensors: gives what ``live_tensors`` returns.
            trainer_state: as for ``laser.train.checkpoint.save``.
            facts: as for ``laser.train.checkpoint.save``.
            key: the same as that of the latest save when no tensor has changed since.

        Raises:
            ValueError: when an earlier checkpoint could not be written.
        """
        if key != self.key:
            self.wait()
            self.key, self.copy = key, copied(tensors(), self.group)
        state, copy = packed(trainer_state), self.copy
        self._add(lambda: save(path, copy, state, facts, self.group))

    def remove(self, action: Callable[[], None]) -> None:
        """Run ``action``, which removes an old checkpoint, when all before it are written; not after a failure."""
        self._add(action)

    def wait(self, seconds: float | None = None) -> None:
        """Wait until everything is written, or ``seconds`` have passed.

        Raises:
            ValueError: when a checkpoint could not be written; once for each failure.
        """
        with self.idle:
            self.idle.wait_for(lambda: self.waiting == 0, seconds)
            if self.waiting == 0:
                self.key, self.copy = None, {}
            error, self.error = self.error, None
        if error is not None:
            raise error

    def end(self) -> None:
        """Let the thread end after what it has to do."""
        self.jobs.put(None)

    def _add(self, job: Callable[[], None]) -> None:
        with self.idle:
            self.waiting += 1
        self.jobs.put(job)

    def _work(self) -> None:
        while (job := self.jobs.get()) is not None:
            try:
                if self.error is None:
                    job()
            except BaseException as error:  # raised where the run waits for it
                self.error = error
            del job  # and with it the copy
            with self.idle:
                self.waiting -= 1
                self.idle.notify_all()


def check_links(trainer: pl.Trainer) -> None:
    """Refuse links to checkpoints that are not written yet: after a crash they would lead nowhere.

    Raises:
        ValueError: naming the option.
    """
    for callback in trainer.checkpoint_callbacks:
        if getattr(callback, "save_last", None) == "link":
            raise ValueError(
                "ModelCheckpoint's save_last is link, which would name a checkpoint before save_in_background has "
                "written it; set save_last to true"
            )

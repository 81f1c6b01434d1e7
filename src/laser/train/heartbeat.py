"""Beats of the processes of a run: which one was lost, found out and said by those that are left.

When a process dies or hangs, the others fail in whatever collective operation comes next, with an error that names a
socket, or, under NCCL, wait on without a word. So every process writes a beat to the store of the process group twice a
second, from a thread of its own. When an operation fails, the beats that no longer move tell who is gone, and one
process says it for all. A second thread does so where the main thread only waits. It watches the next process alone, so
that N processes read N beats; whichever processes are lost, one that is left watches one of them.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import count
from typing import Any

import torch.distributed as dist

from laser.saying import say_once
from laser.train.failures import LOST, PATIENCE_SECONDS, leave_lost
from laser.train.rendezvous import store_outlives_processes

BEAT_SECONDS = 0.5
WATCH_SECONDS = 4.0
"""How long beats are watched before a process counts as lost: many times the interval, for machines under load."""
CURE = "start the same command with --ckpt_path auto to go on from the last checkpoint"
GONE = f"it no longer answers; was it killed, for want of memory perhaps? {CURE}"
ENDED = "ended"
"""Last word of the beat of a process that has ended, or will without the others."""
NUMBERS = count()
"""Every process numbers alike what it runs in its process group, such as an evaluation after training."""


class Heartbeat:
    """Says twice a second that this process lives and how many steps it has done, and watches the next one.

    Args:
        rank: of this process.
        world_size: number of processes.
        steps: how many steps this process has done.
        silence_seconds: how long the next process may write no beat before it is lost; with all beats
            watched at its end, ``WATCH_SECONDS`` at least.
        finalize: closes what should be whole when this process ends because another one was lost; it may hang.
        kill: kills the processes that this one has launched.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        steps: Callable[[], int],
        silence_seconds: float,
        finalize: Callable[[], None],
        kill: Callable[[], None],
    ) -> None:
        store: Any = dist.distributed_c10d._get_default_store()
        self.store = dist.PrefixStore(f"laser_{next(NUMBERS)}", store)
        self.rank, self.world_size, self.steps = rank, world_size, steps
        self.next = (rank + 1) % world_size
        self.silence_seconds, self.finalize, self.kill = silence_seconds, finalize, kill
        self.ended, self.main_reports = threading.Event(), threading.Event()
        self.saying = threading.Lock()
        self.beats = 0
        self.lost: set[int] = set()
        # What the beating thread has read, and for how many seconds nothing new came. Threads count their own turns:
        # a clock would go on while this process is stopped, or one of its threads keeps the others waiting.
        self.last_beat = ""
        self.said = self.store_gone = self.first_ended = False
        self.still = self.unanswered = 0.0
        self._beat()
        self.beating = threading.Thread(target=self._beat_on, daemon=True, name="laser-heartbeat")
        self.beating.start()
        threading.Thread(target=self._watch, daemon=True, name="laser-watch").start()

    def _beat(self, *words: str) -> None:
        self.beats += 1
        self.store.set(f"beat/{self.rank}", " ".join((str(self.beats), str(self.steps()), *words)))

    def _beats(self, ranks: Iterable[int]) -> dict[int, str]:
        names = {rank: f"beat/{rank}" for rank in ranks}
        return {
            rank: self.store.get(name).decode() if self.store.check([name]) else "0 0" for rank, name in names.items()
        }

    def _beat_on(self) -> None:
        """Beat and read, until ``stop`` is called, or the store is gone or will be."""
        while not self.ended.wait(BEAT_SECONDS):
            try:
                self._beat()
                self._read()
                if self.first_ended:
                    self._beat(ENDED)
                    return
            except RuntimeError:
                self.store_gone = True
                return

    def _read(self) -> None:
        beats = self._beats({0, self.next})
        self.said = self.store.add("said", 0) > 0
        self.first_ended = self.rank != 0 and beats[0].endswith(ENDED)
        self.unanswered = 0.0
        moves = beats[self.next] != self.last_beat or beats[self.next].endswith(ENDED)
        self.still = 0.0 if moves else self.still + BEAT_SECONDS
        self.last_beat = beats[self.next]

    def _watch(self) -> None:
        """End this process when another is lost, or was said to be, and the main thread does not do so itself."""
        since_said = 0.0
        while not self.ended.wait(BEAT_SECONDS):
            self.unanswered += BEAT_SECONDS
            since_said += BEAT_SECONDS * self.said
            if self.said:
                if since_said >= PATIENCE_SECONDS and not self.main_reports.is_set():
                    self._leave()
            elif self.first_ended or (self.store_gone and self.main_reports.is_set()):
                return
            elif self.unanswered >= (WATCH_SECONDS if self.store_gone else self.silence_seconds):
                self._say_store_lost()  # the main thread, if it asks the store, waits for ever
                self._leave()
            elif self.still >= self.silence_seconds - WATCH_SECONDS:
                self.leave_if_lost(self.next)

    def leave_if_lost(self, suspect: int | None = None) -> None:
        """Say which process was lost, unless another process does, and end this one with code 3.

        Returns if none was lost, ``suspect`` was not, or the main thread has an error to report.
        """
        if self.main_reports.is_set():
            return
        with self.saying:
            try:
                beats = self._watch_beats()
                found = bool(self.lost) if suspect is None else suspect in self.lost
                if not found or self.ended.is_set() or self.main_reports.is_set():
                    return
                self._say(beats)
            except RuntimeError:  # the watching thread sees to it
                return
        self._leave()

    def say_lost(self) -> None:
        """Say, for the main thread, what was lost or who did not take part, unless another process does."""
        with self.saying:
            try:
                self._say(self._watch_beats())
            except RuntimeError:
                self._say_store_lost()

    def _watch_beats(self) -> dict[int, str]:
        """Latest beats of all processes; ``lost`` are those that do not move for ``WATCH_SECONDS``."""
        before = self._beats(range(self.world_size))
        time.sleep(WATCH_SECONDS)
        after = self._beats(range(self.world_size))
        self.lost = {rank for rank, beat in after.items() if beat == before[rank] and not beat.endswith(ENDED)}
        return after

    def _say(self, beats: dict[int, str]) -> None:
        if self.store.add("said", 1) > 1:
            return
        steps = {rank: beat.split()[1] for rank, beat in beats.items()}
        if self.lost:
            names = " and ".join(map(str, sorted(self.lost)))
            what = f"process {names} of {self.world_size} was lost after step {steps[min(self.lost)]}: {GONE}"
        else:
            what = (
                "an operation of all processes was not joined by all of them in time, though each answers ("
                + ", ".join(f"{rank} after step {step}" for rank, step in steps.items())
                + "); raise trainer.strategy.init_args.timeout_seconds if one had that much to do alone, or "
                + CURE
            )
        print(f"laser: {what}", file=sys.stderr, flush=True)

    def _say_store_lost(self) -> None:
        # Without the store the processes cannot agree on who says it; those of one machine can.
        keeper = "torchrun" if store_outlives_processes() else f"process 0 of {self.world_size}"
        say_once(f"laser: {keeper} was lost after step {self.steps()}: {GONE}")

    def _leave(self) -> None:
        """End this process with code 3, within ``PATIENCE_SECONDS`` whatever hangs."""
        limit = threading.Timer(PATIENCE_SECONDS, self._leave_at_once)
        limit.daemon = True
        limit.start()
        if self.unanswered < self.silence_seconds:
            self.end()
        with suppress(Exception):  # what happened has been said
            self.finalize()
        self.kill()
        leave_lost()

    def _leave_at_once(self) -> None:
        self.kill()
        os._exit(LOST)

    def fall_silent(self) -> None:
        """Let the other processes say nothing: this one ends with an error of its own, which it reports itself."""
        try:
            self.store.add("said", 1)
        except RuntimeError:
            return  # whoever keeps the store is gone, and that is what will be said

    def stop(self) -> None:
        """Stop beating and watching, without a word: for the others, this process is lost."""
        self.ended.set()
        self.beating.join(WATCH_SECONDS)

    def end(self) -> None:
        """Stop, and let the others know that this process ends without being lost."""
        self.stop()
        if self.first_ended or self.store_gone:
            return
        with suppress(RuntimeError):
            self._beat(ENDED)
            if self.rank == 0:
                self._wait_until_read()

    def _wait_until_read(self) -> None:
        """Keep the store until the others have read that this process ends, or have ended."""
        others, end = set(range(1, self.world_size)) - self.lost, time.monotonic() + WATCH_SECONDS
        while others and time.monotonic() < end:
            others = {rank for rank, beat in self._beats(others).items() if not beat.endswith(ENDED)}
            time.sleep(BEAT_SECONDS / 5 if others else 0)

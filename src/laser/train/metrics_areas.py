"""Areas under the ROC curve of many groups of rows, exact, in bounded memory, shared out over processes.

Rows become *words*: group in the high 32 bits, score as a monotone 32-bit integer in the low ones, so that sorting
words sorts by group, then score. Blocks of rows are sorted, equal words are counted, and the resulting *runs* are kept:
the first few in memory, the others in three files of columns. The areas are then taken range by range over the order
of words, each range small enough for memory and gathered from all runs of all ranks; a group cut by a range border is
put together afterwards from its parts. Everything is a count, so any number of processes gives the same integers.

Legend of shape suffixes: N rows of a block; R words of a run or a range, sorted; G groups; S splitters.
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from laser.train.metrics_exchange import exchange, gather, world

MAX_GROUP = 2**31
MAX_ROWS = 2**31
"""Twice the largest area, at most half of rows squared, fits int64."""
COLUMNS = {"word": np.uint64, "negatives": np.uint32, "positives": np.uint32}


@dataclass(frozen=True)
class Run:
    """Distinct words in order, with the rows of label 0 and 1 that share each."""

    word_R: np.ndarray
    negatives_R: np.ndarray
    positives_R: np.ndarray

    def cut(self, start: int, stop: int) -> np.ndarray:
        """Words [start, stop) as int64 [R, 2]: the word's bits, and both counts in one number."""
        counts_R = self.negatives_R[start:stop].astype(np.int64) << 32 | self.positives_R[start:stop]
        return np.stack([self.word_R[start:stop].view(np.int64), counts_R], axis=1)


@dataclass(frozen=True)
class StoredRun:
    """A run in the files of a folder: ``length`` words from ``first`` on, read (not mapped) whenever asked for."""

    folder: Path
    first: int
    length: int

    def _read(self, name: str, start: int, stop: int) -> np.ndarray:
        dtype = np.dtype(COLUMNS[name])
        return np.fromfile(self.folder / name, dtype, stop - start, offset=(self.first + start) * dtype.itemsize)

    @property
    def word_R(self) -> np.ndarray:
        """All words, read anew each time."""
        return self._read("word", 0, self.length)

    def cut(self, start: int, stop: int) -> np.ndarray:
        """As ``Run.cut``."""
        return Run(*(self._read(name, start, stop) for name in COLUMNS)).cut(0, stop - start)


@dataclass
class Areas:
    """Per group: rows of each label, and twice the number of correctly ordered (negative, positive) pairs.

    A tie counts as half a pair (average rank); doubled, it stays an integer. All int64, [G], groups ascending.
    """

    group_G: np.ndarray
    negatives_G: np.ndarray
    positives_G: np.ndarray
    doubled_G: np.ndarray

    def rows(self) -> np.ndarray:
        """As one int64 array, [G, 4]."""
        return np.stack([self.group_G, self.negatives_G, self.positives_G, self.doubled_G], axis=1)

    def auc(self) -> np.ndarray:
        """Area under the curve per group, float64 [G]; NaN where a group has one class only."""
        pairs_G = self.negatives_G.astype(np.float64) * self.positives_G
        return np.divide(self.doubled_G / 2.0, pairs_G, out=np.full(len(pairs_G), np.nan), where=pairs_G > 0)


def monotone(score_N: np.ndarray) -> np.ndarray:
    """uint64 that order as the finite float32 scores do; both zeros are equal."""
    bits_N = (score_N.astype(np.float32) + np.float32(0)).view(np.uint32)
    flipped_N = np.where(bits_N >> 31, ~bits_N, bits_N | np.uint32(1 << 31))
    return flipped_N.astype(np.uint64)


def sorted_run(group_N: np.ndarray, score_N: np.ndarray, label_N: np.ndarray) -> Run:
    """Sort a block of rows; groups are in [0, 2**31), scores finite, labels 0 or 1."""
    packed_N = (
        group_N.astype(np.uint64) << np.uint64(33) | monotone(score_N) << np.uint64(1) | label_N.astype(np.uint64)
    )
    packed_N.sort()
    word_N = packed_N >> np.uint64(1)
    first_R = starts(word_N)
    rows_R = np.diff(first_R, append=len(word_N))
    positives_R = np.add.reduceat(packed_N & np.uint64(1), first_R) if len(first_R) else first_R
    return Run(
        word_N[first_R], (rows_R - positives_R.astype(np.int64)).astype(np.uint32), positives_R.astype(np.uint32)
    )


def starts(sorted_N: np.ndarray) -> np.ndarray:
    """Index of the first of each block of equal values."""
    return np.flatnonzero(np.concatenate([np.ones(min(len(sorted_N), 1), bool), sorted_N[1:] != sorted_N[:-1]]))


def range_areas(cut_R2: np.ndarray) -> Areas:
    """Areas of one range of words, given unsorted and with repetitions."""
    cut_R2 = cut_R2[np.argsort(cut_R2[:, 0].view(np.uint64), kind="stable")]
    first_R = starts(cut_R2[:, 0])
    if not len(first_R):
        return Areas(*np.zeros((4, 0), np.int64))
    negatives_R = np.add.reduceat(cut_R2[:, 1] >> 32, first_R)
    positives_R = np.add.reduceat(cut_R2[:, 1] & 0xFFFFFFFF, first_R)
    group_R = cut_R2[first_R, 0] >> 32
    first_G = starts(group_R)
    below_R = np.cumsum(negatives_R) - negatives_R
    below_R -= np.repeat(below_R[first_G], np.diff(first_G, append=len(group_R)))
    doubled_G = np.add.reduceat(positives_R * (2 * below_R + negatives_R), first_G)
    return Areas(
        group_R[first_G], np.add.reduceat(negatives_R, first_G), np.add.reduceat(positives_R, first_G), doubled_G
    )


def join(parts_P4: np.ndarray) -> Areas:
    """Put together groups that range borders cut: rows of ``Areas.rows``, in the order of words."""
    joined: list[list[int]] = []
    for group, negatives, positives, doubled in parts_P4.tolist():
        if joined and joined[-1][0] == group:
            last = joined[-1]
            last[3] += doubled + 2 * last[1] * positives
            last[1] += negatives
            last[2] += positives
        else:
            joined.append([group, negatives, positives, doubled])
    return Areas(*np.array(joined, np.int64).reshape(-1, 4).T)


class SortedRuns:
    """The runs of one process.

    Args:
        block_rows: rows of a full block; ranges hold at most four times as many words.
        memory_runs: how many runs stay in memory; later ones go to files in the temporary directory, 16 bytes a word.
    """

    def __init__(self, block_rows: int, memory_runs: int) -> None:
        self.block_rows = block_rows
        self.memory_runs = memory_runs
        self.in_memory: list[Run] = []
        self.on_disk: list[int] = []
        self.folder: tempfile.TemporaryDirectory[str] | None = None

    def reset(self) -> None:
        """Forget all runs and remove their files."""
        self.in_memory = []
        self.on_disk = []
        if self.folder is not None:
            self.folder.cleanup()
        self.folder = None

    def add(self, run: Run) -> None:
        """Keep a run.

        Raises:
            ValueError: when the temporary directory is full.
        """
        if len(self.in_memory) < self.memory_runs:
            self.in_memory.append(run)
            return
        self.folder = self.folder or tempfile.TemporaryDirectory(prefix="laser-metrics-")
        try:
            for name, column in zip(COLUMNS, (run.word_R, run.negatives_R, run.positives_R), strict=True):
                with (Path(self.folder.name) / name).open("ab") as file:
                    column.tofile(file)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "requested and" in str(error):
                raise ValueError(
                    f"no space left in {tempfile.gettempdir()} for the rows of the exact AUC (32 bytes a row); "
                    "set TMPDIR to a folder on a larger disk"
                ) from None
            raise
        self.on_disk.append(len(run.word_R))

    def runs(self) -> list[Run | StoredRun]:
        """All runs; those on disk take no memory."""
        if self.folder is None:
            return [*self.in_memory]
        first = np.cumsum([0, *self.on_disk[:-1]]).tolist()
        place = Path(self.folder.name)
        return self.in_memory + [StoredRun(place, a, n) for a, n in zip(first, self.on_disk, strict=True)]

    def splitters(self) -> np.ndarray:
        """Words that cut the rows of all ranks into ranges of at most ``4 * block_rows`` words, the same on every rank.

        Every ``stride``-th word of each run is a sample; between two samples that are ``each`` apart lie at most
        ``each * stride`` words, and ``stride`` more for each run.
        """
        runs = self.runs()
        total = int(np.sum(gather(np.array([len(runs)]))))
        half = 2 * self.block_rows
        stride = max(1, half // max(1, total))
        each = max(1, half // stride)
        samples = [run.word_R[stride - 1 :: stride].copy() for run in runs]  # a view would keep the whole run
        mine_S = np.concatenate([np.zeros(0, np.uint64), *samples]).view(np.int64)
        sample_S = np.sort(np.concatenate(gather(mine_S)).view(np.uint64))
        return np.unique(sample_S[each::each])

    def ranges(self) -> Iterator[Areas]:
        """Yield the ``Areas`` of this rank's ranges, in the order of words; ranks hold consecutive ranges.

        Every rank must exhaust the iterator: each step is an exchange.
        """
        size = world()[1]
        runs, splitter_S = self.runs(), self.splitters()
        cuts = [_cuts(run.word_R, splitter_S) for run in runs]
        per_rank = -(-(len(splitter_S) + 1) // size)
        nothing = np.zeros((0, 2), np.int64)

        def mine(index: int) -> np.ndarray:
            if index > len(splitter_S):
                return nothing
            return np.concatenate(
                [nothing, *(run.cut(c[index], c[index + 1]) for run, c in zip(runs, cuts, strict=True))]
            )

        for step in range(per_rank):
            yield range_areas(np.concatenate(exchange([mine(q * per_rank + step) for q in range(size)])))


def _cuts(word_R: np.ndarray, splitter_S: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.searchsorted(word_R, splitter_S), [len(word_R)]])

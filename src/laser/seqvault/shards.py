"""Bulk writing by many processes: each packs its share of the users beside the vault, one commit adopts all of them.

    with SeqVault.create("vault", schema) as vault:
        receipts = ...  # in worker processes: write_shard("vault", batches, name="17"), each with users of its own
        vault.adopt(receipts)

Workers take no lock and change nothing that a reader sees. What they leave is a folder under ``shards/`` of the vault;
adoption copies its chunks into segments and switches once. The process that adopts keeps the vault open for writing
meanwhile: the next opening for writing removes all shards, those of killed workers too, and so does an adoption.

Legend of shape suffixes: N rows of a batch; U users.
"""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from laser.seqvault.catalog import SEGMENT_BYTES
from laser.seqvault.checksum import crc32c
from laser.seqvault.dictionary import Dictionaries
from laser.seqvault.exchange import ColumnNames, Events, decode, open_source
from laser.seqvault.index import ENTRY
from laser.seqvault.layout import Layout
from laser.seqvault.manifest import Manifest
from laser.seqvault.recovery import SHARDS
from laser.seqvault.segment import Segment, SegmentWriter
from laser.seqvault.staging import Block
from laser.seqvault.storing import BLOCK_EVENTS, pack_sorted

COPY_WORDS = 1 << 22
"""Words copied at a time by an adoption."""


@dataclass(frozen=True)
class ShardFile:
    """A file of a shard: its bytes of chunks, its chunks, and the CRC32C of their directory."""

    bytes: int
    chunks: int
    checksum: int


@dataclass(frozen=True)
class Receipt:
    """What a worker wrote; hand it to the process that adopts, as JSON if that is elsewhere."""

    folder: str
    """Name under ``shards/``."""
    coded: tuple[str, ...]
    """Fields of which it holds codes: those that had a dictionary when it was written."""
    users: int
    events: int
    files: tuple[ShardFile, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Receipt:
        """Inverse of ``to_dict``.

        Raises:
            ValueError: when it is not a receipt.
        """
        try:
            files = tuple(ShardFile(**file) for file in data["files"])
            return cls(data["folder"], tuple(data["coded"]), data["users"], data["events"], files)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a receipt of a shard: {error}; pass on what write_shard returned") from None


def write_shard(
    vault: Path | str,
    batches: Iterable[pa.RecordBatch],
    *,
    name: str,
    user: str = "user",
    columns: Mapping[str, str] | None = None,
) -> Receipt:
    """Pack the histories of some users, to be adopted by the vault later.

    Needs memory for a block of about 260,000 events, and for the longest history.

    Args:
        vault: folder of the vault, made with ``SeqVault.create``.
        batches: rows sorted by user, then time; a user's rows may go on in the next batch.
        name: of the shard, for its folder; letters, digits, ``_``, ``.`` and ``-``.
        user: column of users.
        columns: columns of fields that are not named like them.

    Raises:
        ValueError: when rows are not sorted or do not fit the fields, or an id is not in its field's dictionary.
    """
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"shard name is {name!r}; expected letters, digits, '_', '.' and '-'")
    manifest = Manifest.load(Path(vault))
    layout = manifest.layout
    names = ColumnNames.matching(layout, user, columns)
    decoded = (decode(batch, layout, names, place) for batch, place in open_source(batches, names).batches)
    ids = Dictionaries(Path(vault), layout, manifest.dictionaries)
    shard = _ShardWriter(Path(vault) / SHARDS / f"{name}-{uuid.uuid4().hex[:12]}", layout, sorted(ids.by_field))
    try:
        for users, events in _whole_users(decoded, layout):
            shard.write(users, _coded(ids, events))
        return shard.finish()
    except BaseException:
        shutil.rmtree(shard.folder, ignore_errors=True)
        raise


def _whole_users(decoded: Iterable[tuple[np.ndarray, Events]], layout: Layout) -> Iterator[tuple[np.ndarray, Events]]:
    """Blocks of about ``BLOCK_EVENTS`` sorted events, each user in one block."""
    waiting: list[tuple[np.ndarray, Events]] = []
    size, row = 0, 0
    for users, events in decoded:
        if len(users):
            _require_sorted(waiting[-1:], users, events[layout.names[0]], layout.names[0], row)
            row += len(users)
            waiting.append((users, events))
            size += len(users)
        if size >= BLOCK_EVENTS and waiting[0][0][0] != waiting[-1][0][-1]:
            users, events = _joined(waiting)
            cut = int(np.searchsorted(users, users[-1]))
            yield users[:cut], {name: values[:cut] for name, values in events.items()}
            waiting = [(users[cut:], {name: values[cut:] for name, values in events.items()})]
            size = len(users) - cut
    if waiting:
        yield _joined(waiting)


def _joined(parts: list[tuple[np.ndarray, Events]]) -> tuple[np.ndarray, Events]:
    names = parts[0][1]
    return np.concatenate([users for users, _ in parts]), {
        name: np.concatenate([events[name] for _, events in parts]) for name in names
    }


def _require_sorted(
    last: list[tuple[np.ndarray, Events]], users: np.ndarray, times: np.ndarray, time: str, row: int
) -> None:
    for previous_users, previous in last:
        users = np.concatenate([previous_users[-1:], users])
        times = np.concatenate([previous[time][-1:], times])
        row -= 1
    wrong = (users[1:] < users[:-1]) | ((users[1:] == users[:-1]) & (times[1:] < times[:-1]))
    if wrong.any():
        at = int(np.argmax(wrong)) + 1
        raise ValueError(
            f"row {row + at} of the shard (user {users[at]}, {time} {times[at]}) comes after user {users[at - 1]}, "
            f"{time} {times[at - 1]}; sort the rows by user, then {time}"
        )


def _coded(ids: Dictionaries, events: Events) -> Events:
    coded = ids.encode(events)
    for name, dictionary in ids.by_field.items():
        if dictionary.count > dictionary.durable.ids:
            unknown = dictionary.ids[dictionary.durable.ids]
            raise ValueError(
                f"{name} {unknown} is not in the vault's dictionary of {name!r}, which workers cannot extend; create "
                f"the vault without dictionaries=[{name!r}] (compaction adds those that pay), or load in one process"
            )
    return coded


class _ShardWriter:
    def __init__(self, folder: Path, layout: Layout, coded: list[str]) -> None:
        self.folder, self._layout, self._coded = folder, layout, tuple(coded)
        self._open: SegmentWriter | None = None
        self._files: list[ShardFile] = []
        self._users = self._events = 0
        folder.mkdir(parents=True)

    def write(self, users: np.ndarray, events: Events) -> None:
        """Add sorted events of users that have not been added before."""
        distinct, sizes = np.unique(users, return_counts=True)
        columns = self._layout.columns(events, np.arange(len(users)))
        packed, entries = pack_sorted(self._layout, distinct, np.zeros(len(distinct), np.int64), sizes, columns)
        if self._open is None:
            self._open = SegmentWriter(self.folder, len(self._files) + 1, self._layout)
        self._open.write(packed, entries)
        self._users, self._events = self._users + len(distinct), self._events + len(users)
        if self._open.bytes >= SEGMENT_BYTES:
            self._close()

    def _close(self) -> None:
        if self._open is not None:
            directory = self._open.finish()
            self._files.append(ShardFile(self._open.bytes, len(directory), crc32c(directory.tobytes())))
            self._open = None

    def finish(self) -> Receipt:
        """Make everything durable."""
        self._close()
        return Receipt(self.folder.name, self._coded, self._users, self._events, tuple(self._files))


class Shards:
    """Shards of a vault, examined before adoption.

    Raises:
        ValueError: when a shard is missing, is not what its receipt says, or two shards have the same user.
    """

    def __init__(self, vault: Path, layout: Layout, receipts: Iterable[Receipt]) -> None:
        self._parts: list[tuple[Segment, np.ndarray]] = []
        self._coded: dict[str, tuple[str, ...]] = {}
        users = [np.empty(0, np.uint64)]
        for receipt in receipts:
            self._coded[receipt.folder] = receipt.coded
            directories = [self._examine(vault / SHARDS / receipt.folder, layout, n, f) for n, f in _numbered(receipt)]
            if directories:
                users.append(np.unique(np.concatenate(directories)["user"]))
        self.users, counts = np.unique(np.concatenate(users), return_counts=True)
        """Users of all shards, uint64 [U], ascending."""
        if (counts > 1).any():
            user = self.users[np.argmax(counts > 1)]
            raise ValueError(f"user {user} is in more than one shard; give each shard users of its own, and adopt once")

    def require_coded(self, ids: Dictionaries) -> None:
        """Raise a ValueError unless all shards hold codes in just the fields that have a dictionary."""
        for folder, coded in self._coded.items():
            if list(coded) != sorted(ids.by_field):
                raise ValueError(
                    f"shard {folder} was written when the fields with dictionaries were {list(coded)}, now they are "
                    f"{sorted(ids.by_field)}; write it again, and append or compact only after adopting it"
                )

    def _examine(self, folder: Path, layout: Layout, number: int, file: ShardFile) -> np.ndarray:
        try:
            segment = Segment(folder, number, layout)
        except FileNotFoundError as error:
            raise ValueError(f"{error.filename} is missing, though a receipt names it; write the shard again") from None
        directory = segment.directory()
        if (len(directory), crc32c(directory.tobytes())) != (file.chunks, file.checksum):
            raise ValueError(f"{segment.path} is not what its receipt says; write the shard again")
        self._parts.append((segment, directory))
        return directory

    def blocks(self) -> Iterator[Block]:
        """Chunks and directory of all shards, some megabytes at a time."""
        for segment, directory in self._parts:
            ends = np.cumsum(directory["words"], dtype=np.int64)
            edges = np.flatnonzero(np.diff(ends // COPY_WORDS)) + 1
            for part in np.split(directory, edges):
                yield _read(segment, part)


def _numbered(receipt: Receipt) -> Iterator[tuple[int, ShardFile]]:
    return enumerate(receipt.files, start=1)


def _read(segment: Segment, directory: np.ndarray) -> Block:
    """Chunks that lie one after the other, and their entries with offsets from the first."""
    entries = directory.astype(ENTRY, copy=True)
    first, words = int(entries["offset"][0]), int(entries["words"].sum(dtype=np.int64))
    packed = np.fromfile(segment.path, np.uint64, words, offset=8 * first)
    if len(packed) < words:
        raise ValueError(f"{segment.path} ends at word {first + len(packed)}, within a chunk; write the shard again")
    entries["offset"] -= first
    return packed, entries

"""Examines every byte of a vault's files and returns what is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from laser.seqvault import derived, snapshot
from laser.seqvault.decoding import unpack
from laser.seqvault.dictionary import Dictionaries
from laser.seqvault.fetching import SegmentFiles, fetch_chunks
from laser.seqvault.index import ENTRY, Index, place_of
from laser.seqvault.manifest import Manifest, SegmentEntry
from laser.seqvault.recovery import LogFollower
from laser.seqvault.segment import HEADER_BYTES, TRAILER, Segment

BATCH_CHUNKS = 1024
ATTEMPTS = 8
"""Times that a vault is examined which changes meanwhile."""


@dataclass(frozen=True)
class Problem:
    """Something wrong in a file."""

    file: Path
    message: str

    def __str__(self) -> str:
        return self.message


def check_folder(folder: Path) -> list[Problem]:
    """Problems of the vault in ``folder``, from its files alone; empty when all is well."""
    for _ in range(ATTEMPTS):
        try:
            manifest = Manifest.load(folder)
        except ValueError as error:
            return [Problem(folder, str(error))]
        problems = _problems(folder, manifest)
        # A writer may have replaced, and removed, what the manifest named.
        if not problems or Manifest.load(folder).generation == manifest.generation:
            break
    return problems


def _problems(folder: Path, manifest: Manifest) -> list[Problem]:
    problems: list[Problem] = []
    rebuilt, ids = Index(), _check_dictionaries(folder, manifest, problems)
    for position in range(len(manifest.segments) + 1):
        if manifest.snapshot and position == manifest.snapshot_segments:
            _check_snapshot(folder, manifest, rebuilt, problems)
        for entry in manifest.segments[position : position + 1]:
            rebuilt.apply(_check_segment(folder, manifest, entry, ids, problems), entry.slot)
    for field in manifest.layout.derived:
        if number := manifest.tables.get(field.name, 0):
            path = folder / derived.file_name(number)
            try:
                derived.Table.load(field, path)
            except (ValueError, OSError) as error:
                problems.append(Problem(path, str(error)))
    try:
        LogFollower(folder, manifest).catch_up(lambda record: None)
    except (ValueError, FileNotFoundError) as error:
        problems.append(Problem(folder, str(error)))
    return problems


def _check_dictionaries(folder: Path, manifest: Manifest, problems: list[Problem]) -> Dictionaries:
    """Check the dictionaries; returns those that are readable."""
    ids = Dictionaries(folder, manifest.layout, manifest.dictionaries)
    for name, dictionary in list(ids.by_field.items()):
        try:
            if len(np.unique(dictionary.ids)) < len(dictionary.ids):
                problems.append(Problem(dictionary.path, f"{dictionary.path} has an id twice; restore it from a copy"))
        except (ValueError, OSError) as error:
            problems.append(Problem(dictionary.path, str(error)))
            del ids.by_field[name]
    return ids


def _check_segment(
    folder: Path, manifest: Manifest, entry: SegmentEntry, ids: Dictionaries, problems: list[Problem]
) -> np.ndarray:
    """Check one segment; returns its directory, empty when unreadable."""
    path = folder / f"segment {entry.number}"
    try:
        found = Segment(folder, entry.number, manifest.layout)
        path, directory = found.path, found.directory()
    except (ValueError, OSError) as error:
        problems.append(Problem(path, str(error)))
        return np.empty(0, ENTRY)
    chunks = directory[directory["count"] > 0]
    end = HEADER_BYTES // 8 + int(chunks["words"].sum())
    size = path.stat().st_size
    if end * 8 + directory.nbytes + TRAILER.size != size or end * 8 != entry.bytes or len(directory) != entry.chunks:
        problems.append(
            Problem(path, f"{path} has {size} bytes, not what its directory and the manifest say; restore it")
        )
    for start in range(0, len(chunks), BATCH_CHUNKS):
        _check_chunks(found, chunks[start : start + BATCH_CHUNKS], ids, problems)
    return directory


def _check_chunks(found: Segment, chunks: np.ndarray, ids: Dictionaries, problems: list[Problem]) -> None:
    layout, files = ids.layout, SegmentFiles({0: found}, ids)
    places = np.array([place_of(0, c["offset"], c["words"], c["count"]) for c in chunks], np.uint64)
    values, scratch = np.empty(1024, np.uint64), np.empty(1024, np.uint64)
    for at, chunk in enumerate(chunks):
        where = f"{found.path} is damaged at offset {int(chunk['offset']) * 8}"
        try:
            arena, (top,) = fetch_chunks(places[at : at + 1], files, layout.num_columns, layout.num_columns)
        except ValueError as error:
            problems.append(Problem(found.path, str(error)))
            continue
        user = arena[top + 1]
        count = int(chunk["count"])
        unpack(arena, top, 0, 0, count, values, 0, 1, scratch)
        ordered = values[:count].view(np.int64)
        bounds = (int(ordered[0]), int(ordered[-1]))
        if user != chunk["user"] or bounds != (chunk["first"], chunk["last"]) or (np.diff(ordered) < 0).any():
            problems.append(Problem(found.path, f"{where}: a chunk is not what the directory says; restore the file"))
        for name, dictionary in ids.by_field.items():
            column, length = layout.first_column[name], layout.choose([name])[0].length
            for component in range(column, column + length):
                unpack(arena, top, component, 0, count, values, 0, 1, scratch)
                if values[:count].max() >= len(dictionary.ids):
                    message = f"{where}: a chunk has codes outside {dictionary.path.name}; restore both files"
                    problems.append(Problem(found.path, message))


def _check_snapshot(folder: Path, manifest: Manifest, rebuilt: Index, problems: list[Problem]) -> None:
    path = folder / snapshot.file_name(manifest.snapshot)
    try:
        loaded = snapshot.load(folder, manifest.snapshot)
    except ValueError as error:
        problems.append(Problem(path, f"{error}; remove it, it is rebuilt from the segments"))
        return
    expected = rebuilt.compacted()
    if _described(loaded) != _described(expected):
        problems.append(Problem(path, f"{path} does not agree with the segments; remove it, it is rebuilt from them"))


def _described(index: Index) -> dict[int, list[int]]:
    described = {}
    for row in index.rows[: index.used[0]]:
        chain, record = [int(row["last"]), int(row["place"])], int(row["older"])
        while record >= 0:
            chain.append(int(index.chunks[record]["place"]))
            record = int(index.chunks[record]["older"])
        described[int(row["user"])] = chain
    return described

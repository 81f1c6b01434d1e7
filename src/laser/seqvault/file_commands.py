"""The verbs of ``laser vault`` that take or make Parquet files; see ``commands.py``."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from laser.seqvault.exchange import ColumnNames, open_source, read_pairs
from laser.seqvault.exporting import export_parquet
from laser.seqvault.vault import SeqVault

LOG_SECONDS = 10.0
"""Between two lines of progress where stderr is no terminal."""


def load(
    path: Path,
    source: list[Path] | Path,
    user: str = "user",
    columns: dict[str, str] | None = None,
    memory: float = 1.0,
    compact: bool = False,
) -> None:
    """Add the rows of Parquet files in any order, all of them or, if it fails or is killed, none.

    Args:
        path: folder of the vault.
        source: a Parquet file, a folder of such, or a list: '["a.parquet", "b.parquet"]'.
        user: name of the column of user ids.
        columns: names of columns that are not those of their fields: '{"time": "click_timestamp"}'.
        memory: GiB for events while they are sorted; more go through temporary files beside the vault.
        compact: rewrite the vault afterwards, which merges with what was there and compresses older events.
    """
    if memory <= 0:
        raise ValueError(f"memory is {memory} GiB; expected more than 0")
    with SeqVault.open(path, "a") as vault:
        rows = open_source(source, ColumnNames.matching(vault.layout, user, columns)).rows
        start = time.perf_counter()
        # Every row is read once and stored once, so that half of what is reported is rows.
        with _progress(2 * (rows or 0), scale=0.5) as bar:
            stored = vault.load(
                source, user=user, columns=columns, memory_bytes=int(memory * 2**30), progress=bar.update
            )
        seconds = time.perf_counter() - start
        print(f"{stored} events added to {path} in {seconds:.1f} s, {stored / max(seconds, 1e-9):,.0f} events/s")
        if compact:
            vault.compact()
        print(f"{vault.stats()['events']} events of {vault.stats()['users']} users in {path}")


def _progress(total: int, scale: float = 1.0) -> Any:
    """A bar on stderr with events/s, share and estimate; in a log file a line now and then, none for a short job."""
    from tqdm import tqdm

    seen = sys.stderr.isatty()
    pause = 0.1 if seen else LOG_SECONDS
    return tqdm(
        total=total or None, unit=" events", unit_scale=scale, mininterval=pause, delay=0 if seen else pause, leave=seen
    )


def export(
    path: Path,
    file: Path,
    users: list[int] | int | None = None,
    user: str = "user",
    fields: list[str] | str | None = None,
) -> None:
    """Write histories as a Parquet file, users ascending, each one's events by time; load takes it back.

    Args:
        path: folder of the vault.
        file: file to write; one that is there is replaced when the new one is complete.
        users: only these users.
        user: name of the column of user ids.
        fields: only these fields.
    """
    with SeqVault.open(path) as vault:
        total = int(vault.lengths(vault.users() if users is None else np.unique(users)).sum())
        with _progress(total) as bar:
            written = export_parquet(vault, file, users=users, user=user, fields=fields, progress=bar.update)
    print(f"{written} events in {file}")


def set_derived(path: Path, field: str, file: Path, id_column: str, value_column: str) -> None:
    """Give a derived field the values of a Parquet file, one row per id.

    Args:
        path: folder of the vault.
        field: the field, one that create was given as derived.
        file: Parquet file.
        id_column: its column of ids.
        value_column: its column of values.
    """
    with SeqVault.open(path, "a") as vault:
        ids, values = read_pairs(file, id_column, value_column)
        vault.set_derived(field, ids, values)
        print(f"{field} of {len(ids)} ids set in {path}")

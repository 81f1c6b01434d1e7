"""The verbs of ``laser vault``: typed functions, which jsonargparse turns into a command line."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from laser.schema import Schema
from laser.seqvault.layout import Layout
from laser.seqvault.ragged import Ragged
from laser.seqvault.vault import SeqVault

LOAD_EVENTS = 1 << 20
"""Events read from a Parquet file at a time."""


def create(path: Path, schema: Path) -> None:
    """Make an empty vault.

    Args:
        path: folder of the vault.
        schema: a ``schema.json`` whose event fields it stores.
    """
    SeqVault.create(path, Schema.load(schema)).close()
    print(f"created {path}")


def load(path: Path, files: list[Path], user: str = "user", compact: bool = False) -> None:
    """Append Parquet files. What was loaded before a failure stays: continue with the files that are missing.

    Args:
        path: folder of the vault.
        files: Parquet files with a column per event field and one of users.
        user: name of the column of user ids.
        compact: rewrite the vault afterwards, each user's events together.
    """
    from tqdm import tqdm

    with SeqVault.open(path, "a") as vault:
        with tqdm(total=_rows(files), unit="event", unit_scale=True, disable=not sys.stderr.isatty()) as progress:
            for file in files:
                for users, events in _parquet_batches(file, user, vault.layout):
                    vault.append(users, events)
                    progress.update(len(users))
        if compact:
            vault.compact()
        print(f"{vault.stats()['events']} events of {vault.stats()['users']} users in {path}")


def append(path: Path, user: int, event: str) -> None:
    """Append one event.

    Args:
        path: folder of the vault.
        user: user id.
        event: a JSON object of the event's fields, such as '{"timestamp": 5, "item": 3}'.
    """
    with SeqVault.open(path, "a", sync="always") as vault:
        try:
            values = json.loads(event)
        except json.JSONDecodeError as error:
            raise ValueError(f"the event is not JSON ({error}): {event!r}; write it as an object of fields") from None
        if not isinstance(values, dict):
            raise ValueError(f"the event is a JSON {type(values).__name__}; write it as an object of fields")
        vault.append([user], {name: [value] for name, value in values.items()})


def read(
    path: Path,
    users: list[int],
    before: int | None = None,
    last_n: int | None = None,
    fields: list[str] | None = None,
) -> None:
    """Print histories, one JSON object per event.

    Args:
        path: folder of the vault.
        users: user ids.
        before: only events before this timestamp.
        last_n: at most this many events of each user, the newest.
        fields: only these fields.
    """
    with SeqVault.open(path) as vault:
        found = vault.read(users, before=before, last_n=last_n, fields=fields)
    for index, user in enumerate(users):
        events = found.of(index)
        for event in range(int(found.lengths[index])):
            print(json.dumps({"user": user} | {name: values[event].tolist() for name, values in events.items()}))


def check(path: Path) -> int:
    """Examine every byte; prints what is wrong and exits with 1 if anything is.

    Args:
        path: folder of the vault.
    """
    with SeqVault.open(path) as vault:
        problems = vault.check()
    for problem in problems:
        print(problem)
    print(f"{len(problems)} problems in {path}")
    return 1 if problems else 0


def stats(path: Path) -> None:
    """Print figures as JSON.

    Args:
        path: folder of the vault.
    """
    with SeqVault.open(path) as vault:
        print(json.dumps(vault.stats(), indent=1))


def compact(path: Path, keep_last: int | None = None, keep_since: int | None = None) -> None:
    """Rewrite the vault without what was deleted or superseded.

    Args:
        path: folder of the vault.
        keep_last: of each user only this many events, the newest, stay.
        keep_since: only events with at least this timestamp stay.
    """
    with SeqVault.open(path, "a") as vault:
        before = vault.stats()["segment_bytes"]
        vault.compact(keep_last=keep_last, keep_since=keep_since)
        print(f"{before} -> {vault.stats()['segment_bytes']} bytes in {path}")


def delete_user(path: Path, user: int) -> None:
    """Delete a user's events from the vault, and from the disk by compacting it.

    Args:
        path: folder of the vault.
        user: user id.
    """
    with SeqVault.open(path, "a", sync="always") as vault:
        known = vault.delete_user(user)
        vault.compact()
        print(f"user {user} {'deleted from' if known else 'had no events in'} {path}; no event of it is left on disk")
        if vault.stats().get("dictionaries"):
            print("ids that only this user's events had stay in the vault's dictionaries, without a link to the user")


def bench(path: Path, batch_size: int = 256, last_n: int = 1000, seconds: float = 5.0, seed: int = 1) -> None:
    """Time reads of random users that the vault knows.

    Args:
        path: folder of the vault.
        batch_size: users per read.
        last_n: events of each at most.
        seconds: how long.
        seed: of the choice of users.
    """
    rng, durations, events = np.random.default_rng(seed), [], 0
    with SeqVault.open(path) as vault:
        users = vault.users()
        if not len(users):
            raise ValueError(f"the vault at {path} has no users; load events first")
        vault.read(users[:batch_size], last_n=last_n)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            batch = rng.choice(users, batch_size)
            start = time.perf_counter()
            found: Ragged = vault.read(batch, last_n=last_n)
            durations.append(time.perf_counter() - start)
            events += int(found.offsets[-1])
    median, high = np.percentile(durations, [50, 99]) * 1e3
    print(
        f"{len(durations)} reads of {batch_size} users: p50 {median:.2f} ms, p99 {high:.2f} ms, "
        f"{len(durations) * batch_size / sum(durations):,.0f} users/s, {events / sum(durations) / 1e6:.1f} M events/s"
    )


def _rows(files: list[Path]) -> int:
    import pyarrow.parquet as parquet

    total = 0
    for file in files:
        try:
            total += parquet.read_metadata(file).num_rows
        except (OSError, ValueError) as error:
            raise ValueError(f"{file} cannot be read as Parquet ({str(error).splitlines()[0]}); check it") from None
    return total


def _parquet_batches(file: Path, user: str, layout: Layout) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    import pyarrow.parquet as parquet

    source = parquet.ParquetFile(file)
    if missing := [name for name in (user, *layout.names) if name not in source.schema_arrow.names]:
        raise ValueError(f"{file} has no column {', '.join(missing)}; it has {', '.join(source.schema_arrow.names)}")
    for batch in source.iter_batches(LOAD_EVENTS, columns=[user, *layout.names]):
        columns = {}
        for name in (user, *layout.names):
            column = batch.column(name)
            if column.null_count:
                raise ValueError(f"{file} has {column.null_count} missing values in column {name!r}; fill or drop them")
            flat = (
                column.flatten() if name != user and dict(zip(layout.names, layout.fields))[name].length > 1 else column
            )
            columns[name] = flat.to_numpy(zero_copy_only=False)
        yield columns.pop(user), {f.name: columns[f.name].reshape(-1, *f.shape) for f in layout.fields}


VERBS: dict[str, Any] = {
    "create": create,
    "load": load,
    "append": append,
    "read": read,
    "check": check,
    "stats": stats,
    "compact": compact,
    "delete-user": delete_user,
    "bench": bench,
}


def main(arguments: list[str] | None = None) -> int:
    """Run ``laser vault``; returns the exit code.

    Raises:
        ValueError: on a user's mistake that the command line itself does not catch.
    """
    from jsonargparse import auto_cli

    code: Any = auto_cli(VERBS, args=arguments, prog="laser vault", exit_on_error=False)
    return code or 0

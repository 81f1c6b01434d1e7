"""The verbs of ``laser vault``: typed functions, which jsonargparse turns into a command line."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np

from laser.schema import FLOAT_DTYPES, INTEGER_DTYPES, Schema
from laser.seqvault.admission import Policy
from laser.seqvault.exchange import ColumnNames, open_source, read_pairs
from laser.seqvault.exporting import export_parquet
from laser.seqvault.layout import Field
from laser.seqvault.vault import SeqVault

LOG_SECONDS = 10.0
"""Between two lines of progress where stderr is no terminal."""


def create(
    path: Path,
    fields: dict[str, str] | Path,
    dictionaries: list[str] | None = None,
    derived: dict[str, str] | None = None,
    late: Policy = "keep",
    duplicates: Policy = "keep",
) -> None:
    """Make an empty vault, of a schema's event fields or of fields given by name.

    Args:
        path: folder of the vault.
        fields: a ``schema.json`` whose event fields it stores; or numpy types by name, the timestamp first:
            '{"time": "int64", "item": "uint32"}'.
        dictionaries: id fields whose values are kept once; by default those where it pays.
        derived: fields that follow from an id, each with its id field: '{"author": "item"}'; see set-derived.
        late: what to do with events older than one their user already has.
        duplicates: what to do with events that their user already has.
    """
    of = Schema.load(fields) if isinstance(fields, Path) else [_field(name, kind) for name, kind in fields.items()]
    SeqVault.create(path, of, late=late, duplicates=duplicates, dictionaries=dictionaries, derived=derived).close()
    print(f"created {path}")


def _field(name: str, kind: str) -> Field:
    if kind not in INTEGER_DTYPES + FLOAT_DTYPES:
        raise ValueError(f"field {name!r} is {kind!r}; expected one of {', '.join(INTEGER_DTYPES + FLOAT_DTYPES)}")
    return Field(name, kind)


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
    users: list[int] | int,
    before: int | None = None,
    last_n: int | None = None,
    fields: list[str] | str | None = None,
) -> None:
    """Print histories, one JSON object per event.

    Args:
        path: folder of the vault.
        users: a user id, or a list: '[3, 7]'.
        before: only events before this timestamp.
        last_n: at most this many events of each user, the newest.
        fields: only these fields.
    """
    users = users if isinstance(users, list) else [users]
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


def bench(
    path: Path,
    batch_size: int = 256,
    last_n: int = 1000,
    fields: list[str] | str | None = None,
    codes: bool = False,
    seconds: float = 5.0,
    seed: int = 1,
) -> None:
    """Time reads of random users that the vault knows.

    Args:
        path: folder of the vault.
        batch_size: users per read.
        last_n: events of each at most.
        fields: only these fields.
        codes: return codes in place of the ids of dictionaries.
        seconds: how long.
        seed: of the choice of users.
    """
    rng, durations, events, size = np.random.default_rng(seed), [], 0, 0
    with SeqVault.open(path) as vault:
        users = vault.users()
        if not len(users):
            raise ValueError(f"the vault at {path} has no users; load events first")
        chosen = [fields] if isinstance(fields, str) else fields
        ids: Literal["raw", "codes"] = "codes" if codes else "raw"
        vault.read(users[:batch_size], last_n=last_n, fields=chosen, ids=ids)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            batch = rng.choice(users, batch_size)
            start = time.perf_counter()
            found = vault.read(batch, last_n=last_n, fields=chosen, ids=ids)
            durations.append(time.perf_counter() - start)
            events += int(found.offsets[-1])
            size += sum(values.nbytes for values in found.fields.values())
    median, high = np.percentile(durations, [50, 99]) * 1e3
    total = sum(durations)
    print(
        f"{len(durations)} reads of {batch_size} users: p50 {median:.2f} ms, p99 {high:.2f} ms, "
        f"{len(durations) * batch_size / total:,.0f} users/s, {events / total / 1e6:.1f} M events/s, "
        f"{size / total / 1e6:,.0f} MB/s"
    )


VERBS: dict[str, Any] = {
    "create": create,
    "load": load,
    "export": export,
    "set-derived": set_derived,
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

    try:
        code: Any = auto_cli(VERBS, args=arguments, prog="laser vault", exit_on_error=False)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ValueError(f"{error.strerror or error} ({error.filename or 'writing'}); the vault is as before") from None
    except KeyboardInterrupt:
        print("laser vault: interrupted; the vault has what was committed before", file=sys.stderr)
        return 130
    return code or 0

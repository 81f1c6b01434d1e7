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
from laser.seqvault.file_commands import export, load, set_derived
from laser.seqvault.following.commands import follow
from laser.seqvault.layout import Field
from laser.seqvault.service.serving import serve
from laser.seqvault.vault import SeqVault


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
    where: dict[str, list[int]] | None = None,
) -> None:
    """Print histories, one JSON object per event; of a user without any, a line on stderr.

    Args:
        path: folder of the vault.
        users: a user id, or a list: '[3, 7]'.
        before: only events before this timestamp.
        last_n: at most this many events of each user, the newest.
        fields: only these fields.
        where: only events that hold one of these values: '{"scenario": [1, 3]}'.
    """
    users = users if isinstance(users, list) else [users]
    with SeqVault.open(path) as vault:
        found = vault.read(users, before=before, last_n=last_n, fields=fields, where=where)
    for index, user in enumerate(users):
        events = found.of(index)
        if not found.lengths[index]:
            print(f"laser vault read: no such events of user {user}", file=sys.stderr)
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
    "serve": serve,
    "follow": follow,
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

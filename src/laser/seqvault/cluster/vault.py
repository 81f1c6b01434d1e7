"""A vault in a cluster: ``read`` and ``append`` as in a folder, histories by their users over the nodes.

    with ClusterVault.open(["10.0.0.1:7000"], "histories") as vault:
        vault.append([7], {"time": [5], "item": [40]})
        vault.read([7], before=6, last_n=1000)

Legend of shape suffixes: N events of an append; R requests of a read.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from laser.schema import Feature, Schema
from laser.seqvault.cluster.histories import Stored, pack_history, parse_directory, row_type, to_rows
from laser.seqvault.cluster.routing import Call, Router
from laser.seqvault.cluster.scripts import APPEND, READ, ROLL, TOKEN_BYTES
from laser.seqvault.grouping import group_by_user
from laser.seqvault.layout import Field, Layout, user_ids
from laser.seqvault.planning import FOREVER
from laser.seqvault.ragged import Ragged
from laser.seqvault.requesting import Request

CHUNK_EVENTS, TAIL_EVENTS = 500, 128
VERSION = 1


class ClusterVault:
    """A vault in a cluster of Redis, Valkey or Kvrocks. Safe to share between threads, and between processes.

    Late and duplicate events are kept. An append is atomic for each user, not over all users of a call.
    """

    def __init__(self, router: Router, name: str, described: Mapping[str, Any], replicas: int) -> None:
        if described.get("version") != VERSION:
            raise ValueError(f"vault {name!r} has version {described.get('version')}; this release reads {VERSION}")
        self.name, self._router, self._replicas = name, router, replicas
        self.layout = Layout(tuple(Field(*each) for each in described["fields"]))
        self.chunk_events, self.tail_events = int(described["chunk_events"]), int(described["tail_events"])
        self._row_bytes = row_type(self.layout).itemsize

    @classmethod
    def create(
        cls,
        nodes: Sequence[str],
        name: str,
        schema: Schema | Iterable[Feature | Field],
        *,
        chunk_events: int = CHUNK_EVENTS,
        tail_events: int = TAIL_EVENTS,
        replicas: int = 1,
        **connection: Any,
    ) -> ClusterVault:
        """Make an empty vault.

        Args:
            nodes: see ``open``.
            name: of the vault; its keys begin with it.
            schema: whose ``event`` fields to store; or these fields, the timestamp first.
            chunk_events: events of a packed chunk: fewer make a read fetch less that it does not want, more pack
                better.
            tail_events: recent events of a user that stay rows until they are packed.
            replicas: see ``open``.
            connection: see ``open``.

        Raises:
            ValueError: when there is one of that name already, or the fields cannot be stored.
            OSError: when the cluster cannot be reached.
        """
        layout = Layout.of(schema)
        if not 1 <= chunk_events <= layout.chunk_events or tail_events < 1:
            raise ValueError(
                f"chunk_events is {chunk_events}, tail_events {tail_events}; expected 1 ... {layout.chunk_events}, and "
                f"1 or more"
            )
        described = {
            "version": VERSION,
            "fields": [[field.name, field.dtype, field.length] for field in layout.fields],
            "chunk_events": chunk_events,
            "tail_events": tail_events,
        }
        router = Router(nodes, **connection)
        key = _description_key(name)
        (made,) = router.run([Call(key, None, ("SET", key, json.dumps(described), "NX"))], replicas=replicas)
        if made is None:
            router.close()
            raise ValueError(f"there is a vault {name!r} in the cluster already; open it, or choose another name")
        return cls(router, name, described, replicas)

    @classmethod
    def open(cls, nodes: Sequence[str], name: str, *, replicas: int = 1, **connection: Any) -> ClusterVault:
        """Open a vault.

        Args:
            nodes: some nodes of the cluster, ``host:port``.
            name: of the vault.
            replicas: how many replicas must have an append before it is acknowledged, as far as its node has so many
                at the time. With 0, what was acknowledged last may be lost when a node fails.
            connection: see ``Router``: ``password``, ``tls``, ``timeout`` and ``node_timeout``, in seconds.

        Raises:
            ValueError: when there is no such vault.
            OSError: when the cluster cannot be reached.
        """
        router = Router(nodes, **connection)
        key = _description_key(name)
        (found,) = router.run([Call(key, None, ("GET", key))])
        if found is None:
            router.close()
            raise ValueError(f"there is no vault {name!r} in the cluster; create it with ClusterVault.create")
        return cls(router, name, json.loads(found), replicas)

    def read(
        self,
        users: Any,
        *,
        before: int | np.ndarray | None = None,
        last_n: int | None = None,
        fields: Iterable[str] | None = None,
        ids: Literal["raw"] = "raw",
        where: Mapping[str, Any] | None = None,
    ) -> Ragged:
        """See ``SeqVault.read``; there are no codes here. Goes to the nodes that take the appends.

        Raises:
            ValueError: on bad arguments, or when what is stored is damaged.
            TimeoutError: when a node does not answer in time.
            OSError: when it answers with an error.
        """
        if ids != "raw":
            raise ValueError(f"ids is {ids!r}; a vault in a cluster has no dictionaries, expected 'raw'")
        asked = Request.of(self.layout, users, before=before, last_n=last_n, fields=fields, where=where)
        # A filter may pass over any number of events, so all before the cut are candidates.
        most = asked.wanted if asked.where is None else np.full(len(asked.users), FOREVER)
        cuts = [b""] * len(asked.users) if asked.before is None else asked.before.tolist()
        calls = [
            Call(self._key(user), READ, (wanted, cut))
            for user, wanted, cut in zip(asked.users.tolist(), most.tolist(), cuts)
        ]
        stored = Stored.of(self.layout, asked.users, self._router.run(calls))
        return stored.ragged(asked.fields, asked.before, asked.wanted, asked.where)

    def append(self, users: Any, events: Mapping[str, Any]) -> int:
        """See ``SeqVault.append``, but that each user's events are stored by themselves.

        A node that does not answer is asked again, and knows what it has stored already.

        Returns:
            Events stored, N.

        Raises:
            ValueError: when users or events do not fit.
            TimeoutError: when a node does not confirm in time; each user's events of the call may be stored or not.
            OSError: when it answers with an error.
        """
        of = user_ids(users)
        values = self.layout.coerce(events, len(of))
        # By arrival within a user: rows are in that order, so times are of no concern here.
        order, distinct, bounds = group_by_user(of, np.zeros(len(of), np.int64))
        rows, token = to_rows(self.layout, values, order), os.urandom(TOKEN_BYTES)
        calls = [
            Call(self._key(user), APPEND, (token, rows[low:high].tobytes()))
            for user, low, high in zip(distinct.tolist(), bounds[:-1], bounds[1:])
        ]
        sizes = self._router.run(calls, replicas=self._replicas)
        full = [user for user, size in zip(distinct.tolist(), sizes) if size >= self.tail_events * self._row_bytes]
        if full:
            with contextlib.suppress(OSError):  # the events are stored; the next append tries again
                self._roll(full)
        return len(of)

    def delete_user(self, user: int) -> bool:
        """Forget a user; whether there were events."""
        (of,) = user_ids(user).tolist()
        key = self._key(of)
        (removed,) = self._router.run([Call(key, None, ("UNLINK", key))], replicas=self._replicas)
        return bool(removed)

    def stored_bytes(self, users: Any) -> np.ndarray:
        """Bytes of memory that nodes use for each of R users, int64 [R]; Redis and Valkey only."""
        keys = [self._key(user) for user in user_ids(users).tolist()]
        found = self._router.run([Call(key, None, ("MEMORY", "USAGE", key, "SAMPLES", 0)) for key in keys])
        return np.array([size or 0 for size in found], np.int64)

    def close(self) -> None:
        """Close all connections."""
        self._router.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _key(self, user: int) -> bytes:
        return b"%s:{%d}" % (self.name.encode(), user)

    def _roll(self, users: list[int]) -> None:
        """Move recent events of users to packed chunks, unless somebody else does at the same time."""
        keys = [self._key(user) for user in users]
        states = self._router.run([Call(key, None, ("HMGET", key, "t", "d", "g")) for key in keys])
        plans = [_Roll.of(self, user, *state) for user, state in zip(users, states)]
        chunks = self._router.run([Call(key, None, plan.fetch(key)) for key, plan in zip(keys, plans)])
        calls = []
        for key, plan, found in zip(keys, plans, chunks):
            if plan.rows and None not in found[1:]:  # else somebody else was faster
                calls.append(Call(key, ROLL, plan.arguments(found[1:])))
        self._router.run(calls)


class _Roll:
    """One user's events on their way from rows to chunks: which chunks they are merged with, and what comes of it."""

    def __init__(self, vault: ClusterVault, user: int, rows: bytes, directory: np.ndarray, generation: bytes) -> None:
        self.vault, self.user, self.rows, self.generation, self.directory = vault, user, rows, generation, directory
        oldest = np.frombuffer(rows, row_type(vault.layout))[vault.layout.names[0]].min() if rows else 0
        # Chunks from the first that the new events overlap, and a newest one that is not full.
        touched = np.flatnonzero((directory["last"] > oldest) | (directory["count"] < vault.chunk_events))
        self.keep = int(touched[0]) if len(touched) else len(directory)

    @classmethod
    def of(
        cls, vault: ClusterVault, user: int, rows: bytes | None, directory: bytes | None, generation: bytes | None
    ) -> _Roll:
        return cls(vault, user, rows or b"", parse_directory(directory), generation or b"0")

    def fetch(self, key: bytes) -> tuple[Any, ...]:
        """The command for the chunks to merge with."""
        return ("HMGET", key, "g", *(f"c{number}" for number in self.directory["number"][self.keep :].tolist()))

    def arguments(self, chunks: Sequence[bytes]) -> tuple[Any, ...]:
        """Arguments of the script that replaces them."""
        layout, user = self.vault.layout, np.array([self.user], np.uint64)
        stored = Stored.of(layout, user, [[self.rows, *reversed(chunks)]])
        order, _ = stored.select(None, np.array([FOREVER]), None)
        columns = layout.columns({field.name: stored.values(field) for field in layout.fields}, order)
        number = int(self.directory["number"].max()) + 1 if len(self.directory) else 0
        entries, contents = pack_history(layout, self.user, columns, self.vault.chunk_events, number)
        named = [part for pair in zip(entries["number"].tolist(), contents) for part in pair]
        return (self.generation, len(self.rows), self.keep, entries.tobytes(), *named)


def _description_key(name: str) -> bytes:
    return f"{name}:description".encode()

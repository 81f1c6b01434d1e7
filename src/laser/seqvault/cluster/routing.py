"""Commands to the nodes of a Redis Cluster: one pipeline per node and batch, repeated until answered or out of time.

redis-py supplies connections and the hash of keys. Its own cluster pipeline is not used: it cannot end a node's batch
with WAIT, and it repeats a batch as a whole where here only what was not answered is sent again. Every command sent
through here may therefore be run twice; the scripts in ``scripts.py`` are made for that.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

try:
    from redis.connection import Connection, SSLConnection
    from redis.crc import key_slot
    from redis.exceptions import (
        AskError,
        BusyLoadingError,
        ClusterDownError,
        MasterDownError,
        MovedError,
        NoScriptError,
        ReadOnlyError,
        RedisError,
        ResponseError,
        TryAgainError,
    )
except ImportError:
    raise ValueError("ClusterVault needs redis-py; install it with: pip install 'laser-ctr[cluster]'") from None

from laser.seqvault.cluster.scripts import Script

SLOTS = 16384
FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.25
LOOK_SECONDS = 0.5
"""How long a primary may be believed to have fewer replicas than are wanted."""
MANY = SLOTS
"""Replicas of a primary of which no more is known than that slots have moved there."""
Address = tuple[str, int]
PASSING = (BusyLoadingError, ClusterDownError, MasterDownError, ReadOnlyError, TryAgainError)
"""Answers of a cluster that is changing; the command was not run."""


@dataclass
class Call:
    """A command on one key.

    Args:
        key: that it concerns.
        script: to run on it; ``None`` for a plain command.
        arguments: the script's, or the command with all its arguments.
    """

    key: bytes
    script: Script | None
    arguments: tuple[Any, ...]
    answer: Any = None
    asked: Address | None = None
    """Where to ask once: the slot is on its way there."""

    def command(self) -> tuple[Any, ...]:
        """What is sent."""
        return self.arguments if self.script is None else ("EVALSHA", self.script.sha, 1, self.key, *self.arguments)


class Router:
    """Connections to the nodes of a cluster. Safe to share between threads.

    Args:
        nodes: addresses of some nodes, ``host:port``; the others are found through them.
        password: of all nodes.
        tls: whether to connect with TLS.
        timeout: seconds that ``run`` may take in all.
        node_timeout: seconds that one node may take to answer.

    Raises:
        ValueError: when an address is none.
        OSError: when no node answers.
    """

    def __init__(
        self,
        nodes: Sequence[str],
        *,
        password: str | None = None,
        tls: bool = False,
        timeout: float = 10.0,
        node_timeout: float = 2.0,
    ) -> None:
        self.timeout = timeout
        self._start = [_address(node) for node in nodes]
        self._options: dict[str, Any] = {"password": password, "socket_timeout": node_timeout}
        self._options |= {"socket_connect_timeout": node_timeout, "protocol": 2}
        self._kind = SSLConnection if tls else Connection
        self._guard = threading.Lock()
        self._idle: dict[Address, list[Any]] = defaultdict(list)
        self._owners = np.full(SLOTS, -1, np.int32)
        self._primaries: list[Address] = []
        self._replicas: list[int] = []
        self._learned = 0.0
        self.refresh()

    def run(self, calls: Sequence[Call], *, replicas: int = 0) -> list[Any]:
        """Answers of all calls, in their order.

        Args:
            calls: any number; those of one node travel together.
            replicas: how many copies besides the primary's must have what the calls wrote, as far as the node has so
                many.

        Raises:
            TimeoutError: when not all were answered in time; those that were may have been run, and the others too.
            OSError: when a node answers with an error that repeating does not mend.
        """
        end, pause, left = time.monotonic() + self.timeout, FIRST_PAUSE, list(calls)
        if any(count < replicas for count in self._replicas) and time.monotonic() - self._learned > LOOK_SECONDS:
            self.refresh(required=False)  # a replica that has come back must be waited for again
        while True:
            problems: list[str] = []
            left = self._attempt(left, replicas, problems)
            if not left:
                return [call.answer for call in calls]
            if time.monotonic() + pause > end:
                raise TimeoutError(
                    f"{len(left)} of {len(calls)} requests to the cluster had no answer within {self.timeout} s "
                    f"({problems[-1] if problems else 'slots are moving'})"
                )
            if problems:
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                self.refresh(required=False)

    def close(self) -> None:
        """Close all connections."""
        with self._guard:
            idle, self._idle = self._idle, defaultdict(list)
        for connections in idle.values():
            for connection in connections:
                connection.disconnect()

    def refresh(self, *, required: bool = True) -> None:
        """Ask which node has which slots.

        Raises:
            OSError: when ``required`` and no node tells.
        """
        reason = "none given"
        for address in dict.fromkeys([*self._primaries, *self._start]):
            found = self._exchange({address: [("CLUSTER", "SLOTS")]})[address]
            told = found[0] if isinstance(found, list) else found
            if isinstance(told, list) and told:
                self._learn(told, address)
                return
            reason = f"{address[0]}:{address[1]}: {told or 'it has no slots yet'}"
        if required:
            raise OSError(f"no node of the cluster can be asked ({reason}); check addresses, password and cluster mode")

    def primaries(self) -> list[Address]:
        """Addresses of all primaries."""
        return list(self._primaries)

    def _learn(self, told: Iterable[Any], asked: Address) -> None:
        owners, primaries, replicas = np.full(SLOTS, -1, np.int32), [], []
        for first, last, primary, *others in told:
            address = (primary[0].decode() if primary[0] else asked[0], int(primary[1]))
            if address not in primaries:
                primaries.append(address)
                replicas.append(len(others))
            owners[int(first) : int(last) + 1] = primaries.index(address)
        with self._guard:
            self._owners, self._primaries, self._replicas = owners, primaries, replicas
            self._learned = time.monotonic()

    def _attempt(self, calls: list[Call], replicas: int, problems: list[str]) -> list[Call]:
        """Send all calls once; returns those to be sent again."""
        by_node, again = self._grouped(calls)
        if again:
            problems.append("some slots have no node")
        with self._guard:
            confirm = {address: min(replicas, count) for address, count in zip(self._primaries, self._replicas)}
        batches: dict[Address, list[tuple[Any, ...]]] = {}
        for address, group in by_node.items():
            commands: list[tuple[Any, ...]] = []
            for call in group:
                commands += [("ASKING",), call.command()] if call.asked else [call.command()]
            wait = confirm.get(address, replicas)
            batches[address] = (
                [*commands, ("WAIT", wait, int(self._options["socket_timeout"] * 500))] if wait else commands
            )
        answers = self._exchange(batches)
        for address, group in by_node.items():
            found = answers[address]
            if isinstance(found, Exception):
                problems.append(f"{address[0]}:{address[1]}: {found}")
                for call in group:
                    call.asked = None
                again += group
                continue
            again += self._settle(address, group, found, confirm.get(address, replicas), problems)
        return again

    def _grouped(self, calls: list[Call]) -> tuple[dict[Address, list[Call]], list[Call]]:
        by_node: dict[Address, list[Call]] = defaultdict(list)
        homeless = []
        with self._guard:
            for call in calls:
                owner = int(self._owners[key_slot(call.key)])
                if call.asked:
                    by_node[call.asked].append(call)
                elif owner < 0:
                    homeless.append(call)
                else:
                    by_node[self._primaries[owner]].append(call)
        return by_node, homeless

    def _settle(
        self, address: Address, group: list[Call], found: list[Any], wait: int, problems: list[str]
    ) -> list[Call]:
        again, replies = [], iter(found)
        for call in group:
            if call.asked:
                next(replies)
                call.asked = None
            call.answer = next(replies)
            if isinstance(call.answer, Exception) and self._repeatable(address, call, problems):
                again.append(call)
        if wait and len(again) < len(group):
            confirmed = next(replies)
            if not (isinstance(confirmed, int) and confirmed >= wait):
                problems.append(f"{address[0]}:{address[1]}: {confirmed} of {wait} replicas have confirmed")
                return group
        return again

    def _repeatable(self, address: Address, call: Call, problems: list[str]) -> bool:
        """Prepare to send a refused call again; whether that makes sense."""
        told = call.answer
        if isinstance(told, AskError):
            target = (told.host or address[0], told.port)
            if isinstance(told, MovedError):  # which is an AskError too
                self._move(told.slot_id, target)
            else:
                call.asked = target
            return True
        if isinstance(told, NoScriptError) and call.script is not None:
            loaded = self._exchange({address: [("SCRIPT", "LOAD", call.script.text)]})[address]
            if isinstance(loaded, Exception):
                problems.append(str(loaded))
            return True
        if isinstance(told, PASSING) or str(told).startswith("UNBLOCKED"):
            problems.append(f"{address[0]}:{address[1]}: {told or type(told).__name__}")
            return True
        raise OSError(f"node {address[0]}:{address[1]} of the cluster answers: {told!s:.300}")

    def _move(self, slot: int, target: Address) -> None:
        with self._guard:
            if target not in self._primaries:
                self._primaries.append(target)
                self._replicas.append(MANY)
            self._owners[slot] = self._primaries.index(target)

    def _exchange(self, batches: dict[Address, list[tuple[Any, ...]]]) -> dict[Address, Any]:
        """Send every node its commands, then read all answers: a list for each node, or what went wrong with it."""
        answers: dict[Address, Any] = {}
        sent: dict[Address, Any] = {}
        for address, commands in batches.items():
            connection = self._take(address)
            try:
                connection.send_packed_command(connection.pack_commands(commands), check_health=False)
                sent[address] = connection
            except (RedisError, OSError) as error:
                connection.disconnect()
                answers[address] = error
        for address, connection in sent.items():
            try:
                answers[address] = [_answer(connection) for _ in batches[address]]
                with self._guard:
                    self._idle[address].append(connection)
            except (RedisError, OSError) as error:
                connection.disconnect()
                answers[address] = error
        return answers

    def _take(self, address: Address) -> Any:
        with self._guard:
            if idle := self._idle[address]:
                return idle.pop()
        return self._kind(host=address[0], port=address[1], **self._options)


def _answer(connection: Any) -> Any:
    try:
        return connection.read_response(disable_decoding=True)
    except ResponseError as error:
        return error


def _address(node: str) -> Address:
    host, _, port = node.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"cluster node {node!r} is no address; expected host:port")
    return host, int(port)

"""One client of a load test: reads and appends at the service of histories, scores at the HTTP front before it."""

from __future__ import annotations

import argparse
import http.client
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import TOKEN
from served_model import Catalogue

from laser.seqvault import SeqVault
from laser.seqvault.service import RemoteVault
from laser.serve import Scorer
from laser.serve.bundle import Bundle

KINDS = ("read", "score", "append")
CHECKED = 50
"""Users whose scores are compared at the end."""
AFTER = 10**9
"""Ticks after the log's last event at which scores are asked for; appended events lie between."""


class Client:
    """Asks one request after the other, each for users of its own.

    Args:
        number: of the client, which seeds it.
        places: of its users in the catalogue.
        location: of the service.
        port: of the front.
        options: of the command.
    """

    def __init__(
        self, number: int, catalogue: Catalogue, places: np.ndarray, location: str, port: int, options: Any
    ) -> None:
        self.rng, self.catalogue, self.places, self.options = np.random.default_rng(number), catalogue, places, options
        self.vault = RemoteVault(location, TOKEN, timeout=60)
        self.front = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.acknowledged: list[tuple[np.ndarray, np.ndarray]] = []
        self.next_event = catalogue.later
        self.unsure: tuple[np.ndarray, np.ndarray] | None = None

    def ask(self, kind: str) -> None:
        """One request; raises OSError when it failed."""
        getattr(self, kind)()

    def read(self) -> None:
        keys = self.catalogue.keys[self.rng.choice(self.places, self.options.batch)]
        self.vault.read(keys, last_n=self.options.max_history)

    def score(self) -> None:
        place = int(self.rng.choice(self.places))
        found = score(self.front, self.catalogue, place, self.rng, self.options.candidates)
        assert len(found) == self.options.candidates

    def append(self) -> None:
        """New events, or those again whose answer was lost: the vault drops what it has."""
        if self.unsure is None:
            keys = self.catalogue.keys[self.rng.choice(self.places, self.options.batch)]
            self.unsure = keys, self.next_event + np.arange(len(keys))
        keys, times = self.unsure
        self.vault.append(keys, self.catalogue.events(times))
        self.acknowledged.append((keys, times))
        self.next_event, self.unsure = int(times[-1]) + 1, None


def score(
    front: http.client.HTTPConnection, catalogue: Catalogue, place: int, rng: np.random.Generator, candidates: int
) -> list[float]:
    """Probabilities over HTTP, all events seen."""
    chosen = [catalogue.items[i] for i in rng.integers(0, len(catalogue.items), candidates)]
    asked = {"user": catalogue.users[place], "candidates": chosen, "context": catalogue.context}
    asked["now"] = catalogue.later + AFTER
    try:
        front.request("POST", "/score", json.dumps(asked), {"content-type": "application/json"})
        answer = front.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        front.close()
        raise OSError(str(error)) from error
    if answer.status == 503:  # histories are away, or too many requests at once
        raise OSError(body.decode())
    assert answer.status == 200, body
    return json.loads(body)["probabilities"]


def run(
    number: int,
    catalogue: Catalogue,
    places: np.ndarray,
    location: str,
    port: int,
    options: argparse.Namespace,
    ready: Any,
    out: Any,
) -> None:
    """Send back (seconds from the start, duration, kind) of each request, what is acknowledged, and failed calls."""
    client, taken, failures = Client(number, catalogue, places, location, port, options), [], 0
    client.read()
    client.score()
    ready.wait()
    begin = time.monotonic()
    while (now := time.monotonic()) < begin + options.minutes * 60:
        kind = "append" if client.unsure else str(client.rng.choice(KINDS, p=[0.45, 0.45, 0.1]))
        try:
            client.ask(kind)
            taken.append((now - begin, time.monotonic() - now, KINDS.index(kind)))
        except OSError:
            failures += 1
            time.sleep(0.05)
    out.put((number, np.array(taken, np.float64), client.acknowledged, failures))


def missing_or_double(
    path: Path, catalogue: Catalogue, acknowledged: list[tuple[np.ndarray, np.ndarray]]
) -> tuple[int, int]:
    """Acknowledged events that are not there, and events that are there twice."""
    users, times = (np.concatenate(each) for each in zip(*acknowledged))
    missing = double = 0
    field = catalogue.event[0].name
    with SeqVault.open(path) as vault:
        for user in np.unique(users):
            stored = vault.read([user], fields=[field])[field]
            stored = stored[stored >= catalogue.later]
            double += len(stored) - len(np.unique(stored))
            missing += len(np.setdiff1d(times[users == user], stored))
    return missing, double


def largest_difference(bundle: Bundle, path: Path, catalogue: Catalogue, port: int, candidates: int) -> float:
    """Of probabilities: the front's, with what it keeps of users, and those of a scorer that has just begun."""
    front, worst = http.client.HTTPConnection("127.0.0.1", port, timeout=60), 0.0
    with SeqVault.open(path) as vault:
        scorer = Scorer(bundle, vault)
        for place in np.random.default_rng(0).choice(len(catalogue.users), CHECKED).tolist():
            found = score(front, catalogue, place, np.random.default_rng(place), candidates)
            items = np.random.default_rng(place).integers(0, len(catalogue.items), candidates)
            chosen = [catalogue.items[i] for i in items]
            wanted = scorer.score(catalogue.users[place], chosen, catalogue.context, catalogue.later + AFTER)
            worst = max(worst, float(np.abs(np.array(found) - wanted).max()))
    front.close()
    return worst

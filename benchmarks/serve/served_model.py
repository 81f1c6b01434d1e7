"""A model that was trained a little on a synthetic log, its bundle, its histories, and ``laser serve`` before them."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from measuring import TOKEN

from laser.schema import Feature, Kind
from laser.seqvault import SeqVault
from laser.serve.bundle import Bundle

RECIPE = Path(__file__).parents[2] / "conf" / "demo.yaml"
AT_ONCE = 100
"""Users whose histories are copied at once."""


def make_bundle(folder: Path, events: int, users: int, steps: int, max_history: int) -> tuple[Bundle, Path]:
    """What a user would run: generate a log, prepare it, train, export; then a vault that drops duplicates.

    Returns:
        The bundle, and the vault with all events of the log.
    """
    log, data, bundle = folder / "log", folder / "data", folder / "bundle"
    recipe = ["-c", str(RECIPE), "--data.path", str(data), "--data.max_history", str(max_history)]
    recipe += ["--trainer.max_steps", str(steps), "--trainer.limit_val_batches", "0"]
    recipe += ["--trainer.logger", "laser.train.loggers.CSVLog", "--trainer.default_root_dir", str(folder / "run")]
    for command in (
        ["data_prep.cli", "synthetic", str(log), "--events", str(events), "--users", str(users)],
        ["data_prep.cli", "run", str(log / "recipe.yaml"), "--out", str(data)],
        ["laser.cli", "fit", *recipe],
        ["laser.cli", "export", *recipe, "--ckpt_path", "last", "--out", str(bundle)],
    ):
        print(f"{' '.join(command[:2])} ...", file=sys.stderr, flush=True)
        done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    made = Bundle.open(bundle)
    copy_vault(data / "vault", folder / "vault", made)
    return made, folder / "vault"


def copy_vault(source: Path, path: Path, bundle: Bundle) -> None:
    """The same events in a vault whose appends may be repeated."""
    with SeqVault.open(source) as old, SeqVault.create(path, bundle.schema, duplicates="drop") as new:
        users = np.asarray(old.users())
        for first in range(0, len(users), AT_ONCE):
            chosen = users[first : first + AT_ONCE]
            found = old.read(chosen)
            new.append(np.repeat(chosen, found.lengths), found.fields)


@dataclass(frozen=True)
class Catalogue:
    """What clients need of a bundle.

    Args:
        users: raw ids [N].
        keys: of their histories [N].
        items: raw ids.
        context: a raw value for each context field.
        event: features of an event.
        later: a time after the events of the log, ticks.
    """

    users: list
    keys: np.ndarray
    items: list
    context: dict
    event: tuple[Feature, ...]
    later: int

    @classmethod
    def of(cls, bundle: Bundle, vault: Path) -> Catalogue:
        schema, raw = bundle.schema, raw_values(bundle)
        users = raw[schema.user.name]
        context = {f.name: raw[f.name][0] for f in schema.of_kind(Kind.CONTEXT) if f.table is not None}
        keys = bundle.codes()[schema.user.name](users, "user")
        with SeqVault.open(vault) as opened:
            last = opened.read(keys, last_n=1)[schema.timestamp.name]
        return cls(users, keys, raw[schema.item.name], context, schema.event, int(last.max()) + 1)

    def events(self, times: np.ndarray) -> dict[str, np.ndarray]:
        """One event at each time, in codes."""
        return {
            f.name: (times if f.kind is Kind.TIMESTAMP else 1 + times % max(1, (f.cardinality or 2) - 1)).astype(
                f.dtype
            )
            for f in self.event
        }


def raw_values(bundle: Bundle) -> dict[str, list]:
    """Raw values of every feature, by its name."""
    return {
        name: list(code.by_text or (range(1, 1000) if code.sorted_raw is None else code.sorted_raw.tolist()))
        for name, code in bundle.codes().items()
    }


class Front:
    """``laser serve`` in a process of its own, its histories behind a service."""

    def __init__(self, bundle: Path, service: str, folder: Path, port: int = 0) -> None:
        self.port = port or _free_port()
        token = folder / "token"
        token.write_text(TOKEN)
        command = [sys.executable, "-m", "laser.cli", "serve", str(bundle), "--vault", service]
        command += ["--token_file", str(token), "--port", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while True:
            assert self.process.poll() is None, "laser serve did not start"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).close()
                return
            except OSError:
                time.sleep(0.1)

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]

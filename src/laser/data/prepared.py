"""A prepared data set on disk: schema, item side info, history store and samples, opened and checked together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from laser.data.columns import CURE, check_categorical, read_columns
from laser.data.histories import Histories, Slices
from laser.data.samples import Samples
from laser.schema import Kind, Schema
from laser.seqvault import Field, SeqVault
from laser.seqvault.layout import Layout

SPLITS = ("train", "val", "test")
CACHE_BYTES = 1 << 30
"""For decoded histories, unless told otherwise."""


class PreparedData:
    """What ``laser-prep`` wrote, read-only.

    Args:
        path: the folder that holds ``schema.json``, ``items.parquet``, ``vault/`` and ``samples/``.
        cache_bytes: memory for decoded histories; 0 for none. They are decoded when the data set is opened if all of
            them fit: samples in random order would find few of a part of them.

    Attributes:
        schema: of every field.
        items: per item side feature an array [items] or [items, K] of ids; row i describes item code i.
        vault: the users' histories.
        histories: all of them, decoded; ``None`` where they do not fit.

    Raises:
        ValueError: when a part is missing, cannot be read, or does not fit the schema.
    """

    def __init__(self, path: Path | str, *, cache_bytes: int = 0) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise ValueError(f"no prepared data set at {self.path}: no such folder; give the one that laser-prep wrote")
        self.schema = Schema.load(self.path / "schema.json")
        self._check_features()
        self.items = self._read_items()
        self.vault = SeqVault.open(self.path / "vault")
        try:
            self._check_vault()
            self.histories = Histories(self.vault) if Histories.nbytes_of(self.vault) <= cache_bytes else None
        except BaseException:
            self.close()
            raise

    def split(self, name: str) -> Samples:
        """Samples of one split, read into memory.

        Raises:
            ValueError: when there is no such split, it has no samples, or a column does not fit the schema.
        """
        if name not in SPLITS:
            raise ValueError(f"no split {name!r} in {self.path}; choose one of {', '.join(SPLITS)}")
        return Samples.read(self.path / "samples" / name, self.schema)

    def read(
        self, user_U: np.ndarray, time_U: np.ndarray, last_n: int | None = None, fields: Sequence[str] | None = None
    ) -> Slices:
        """Histories of U pairs of user and time, from memory or else from the store.

        Args:
            user_U: int64 user codes; one that is not in the store has no events.
            time_U: int64 ticks; only strictly earlier events are read.
            last_n: at most this many events of each, the newest; ``None`` for all.
            fields: names of the fields to read from the store, all by default; in memory are all.

        Raises:
            ValueError: when stored data is damaged (with file and offset).
        """
        if self.histories is not None:
            return self.histories.before(user_U, time_U, last_n)
        return Slices.of(self.vault.read(user_U, before=time_U, last_n=last_n, fields=fields))

    def close(self) -> None:
        """Close the history store."""
        self.vault.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_features(self) -> None:
        where = str(self.path / "schema.json")
        for feature in (*self.schema.history, *self.schema.context):
            check_categorical(feature, where)
        for feature in (self.schema.user, self.schema.item):
            if feature.length > 1:
                found = f"feature {feature.name!r} of {where} has length {feature.length}"
                raise ValueError(f"{found}, expected 1 for a user or item; {CURE}")

    def _read_items(self) -> dict[str, np.ndarray]:
        file = self.path / "items.parquet"
        item, side = self.schema.item, self.schema.of_kind(Kind.ITEM_SIDE)
        columns = read_columns([file], [item, *side])
        codes = columns.pop(item.name)
        if len(codes) != item.cardinality:
            raise ValueError(
                f"{file} has {len(codes)} items, the schema gives {item.name!r} cardinality {item.cardinality}; {CURE}"
            )
        if (wrong := np.flatnonzero(codes != np.arange(len(codes)))).size:
            row = wrong[0]
            raise ValueError(f"row {row} of {file} describes item {codes[row]}, expected item {row}; {CURE}")
        return columns

    def _check_vault(self) -> None:
        found, wanted = self.vault.layout.fields, Layout.of(self.schema).fields
        if found != wanted:
            raise ValueError(
                f"{self.path / 'vault'} keeps events of {_listed(found)}, the schema's events have {_listed(wanted)}; "
                f"{CURE}"
            )


def _listed(fields: tuple[Field, ...]) -> str:
    return ", ".join(f"{f.name} {f.dtype}" + (f"[{f.length}]" if f.length > 1 else "") for f in fields)

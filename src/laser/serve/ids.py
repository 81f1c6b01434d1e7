"""Raw ids and values of requests and events -> codes of the model, as data preparation coded them.

A feature has a dictionary (``ids/FEATURE.parquet``, columns ``raw`` and ``code``), or buckets (a dictionary whose first
raw value is minus infinity, of lower bounds), or a hash, or none of these: then its raw values are codes. Codes behind
those of a dictionary up to the cardinality are shared by hash among values that have none of their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from laser.schema import Feature

HASH_DIGITS = 12
UNCODED = 1 << 62
"""Store keys of users without a code of their own begin here, far above any code."""


def hash_number(raw: Any) -> int:
    """The number that data preparation takes for a hashed value: 12 hexadecimal digits of the MD5 of its text."""
    return int(
        hashlib.md5(str(raw).encode(errors="surrogatepass"), usedforsecurity=False).hexdigest()[:HASH_DIGITS], 16
    )


def store_key(raw: Any) -> int:
    """Key in the history store of a user that has no code: 62 bits of a hash of its text above ``UNCODED``."""
    return UNCODED + (
        int.from_bytes(hashlib.blake2b(str(raw).encode(errors="surrogatepass"), digest_size=8).digest(), "little") >> 2
    )


@dataclass(frozen=True)
class Codes:
    """Raw values -> codes of one feature.

    Args:
        feature: whose values they are.
        sorted_raw: numeric raw values, ascending, with ``sorted_code`` beside; ``None`` for text or no dictionary.
        sorted_code: int64.
        by_text: code of each text; empty when the raw values are numbers.
        buckets: ``sorted_raw`` are lower bounds.
        shared: first code and number of the codes that values share by hash; the number may be 0.
    """

    feature: Feature
    sorted_raw: np.ndarray | None = None
    sorted_code: np.ndarray | None = None
    by_text: dict[str, int] | None = None
    buckets: bool = False
    shared: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, feature: Feature, dictionary: pa.Table | None, hashed: bool) -> Codes:
        """Codes of a feature with its dictionary, if it has one, or that is hashed altogether."""
        cardinality = feature.cardinality or 0
        if dictionary is None:
            return cls(feature, shared=(1, cardinality - 1) if hashed else (0, 0))
        raw, code = dictionary["raw"].combine_chunks(), dictionary["code"].to_numpy().astype(np.int64)
        first = 1 + (int(code.max()) if len(code) else 0)
        shared = (first, cardinality - first)
        if pa.types.is_string(raw.type) or pa.types.is_large_string(raw.type):
            return cls(feature, by_text=dict(zip(raw.to_pylist(), code.tolist(), strict=True)), shared=shared)
        values = raw.to_numpy(zero_copy_only=False)
        order = np.argsort(values, kind="stable")
        values, code = values[order], code[order]
        buckets = values.dtype.kind == "f" and len(values) > 0 and values[0] == -np.inf
        return cls(feature, values, code, buckets=bool(buckets), shared=shared)

    def __call__(self, raw: Sequence[Any] | np.ndarray, what: str) -> np.ndarray:
        """Int64 codes [N] of N raw values; ``None`` is unknown, and so is a value that has no code: 0.

        Raises:
            ValueError: when a value is of the wrong type; the sentence begins with ``what``.
        """
        if self.by_text is not None:
            return np.array([self._text(value, what) for value in _listed(raw)], dtype=np.int64)
        if self.sorted_raw is None and self.shared[1] > 0:
            return np.array([self._hashed_whole(value, what) for value in _listed(raw)], dtype=np.int64)
        known, values = _numbers(raw, what, self.sorted_raw)
        codes = np.zeros(len(known), dtype=np.int64)
        if self.sorted_raw is None:
            codes[known] = self._within(values, what)
        elif self.buckets:
            codes[known] = np.searchsorted(self.sorted_raw, values, side="right")
        elif len(self.sorted_raw):
            place = np.minimum(np.searchsorted(self.sorted_raw, values), len(self.sorted_raw) - 1)
            found = self.sorted_raw[place] == values
            assert self.sorted_code is not None
            codes[known] = np.where(found, self.sorted_code[place], 0)
            if self.shared[1] > 0 and not found.all():
                codes[np.flatnonzero(known)[~found]] = [self._hashed(value) for value in values[~found].tolist()]
        return codes

    def _text(self, value: Any, what: str) -> int:
        if value is None:
            return 0
        if not isinstance(value, str):
            raise ValueError(f"{what} {_shown(value)} is a {type(value).__name__}; {self.feature.name} is text here")
        assert self.by_text is not None
        code = self.by_text.get(value)
        return code if code is not None else self._hashed(value)

    def _hashed(self, value: Any) -> int:
        first, number = self.shared
        return first + hash_number(value) % number if number > 0 else 0

    def _hashed_whole(self, value: Any, what: str) -> int:
        if isinstance(value, bool) or not isinstance(value, (int, str, type(None))):
            raise ValueError(f"{what} {_shown(value)} is a {type(value).__name__}; expected text or a whole number")
        return 0 if value is None else self._hashed(value)

    def _within(self, values: np.ndarray, what: str) -> np.ndarray:
        """Values without any dictionary are codes as they are."""
        cardinality = self.feature.cardinality or 0
        if (bad := (values < 0) | (values >= cardinality)).any():
            raise ValueError(
                f"{what} {values[bad][0]} is no code of {self.feature.name}, which has no dictionary; expected a code "
                f"from 0 to {cardinality - 1}"
            )
        return values


def _listed(raw: Sequence[Any] | np.ndarray) -> list[Any]:
    if isinstance(raw, np.ndarray):
        return raw.tolist()
    return [value.item() if isinstance(value, np.generic) else value for value in raw]


def _numbers(raw: Sequence[Any] | np.ndarray, what: str, like: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Which values are given, and these as an array of int64 or, where the dictionary has them, float64."""
    real = like is not None and like.dtype.kind == "f"
    if isinstance(raw, np.ndarray) and raw.dtype.kind in ("iuf" if real else "iu"):
        given = ~np.isnan(raw) if raw.dtype.kind == "f" else np.ones(len(raw), dtype=bool)
        return given, raw[given].astype(np.float64 if real else np.int64)
    values = _listed(raw)
    allowed = (int, float) if real else (int,)
    for value in values:
        if value is not None and (isinstance(value, bool) or not isinstance(value, allowed)):
            raise ValueError(
                f"{what} {_shown(value)} is a {type(value).__name__}; expected a {'number' if real else 'whole number'}"
            )
    given = np.array([value is not None and value == value for value in values], dtype=bool)
    try:
        kept = [value for value in values if value is not None and value == value]
        return given, np.array(kept, dtype=np.float64 if real else np.int64)
    except OverflowError:
        raise ValueError(f"{what} has a value of more than 64 bits; ids are 64-bit whole numbers") from None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def read_codes(folder: Path, features: Sequence[Feature], hashed: Sequence[str]) -> dict[str, Codes]:
    """Codes of every feature.

    Args:
        folder: with the dictionaries.
        features: categorical ones.
        hashed: names of those without a dictionary that are hashed.

    Raises:
        ValueError: when a dictionary cannot be read.
    """
    found = {}
    for feature in features:
        file = folder / f"{feature.name}.parquet"
        try:
            table = pq.read_table(file, columns=["raw", "code"]) if file.exists() else None
        except (pa.ArrowException, OSError, KeyError) as error:
            raise ValueError(f"{file} is no dictionary of raw values and codes ({error})") from None
        found[feature.name] = Codes.of(feature, table, feature.name in hashed)
    return found

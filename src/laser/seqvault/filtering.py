"""Reading only events whose fields hold given values, without decoding the rest.

Of each chunk the filtered columns are unpacked first; of the others only what lies between its first and last match.
Chunks are walked from the newest, a few at a time, until a request has the events it wants.

Legend of shape suffixes: R requests; P pieces; Q distinct chunks; N events.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from laser.seqvault.decoding import unpack, unpack_ids
from laser.seqvault.index import count_of
from laser.seqvault.jit import kernel
from laser.seqvault.layout import Field, Layout


@dataclass(frozen=True)
class Filter:
    """Which events to return: those that hold one of ``allowed[i]`` in each ``fields[i]``.

    Args:
        fields: whole-number fields of one value, derived ones among them.
        allowed: per field its values, ascending, of the field's dtype.
    """

    fields: tuple[Field, ...]
    allowed: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, where: Mapping[str, Any], layout: Layout) -> Filter | None:
        """The filter a caller asked for; ``None`` when every event passes.

        Raises:
            ValueError: on an unknown field, one that cannot be filtered by, or values that are not whole numbers.
        """
        fields = layout.choose(where)
        return cls(fields, tuple(_allowed(field, where[field.name]) for field in fields)) if fields else None

    def keep(self, events: Mapping[str, np.ndarray]) -> np.ndarray:
        """Mask [N] of events that pass."""
        masks = [np.isin(events[field.name], allowed) for field, allowed in zip(self.fields, self.allowed)]
        return np.logical_and.reduce(masks)


def _allowed(field: Field, values: Any) -> np.ndarray:
    dtype = np.dtype(field.dtype)
    # As objects, for numpy makes floats of a list of small and very large integers.
    found = np.atleast_1d(values if isinstance(values, np.ndarray) else np.array(values, object))
    if dtype.kind not in "iu" or field.length != 1:
        raise ValueError(
            f"field {field.name!r} ({field.dtype} x {field.length}) cannot be filtered by; "
            "name fields of one whole number in where"
        )
    whole = found.dtype.kind in "iub" or all(isinstance(value, int | np.integer) for value in found)
    if found.ndim != 1 or not whole:
        raise ValueError(f"where[{field.name!r}] is {values!r:.60}; expected a whole number or a list of them")
    limits = np.iinfo(dtype)
    return np.unique(found[(found >= limits.min) & (found <= limits.max)].astype(dtype))


@dataclass
class Matches:
    """Positions of matching events: those of chunk q at ``positions[begin[q] : begin[q] + count[q]]``."""

    positions: np.ndarray
    begin: np.ndarray
    count: np.ndarray

    @classmethod
    def none(cls, chunks: int) -> Matches:
        """No chunk examined yet, or nothing to be filtered."""
        return cls(np.empty(0, np.uint16), np.zeros(chunks, np.int64), np.zeros(chunks, np.int64))

    def find(
        self,
        wanted: Filter,
        layout: Layout,
        ids: Mapping[str, np.ndarray],
        chunks: np.ndarray,
        places: np.ndarray,
        arena: np.ndarray,
        offsets: np.ndarray,
    ) -> int:
        """Examine ``chunks``, which lie in the arena; -1, or one with a code outside its dictionary.

        ``ids`` holds ids by code of fields with a dictionary, and values by code of derived ones.
        """
        sizes = (places[chunks] & np.uint64(0x3FF)).astype(np.int64)
        positions = np.empty(int(sizes.sum()), np.uint16)
        begin = np.cumsum(sizes) - sizes
        count = sizes.copy()
        positions[:] = np.arange(len(positions)) - np.repeat(begin, sizes)
        for field, allowed in zip(wanted.fields, wanted.allowed):
            coded = field.name in ids
            values = ids[field.name] if coded else np.empty(0, np.uint64)
            # Chunks hold signed values extended to 64 bits, dictionaries and tables hold them in their own size.
            bits = allowed.view(field.unsigned) if coded else allowed
            bits = np.sort(bits.astype(np.uint64))
            column = layout.first_column[field.name]
            bad = narrow(chunks, places, arena, offsets, column, bits, coded, values, begin, count, positions)
            if bad >= 0:
                return bad
        self.begin[chunks], self.count[chunks] = begin + len(self.positions), count
        self.positions = np.concatenate([self.positions, positions])
        return -1


@kernel
def _holds(bits: np.ndarray, value: np.uint64) -> bool:
    """Whether ascending ``bits`` hold a value."""
    low, high = 0, len(bits)
    while high - low > 4:
        middle = (low + high) >> 1
        if bits[middle] <= value:
            low = middle
        else:
            high = middle
    found = False
    for index in range(low, high):
        found |= bits[index] == value
    return found


@kernel
def narrow(
    chunks: np.ndarray,
    places: np.ndarray,
    arena: np.ndarray,
    offsets: np.ndarray,
    column: int,
    bits: np.ndarray,
    coded: bool,
    ids: np.ndarray,
    begin: np.ndarray,
    count: np.ndarray,
    positions: np.ndarray,
) -> int:
    """Keep of each chunk's ``positions`` those where ``column`` holds one of ``bits``; -1, or a damaged chunk."""
    values, scratch = np.empty(1024, np.uint64), np.empty(1024, np.uint64)
    for index in range(len(chunks)):
        chunk = chunks[index]
        size, first, kept = count_of(places[chunk]), begin[index], 0
        if count[index] == 0:
            continue
        if coded:
            if not unpack_ids(arena, offsets[chunk], column, 0, size, values, 0, 1, scratch, ids):
                return chunk
        else:
            unpack(arena, offsets[chunk], column, 0, size, values, 0, 1, scratch)
        for entry in range(first, first + count[index]):
            if _holds(bits, values[positions[entry]]):
                positions[first + kept] = positions[entry]
                kept += 1
        count[index] = kept
    return -1


@kernel
def match_stops(
    pieces: np.ndarray,
    piece_at: np.ndarray,
    piece_cut: np.ndarray,
    begin: np.ndarray,
    count: np.ndarray,
    positions: np.ndarray,
    piece_stop: np.ndarray,
) -> None:
    """Of each of ``pieces``, how many matches lie before event ``piece_cut`` of its chunk."""
    for piece in pieces:
        chunk = piece_at[piece]
        low, high = 0, count[chunk]
        while low < high:
            middle = (low + high) >> 1
            if np.int64(positions[begin[chunk] + middle]) < piece_cut[piece]:
                low = middle + 1
            else:
                high = middle
        piece_stop[piece] = low

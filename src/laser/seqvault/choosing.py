"""Which fields get an id dictionary: those where a trial on real events shows that it pays.

Legend of shape suffixes: N events of a sample.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from laser.seqvault.dictionary import Dictionaries
from laser.seqvault.layout import Field, Layout
from laser.seqvault.storing import pack_sorted

SAMPLE_EVENTS = 1 << 18
LEAST_EVENTS = 1 << 14
"""Fewer events tell too little of how often ids come again."""
LEAST_BITS = 2
"""Bits an event must save."""


def paying_fields(known: Dictionaries, users: np.ndarray, events: dict[str, np.ndarray]) -> list[Field]:
    """Integer fields of at least 4 bytes without a dictionary for which one saves room, judged by N events."""
    layout = known.layout
    sample, names = users[:SAMPLE_EVENTS], known.by_field
    if len(sample) < LEAST_EVENTS:
        return []
    order = np.lexsort((events[layout.names[0]][: len(sample)], sample))
    fields = [f for f in layout.fields[1:] if np.dtype(f.dtype).kind in "iu" and np.dtype(f.dtype).itemsize >= 4]
    return [f for f in fields if f.name not in names and _pays(known, f, sample, events, order)]


def _pays(
    known: Dictionaries, field: Field, users: np.ndarray, events: dict[str, np.ndarray], order: np.ndarray
) -> bool:
    layout = known.layout
    pair = Layout((layout.fields[0], replace(field, name="id")))
    times, values = events[layout.names[0]][: len(users)], events[field.name][: len(users)]
    trial = known.with_added([field]).by_field[field.name]
    half = len(users) // 2
    trial.encode(values[:half])
    seen = trial.count
    codes = trial.encode(values)
    distinct, sizes = np.unique(users, return_counts=True)
    keep = np.zeros(len(distinct), np.int64)
    columns = (pair.columns({layout.names[0]: times, "id": column}, order) for column in (values, codes))
    plain, coded = (64 * len(pack_sorted(pair, distinct, keep, sizes, both)[0]) for both in columns)
    # Ids keep arriving as in the second half of the sample; most vaults see fewer and fewer new ones.
    arriving = (trial.count - seen) / (len(users) - half) * len(users) * 8 * np.dtype(field.dtype).itemsize
    return plain - coded - arriving > LEAST_BITS * len(users)

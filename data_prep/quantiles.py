"""Exact quantiles, the same on every engine down to the last bit."""

from __future__ import annotations

import ibis.expr.types as ir
import numpy as np

from data_prep.engine import Engine


def quantiles(engine: Engine, value: ir.NumericColumn, shares: list[float]) -> list[float]:
    """Quantiles of the known values of a float64 column, interpolated between neighbours; none when none is known.

    Engines interpolate in their own ways, so distinct values and their counts are streamed in order and met here.
    """
    rows = value.name("value").as_table()
    known = rows.filter(rows["value"].notnull())
    counts = known.group_by("value").agg(rows=known.count())
    total = int(counts["rows"].sum().to_pyarrow().as_py() or 0)
    if not total:
        return []
    position = np.asarray(shares) * (total - 1)
    below = np.floor(position).astype(np.int64)
    places = np.unique([below, np.minimum(below + 1, total - 1)])
    found: dict[int, float] = {}
    before = 0
    for batch in engine.batches(counts, ["value"]):
        values, numbers = (batch.column(name).to_numpy(zero_copy_only=False) for name in ("value", "rows"))
        upto = before + np.cumsum(numbers)
        here = places[(places >= before) & (places < upto[-1])]
        found |= dict(zip(here.tolist(), values[np.searchsorted(upto, here, side="right")].tolist()))
        before = int(upto[-1])
    low = np.asarray([found[place] for place in below.tolist()])
    high = np.asarray([found[min(place + 1, total - 1)] for place in below.tolist()])
    return (low + (high - low) * (position - below)).tolist()

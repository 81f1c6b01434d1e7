"""Rows whose time lies far from all others: a clock that was set wrong, or seconds among milliseconds."""

from __future__ import annotations

import ibis.expr.types as ir
import numpy as np

from data_prep.report_figures import moment
from laser.schema import Schema

BINS = 1000
"""Equal parts of the whole time in which rows are counted."""
MIDDLE = (0.01, 0.99)
FAR = 5
"""A row is far when it lies more than this many times the span of the middle rows outside of them."""


def stray_times(rows: ir.Table, unit: str) -> dict[str, int] | None:
    """How many rows lie far from the others, and where; None when none does.

    Args:
        rows: accepted ones, with ``$timestamp``.
        unit: of the timestamp; steps are positions and no times.

    Returns:
        ``rows`` that are far, ``first`` and ``last`` of them, and ``earliest`` and ``latest``, between which the
        others lie, in ticks.
    """
    if unit == "step":
        return None
    time = rows["$timestamp"]
    first, last = rows.aggregate(first=time.min(), last=time.max()).to_pyarrow().to_pylist()[0].values()
    if first is None or last - first < BINS:
        return None
    width = (last - first) // BINS + 1
    place = ((time - first) // width).cast("int64")
    binned = rows.mutate(**{"$bin": place}).group_by("$bin")
    found = binned.agg(**{"$rows": time.count(), "$least": time.min(), "$most": time.max()}).to_pyarrow()
    bins, counts, least, most = (found[name].to_numpy() for name in ("$bin", "$rows", "$least", "$most"))
    order = np.argsort(bins)
    upto = np.cumsum(counts[order])
    low, high = (int(bins[order][np.searchsorted(upto, share * upto[-1])]) for share in MIDDLE)
    reach = FAR * (high - low + 1)
    far = (bins < low - reach) | (bins > high + reach)
    if not far.any():
        return None
    return {
        "rows": int(counts[far].sum()),
        "first": int(least[far].min()),
        "last": int(most[far].max()),
        "earliest": int(least[~far].min()),
        "latest": int(most[~far].max()),
    }


def stray_sentence(found: dict[str, int], schema: Schema) -> str:
    """What was found, in words."""

    def when(name: str) -> str:
        return f"{moment(found[name] * schema.seconds_per_tick):%Y-%m-%d}"

    rows = "1 row lies" if found["rows"] == 1 else f"{found['rows']:,} rows lie"
    return (
        f"{rows} far from all others in time, from {when('first')} to {when('last')} (the rest: {when('earliest')} to "
        f"{when('latest')}); if a clock was wrong, set `earliest: {found['earliest']}` and `latest: {found['latest']}` "
        "of `timestamp`"
    )

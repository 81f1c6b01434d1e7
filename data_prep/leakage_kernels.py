"""Compiled loops of the leakage check: samples put together by user, and compared with their user's whole history.

Legend: U users, S samples and T events, both packed by user: user ``u`` has ``[starts[u], starts[u + 1])``.
"""

from __future__ import annotations

import numpy as np

from laser.seqvault.jit import kernel

UNORDERED, MIXED, CROSSED = 0, 1, 2
"""Places in a tally: neighbouring events out of order, users with samples of several splits, and then, per pair of
splits, users for whom the earlier one has a sample after one of the later one."""
EARLIER, LATER = (0, 1, 0), (1, 2, 2)
"""The pairs, as places in ``SPLITS``: train and validation, validation and test, train and test."""
TALLIES = CROSSED + len(EARLIER)
NUM_SPLITS = 3


@kernel
def count_users(user, totals):
    """Add the rows of each user code to ``totals`` [U]; codes outside are left out."""
    for row in range(len(user)):
        if 0 <= user[row] < len(totals):
            totals[user[row]] += 1


@kernel
def place_samples(user, item, time, split, following, items, times, splits):
    """Put rows in the places ``following`` [U] of their users, which move on; rows of other users are left out."""
    for row in range(len(user)):
        u = user[row]
        if 0 <= u < len(following):
            at = following[u]
            items[at], times[at], splits[at] = item[row], time[row], split
            following[u] = at + 1


@kernel
def first_not_below(values, low, high, wanted):
    """First place in the rising ``values[low:high]`` whose value is not below ``wanted``, or ``high``."""
    step = 1
    while low + step < high and values[low + step] < wanted:
        low += step
        step *= 2
    high = min(high, low + step)
    while low < high:
        middle = (low + high) // 2
        if values[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low


@kernel
def order_ties(times, items, first, stop):
    """Sort the items of each moment in place; returns the neighbours that are not in the order of time."""
    unordered, moment = 0, first
    for event in range(first + 1, stop + 1):
        if event < stop and times[event] == times[event - 1]:
            continue
        if event - moment > 1:
            items[moment:event].sort()
        if event < stop and times[event] < times[event - 1]:
            unordered += 1
        moment = event
    return unordered


@kernel
def compare(starts, item, time, split, offsets, times, items, earlier, own, doubtful, tally):
    """Compare the samples of U users with their histories ``offsets`` [U + 1], ``times`` [T], ``items`` [T].

    ``earlier`` [S] becomes the number of events before each sample, ``own`` [S] whether its own event (same time and
    item) is there, ``doubtful`` [S] whether another split of the user spans its time; ``tally`` is added to. ``items``
    are reordered within each moment.
    """
    low, high = np.empty(NUM_SPLITS, np.int64), np.empty(NUM_SPLITS, np.int64)
    present = np.empty(NUM_SPLITS, np.bool_)
    for u in range(len(starts) - 1):
        first, stop = offsets[u], offsets[u + 1]
        tally[UNORDERED] += order_ties(times, items, first, stop)
        present[:] = False
        at, before = first, 0
        for sample in range(starts[u], starts[u + 1]):
            moment, k = time[sample], split[sample]
            low[k] = min(low[k], moment) if present[k] else moment
            high[k] = max(high[k], moment) if present[k] else moment
            present[k] = True
            at = first_not_below(times, at if moment >= before else first, stop, moment)
            before = moment
            earlier[sample] = at - first
            own[sample] = False
            if at < stop and times[at] == moment:
                end = first_not_below(times, at, stop, moment + 1)
                place = first_not_below(items, at, end, item[sample])
                own[sample] = place < end and items[place] == item[sample]
        if present.sum() > 1:
            tally[MIXED] += 1
            for pair in range(len(EARLIER)):
                one, other = EARLIER[pair], LATER[pair]
                tally[CROSSED + pair] += present[one] and present[other] and high[one] > low[other]
            for sample in range(starts[u], starts[u + 1]):
                for k in range(NUM_SPLITS):
                    if k != split[sample] and present[k] and low[k] <= time[sample] <= high[k]:
                        doubtful[sample] = True

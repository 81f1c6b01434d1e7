"""From a request to the chunks and the parts of them that answer it.

Legend of shape suffixes: R requests (a user and a cut in time each); P pieces (a chunk as one request uses it, newest
first within a request); Q distinct chunks.
"""

from __future__ import annotations

import numpy as np

from laser.seqvault.index import GOLDEN, NO_PLACE, count_of, find_row, next_older
from laser.seqvault.jit import kernel
from laser.seqvault.tail import EMPTY, MIXED, find_tail

FOREVER = np.iinfo(np.int64).max


@kernel
def take_tail(
    users: np.ndarray,
    before: np.ndarray,
    unlimited: bool,
    last_n: np.ndarray,
    slots: np.ndarray,
    times: np.ndarray,
    previous: np.ndarray,
    taken: np.ndarray,
    newest: np.ndarray,
) -> int:
    """Per request the number of tail events used and the newest of them; -1 taken marks a user whose events need
    sorting. Returns the events taken."""
    total = 0
    for request in range(len(users)):
        taken[request] = 0
        slot = find_tail(slots, users[request])
        if slots[slot].state == EMPTY:
            continue
        if slots[slot].state == MIXED:
            taken[request] = -1
            continue
        event = slots[slot].head
        available = np.int64(slots[slot].count)
        while not unlimited and event >= 0 and times[event] >= before[request]:
            event = previous[event]
            available -= 1
        newest[request] = event
        taken[request] = min(available, last_n[request])
        total += taken[request]
    return total


@kernel
def walk_tail(
    taken: np.ndarray, newest: np.ndarray, previous: np.ndarray, tail_off: np.ndarray, source: np.ndarray
) -> None:
    """Positions in the tail of the events used, oldest first; ``tail_off[r]`` begins request r."""
    for request in range(len(taken)):
        event, at = newest[request], tail_off[request + 1]
        for _ in range(taken[request]):
            at -= 1
            source[at] = event
            event = previous[event]


@kernel
def choose_chunks(
    users: np.ndarray,
    before: np.ndarray,
    unlimited: bool,
    wanted: np.ndarray,
    table: np.ndarray,
    rows: np.ndarray,
    chunks: np.ndarray,
    piece_off: np.ndarray,
    piece_place: np.ndarray,
    piece_sure: np.ndarray,
) -> int:
    """Chunks that can hold the newest ``wanted`` events before each cut; returns P, or -1 if the arrays are short.

    A piece is sure when all its events are known to lie before the cut: only these count towards ``wanted``.
    """
    pieces = 0
    for request in range(len(users)):
        piece_off[request] = pieces
        row = find_row(table, rows, users[request])
        if row < 0:
            continue
        cut = before[request]
        sure = unlimited or rows[row].last < cut
        place, first, record, missing = rows[row].place, rows[row].first, rows[row].older, wanted[request]
        while place != NO_PLACE and missing > 0:
            if sure or np.int64(first) < cut:
                if pieces == len(piece_place):
                    return -1
                piece_place[pieces], piece_sure[pieces] = place, sure
                pieces += 1
                if sure:
                    missing -= count_of(place)
                elif np.float64(np.nextafter(first, np.float32(np.inf))) < 9.2e18 and (
                    np.int64(np.nextafter(first, np.float32(np.inf))) <= cut
                ):
                    # The true first timestamp is below the next float, so all older chunks end before the cut.
                    sure = True
            place, first, record = next_older(chunks, record)
    piece_off[len(users)] = pieces
    return pieces


@kernel
def distinct_chunks(piece_place: np.ndarray, table: np.ndarray, piece_at: np.ndarray, places: np.ndarray) -> int:
    """Number the distinct chunks: ``piece_at`` per piece, ``places`` per distinct chunk; returns Q.

    ``table`` is int32, filled with -1, a power of two of at least 2 P slots.
    """
    count = 0
    for piece in range(len(piece_place)):
        place = piece_place[piece]
        slot = np.int64((place * GOLDEN) >> np.uint64(32)) & (len(table) - 1)
        while table[slot] >= 0 and places[table[slot]] != place:
            slot = (slot + 1) & (len(table) - 1)
        if table[slot] < 0:
            table[slot] = count
            places[count] = place
            count += 1
        piece_at[piece] = table[slot]
    return count


@kernel
def chunks_to_merge(
    users: np.ndarray,
    coming: np.ndarray,
    oldest: np.ndarray,
    full: int,
    table: np.ndarray,
    rows: np.ndarray,
    chunks: np.ndarray,
    keep: np.ndarray,
    merged: np.ndarray,
) -> None:
    """How many of each user's oldest chunks stay and how many events of newer ones are merged with ``coming`` events.

    Chunks that may hold an event newer than the ``oldest`` coming one are merged. Beyond them a chunk is merged while
    it is not full and at most four times what has gathered so far, which bounds both the number of small chunks of a
    user (about log4 of a chunk) and how often an event is rewritten.
    """
    for index in range(len(users)):
        keep[index] = 0
        merged[index] = 0
        row = find_row(table, rows, users[index])
        if row < 0:
            continue
        place, first, record, merging = rows[row].place, rows[row].first, rows[row].older, True
        overlapping = oldest[index] < rows[row].last
        while place != NO_PLACE:
            count = count_of(place)
            merging = merging and (overlapping or (count < full and count <= 4 * (merged[index] + coming[index])))
            if merging:
                merged[index] += count
            else:
                keep[index] += 1
            # No older chunk has anything newer than this one's first event, which lies below the next float32.
            overlapping = overlapping and np.nextafter(first, np.float32(np.inf)) >= oldest[index]
            place, first, record = next_older(chunks, record)

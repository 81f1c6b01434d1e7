"""From a request to the chunks and the parts of them that answer it.

Legend of shape suffixes: R requests (a user and a cut in time each); P pieces (a chunk as one request uses it, newest
first within a request); Q distinct chunks.
"""

from __future__ import annotations

import numpy as np

from laser.seqvault.checksum import crc32c_words
from laser.seqvault.index import count_of, find_row, offset_of, slot_of, words_of
from laser.seqvault.jit import WILLNEED, fadvise, kernel, pread
from laser.seqvault.packing import MAGIC, unpack, unpack_ids
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
    taken: np.ndarray, newest: np.ndarray, previous: np.ndarray, stops: np.ndarray, source: np.ndarray, dest: np.ndarray
) -> None:
    """For each tail event used: its position in the tail and in the result, where a request ends at ``stops``."""
    cursor = 0
    for request in range(len(taken)):
        event, at = newest[request], stops[request]
        for _ in range(taken[request]):
            at -= 1
            source[cursor], dest[cursor] = event, at
            cursor += 1
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
    piece_chunk: np.ndarray,
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
        chunk, missing = rows[row].head, wanted[request]
        while chunk >= 0 and missing > 0:
            first = chunks[chunk].first
            if sure or np.int64(first) < cut:
                if pieces == len(piece_chunk):
                    return -1
                piece_chunk[pieces], piece_sure[pieces] = chunk, sure
                pieces += 1
                if sure:
                    missing -= count_of(chunks[chunk].place)
                elif np.float64(np.nextafter(first, np.float32(np.inf))) < 9.2e18 and (
                    np.int64(np.nextafter(first, np.float32(np.inf))) <= cut
                ):
                    # The true first timestamp is below the next float, so all older chunks end before the cut.
                    sure = True
            chunk = chunks[chunk].older
    piece_off[len(users)] = pieces
    return pieces


@kernel
def distinct_chunks(
    piece_chunk: np.ndarray, chunks: np.ndarray, table: np.ndarray, piece_at: np.ndarray, places: np.ndarray
) -> int:
    """Number the distinct chunks: ``piece_at`` per piece, ``places`` per distinct chunk; returns Q.

    ``table`` is int32, filled with -1, a power of two of at least 2 P slots.
    """
    count = 0
    owner = np.empty(len(piece_chunk), np.int32)
    for piece in range(len(piece_chunk)):
        chunk = piece_chunk[piece]
        slot = np.int64(np.uint64(chunk) * np.uint64(0x9E3779B1)) & (len(table) - 1)
        while table[slot] >= 0 and owner[table[slot]] != chunk:
            slot = (slot + 1) & (len(table) - 1)
        if table[slot] < 0:
            table[slot] = count
            owner[count] = chunk
            places[count] = chunks[chunk].place
            count += 1
        piece_at[piece] = table[slot]
    return count


@kernel
def arena_offsets(places: np.ndarray, offsets: np.ndarray) -> int:
    """Where each chunk goes in the arena, in words; returns the words needed."""
    total = 0
    for index in range(len(places)):
        offsets[index] = total
        total += words_of(places[index])
    return total


@kernel
def fetch(places: np.ndarray, files: np.ndarray, arena: np.ndarray, offsets: np.ndarray) -> int:
    """Read all chunks into the arena, asking for all before waiting for any; -1, or the first that came back short."""
    if len(places) > 1:
        for index in range(len(places)):
            place = places[index]
            fadvise(files[slot_of(place)], offset_of(place) * 8, words_of(place) * 8, WILLNEED)
    for index in range(len(places)):
        place = places[index]
        size = words_of(place) * 8
        address = arena.ctypes.data + offsets[index] * 8
        if pread(files[slot_of(place)], address, np.uint64(size), offset_of(place) * 8) != size:
            return index
    return -1


@kernel
def verify(places: np.ndarray, arena: np.ndarray, offsets: np.ndarray, num_columns: int) -> int:
    """Check magic, size and checksum of all chunks; -1, or the first that is damaged."""
    for index in range(len(places)):
        top, words = offsets[index], words_of(places[index])
        size = (
            np.uint64(count_of(places[index]))
            | np.uint64(num_columns) << np.uint64(16)
            | np.uint64(words) << np.uint64(32)
        )
        head = np.uint64(MAGIC) | crc32c_words(arena, top + 1, top + words) << np.uint64(32)
        if arena[top] != head or arena[top + 2] != size:
            return index
    return -1


@kernel
def cut_pieces(
    before: np.ndarray,
    wanted: np.ndarray,
    piece_off: np.ndarray,
    piece_at: np.ndarray,
    piece_sure: np.ndarray,
    places: np.ndarray,
    arena: np.ndarray,
    offsets: np.ndarray,
    piece_start: np.ndarray,
    piece_stop: np.ndarray,
    lengths: np.ndarray,
) -> None:
    """Events of each piece that belong to the answer, and the length of each answer."""
    times, scratch = np.empty(1024, np.uint64), np.empty(1024, np.uint64)
    for request in range(len(before)):
        missing = wanted[request]
        for piece in range(piece_off[request], piece_off[request + 1]):
            count = count_of(places[piece_at[piece]])
            if not piece_sure[piece]:
                unpack(arena, offsets[piece_at[piece]], 0, 0, count, times, 0, 1, scratch)
                low, high = 0, count
                while low < high:
                    middle = (low + high) >> 1
                    if np.int64(times[middle]) < before[request]:
                        low = middle + 1
                    else:
                        high = middle
                count = low
            piece_stop[piece] = count
            piece_start[piece] = max(0, count - missing)
            missing -= count - piece_start[piece]
        lengths[request] = wanted[request] - missing


@kernel
def unpack_pieces(
    piece_off: np.ndarray,
    piece_at: np.ndarray,
    piece_start: np.ndarray,
    piece_stop: np.ndarray,
    stops: np.ndarray,
    arena: np.ndarray,
    offsets: np.ndarray,
    column: int,
    component: int,
    stride: int,
    dest: np.ndarray,
) -> None:
    """One column of all pieces; the stored part of request r ends at event ``stops[r]`` of ``dest``."""
    scratch = np.empty(1024, np.uint64)
    for request in range(len(stops)):
        at = stops[request]
        for piece in range(piece_off[request], piece_off[request + 1]):
            start, stop = piece_start[piece], piece_stop[piece]
            at -= stop - start
            if stop > start:
                unpack(
                    arena, offsets[piece_at[piece]], column, start, stop, dest, at * stride + component, stride, scratch
                )


@kernel
def unpack_id_pieces(
    piece_off: np.ndarray,
    piece_at: np.ndarray,
    piece_start: np.ndarray,
    piece_stop: np.ndarray,
    stops: np.ndarray,
    arena: np.ndarray,
    offsets: np.ndarray,
    column: int,
    component: int,
    stride: int,
    dest: np.ndarray,
    ids: np.ndarray,
) -> int:
    """As ``unpack_pieces`` for a column of codes into ``ids``; -1, or the first chunk with a code outside."""
    scratch = np.empty(1024, np.uint64)
    for request in range(len(stops)):
        at = stops[request]
        for piece in range(piece_off[request], piece_off[request + 1]):
            start, stop = piece_start[piece], piece_stop[piece]
            at -= stop - start
            top = offsets[piece_at[piece]]
            place = at * stride + component
            if stop > start and not unpack_ids(arena, top, column, start, stop, dest, place, stride, scratch, ids):
                return piece_at[piece]
    return -1


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

    A chunk is merged while it is not full and at most four times what has gathered so far, which bounds both the number
    of small chunks of a user (about log4 of a chunk) and how often an event is rewritten. A user whose ``oldest``
    coming event is older than a stored one is merged whole.
    """
    for index in range(len(users)):
        keep[index] = 0
        merged[index] = 0
        row = find_row(table, rows, users[index])
        if row < 0:
            continue
        chunk, merging = rows[row].head, True
        out_of_order = oldest[index] < rows[row].last
        while chunk >= 0:
            count = count_of(chunks[chunk].place)
            merging = merging and (out_of_order or (count < full and count <= 4 * (merged[index] + coming[index])))
            if merging:
                merged[index] += count
            else:
                keep[index] += 1
            chunk = chunks[chunk].older

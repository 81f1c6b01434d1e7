"""Cold chunks: smaller, the same events, every byte checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from laser.seqvault import SeqVault
from laser.seqvault.bits import HEADER_WORDS, area_words, worst_chunk_words
from laser.seqvault.cold import chill, is_cold, thaw
from laser.seqvault.decoding import unpack, unpack_at
from laser.seqvault.packing import pack_chunks
from tests.seqvault.conftest import FIELDS, Model, make_events

LARGEST = 2**64 - 1


def skewed(rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
    """Events whose small fields zstd packs well below their widths."""
    kinds = rng.choice([0, 1, 2, 9], size, p=[0.9, 0.05, 0.04, 0.01])
    return make_events(rng, size) | {
        "category": kinds.astype(np.uint16),
        "delta": (-kinds * rng.integers(0, 2, size)).astype(np.int32),
    }


@pytest.mark.parametrize("count", [1, 2, 63, 64, 1000])
@pytest.mark.parametrize("bits", [1, 8, 9, 16, 30, 64])
def test_any_width_and_length(rng: np.random.Generator, count: int, bits: int) -> None:
    values = np.where(rng.random(count) < 0.02, rng.integers(0, LARGEST, count, dtype=np.uint64), 3)
    values >>= np.uint64(64 - bits)
    steps = np.where(rng.random(count) < 0.05, 10**6, 1).cumsum().astype(np.uint64)
    columns = np.stack([steps, values, (values.view(np.int64) - 5).view(np.uint64)])
    words = np.zeros(worst_chunk_words(count, 3), np.uint64)
    places = np.empty(2, np.int64)
    signed = np.array([True, False, True])
    end = pack_chunks(columns, signed, np.array([7], np.uint64), np.array([0, count]), words, places)
    cold = chill(words[:end], places, np.array([True]), 3)
    assert len(cold) <= end
    if count == 1000:
        assert any(is_cold(cold[HEADER_WORDS + column]) for column in range(3))
    offsets = np.zeros(1, np.int64)
    arena = thaw(np.append(cold, np.full(2, LARGEST, np.uint64)), offsets, 3)
    some, scratch = np.arange(count // 3, count, 5), np.empty(1024, np.uint64)
    for column in range(3):
        for start, stop in ((0, count), (count // 3, count - count // 4)):
            dest = np.zeros(count, np.uint64)
            unpack(arena, offsets[0], column, start, stop, dest, 0, 1, scratch)
            np.testing.assert_array_equal(dest[: stop - start], columns[column, start:stop])
        unpack_at(arena, offsets[0], column, some, len(some), dest, scratch)
        np.testing.assert_array_equal(dest[: len(some)], columns[column, some])


def test_compaction_makes_older_chunks_cold(path: Path, rng: np.random.Generator) -> None:
    model, vault = Model(), SeqVault.create(path, FIELDS)
    for _ in range(3):
        users, events = np.sort(rng.integers(0, 3, 3000)), skewed(rng, 3000)
        vault.append(users, events)
        model.append(users, events)
    vault.checkpoint()
    before = vault.stats()["bytes_per_event"]
    vault.compact()
    assert vault.stats()["bytes_per_event"] < before
    for cut, last_n in ((None, None), (500_000, None), (500_000, 100), (None, 1500)):
        model.compare(vault, np.arange(4), cut, last_n)
    found = vault.read(np.arange(4), fields=["category"])
    np.testing.assert_array_equal(found["category"], vault.read(np.arange(4))["category"])
    more = skewed(rng, 500)
    vault.append(np.ones(500, np.int64), more)  # late events: the cold chunks are read and packed anew
    model.append(np.ones(500, np.int64), more)
    vault.checkpoint()
    model.compare(vault, np.arange(4))
    assert vault.check() == []
    vault.close()


def test_a_flipped_byte_of_a_cold_area_is_refused(path: Path, rng: np.random.Generator) -> None:
    with SeqVault.create(path, FIELDS, dictionaries=()) as vault:
        vault.append(np.zeros(1500, np.int64), skewed(rng, 1500))
        vault.compact()
    (segment,) = path.glob("*.seg")
    data = segment.read_bytes()
    words = np.frombuffer(data[: len(data) // 8 * 8], np.uint64)
    top, columns = 8, sum(field.length for field in FIELDS)
    start = top + HEADER_WORDS + columns
    for column in range(columns):
        descriptor = words[top + HEADER_WORDS + column]
        if is_cold(descriptor):
            break
        start += int(area_words(descriptor, 500))
    for offset in range(8 * start, 8 * (start + int(area_words(descriptor, 500))), 7):
        segment.write_bytes(data[:offset] + bytes([data[offset] ^ 4]) + data[offset + 1 :])
        with SeqVault.open(path) as vault, pytest.raises(ValueError, match="damaged at offset 64: "):
            vault.read([0])

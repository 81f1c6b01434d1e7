"""A read fetches and checks what it needs of a chunk, no more and no less."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from laser.seqvault import SeqVault
from laser.seqvault.bits import HEADER_WORDS, prefix_words
from laser.seqvault.segment import HEADER_BYTES
from tests.seqvault.conftest import FIELDS, make_events

COLUMNS = sum(field.length for field in FIELDS)


@pytest.mark.parametrize("users", [1, 40])
def test_a_projection_needs_only_its_prefix(path: Path, rng: np.random.Generator, users: int) -> None:
    """Whatever lies behind the columns asked for may be damaged; each byte before is checked."""
    with SeqVault.create(path, FIELDS, dictionaries=()) as vault:
        vault.append(np.repeat(np.arange(users), 30), make_events(rng, 30 * users))
        vault.checkpoint()
        whole = vault.read(np.arange(users))
    (segment,) = path.glob("*.seg")
    data = segment.read_bytes()
    words = np.frombuffer(data[: len(data) // 8 * 8], np.uint64)
    top = HEADER_BYTES // 8
    end = 8 * (top + int(prefix_words(words, top, 2)))
    last = 8 * (top + int(prefix_words(words, top, COLUMNS)))
    assert HEADER_BYTES + 8 * (HEADER_WORDS + COLUMNS) < end < last
    with SeqVault.open(path) as vault:
        for offset in range(HEADER_BYTES, last):
            segment_file = bytearray(data)
            segment_file[offset] ^= 0x20
            segment.write_bytes(segment_file)
            for _ in range(2):  # the second read knows how much the columns take
                if offset >= end:
                    found = vault.read(np.arange(users), fields=["time", "item"])
                    np.testing.assert_array_equal(found["item"], whole["item"])
                else:
                    with pytest.raises(ValueError, match=f"damaged at offset {HEADER_BYTES}: "):
                        vault.read(np.arange(users), fields=["time", "item"])
            with pytest.raises(ValueError, match=f"damaged at offset {HEADER_BYTES}: "):
                vault.read(np.arange(users))


def test_a_wrong_guess_of_a_prefix_is_made_good(path: Path, rng: np.random.Generator) -> None:
    with SeqVault.create(path, FIELDS, dictionaries=()) as vault:
        for user in range(40):
            vault.append(np.full(5 + 40 * user, user), make_events(rng, 5 + 40 * user))
        vault.checkpoint()
        whole = vault.read(np.arange(40))
        shares = vault._catalog.files.shares
        for share in (0.0, 0.3, 1.0):
            for fields in (["time"], ["time", "item"], ["item"], [field.name for field in FIELDS]):
                shares[:] = share
                found = vault.read(np.arange(40), fields=fields)
                for name in fields:
                    np.testing.assert_array_equal(found[name], whole[name])
        vault.read(np.arange(40), fields=["item"])
        assert 0 < shares[2] < 1  # learned


def test_short_histories_have_small_headers(path: Path, rng: np.random.Generator) -> None:
    with SeqVault.create(path, FIELDS, dictionaries=()) as vault:
        vault.append(np.repeat(np.arange(100), 10), make_events(rng, 1000))
        vault.checkpoint()
        raw = sum(np.dtype(field.dtype).itemsize * field.length for field in FIELDS)
        assert vault.stats()["bytes_per_event"] < raw

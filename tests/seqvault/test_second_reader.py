"""docs/seqvault_format.md says enough to write a second reader: one that was finds the same events."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from laser.seqvault import Field, SeqVault
from tests.seqvault import second_reader
from tests.seqvault.conftest import FIELDS, make_events

AUTHOR = Field("author", "int16", 2)


@pytest.mark.parametrize("dictionaries", [(), ("item", "delta", "tags")])
def test_a_reader_written_from_the_page_finds_the_same(
    tmp_path: Path, rng: np.random.Generator, dictionaries: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, column = set(), second_reader.column

    def recording(data: bytes, at: int, descriptor: int, events: int) -> tuple[list[int], int]:
        seen.add(descriptor & 7)
        return column(data, at, descriptor, events)

    monkeypatch.setattr(second_reader, "column", recording)
    items = rng.integers(0, 2**64, 40, dtype=np.uint64)
    path = tmp_path / "vault"
    with SeqVault.create(path, (*FIELDS, AUTHOR), dictionaries=dictionaries, derived={"author": "item"}) as vault:
        for step in range(4):
            size = (2300, 40, 400, 20)[step]
            events = make_events(rng, size, 1000 * step, 1000 * step + 1500)
            events["time"] = 1000 * step + np.arange(size) // 2  # its steps and the categories recur
            events["category"] = (np.arange(size) % 50).astype(np.uint16)
            events["item"] = rng.choice(items, size)
            events["weight"] = rng.choice(items[:12], size).view(np.float32)[::2].copy()
            events["delta"][rng.random(size) < 0.03] = 2**30
            vault.append(rng.choice(np.array([1, 7, 2**64 - 1], np.uint64), size, p=[0.9, 0.05, 0.05]), events)
            if step == 1:
                vault.delete_user(7)
                vault.compact()
            if step == 2:
                vault.checkpoint()
                vault.delete_user(2**64 - 1)
        vault.set_derived("author", items[:20], rng.integers(-9, 9, (20, 2)))
        second = second_reader.Vault(path)
        (table,) = [second_reader.read_table(file, "int16", 2) for file in path.glob("*.tab")]
        for user in (1, 7, 2**64 - 1, 3):
            first, events = vault.read([user]), second.read(user)
            assert first.lengths[0] == len(events)
            for name, expected in first.fields.items():
                if name == "author":
                    found = [table.get(event["item"][0], (0, 0)) for event in events]
                else:
                    found = [event[name] for event in events]
                np.testing.assert_array_equal(np.array(found, expected.dtype).reshape(expected.shape), expected)
        assert seen == {0, 1, 2, 3, 4}

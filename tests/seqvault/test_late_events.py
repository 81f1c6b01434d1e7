"""Events that arrive late: sorted in where they belong, and only chunks that they fall into are written anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from laser.seqvault import Field, SeqVault

FIELDS = (Field("time", "int64"), Field("item", "uint32"))
SCALES = [(0, 1), (1_700_000_000_000, 700), (1_700_000_000_000_000_000, 900_000_000), (-(2**62), 5)]


def events(times: np.ndarray, item: int) -> dict[str, np.ndarray]:
    return {"time": times, "item": (np.arange(len(times)) + item).astype(np.uint32)}


@pytest.mark.parametrize(("base", "step"), SCALES)
def test_late_events_of_any_age(path: Path, rng: np.random.Generator, base: int, step: int) -> None:
    """Ties with stored events included, which keep the order of arrival."""
    times, items = np.empty(0, np.int64), np.empty(0, np.uint32)
    with SeqVault.create(path, FIELDS, maintenance_rate=0) as vault:
        for turn in range(12):
            if turn % 3 == 0:
                new = base + step * np.arange(len(times), len(times) + 2600)
            else:
                new = rng.choice(times, 4) + rng.integers(0, 2, 4)
            coming = events(new, 10_000 * turn)
            vault.append(np.full(len(new), 7), coming)
            vault.checkpoint()
            times, items = np.concatenate([times, new]), np.concatenate([items, coming["item"]])
            order = np.argsort(times, kind="stable")
            found = vault.read([7])
            np.testing.assert_array_equal(found["time"], times[order])
            np.testing.assert_array_equal(found["item"], items[order])
        cut = int(np.sort(times)[len(times) // 2])
        np.testing.assert_array_equal(vault.read([7], before=cut)["time"], np.sort(times[times < cut]))
        assert vault.check() == []


def test_only_chunks_that_late_events_fall_into_are_written(path: Path) -> None:
    with SeqVault.create(path, FIELDS, maintenance_rate=0) as vault:
        times = 1_700_000_000 + 3600 * np.arange(20_000)
        vault.append(np.full(len(times), 7), events(times, 0))
        vault.checkpoint()
        catalog = vault._writing().catalog
        whole = catalog.written
        vault.append([7], events(times[-300:-299] + 1, 0))
        vault.checkpoint()
        late = catalog.written - whole
        assert late < whole / 8
        vault.append([7], events(times[:1] + 1, 0))
        vault.checkpoint()
        assert catalog.written - whole - late > whole / 2

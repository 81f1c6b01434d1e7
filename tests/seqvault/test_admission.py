"""Late and duplicate events are kept, dropped or refused as the vault says; retention drops what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from laser.seqvault import Field, SeqVault
from tests.seqvault.conftest import FIELDS, Model, make_events

SMALL = (Field("time", "int64"), Field("item", "uint16"))


def events(times: list[int], items: list[int]) -> dict[str, list[int]]:
    return {"time": times, "item": items}


@pytest.mark.parametrize("stored", [False, True])
def test_late_events(tmp_path: Path, stored: bool) -> None:
    expected = {"keep": [1, 3, 4, 5, 5, 6], "drop": [5, 5, 6]}
    for policy, times in expected.items():
        with SeqVault.create(tmp_path / policy, SMALL, late=policy) as vault:
            vault.append([1, 2], events([5, 9], [0, 0]))
            if stored:
                vault.checkpoint()
            assert vault.append([1] * 5, events([3, 5, 6, 4, 1], [0] * 5)) == len(times) - 1
            assert vault.read([1])["time"].tolist() == times
            assert vault.read([2])["time"].tolist() == [9]
    with SeqVault.create(tmp_path / "error", SMALL, late="error") as vault:
        vault.append([1], events([5], [0]))
        with pytest.raises(ValueError, match=r"event 1 of the append \(user 1, time 4\) is older"):
            vault.append([1, 1], events([6, 4], [0, 0]))
        assert vault.read([1])["time"].tolist() == [5]


@pytest.mark.parametrize("stored", [False, True])
def test_duplicate_events(tmp_path: Path, stored: bool) -> None:
    with SeqVault.create(tmp_path / "drop", SMALL, duplicates="drop") as vault:
        vault.append([1, 1, 2], events([5, 6, 5], [7, 7, 7]))
        if stored:
            vault.checkpoint()
        assert vault.append([1, 1, 1, 1, 3], events([5, 5, 8, 8, 5], [7, 8, 1, 1, 7])) == 3
        assert vault.read([1])["item"].tolist() == [7, 8, 7, 1]
        assert vault.read([3])["item"].tolist() == [7]
    with SeqVault.open(tmp_path / "drop", "a") as vault:  # the policy is the vault's, not the call's
        assert vault.append([2], events([5], [7])) == 0
    with SeqVault.create(tmp_path / "error", SMALL, duplicates="error") as vault:
        with pytest.raises(ValueError, match=r"event 1 .* is a duplicate"):
            vault.append([1, 1], events([5, 5], [7, 7]))
    with pytest.raises(ValueError, match="late is 'ignore'"):
        SeqVault.create(tmp_path / "x", SMALL, late="ignore")  # type: ignore[arg-type]


def test_retention_by_count_and_age(path: Path, rng: np.random.Generator) -> None:
    model, users, values = Model(), rng.integers(0, 5, 9000), make_events(rng, 9000)
    with SeqVault.create(path, FIELDS) as vault:
        vault.append(users, values)
        model.append(users, values)
        vault.compact(keep_last=1200)
        model.histories = {user: model.read(user, last_n=1200) for user in range(5)}
        model.compare(vault, np.arange(6))
        vault.compact(keep_since=900_000)
        for user, history in model.histories.items():
            model.histories[user] = [event for event in history if event["time"] >= 900_000]
        model.compare(vault, np.arange(6))
        vault.compact(keep_since=10**6)
        assert vault.stats()["users"] == 0
        assert vault.check() == []
        with pytest.raises(ValueError, match="keep_last is -1"):
            vault.compact(keep_last=-1)

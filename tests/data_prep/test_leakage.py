"""Planted leaks of each kind are found in a finished data set."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.leakage import check_prepared
from data_prep.pipeline import prepare
from laser.schema import Schema
from laser.seqvault import SeqVault


@pytest.fixture
def clean(small: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small, tmp_path / "clean"))


def problems(folder: Path) -> str:
    return "; ".join(check_prepared(folder, json.loads((folder / "report.json").read_text())).problems)


def rewrite_vault(folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Replace the store by one with changed events."""
    schema = Schema.load(folder / "schema.json")
    users = np.arange(1, schema.user.cardinality)
    with SeqVault.open(folder / "vault") as vault:
        whole = vault.read(users)
    events = {name: values.copy() for name, values in whole.fields.items()}
    events["user"] = np.repeat(users, whole.lengths)
    change(events)
    shutil.rmtree(folder / "vault")
    with SeqVault.create(folder / "vault", schema) as vault:
        vault.append(events.pop("user"), events)


def rewrite_samples(folder: Path, split: str, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    path = folder / "samples" / split / "part-00000.parquet"
    table = pq.read_table(path)
    columns = {name: table[name].to_numpy().copy() for name in table.column_names}
    change(columns)
    pq.write_table(pa.table(columns), path)


def test_clean(clean):
    assert problems(clean) == ""
    rewrite_vault(clean, lambda events: None)
    assert problems(clean) == ""


def test_event_moved_before_its_own_sample(clean):
    """Then the sample's outcome stands in its own history."""

    def move(events):
        events["timestamp"][17] -= 1

    rewrite_vault(clean, move)
    assert "lack their own event at their own time" in problems(clean)


def test_all_events_moved(clean):
    rewrite_vault(clean, lambda events: events.update(timestamp=events["timestamp"] - 1))
    assert "lack their own event at their own time" in problems(clean)


def test_store_that_cuts_too_late(clean, monkeypatch):
    """A store whose cut lets the sample's own moment through."""
    read = SeqVault.read

    def late(self, users, *, before=None, **options):
        return read(self, users, before=None if before is None else before + 1, **options)

    monkeypatch.setattr(SeqVault, "read", late)
    assert "events at or after their sample's time" in problems(clean)


def test_store_that_cuts_too_early(clean, monkeypatch):
    read = SeqVault.read

    def early(self, users, *, before=None, **options):
        return read(self, users, before=None if before is None else before - 2, **options)

    monkeypatch.setattr(SeqVault, "read", early)
    assert "lack events that lie before" in problems(clean)


def test_splits_swapped(clean):
    folder = clean / "samples"
    for old, new in (("train", "x"), ("test", "train"), ("x", "test")):
        (folder / old).rename(folder / new)
    found = problems(clean)
    assert "train samples lie after test samples for" in found
    assert "its report says" in found


def test_training_sample_repeated_in_test(clean):
    train = pq.read_table(clean / "samples/train").slice(0, 1).to_pylist()[0]

    def plant(columns):
        for name in columns:
            if name != "row":
                columns[name][0] = train[name]

    rewrite_samples(clean, "test", plant)
    assert "stand in two splits" in problems(clean)


def test_samples_out_of_order(clean):
    rewrite_samples(clean, "val", lambda columns: columns.update(timestamp=columns["timestamp"][::-1]))
    assert "not in the order of time" in problems(clean)


def test_wrong_codes_and_rows(clean):
    def spoil(columns):
        columns["item"][0], columns["label"][1], columns["row"][2] = 0, 7, 9

    rewrite_samples(clean, "val", spoil)
    found = problems(clean)
    for wanted in ("item code outside", "label other than", "does not count"):
        assert wanted in found


def test_users_in_two_folds(write, tmp_path):
    by_value = {"column": "shop", "train": [0], "validation": [1], "test": [2]}
    with pytest.raises(ValueError, match=r"leakage check failed: 12 users have samples in more than one split"):
        prepare(write(split={"by_value": by_value}), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    once = {"where": 'row_number() OVER (PARTITION BY "user", item, "time" ORDER BY log_row) = 1'}
    prepare(write(split={"by_value": by_value | {"users_disjoint": False}}, target=once), tmp_path / "out")


def test_same_rows_in_two_splits_that_overlap_in_time(write, tmp_path, log):
    by_value = {"column": "shop", "train": [0], "validation": [1], "test": [2], "users_disjoint": False}
    keys = list(zip(log["user"], log["item"], log["time"], log["shop"], strict=True))
    repeated = len({key[:3] for key in keys}) < len(set(keys))
    assert repeated
    with pytest.raises(
        ValueError, match=r"samples \(same user, item and time\) stand in two splits: let `target.where`"
    ):
        prepare(write(split={"by_value": by_value}), tmp_path / "out")


def test_splits_by_time_swapped(write, tmp_path):
    report = prepare(write(split={"by_time": {"validation": 1012, "test": 1020}}), tmp_path / "out")
    assert check_prepared(tmp_path / "out", report).problems == []
    folder = tmp_path / "out/samples"
    for old, new in (("val", "x"), ("test", "val"), ("x", "test")):
        (folder / old).rename(folder / new)
    assert "val samples lie after test samples in time" in problems(tmp_path / "out")


def test_command_tells_of_a_leak(clean, laser_prep):
    assert laser_prep("check", clean).returncode == 0
    rewrite_vault(clean, lambda events: events.update(timestamp=events["timestamp"] - 1))
    told = laser_prep("check", clean)
    assert told.returncode == 2
    assert told.stderr.count("\n") == 1
    assert "leaks" in told.stderr


def test_outcome_copied_into_the_past(clean):
    """A copy of a target's event, one tick before the target, shows its outcome; the original stands where it was."""

    def copy(events):
        for name in events:
            extra = events[name][20:21].copy()
            events[name] = np.concatenate([events[name], extra])
        events["timestamp"][-1] -= 1

    rewrite_vault(clean, copy)
    assert "some were added or lost" in problems(clean)


def test_target_event_given_to_another_user(clean):
    def swap(events):
        events["user"][40] = 1 + events["user"][40] % 12

    rewrite_vault(clean, swap)
    assert "lack their own event" in problems(clean)


def test_label_as_a_context_feature(write, tmp_path):
    context = {"outcome": {"expression": "CASE WHEN stars >= 4 THEN 7 ELSE 3 END"}}
    with pytest.raises(ValueError, match=r"'outcome' alone orders test samples with AUC 1\.0000"):
        prepare(write(context=context), tmp_path / "out")
    prepare(write(context={"shop": {"column": "shop"}}), tmp_path / "out")


@pytest.mark.parametrize(
    ("sql", "told"),
    [
        ("avg(stars) OVER (PARTITION BY item)", "no ORDER BY"),
        ('lead(stars) OVER (PARTITION BY "user" ORDER BY "time")', "reads later rows"),
        ('lag(stars, -1) OVER (PARTITION BY "user" ORDER BY "time")', "reads ahead"),
        ('count(*) OVER (PARTITION BY item ORDER BY "time" DESC)', "backwards"),
        ('avg(stars) OVER (PARTITION BY item ORDER BY "time")', "the row itself"),
        ("sum(price) OVER (PARTITION BY item ORDER BY price ROWS BETWEEN 3 PRECEDING AND 1 PRECEDING)", "the order of"),
        ('max(price) OVER (ORDER BY "time" ROWS BETWEEN 1 PRECEDING AND 2 FOLLOWING)', "later rows"),
    ],
)
def test_context_computed_from_the_future(write, tmp_path, sql, told):
    recipe = write(context={"planted": {"expression": f"CAST({sql} AS BIGINT)"}})
    with pytest.raises(ValueError, match=r"`context.planted` is computed from the future") as caught:
        prepare(recipe, tmp_path / "out")
    assert told in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_features_of_the_past_pass(write, tmp_path):
    past = 'count(*) OVER (PARTITION BY item ORDER BY "time" ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)'
    before = 'lag(shop) OVER (PARTITION BY "user" ORDER BY "time", log_row)'
    context = {"popularity": {"expression": past}, "shop_before": {"expression": before}}
    running = {"total": {"expression": 'count(*) OVER (PARTITION BY "user" ORDER BY "time")'}}
    prepare(write(context=context, event_side=running), tmp_path / "out")


def test_event_computed_from_the_future(write, tmp_path):
    ahead = {"next": {"expression": 'lead(stars) OVER (PARTITION BY "user" ORDER BY "time")'}}
    with pytest.raises(ValueError, match=r"`event_side.next` is computed from the future"):
        prepare(write(event_side=ahead), tmp_path / "out")

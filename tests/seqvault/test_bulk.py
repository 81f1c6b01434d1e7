"""Bulk load and export: any order, any size, all or nothing, and what goes out comes in again."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as dataset
import pyarrow.parquet as parquet
import pytest

import laser.seqvault.exchange as exchange
import laser.seqvault.exporting as exporting
from laser.seqvault import Field, SeqVault
from laser.seqvault.exporting import export_batches, export_parquet
from tests.seqvault.conftest import FIELDS, Model, make_events

SMALL = (Field("time", "int64"), Field("item", "uint8"))


def table_of(rng: np.random.Generator, size: int, users: int = 50) -> tuple[pa.Table, Model]:
    ids, events, model = rng.integers(0, users, size).astype(np.uint64), make_events(rng, size, high=300), Model()
    model.append(ids, events)
    columns = {name: pa.array(values) for name, values in events.items() if values.ndim == 1}
    columns["tags"] = pa.FixedSizeListArray.from_arrays(pa.array(events["tags"].reshape(-1)), 3)
    return pa.table({"user": pa.array(ids), **columns}), model


@pytest.mark.parametrize("memory_bytes", [1 << 30, 100_000], ids=["in memory", "through files"])
@pytest.mark.parametrize("kind", ["table", "reader", "batches", "dataset", "file", "folder", "files"])
def test_all_sources(
    path: Path,
    tmp_path: Path,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    memory_bytes: int,
) -> None:
    monkeypatch.setattr(exchange, "READ_ROWS", 500)
    table, model = table_of(rng, 5000)
    folder = tmp_path / "in"
    folder.mkdir()
    parquet.write_table(table.slice(0, 3000), folder / "a.parquet", row_group_size=700)
    parquet.write_table(table.slice(3000), folder / "b.parquet")
    parquet.write_table(table, tmp_path / "all.parquet")
    source = {
        "table": table,
        "reader": table.to_reader(max_chunksize=333),
        "batches": iter(table.to_batches(max_chunksize=333)),
        "dataset": dataset.dataset(table),
        "file": tmp_path / "all.parquet",
        "folder": str(folder),
        "files": [folder / "a.parquet", folder / "b.parquet"],
    }[kind]
    done: list[int] = []
    with SeqVault.create(path, FIELDS) as vault:
        assert vault.load(source, memory_bytes=memory_bytes, progress=done.append) == 5000
        assert sum(done) == 10000
        model.compare(vault, np.arange(51))
        model.compare(vault, np.arange(51), before=150, last_n=7)
        assert vault.check() == []
        assert not [file for file in path.iterdir() if file.suffix not in (".seg", ".wal", ".ids", ".idx", "")]


def test_merges_with_what_is_there(path: Path, rng: np.random.Generator) -> None:
    with SeqVault.create(path, FIELDS) as vault:
        whole = Model()
        for _ in range(3):
            table, model = table_of(rng, 2000)
            assert vault.load(table) == 2000
            for user, events in model.histories.items():
                whole.histories.setdefault(user, []).extend(events)
            events = make_events(rng, 5, high=300)
            vault.append([1, 2, 3, 99, 1], events)
            whole.append(np.array([1, 2, 3, 99, 1]), events)
        whole.compare(vault, np.arange(101))
        assert vault.check() == []


def test_policies_count_rows_as_in_order(path: Path) -> None:
    table = pa.table({"user": [1, 1, 1, 2, 1], "time": [9, 3, 3, 1, 5], "item": [1, 2, 2, 3, 4]})
    with SeqVault.create(path, SMALL, late="drop", duplicates="drop") as vault:
        assert vault.load(table) == 4
        assert vault.read([1])["time"].tolist() == [3, 5, 9]
        assert vault.load(table.append_column("x", [[0] * 5]).slice(1)) == 0


def test_columns_by_name_and_types_that_fit(path: Path) -> None:
    table = pa.table(
        {
            "who": pa.array([3, 3, 2**63 + 1], pa.uint64()),
            "at": pa.array([1000, 2000, 3000], pa.timestamp("ms")),
            "item": pa.array([7.0, 8.0, 255.0]).dictionary_encode(),
        }
    )
    with SeqVault.create(path, SMALL) as vault:
        vault.load(table, user="who", columns={"time": "at"})
        assert vault.read([3])["time"].tolist() == [1000, 2000]
        assert vault.read([2**63 + 1])["item"].tolist() == [255]


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("item", [1, 256, 3], r"row group 0, row 1 has 256 in column 'item', which does not fit uint8"),
        ("item", [1, 2, -1], r"row group 0, row 2 has -1 in column 'item'"),
        ("item", [1.5, 2.0, 3.0], r"row 0 has 1.5 in column 'item'"),
        ("item", [1, None, 3], r"row 1 has no value in column 'item'"),
        ("item", ["a", "b", "c"], r"column 'item' at .* holds string values"),
        ("time", [0.0, 2.0**63, 1.0], r"row 1 has 9.2.* in column 'time'"),
        ("user", [-1, 2, 3], r"row 0 has -1 in column 'user'"),
        ("item", [[1], [2], [3]], r"holds list"),
    ],
)
def test_a_value_that_does_not_fit_is_named(
    path: Path, tmp_path: Path, column: str, values: list, message: str
) -> None:
    columns = {"user": [1, 2, 3], "time": [1, 2, 3], "item": [1, 2, 3]}
    parquet.write_table(pa.table(columns), tmp_path / "good.parquet")
    parquet.write_table(pa.table(columns | {column: values}), tmp_path / "bad.parquet")
    with SeqVault.create(path, SMALL) as vault:
        with pytest.raises(ValueError, match=message) as caught:
            vault.load([tmp_path / "good.parquet", tmp_path / "bad.parquet"])
        assert "bad.parquet" in str(caught.value)
        assert len(vault.users()) == 0
        assert vault.load(tmp_path / "good.parquet") == 3


def test_lists_of_the_wrong_length(path: Path) -> None:
    with SeqVault.create(path, [Field("time", "int64"), Field("tags", "int16", 2)]) as vault:
        with pytest.raises(ValueError, match="row 1 has 3 values in column 'tags'; expected lists of 2"):
            vault.load(pa.table({"user": [1, 1], "time": [1, 2], "tags": [[1, 2], [1, 2, 3]]}))
        vault.load(pa.table({"user": [1, 1], "time": [1, 2], "tags": [[1, 2], [3, 4]]}))
        assert vault.read([1])["tags"].tolist() == [[1, 2], [3, 4]]


def test_too_little_memory_says_how_much(path: Path, rng: np.random.Generator) -> None:
    table, _ = table_of(rng, 5000)
    with SeqVault.create(path, FIELDS) as vault:
        with pytest.raises(ValueError, match="too little for 5000 rows; give at least"):
            vault.load(table, memory_bytes=500)
        with pytest.raises(ValueError, match=r"no column 'owner'"):
            vault.load(table, user="owner")
        with pytest.raises(ValueError, match="columns are given for when"):
            vault.load(table, columns={"when": "time"})


def _load(path: Path, source: Path, started: object) -> None:
    with SeqVault.open(path, "a") as vault:
        started.set()  # type: ignore[attr-defined]
        vault.load(source, memory_bytes=1 << 20)


def test_a_killed_load_leaves_the_vault_as_it_was(path: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    table, _ = table_of(rng, 60_000, users=5000)
    parquet.write_table(table, tmp_path / "in.parquet")
    before, model = table_of(rng, 300)
    with SeqVault.create(path, FIELDS) as vault:
        vault.load(before)
        vault.load(table.slice(0, 0))
    context, waits = multiprocessing.get_context("fork"), random.Random(1)
    for _ in range(6):
        started = context.Event()
        process = context.Process(target=_load, args=(path, tmp_path / "in.parquet", started))
        process.start()
        assert started.wait(60)
        time.sleep(waits.random() * 0.08)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        with SeqVault.open(path, "a") as vault:
            assert vault.check() == []
            if vault.stats()["events"] != 300:
                assert vault.stats()["events"] == 60_300
                break
            model.compare(vault, np.arange(60))


def test_export_comes_in_again(path: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    table, _ = table_of(rng, 4000)
    with SeqVault.create(path, FIELDS) as vault, SeqVault.create(tmp_path / "twin", FIELDS) as twin:
        vault.load(table)
        vault.append([2**64 - 1], make_events(rng, 1))
        assert export_parquet(vault, tmp_path / "out.parquet") == 4001
        assert twin.load(tmp_path / "out.parquet") == 4001
        expected, found = (each.read(vault.users()) for each in (vault, twin))
        np.testing.assert_array_equal(twin.users(), vault.users())
        np.testing.assert_array_equal(found.offsets, expected.offsets)
        for name, values in expected.fields.items():
            np.testing.assert_array_equal(found[name], values, err_msg=name)
        assert twin.load(export_batches(vault, users=[999, 1])) == vault.lengths([1])[0]
        assert twin.lengths([1, 2]).tolist() == [2 * vault.lengths([1])[0], vault.lengths([2])[0]]


def test_export_is_cut_into_batches_and_sorted(
    path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "EXPORT_EVENTS", 300)
    table, _ = table_of(rng, 4000)
    with SeqVault.create(path, FIELDS) as vault:
        vault.load(table)
        batches = list(export_batches(vault, user="who", fields=["time"]))
        assert len(batches) > 9
        out = pa.Table.from_batches(batches)
        assert out.column_names == ["who", "time"]
        who, at = out["who"].to_numpy(), out["time"].to_numpy()
        np.testing.assert_array_equal(np.lexsort((at, who)), np.arange(4000))
        some = pa.Table.from_batches(list(export_batches(vault, users=[7, 3, 7])))["user"].to_numpy()
        np.testing.assert_array_equal(some, np.repeat([3, 7], vault.lengths([3, 7])))
        with pytest.raises(ValueError, match="cannot be called 'time'"):
            list(export_batches(vault, user="time"))
        with pytest.raises(ValueError, match="give the name of a file"):
            export_parquet(vault, path / "no" / "file.parquet")


def test_histories_of_one_ten_and_a_million_events(path: Path) -> None:
    million, largest = 1_000_000, 2**64 - 1
    lengths = {largest: million, 7: 10, 2**63: 1}
    users = np.repeat(np.array(list(lengths), np.uint64), list(lengths.values()))
    times = np.concatenate([np.arange(length) for length in lengths.values()])
    fields = (Field("time", "int64"), Field("item", "uint64"))
    with SeqVault.create(path, fields, dictionaries=()) as vault:
        order = np.random.default_rng(8).permutation(len(users))
        vault.append(users[order], {"time": times[order], "item": times[order].astype(np.uint64) * np.uint64(3)})
        vault.append([largest] * 5, {"time": np.arange(million, million + 5), "item": np.arange(5) + 3 * million})
        for step in range(2):
            found = vault.read([largest, 7, 2**63, 5], last_n=1200)
            assert found.lengths.tolist() == [1200, 10, 1, 0]
            assert found.of(0)["time"].tolist() == list(range(million - 1195, million + 5))
            middle = vault.read([largest] * 3, before=np.array([1, 500_000, 2]), last_n=1500)
            assert middle.lengths.tolist() == [1, 1500, 2]
            assert middle.of(1)["item"].tolist() == [3 * time for time in range(498_500, 500_000)]
            whole = vault.read([largest])
            np.testing.assert_array_equal(whole["time"], np.arange(million + 5))
            if step == 0:
                vault.compact()
        assert vault.delete_user(largest)
        assert vault.read([largest, 7]).lengths.tolist() == [0, 10]

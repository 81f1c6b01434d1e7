"""A damaged or mismatched prepared data set is refused when it is opened, in one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laser.data.histories import Histories
from laser.data.loader import BatchLoader
from laser.data.prepared import PreparedData
from laser.schema import Schema


@pytest.fixture
def copy(prepared: Path, tmp_path: Path) -> Path:
    """A data set that a test may damage."""
    return Path(shutil.copytree(prepared, tmp_path / "copy"))


def change_table(file: Path, **changed) -> None:
    table = pq.read_table(file)
    for name, values in changed.items():
        table = table.set_column(table.schema.get_field_index(name), name, values)
    pq.write_table(table, file)


def change_schema(path: Path, feature_name: str, /, **changed) -> None:
    plain = json.loads((path / "schema.json").read_text())
    for feature in plain["features"]:
        if feature["name"] == feature_name:
            feature |= changed
    (path / "schema.json").write_text(json.dumps(plain))


def refused(path: Path, words: str, split: str | None = None) -> None:
    def act() -> None:
        with PreparedData(path) as data:
            data.split(split or "train")

    with pytest.raises(ValueError, match=words) as caught:
        act()
    assert "\n" not in str(caught.value)


def test_a_good_one(prepared):
    with PreparedData(prepared) as data:
        assert data.schema == Schema.load(prepared / "schema.json")
        assert {name: side.shape for name, side in data.items.items()} == {"category": (81,), "tags": (81, 3)}
        log = pq.read_table(prepared / "log.parquet")
        samples = [data.split(name) for name in ("train", "val", "test")]
        assert np.concatenate([s.user_N for s in samples]).tolist() == log["user"].to_pylist()
        assert np.concatenate([s.label_N for s in samples]).tolist() == log["click"].to_pylist()


def test_no_such_folder(tmp_path):
    refused(tmp_path / "nowhere", "no prepared data set at .*nowhere: no such folder")


def test_folder_without_schema(tmp_path):
    refused(tmp_path, "no schema at")


def test_schema_of_another_version(copy):
    plain = json.loads((copy / "schema.json").read_text())
    (copy / "schema.json").write_text(json.dumps(plain | {"version": 99}))
    refused(copy, "schema version 99, this release reads version 1")


def test_item_table_of_another_size(copy):
    file = copy / "items.parquet"
    pq.write_table(pq.read_table(file)[:-3], file)
    refused(copy, "has 78 items, the schema gives 'item' cardinality 81")


def test_item_table_out_of_order(copy):
    file = copy / "items.parquet"
    codes = np.arange(81)
    codes[[5, 6]] = [6, 5]
    change_table(file, item=pa.array(codes))
    refused(copy, "row 5 of .*items.parquet describes item 6, expected item 5")


def test_side_info_past_its_table(copy):
    change_schema(copy, "category", cardinality=4)
    refused(copy, "'category' of .*items.parquet has id 8, expected ids up to 3")


def test_side_info_missing(copy):
    file = copy / "items.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["tags"]), file)
    refused(copy, "items.parquet has no column 'tags'")


def test_no_item_table(copy):
    (copy / "items.parquet").unlink()
    refused(copy, "items.parquet is missing")


def test_vault_of_another_schema(copy):
    change_schema(copy, "rating", name="stars")
    refused(copy, "vault keeps events of timestamp int64, item uint32, rating uint8, the schema's events have .* stars")


def test_vault_of_another_type(copy):
    change_schema(copy, "rating", dtype="uint16")
    refused(copy, "vault keeps events of .*rating uint8, .*rating uint16")


def test_no_vault(copy):
    shutil.rmtree(copy / "vault")
    refused(copy, "vault")


@pytest.mark.parametrize("changed", [{"dtype": "float32"}, {"cardinality": None, "table": None, "width": None}])
def test_a_context_that_is_not_categorical(copy, changed):
    change_schema(copy, "device", **changed)
    refused(copy, "'device' of .*schema.json has dtype .*, expected an integer type and a cardinality")


def test_an_item_with_several_values(copy):
    change_schema(copy, "item", length=2)
    refused(copy, "feature 'item' of .* has length 2, expected 1 for a user or item")


def test_unknown_split(prepared):
    refused(prepared, "no split 'valid' in .*; choose one of train, val, test", split="valid")


def test_split_without_files(copy):
    shutil.rmtree(copy / "samples" / "val")
    refused(copy, "no part-.*parquet in .*val", split="val")


def test_empty_split(copy):
    file = copy / "samples" / "val" / "part-00000.parquet"
    pq.write_table(pq.read_table(file)[:0], file)
    refused(copy, "samples/val has no samples", split="val")


def test_missing_part(copy):
    (copy / "samples" / "train" / "part-00000.parquet").unlink()
    refused(copy, r"sample 0 of .*train has row number 816: a part is missing or misplaced")


def test_sample_of_an_unknown_item(copy):
    file = copy / "samples" / "test" / "part-00000.parquet"
    change_table(file, item=pa.array(np.full(pq.read_metadata(file).num_rows, 81)))
    refused(copy, "'item' of .*test/part-00000.parquet has id 81, expected ids up to 80", split="test")


def test_event_past_the_item_table(copy):
    """The store's ids are checked as they are read: a batch must never index past a table."""
    change_schema(copy, "item", cardinality=41)
    file = copy / "items.parquet"
    pq.write_table(pq.read_table(file)[:41], file)
    for file in (copy / "samples").rglob("*.parquet"):
        change_table(file, item=pa.array(np.ones(pq.read_metadata(file).num_rows, np.int64)))
    with PreparedData(copy) as data:
        loader = BatchLoader(data, "train", batch_size=500, max_history=9, shuffle=False, seed=0)
        with pytest.raises(ValueError, match=r"'item' of .*vault has id 80, expected ids up to 40"):
            list(loader)


def passes(data: PreparedData) -> list:
    """Two passes over all samples with their histories."""
    loader = BatchLoader(data, "train", batch_size=100, max_history=30, shuffle=True, seed=0, workers=2)
    return [batch for _ in range(2) for batch in loader]


def test_histories_are_decoded_once_where_all_fit(prepared: Path) -> None:
    with PreparedData(prepared) as plain, PreparedData(prepared, cache_bytes=1 << 20) as cached:
        for one, other in zip(passes(plain), passes(cached), strict=True):
            assert one.age_T.tolist() == other.age_T.tolist()
            for name in (*one.items, *one.history):
                assert one.event_ids(name).tolist() == other.event_ids(name).tolist()
        assert plain.histories is None
        cached.vault.close()
        assert cached.histories is not None
        list(BatchLoader(cached, "val", batch_size=100, max_history=30, shuffle=False, seed=0))


def test_no_histories_in_memory_where_not_all_fit(prepared: Path) -> None:
    with PreparedData(prepared) as data:
        needed = Histories.nbytes_of(data.vault)
    for budget, decoded in ((0, False), (needed - 1, False), (needed, True)):
        with PreparedData(prepared, cache_bytes=budget) as data:
            assert (data.histories is not None) == decoded
            if data.histories is not None:
                assert data.histories.nbytes == needed


def test_a_stored_id_out_of_range_is_named_wherever_histories_are(copy: Path) -> None:
    change_schema(copy, "rating", cardinality=2)
    for budget in (0, 1 << 30):
        with PreparedData(copy, cache_bytes=budget) as data:
            loader = BatchLoader(data, "train", batch_size=500, max_history=9, shuffle=False, seed=0)
            with pytest.raises(ValueError, match=r"'rating' of .*vault has id 2, expected ids up to 1"):
                list(loader)


def test_a_damaged_store_is_named_when_its_histories_are_decoded(copy: Path) -> None:
    file = max((copy / "vault").glob("segment-*.seg"), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 255
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"is damaged at offset \d+: a chunk does not match its checksum"):
        PreparedData(copy, cache_bytes=1 << 30)

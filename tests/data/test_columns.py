"""What is refused in a Parquet file, and with which words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laser.data.columns import read_columns
from laser.schema import Feature, Kind

ITEM = Feature(name="item", kind=Kind.ITEM, dtype="uint32", cardinality=10)
TAGS = Feature(name="tags", kind=Kind.ITEM_SIDE, dtype="uint8", cardinality=10, length=2)
TIME = Feature(name="time", kind=Kind.TIMESTAMP, dtype="int64")
CLICK = Feature(name="click", kind=Kind.LABEL, dtype="uint8")
GOOD = {
    "item": np.array([1, 2, 9], np.uint32),
    "tags": pa.array([[1, 0], [2, 3], [0, 0]], pa.list_(pa.uint8(), 2)),
    "time": np.array([5, 6, 7]),
    "click": np.array([0, 1, 0], np.uint8),
}
FEATURES = (ITEM, TAGS, TIME, CLICK)


@pytest.fixture
def write(tmp_path: Path):
    def writer(name: str = "part.parquet", **changed) -> Path:
        pq.write_table(pa.table(GOOD | changed), tmp_path / name)
        return tmp_path / name

    return writer


def test_files_are_joined_in_their_order(write):
    first, second = write("a.parquet"), write("b.parquet", item=np.array([4, 5, 6], np.uint32))
    found = read_columns([second, first], FEATURES)
    assert found["item"].tolist() == [4, 5, 6, 1, 2, 9]
    assert found["tags"].tolist() == [[1, 0], [2, 3], [0, 0]] * 2
    assert {name: values.dtype.name for name, values in found.items()} == {
        "item": "uint32",
        "tags": "uint8",
        "time": "int64",
        "click": "uint8",
    }


@pytest.mark.parametrize("kind", [pa.list_(pa.int64()), pa.large_list(pa.int64()), pa.list_(pa.int64(), 2)])
def test_all_list_types_of_parquet_are_read(write, kind):
    file = write(tags=pa.array([[1, 0], [2, 3], [9, 0]], kind))
    assert read_columns([file], [TAGS])["tags"].tolist() == [[1, 0], [2, 3], [9, 0]]


@pytest.mark.parametrize("labels", [[True, False, True], [1.0, 0.0, 1.0], [1, 0, 1]], ids=["bool", "float", "int"])
def test_labels_of_any_numeric_type(write, labels):
    assert read_columns([write(click=labels)], [CLICK])["click"].tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"item": [1, 2, 10]}, "'item' of FILE has id 10, expected ids up to 9"),
        ({"item": [1, -2, 3]}, "'item' of FILE has the negative id -2"),
        ({"item": [1, None, 3]}, "'item' of FILE has 1 missing values"),
        ({"item": [1.0, 2.0, 3.0]}, "'item' of FILE has values of type double, expected integers"),
        ({"tags": [1, 2, 3]}, "'tags' of FILE has values of type int64, expected lists of 2 integers"),
        ({"tags": [[1, 2], [3], [4, 5]]}, "'tags' of FILE has a list of 1 values in row 1, expected lists of 2"),
        ({"tags": [[1, 2], None, [4, 5]]}, "'tags' of FILE has 1 missing lists"),
        ({"tags": [[1, 2], [3, None], [4, 5]]}, "'tags' of FILE has 1 missing values"),
        ({"tags": [[1, 2], [3, 10], [4, 5]]}, "'tags' of FILE has id 10"),
        ({"time": ["5", "6", "7"]}, "'time' of FILE has values of type string, expected integers"),
        ({"time": [5.0, 6.5, 7.0]}, "'time' of FILE has values of type double, expected integers"),
        ({"time": pa.array([5, 6, 7], pa.timestamp("s"))}, r"'time' of FILE has values of type timestamp\[m?s\]"),
        ({"click": [0, 2, 1]}, "'click' of FILE has 2 in row 1, expected 0 or 1"),
        ({"click": [0.0, 0.5, 1.0]}, "'click' of FILE has 0.5 in row 1"),
        ({"click": [0.0, float("nan"), 1.0]}, "'click' of FILE has nan in row 1"),
        ({"click": ["0", "1", "1"]}, "'click' of FILE has values of type string"),
    ],
)
def test_a_bad_value_is_refused_in_one_sentence(write, changed, words):
    file = write(**changed)
    with pytest.raises(ValueError, match=words.replace("FILE", str(file))) as caught:
        read_columns([file], FEATURES)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("prepare the data set again with laser-prep")


def test_missing_column(write):
    file = write()
    with pytest.raises(ValueError, match=f"{file} has no column 'price', it has item, tags, time, click"):
        read_columns([file], [Feature(name="price", kind=Kind.CONTEXT, dtype="uint8", cardinality=3)])


def test_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"none\.parquet is missing from the prepared data set"):
        read_columns([tmp_path / "none.parquet"], [ITEM])


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_truncated_file(write, kept):
    file = write()
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(ValueError, match=f"{file} cannot be read as Parquet, it may be truncated") as caught:
        read_columns([file], FEATURES)
    assert "\n" not in str(caught.value)


def test_garbled_file(write):
    file = write(
        item=np.arange(100_000, dtype=np.uint32) % 10,
        **{n: np.zeros(100_000, int) for n in ("time", "click")},
        tags=pa.array([[0, 0]] * 100_000),
    )
    whole = bytearray(file.read_bytes())
    whole[4:200] = bytes(196)
    file.write_bytes(whole)
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        read_columns([file], FEATURES)

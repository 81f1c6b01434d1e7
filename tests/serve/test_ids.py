"""Raw values -> codes, as data preparation gives them."""

from __future__ import annotations

import ibis
import numpy as np
import pyarrow as pa
import pytest

from data_prep.hashing import hash_number as prepared_hash
from laser.schema import Feature, Kind
from laser.serve.ids import Codes, hash_number


def feature(cardinality: int) -> Feature:
    return Feature(name="thing", kind=Kind.CONTEXT, dtype="int64", cardinality=cardinality)


def dictionary(raw: list, kind: pa.DataType | None = None) -> pa.Table:
    return pa.table({"raw": pa.array(raw, kind), "code": list(range(1, len(raw) + 1))})


def test_hashes_are_those_of_data_preparation():
    values = ["a", "", "Zürich", "7"]
    table = ibis.memtable({"text": values, "number": [7, -3, 0, 2**62]})
    found = ibis.duckdb.connect().to_pyarrow(table.select(t=prepared_hash(table.text), n=prepared_hash(table.number)))
    assert found["t"].to_pylist() == [hash_number(value) for value in values]
    assert found["n"].to_pylist() == [hash_number(value) for value in (7, -3, 0, 2**62)]


@pytest.mark.parametrize("raw", [["x", "y", "z"], [30, 10, 20], [0.5, 1.0, -2.5]])
def test_a_dictionary(raw):
    codes = Codes.of(feature(4), dictionary(raw), hashed=False)
    unknown = "w" if isinstance(raw[0], str) else 11
    assert codes([raw[2], raw[0], None, unknown], "it").tolist() == [3, 1, 0, 0]
    assert codes(np.array(raw), "it").tolist() == [1, 2, 3]
    assert codes([], "it").shape == (0,)


@pytest.mark.parametrize("raw", [["x", "y"], [10, 20]])
def test_values_without_a_code_of_their_own_share_some(raw):
    codes = Codes.of(feature(3 + 5), dictionary(raw), hashed=False)
    unknown = "w" if isinstance(raw[0], str) else 11
    assert codes([raw[1], unknown, None], "it").tolist() == [2, 3 + hash_number(unknown) % 5, 0]


def test_a_hash_alone():
    codes = Codes.of(feature(1 + 7), None, hashed=True)
    assert codes(["a", 3, None], "it").tolist() == [1 + hash_number("a") % 7, 1 + hash_number(3) % 7, 0]
    with pytest.raises(ValueError, match=r"it 1.5 is a float; expected text or a whole number"):
        codes([1.5], "it")


def test_buckets():
    """Codes of numbers by the bounds that the dictionary lists: 1 below the first, one more at each bound."""
    codes = Codes.of(feature(5), dictionary([-np.inf, 0.0, 2.5, 10.0]), hashed=False)
    assert codes([-5, -0.1, 0, 2.4, 2.5, 10, 1e9, None, float("nan")], "it").tolist() == [1, 1, 2, 2, 3, 4, 4, 0, 0]
    assert codes(np.array([np.nan, 3.0]), "it").tolist() == [0, 3]


def test_an_empty_dictionary_knows_nothing():
    assert Codes.of(feature(1), dictionary([], pa.int64()), hashed=False)([5, None], "it").tolist() == [0, 0]


def test_numbers_of_numpy_are_numbers():
    codes = Codes.of(feature(4), dictionary([30, 10, 20]), hashed=False)
    assert codes([np.int32(10), np.uint8(20)], "it").tolist() == [2, 3]

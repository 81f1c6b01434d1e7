"""Parquet columns of a prepared data set -> numpy arrays that are known to fit the schema.

Every mistake in a file ends here, once, when the data set is opened; past this point ids are in range, labels are
0 or 1 and nothing is missing.

Legend of shape suffixes: N rows; K values of a multi-valued feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from laser.schema import INTEGER_DTYPES, Feature, Kind

CURE = "prepare the data set again with laser-prep"


def read_columns(files: Sequence[Path], features: Sequence[Feature]) -> dict[str, np.ndarray]:
    """Columns of Parquet files, one after another.

    Args:
        files: read in this order.
        features: the columns wanted; each is named and checked by its feature.

    Returns:
        Per feature an array [N], or [N, K] when its ``length`` K is above 1: ids in the integer type of the file,
        timestamps int64, labels uint8.

    Raises:
        ValueError: when a file cannot be read, a column is missing or of another type, or a value is missing or out
            of range; the sentence names the file and the column.
    """
    parts = [_read_file(file, features) for file in files]
    return {f.name: np.concatenate([part[f.name] for part in parts]) for f in features}


def _read_file(file: Path, features: Sequence[Feature]) -> dict[str, np.ndarray]:
    try:
        with pq.ParquetFile(file) as parquet:
            found = parquet.schema_arrow.names
            if missing := [f.name for f in features if f.name not in found]:
                raise ValueError(f"{file} has no column {missing[0]!r}, it has {', '.join(found)}; {CURE}")
            table = parquet.read([f.name for f in features])
    except FileNotFoundError:
        raise ValueError(f"{file} is missing from the prepared data set; {CURE}") from None
    except (pa.ArrowException, OSError) as error:
        first_line = str(error).splitlines()[0]
        raise ValueError(f"{file} cannot be read as Parquet, it may be truncated ({first_line}); {CURE}") from None
    return {f.name: _checked(table[f.name], f, file) for f in features}


def _checked(column: pa.ChunkedArray, feature: Feature, file: Path) -> np.ndarray:
    """One column as an array after all checks."""
    if feature.length > 1:
        column = _flattened(column, feature, file)
    if column.null_count:
        _refuse(feature, file, f"{column.null_count} missing values", "none")
    if feature.kind is Kind.LABEL:
        return _checked_label(column, feature, file)
    if not pa.types.is_integer(column.type):
        _refuse(feature, file, f"values of type {column.type}", "integers")
    values = column.to_numpy()
    if feature.kind is Kind.TIMESTAMP:
        return values.astype(np.int64, copy=False)
    check_ids(values, feature, str(file))
    return values.reshape(-1, feature.length) if feature.length > 1 else values


def _flattened(column: pa.ChunkedArray, feature: Feature, file: Path) -> pa.ChunkedArray:
    """Values of a list column whose every row has ``feature.length`` of them."""
    wanted = f"lists of {feature.length} integers"
    kind = column.type
    if not (pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        _refuse(feature, file, f"values of type {kind}", wanted)
    if column.null_count:
        _refuse(feature, file, f"{column.null_count} missing lists", wanted)
    lengths = pc.call_function("list_value_length", [column]).to_numpy()
    if (bad := np.flatnonzero(lengths != feature.length)).size:
        _refuse(feature, file, f"a list of {lengths[bad[0]]} values in row {bad[0]}", wanted)
    return pc.call_function("list_flatten", [column])


def _checked_label(column: pa.ChunkedArray, feature: Feature, file: Path) -> np.ndarray:
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        _refuse(feature, file, f"values of type {kind}", "0 or 1")
    values = column.to_numpy()
    if (bad := np.flatnonzero((values != 0) & (values != 1))).size:
        _refuse(feature, file, f"{values[bad[0]]} in row {bad[0]}", "0 or 1")
    return values.astype(np.uint8)


def check_ids(values: np.ndarray, feature: Feature, where: str) -> None:
    """Refuse ids that are negative or past the feature's cardinality.

    Raises:
        ValueError: with one sentence that names ``where``.
    """
    if values.size == 0:
        return
    # An unsigned array has no negative values: one pass is enough.
    lowest = 0 if values.dtype.kind == "u" else int(values.min())
    highest = int(values.max())
    if lowest < 0:
        _refuse(feature, where, f"the negative id {lowest}", "ids of 0 and above")
    if feature.cardinality is not None and highest >= feature.cardinality:
        last = feature.cardinality - 1
        _refuse(feature, where, f"id {highest}", f"ids up to {last}, as the schema's cardinality says")


def check_categorical(feature: Feature, where: str) -> None:
    """Refuse a feature that cannot become ids of a batch.

    Raises:
        ValueError: when it has no cardinality or its type is not an integer.
    """
    if feature.cardinality is None or feature.dtype not in INTEGER_DTYPES:
        found = f"dtype {feature.dtype} and cardinality {feature.cardinality}"
        _refuse(feature, where, found, "an integer type and a cardinality (bucketise numbers in the preparation)")


def _refuse(feature: Feature, where: Path | str, found: str, expected: str) -> NoReturn:
    raise ValueError(f"column {feature.name!r} of {where} has {found}, expected {expected}; {CURE}")

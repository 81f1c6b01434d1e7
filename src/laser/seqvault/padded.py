"""Reading straight into arrays that the caller brings, padded to one length or packed.

Legend of shape suffixes: R requests; L events that a padded row holds; T events that a packed array holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from laser.seqvault.jit import kernel
from laser.seqvault.layout import Field
from laser.seqvault.reading import Answer

Align = Literal["right", "left", "packed"]


def row_length(out: Mapping[str, np.ndarray], requests: int, align: str) -> int | None:
    """L of padded arrays, ``None`` for packed ones.

    Raises:
        ValueError: when ``align`` is unknown, there are no arrays, or they have not R rows of one length.
    """
    if align not in ("right", "left", "packed"):
        raise ValueError(f"align is {align!r}; expected 'right', 'left' or 'packed'")
    if not out:
        raise ValueError("out is empty; expected one array per field to read")
    if align == "packed":
        return None
    shapes = {name: np.shape(values) for name, values in out.items()}
    if (
        any(len(shape) < 2 or shape[0] != requests for shape in shapes.values())
        or len({shape[1] for shape in shapes.values()}) != 1
    ):
        raise ValueError(
            f"arrays in out have shapes {shapes}; expected {requests} rows of one length each, one row per user"
        )
    return next(iter(shapes.values()))[1]


def write_out(answer: Answer, out: Mapping[str, np.ndarray], length: int | None, align: str, fill: int) -> np.ndarray:
    """Unpack an answer into the caller's arrays; returns the events of each request, int64 [R].

    Raises:
        ValueError: when an array has the wrong type, shape or memory order, or is too short; nothing is written then.
    """
    lengths = answer.lengths
    events = int(lengths.sum()) if length is None else len(lengths) * length
    for field in answer.fields:
        _check_fill(fill, field, answer.plan.dtype(field))
        _check(
            out[field.name], field, answer.plan.dtype(field), (events,) if length is None else (len(lengths), length)
        )
    if length is None:
        answer.write({name: values[:events] for name, values in out.items()}, np.cumsum(lengths) - lengths)
        return lengths
    begin = np.arange(len(lengths)) * length + (length - lengths if align == "right" else 0)
    answer.write(out, begin)
    for field in answer.fields:
        flat = out[field.name].reshape(len(lengths), length * field.length)
        _fill_rest(flat, lengths * field.length, align == "right", flat.dtype.type(fill))
    return lengths


@kernel
def _fill_rest(rows: np.ndarray, lengths: np.ndarray, right: bool, fill: Any) -> None:
    for row in range(len(lengths)):
        used = lengths[row]
        if right:
            rows[row, : rows.shape[1] - used] = fill
        else:
            rows[row, used:] = fill


def _check(values: np.ndarray, field: Field, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    if not isinstance(values, np.ndarray) or values.dtype != dtype or not values.flags.c_contiguous:
        found = f"{values.dtype}, strides {values.strides}" if isinstance(values, np.ndarray) else type(values).__name__
        raise ValueError(f"out[{field.name!r}] is {found}; expected a contiguous numpy array of {dtype}")
    if not values.flags.writeable:
        raise ValueError(f"out[{field.name!r}] is read-only; pass an array that can be written")
    packed = len(shape) == 1
    fits = values.ndim == len(shape + field.shape) and values.shape[len(shape) :] == field.shape
    fits = fits and (values.shape[0] >= shape[0] if packed else values.shape[: len(shape)] == shape)
    if not fits:
        least = "at least " if packed else ""
        raise ValueError(f"out[{field.name!r}] has shape {values.shape}; expected {least}{shape + field.shape}")


def _check_fill(fill: int, field: Field, dtype: np.dtype) -> None:
    if dtype.kind in "iu" and not np.iinfo(dtype).min <= fill <= np.iinfo(dtype).max:
        raise ValueError(f"fill is {fill}, which {dtype} of field {field.name!r} cannot hold; choose another")

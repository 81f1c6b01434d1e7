"""What goes over the wire: requests and answers as Arrow record batches (docs/vault_service.md has the format).

A request is an IPC stream of a schema and exactly one record batch, as it is or as one zstd frame. Nothing in it is
believed: types must be those of the vault to the letter, no buffer may be compressed by itself (a small one could claim
any size), and everything is validated before a kernel sees it.

Legend of shape suffixes: R requests of a read; N events of an append.
"""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import zstandard

from laser.seqvault.layout import Field, Layout, user_ids
from laser.seqvault.ragged import Ragged

USER, BEFORE, EVENTS = "user", "before", "events"
OPTIONS = b"laser.read"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
BODY_COMPRESSION = 3
"""Number of the field ``compression`` in Arrow's table RecordBatch."""


def arrow_type(field: Field) -> pa.DataType:
    """Type of a field's column in an append."""
    kind = pa.from_numpy_dtype(np.dtype(field.dtype))
    return kind if field.length == 1 else pa.list_(kind, field.length)


def event_schema(layout: Layout) -> pa.Schema:
    """Columns of an append: users, then the fields by position; a field may itself be called ``user``."""
    return pa.schema([(USER, pa.uint64()), *((field.name, arrow_type(field)) for field in layout.fields)])


def encode_append(layout: Layout, users: Any, events: Mapping[str, Any], *, zstd: bool) -> bytes:
    """Body of the action ``append``.

    Raises:
        ValueError: as ``SeqVault.append`` does for arguments that do not fit.
    """
    ids = user_ids(users)
    values = layout.coerce(events, len(ids))
    columns = [pa.array(ids), *(_column(values[field.name]) for field in layout.fields)]
    return _message(pa.RecordBatch.from_arrays(columns, schema=event_schema(layout)), zstd)


def decode_append(body: Any, layout: Layout, max_bytes: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Users uint64 [N] and events of an append.

    Raises:
        ValueError: when the body is no such request, or larger than ``max_bytes``.
    """
    batch = _read_message(body, max_bytes)
    wanted = event_schema(layout)
    if not batch.schema.equals(wanted):
        raise ValueError(f"an append has the columns {_told(batch.schema)}; expected {_told(wanted)}")
    events = {}
    for position, field in enumerate(layout.fields, 1):
        column = batch.column(position)
        flat = _numbers(column if field.length == 1 else column.flatten(), field.name)
        events[field.name] = flat.reshape(batch.num_rows, *field.shape)
    return _numbers(batch.column(0), USER), events


def encode_read(
    users: Any,
    *,
    before: Any = None,
    last_n: int | None = None,
    fields: Iterable[str] | None = None,
    ids: str = "raw",
    where: Mapping[str, Any] | None = None,
    zstd: bool = False,
) -> bytes:
    """Ticket of a read; arguments are checked where they are used.

    Raises:
        ValueError: when users or cuts are no vectors of whole numbers.
    """
    of = user_ids(users)
    columns, names = [pa.array(of)], [USER]
    options: dict[str, Any] = {"last_n": None if last_n is None else int(last_n), "ids": ids, "zstd": zstd}
    if before is not None:
        cut = np.asarray(before)
        if cut.dtype.kind not in "iu" or cut.shape not in ((), of.shape):
            raise ValueError(
                f"before is {cut.dtype} of shape {cut.shape}; expected integer timestamps, one or {len(of)} of them"
            )
        if cut.ndim == 0:
            options["before"] = int(cut)
        else:
            columns.append(pa.array(np.minimum(cut, np.iinfo(np.int64).max).astype(np.int64)))
            names.append(BEFORE)
    if fields is not None:
        options["fields"] = [fields] if isinstance(fields, str) else [str(name) for name in fields]
    if where is not None:
        options["where"] = {name: np.atleast_1d(np.asarray(values)).tolist() for name, values in where.items()}
    batch = pa.RecordBatch.from_arrays(columns, names=names)
    return _message(batch.replace_schema_metadata({OPTIONS: json.dumps(options).encode()}), zstd)


def decode_read(ticket: Any, max_bytes: int) -> tuple[np.ndarray, dict[str, Any], bool]:
    """Users uint64 [R], the other arguments of ``SeqVault.read``, and whether the answer shall be compressed.

    Raises:
        ValueError: when the ticket is no such request, or larger than ``max_bytes``.
    """
    batch = _read_message(ticket, max_bytes)
    schema = batch.schema
    kinds = [(field.name, field.type) for field in schema]
    if kinds not in ([(USER, pa.uint64())], [(USER, pa.uint64()), (BEFORE, pa.int64())]):
        raise ValueError(f"a read has the columns {_told(schema)}; expected user: uint64, and before: int64 or none")
    options = _options(schema.metadata)
    zstd = bool(options.pop("zstd", False))
    if len(kinds) == 2:
        options["before"] = _numbers(batch.column(1), BEFORE)
    return _numbers(batch.column(0), USER), options, zstd


EXPECTED: dict[str, tuple[type, ...]] = {
    "before": (int, type(None)),
    "last_n": (int, type(None)),
    "fields": (list, type(None)),
    "ids": (str,),
    "where": (dict, type(None)),
    "zstd": (bool,),
}


def _options(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    try:
        found = json.loads((metadata or {}).get(OPTIONS, b"{}"))
    except (ValueError, RecursionError):
        raise ValueError("the options of a read are not JSON") from None
    if not isinstance(found, dict) or set(found) - set(EXPECTED):
        raise ValueError(f"the options of a read are not an object of {', '.join(EXPECTED)}")
    for name, value in found.items():
        if not isinstance(value, EXPECTED[name]) or (isinstance(value, bool) and name != "zstd"):
            raise ValueError(f"option {name} of a read is {value!r:.60}, which is not of the right type")
    limits = np.iinfo(np.int64)
    for name in ("before", "last_n"):
        if found.get(name) is not None and not limits.min <= found[name] <= limits.max:
            raise ValueError(f"option {name} of a read is {found[name]!r:.60}; expected a number of 64 bits")
    if not all(isinstance(name, str) for name in found.get("fields") or ()):
        raise ValueError("option fields of a read has something that is not a name")
    if not all(isinstance(values, list) for values in (found.get("where") or {}).values()):
        raise ValueError("option where of a read has something that is not a list of values")
    return found


def encode_answer(found: Ragged) -> pa.RecordBatch:
    """Histories as one row per request: its events, then per field a list of values."""
    offsets = pa.array(found.offsets)
    columns = [pa.array(found.lengths)]
    columns += [pa.LargeListArray.from_arrays(offsets, _column(values)) for values in found.fields.values()]
    return pa.RecordBatch.from_arrays(columns, names=[EVENTS, *found.fields])


def decode_answer(batch: pa.RecordBatch) -> Ragged:
    """The histories; their arrays share the answer's memory and cannot be written to."""
    lengths = batch.column(0).to_numpy()
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    fields = {}
    for position, name in enumerate(batch.schema.names[1:], 1):
        values = batch.column(position).values
        if pa.types.is_fixed_size_list(values.type):
            fields[name] = values.values.to_numpy().reshape(-1, values.type.list_size)
        else:
            fields[name] = values.to_numpy()
    return Ragged(fields, offsets)


def _column(values: np.ndarray) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def _message(batch: pa.RecordBatch, zstd: bool) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    body = sink.getvalue().to_pybytes()
    return zstandard.ZstdCompressor(level=1).compress(body) if zstd else body


def _read_message(body: Any, max_bytes: int) -> pa.RecordBatch:
    """The one record batch of a request, validated in full."""
    if len(body) > max_bytes:
        raise ValueError(f"the request has {len(body)} bytes, more than {max_bytes}; send it in parts")
    try:
        return _only_batch(_plain(bytes(body), max_bytes))
    except (pa.ArrowException, OSError, struct.error, zstandard.ZstdError, EOFError, OverflowError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"the request is no Arrow stream of one record batch ({reason:.100})") from None


def _plain(body: bytes, max_bytes: int) -> bytes:
    if body[:4] != ZSTD_MAGIC:
        return body
    size = zstandard.frame_content_size(body)
    if not 0 <= size <= max_bytes:
        raise ValueError(f"the request unpacks to {size} bytes; expected at most {max_bytes}: send it in parts")
    return zstandard.ZstdDecompressor().decompress(body, max_output_size=max_bytes)


def _only_batch(body: bytes) -> pa.RecordBatch:
    reader = pa.ipc.MessageReader.open_stream(pa.py_buffer(body))
    messages = list(itertools.islice(reader, 2))
    if len(messages) < 2:
        raise ValueError("a request has a schema and one record batch; this one ends before")
    schema_message, message = messages
    if schema_message.type != "schema" or message.type != "record batch":
        raise ValueError("a request has a schema and one record batch; this one has something else")
    schema = pa.ipc.read_schema(schema_message)
    if any(pa.types.is_nested(kind) and not pa.types.is_fixed_size_list(kind) for kind in schema.types):
        raise ValueError(f"a request has the columns {_told(schema)}; expected numbers, or lists of a fixed size")
    if any(pa.types.is_dictionary(kind) for kind in schema.types):
        raise ValueError("a request has columns with dictionaries; send plain values")
    if _compressed(message.metadata.to_pybytes()):
        raise ValueError("a request has compressed buffers; compress it as a whole, as one zstd frame")
    batch = pa.ipc.read_record_batch(message, schema)
    batch.validate(full=True)
    return batch


def _compressed(metadata: bytes) -> bool:
    """Whether a record batch message says that its buffers are compressed, read from Arrow's flatbuffer."""
    (root,) = struct.unpack_from("<I", metadata, 0)
    header = _table_field(metadata, root, 2)
    if header is None:
        return False
    (ahead,) = struct.unpack_from("<I", metadata, header)
    return _table_field(metadata, header + ahead, BODY_COMPRESSION) is not None


def _table_field(data: bytes, table: int, number: int) -> int | None:
    """Where a field of a flatbuffer's table lies, or ``None``."""
    (back,) = struct.unpack_from("<i", data, table)
    entries = table - back
    (size,) = struct.unpack_from("<H", data, entries)
    if 4 + 2 * number >= size:
        return None
    (ahead,) = struct.unpack_from("<H", data, entries + 4 + 2 * number)
    return table + ahead if ahead else None


def _numbers(column: pa.Array, name: str) -> np.ndarray:
    if column.null_count:
        raise ValueError(f"column {name!r} of a request has missing values; fill them, or leave such rows out")
    return column.to_numpy()


def _told(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)[:500]

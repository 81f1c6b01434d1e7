"""What tells one prepared data set from another, wherever it lies."""

from __future__ import annotations

from pathlib import Path

import google_crc32c
import pyarrow as pa
import pyarrow.parquet as pq

from laser.data.prepared import SPLITS
from laser.schema import Kind, Schema, names
from laser.seqvault import SeqVault

ROWS_AT_A_TIME = 1 << 20


def fingerprint(path: Path | str) -> str:
    """The schema's fingerprint and a checksum of every sample, of all item side info and of the number of events.

    The same log prepared by the same recipe has the same fingerprint on any machine. Files are read piece by piece.

    Args:
        path: folder that ``laser-prep`` wrote.

    Returns:
        Such as ``"d1e8d6bd55a0-9c3f12ab"``.

    Raises:
        ValueError: when there is no prepared data set.
    """
    path = Path(path)
    schema = Schema.load(path / "schema.json")
    with SeqVault.open(path / "vault") as vault:
        checksum = google_crc32c.value(str(vault.stats()["events"]).encode())
    for name in sorted(names(schema.of_kind(Kind.ITEM_SIDE))):
        checksum = _extend(checksum, [path / "items.parquet"], name)
    columns = names([schema.user, schema.item, schema.timestamp, schema.label])
    for split in SPLITS:
        files = sorted((path / "samples" / split).glob("part-*.parquet"))
        for name in (*columns, *sorted(names(schema.context))):
            checksum = _extend(checksum, files, name)
    return f"{schema.fingerprint()}-{checksum:08x}"


def _extend(checksum: int, files: list[Path], column: str) -> int:
    """Go on with the values of a column, however they lie in files and row groups."""
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(ROWS_AT_A_TIME, columns=[column]):
            checksum = google_crc32c.extend(checksum, _bytes(batch.column(0)))
    return checksum


def _bytes(column: pa.Array) -> bytes:
    while pa.types.is_fixed_size_list(column.type) or pa.types.is_list(column.type):
        column = column.flatten()
    return column.to_numpy(zero_copy_only=False).tobytes()

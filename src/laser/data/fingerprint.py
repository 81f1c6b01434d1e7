"""What tells one prepared data set from another, wherever it lies."""

from __future__ import annotations

from pathlib import Path

import google_crc32c
import numpy as np

from laser.data.prepared import SPLITS, PreparedData


def fingerprint(path: Path | str) -> str:
    """The schema's fingerprint and a checksum of every sample, of all item side info and of the number of events.

    The same log prepared by the same recipe has the same fingerprint on any machine. Reads all samples, split by split.

    Args:
        path: folder that ``laser-prep`` wrote.

    Returns:
        Such as ``"d1e8d6bd55a0-9c3f12ab"``.

    Raises:
        ValueError: when there is no prepared data set, or it is damaged.
    """
    with PreparedData(path) as data:
        checksum = google_crc32c.value(str(data.vault.stats()["events"]).encode())
        for name in sorted(data.items):
            checksum = _extend(checksum, data.items[name])
        for split in SPLITS:
            samples = data.split(split)
            columns = [samples.user_N, samples.item_N, samples.timestamp_N, samples.label_N]
            for column in (*columns, *(samples.context[name] for name in sorted(samples.context))):
                checksum = _extend(checksum, column)
        return f"{data.schema.fingerprint()}-{checksum:08x}"


def _extend(checksum: int, values: np.ndarray) -> int:
    return google_crc32c.extend(checksum, np.ascontiguousarray(values).tobytes())

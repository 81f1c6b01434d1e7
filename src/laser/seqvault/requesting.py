"""What a caller asks a vault for, checked once.

Legend of shape suffixes: R requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from laser.seqvault.filtering import Filter
from laser.seqvault.layout import Field, Layout, user_ids
from laser.seqvault.planning import FOREVER


@dataclass(frozen=True)
class Request:
    """Histories of R users, cut and projected.

    Args:
        users: uint64 [R].
        before: int64 [R], only events with a timestamp below it; ``None`` for no cut.
        wanted: int64 [R], events at most.
        fields: to return.
        codes: codes in place of ids.
        where: which events to return; ``None`` for all.
    """

    users: np.ndarray
    before: np.ndarray | None
    wanted: np.ndarray
    fields: tuple[Field, ...]
    codes: bool
    where: Filter | None

    @classmethod
    def of(
        cls,
        layout: Layout,
        users: Any,
        *,
        before: Any = None,
        last_n: int | None = None,
        fields: Iterable[str] | None = None,
        ids: str = "raw",
        where: Mapping[str, Any] | None = None,
    ) -> Request:
        """Check the arguments of ``SeqVault.read``.

        Raises:
            ValueError: on the first that is wrong.
        """
        of = user_ids(users)
        if last_n is not None and last_n < 0:
            raise ValueError(f"last_n is {last_n}; expected a number of events of at least 0, or None for all")
        if ids not in ("raw", "codes"):
            raise ValueError(f"ids is {ids!r}; expected 'raw' or 'codes'")
        wanted = np.full(len(of), FOREVER if last_n is None else last_n, np.int64)
        cut = None if before is None else _cuts(before, len(of))
        chosen, kept = layout.choose(fields), None if where is None else Filter.of(where, layout)
        return cls(of, cut, wanted, chosen, ids == "codes", kept)


def _cuts(before: Any, size: int) -> np.ndarray:
    found = np.asarray(before)
    if found.dtype.kind not in "iu" or found.shape not in ((), (size,)):
        raise ValueError(
            f"before is {found.dtype} of shape {found.shape}; expected integer timestamps, one or {size} of them"
        )
    if found.dtype != np.int64:
        found = np.minimum(found, FOREVER).astype(np.int64)
    return np.ascontiguousarray(np.broadcast_to(found, size))

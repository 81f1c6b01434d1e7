"""A batch of histories as the store returns it: one flat array per field and one array of offsets.

Legend of shape suffixes: U users of the request; T events, packed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ragged:
    """Histories of U users.

    Args:
        fields: per field one array of T values, oldest event first; user ``u`` has ``[offsets[u], offsets[u + 1])``.
        offsets: int64, U + 1 values.
    """

    fields: dict[str, np.ndarray]
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, name: str) -> np.ndarray:
        return self.fields[name]

    @property
    def lengths(self) -> np.ndarray:
        """Events per user, int64."""
        return np.diff(self.offsets)

    def of(self, index: int) -> dict[str, np.ndarray]:
        """Fields of one user of the request."""
        start, stop = self.offsets[index], self.offsets[index + 1]
        return {name: values[start:stop] for name, values in self.fields.items()}

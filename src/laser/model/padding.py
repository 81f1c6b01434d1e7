"""Packed histories as padded rows per sample: right-aligned, so that the newest event is in the last column.

Two samples with histories of 3 and 1 events::

    [ a  b  c ]        live  1 1 1
    [ .  .  d ]              0 0 1

Legend of shape suffixes: B samples; T history events, packed; L columns; K chosen columns; D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from laser.batch import Batch


@dataclass(frozen=True)
class Padded:
    """Where each column finds its event.

    Args:
        index_BL: int64 row of the packed events; T (one past the last) where there is none.
        live_BL: bool, whether there is an event.
        rank_L: int64 rank from the newest.
    """

    index_BL: Tensor
    live_BL: Tensor
    rank_L: Tensor

    def rows(self, packed: Tensor) -> Tensor:
        """[T, ...] -> [B, L, ...], zeros where there is no event."""
        # A row of zeros at the end lets gradients (zeros) reach the events' projection even without any event.
        extended = torch.cat([packed, packed.new_zeros(1, *packed.shape[1:])])
        return extended.index_select(0, self.index_BL.flatten()).view(*self.index_BL.shape, *packed.shape[1:])

    def packed(self, x_BLD: Tensor) -> Tensor:
        """Inverse of ``rows``, where every event is in exactly one row: [B, L, D] -> [T, D]."""
        return x_BLD[self.live_BL]

    def top(self, score_BL: Tensor, count: int) -> Padded:
        """The ``count`` live columns of highest score (all, where there are fewer), in no particular order.

        Ties go to the newer event, so that padding and the order of samples cannot change the choice. Passes no
        gradient. Padding can never outrank an event, however low its score.
        """
        with torch.no_grad():
            count = min(count, score_BL.shape[1])
            score_BL = score_BL.float().masked_fill(~self.live_BL, -torch.inf)
            # A stable sort of columns from newest to oldest keeps the newer of two equals first.
            order_BL = torch.sort(score_BL.flip(1), dim=1, descending=True, stable=True).indices
            column_BK = score_BL.shape[1] - 1 - order_BL[:, :count]
            index_BK, live_BK = self.index_BL.gather(1, column_BK), self.live_BL.gather(1, column_BK)
        return Padded(index_BK, live_BK, self.rank_L[:count])


def masked_softmax(score: Tensor, live: Tensor) -> Tensor:
    """Softmax over the last dimension and live rows only, float32; all zeros where nothing is live."""
    # The lowest finite value, not -inf: a row without any event would become NaN, in its gradient too.
    score = score.float().masked_fill(~live, torch.finfo(torch.float32).min)
    return score.softmax(-1) * live


def pad_histories(batch: Batch) -> Padded:
    """Columns for every distinct history instead of every sample."""
    length_U = batch.off_U1.diff()
    own_U = torch.arange(len(length_U), device=length_U.device)
    host = None if batch.on_host is None else (batch.on_host[0], own_U.cpu())
    return pad(replace(batch, history_of_B=own_U, on_host=host))


def pad(batch: Batch, newest: int | None = None) -> Padded:
    """Columns for the history of every sample, at least one; only the ``newest`` events if given."""
    off_U1, history_of_B = batch.on_host or (batch.off_U1, batch.history_of_B)
    longest = int(off_U1.diff()[history_of_B].max()) if len(history_of_B) else 0
    return pad_to(batch, max(1, longest if newest is None else min(longest, newest)))


def pad_to(batch: Batch, columns: int) -> Padded:
    """So many columns whatever the batch holds, at least one: nothing but values depends on its histories."""
    rank_L = torch.arange(columns - 1, -1, -1, device=batch.off_U1.device)
    length_B = batch.off_U1.diff()[batch.history_of_B]
    live_BL = rank_L < length_B[:, None]
    newest_B1 = batch.off_U1[batch.history_of_B + 1][:, None] - 1
    total = batch.age_T.shape[0]
    return Padded(torch.where(live_BL, newest_B1 - rank_L, total), live_BL, rank_L)

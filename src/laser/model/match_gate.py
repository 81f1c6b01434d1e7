"""Gates that know whether an event has a field in common with the target (not in the paper; off by default).

For pairs of fields p and heads h with learned weights w_ph, 0 at the start, the score of an event j gains::

    m_jh = sum over p of w_ph [field p of event j == field p of the target]

Only the newest events that match in any pair are looked at. All others have m = 0, so that it is enough to correct the
sums of the segmented attention by (sigmoid(score + m) - sigmoid(score)) x of those few.

Legend of shape suffixes: B samples; T history events, packed; E events counted once per sample that sees them;
G segments, packed per sample; N newest matches; P pairs; H heads; D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from laser.model.matching import Matches, newest_matches


@dataclass(frozen=True)
class Correction:
    """What the matches change.

    Args:
        delta_BNH: change of the gate; 0 where there is no N-th match.
        place_BN: int64 place of the match in E, 0 where there is none.
    """

    delta_BNH: Tensor
    place_BN: Tensor


class MatchGate(nn.Module):
    """Weights of the pairs, and what follows from them.

    Args:
        pairs: P.
        num_heads: H.
        newest: N.
        segment_width: events per segment.
    """

    def __init__(self, pairs: int, num_heads: int, newest: int, segment_width: int) -> None:
        super().__init__()
        self.newest, self.segment_width = newest, segment_width
        self.weight_PH = nn.Parameter(torch.zeros(pairs, num_heads))

    def forward(
        self, pooled_GHD: Tensor, x_TD: Tensor, query_BHD: Tensor, bias_H: Tensor, seg_off_B1: Tensor, found: Matches
    ) -> tuple[Tensor, Correction | None]:
        """The corrected sums, in the dtype they had, and the correction of the gates, ``None`` without any event."""
        any_E = torch.stack(found.match_E).any(0)
        if any_E.shape[0] == 0:
            # Not the sums as they are: a process without events must still hand on a gradient of the weights.
            return pooled_GHD + 0.0 * self.weight_PH.sum(), None
        event_BN, _ = newest_matches(any_E, found.events, self.newest)
        within_BN = event_BN >= 0
        place_BN = torch.where(within_BN, event_BN - found.events.shift_B[:, None], 0)
        rank_BN = found.events.off_B1[1:, None] - 1 - place_BN
        segment_BN = torch.where(within_BN, seg_off_B1[1:, None] - 1 - rank_BN // self.segment_width, 0)
        x_BND = x_TD.index_select(0, event_BN.clamp(min=0).flatten()).view(*event_BN.shape, x_TD.shape[1])
        x_BND = x_BND.to(query_BHD.dtype)
        match_BNP = torch.stack([match_E[place_BN] for match_E in found.match_E], -1).to(query_BHD.dtype)
        score_BNH = torch.einsum("bnd,bhd->bnh", x_BND, query_BHD) + bias_H
        delta_BNH = torch.sigmoid(score_BNH + match_BNP @ self.weight_PH) - torch.sigmoid(score_BNH)
        delta_BNH = delta_BNH * within_BN[..., None]
        added_BNHD = delta_BNH[..., None] * x_BND[:, :, None]
        wide_GHD = pooled_GHD.to(query_BHD.dtype).index_add(0, segment_BN.flatten(), added_BNHD.flatten(0, 1))
        return wide_GHD.to(pooled_GHD.dtype), Correction(delta_BNH, place_BN)


def corrected_gates(gate_EH: Tensor, correction: Correction | None) -> Tensor:
    """Gates with the matches taken into account, for analysis."""
    if correction is None:
        return gate_EH
    return gate_EH.index_add(0, correction.place_BN.flatten(), correction.delta_BNH.detach().flatten(0, 1))

"""Segmented target attention: gates inside segments of the history (arXiv 2602.11562).

For target t, events x_j and heads h, with K = X W_K and V = X W_V::

    a_jh = sigmoid( <t W_Q, x_j W_K>_h / sqrt(d_q) + beta_h )        independent gates, not normalised
    z_n  = concat_h sum_{j in segment n} a_jh x_j W_V^h
    s_n  = LN( z_n + FFN(z_n) )

computed in the folded form of ``laser.model.folded``, or, where many samples share a history and that is cheaper, with
keys and values projected once per history (``laser.model.projected``).

Legend of shape suffixes: B samples; U distinct histories; T history events, packed; E events counted once per sample
that sees them; G segments, packed per sample, oldest first; H heads; D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from laser.model.dense import FeedForward, ResidualNorm
from laser.model.folded import FoldedHeads
from laser.model.match_gate import MatchGate, corrected_gates
from laser.model.matching import Matches
from laser.model.output import Gates
from laser.model.projected import projected_segments, regime_of
from laser.model.recency import owner, rank_from_newest
from laser.model.segment_softmax import segmented_softmax_attention
from laser.ops.segmented_attention import segmented_target_attention, tiling
from laser.ops.segmented_attention.regime import Regime
from laser.ops.segments import SegmentLayout, Tiling

Gate = Literal["sigmoid", "softmax"]
Pooling = Literal["sum", "mean"]


class SegmentedTargetAttention(nn.Module):
    """Turns a history into one vector per segment, as seen from the target.

    Args:
        width: D, of events, target and segments.
        segment_width: events per segment; the oldest of a history may hold fewer.
        num_heads: H.
        query_width: width of queries and keys per head.
        gate: "sigmoid" is the paper's; "softmax" over the events of a segment is its ablation.
        gate_bias: initial value of the learned bias of each head's gate; ``None`` is -log(segment_width), with which
            the gates of a segment start out summing to about one (our choice). Unused by softmax.
        score_scale: factor of the scores; ``None`` is 1/sqrt(query_width).
        pooling: "sum", or "mean" over the events of a segment, which is a different model.
        ffn_multiple: hidden width of the segments' feed-forward network in units of D; 0 leaves it out.
        layer_norm: normalise segments at the end.
        rank_bias: the bias of the gates also has a learned slope per head, 0 at the start, in log(1 + rank from the
            newest event) (not in the paper).
        match_pairs: pairs of fields whose equality is part of the score; see ``laser.model.match_gate``.
        match_newest: newest matches that it looks at.
        regime: "absorbed" or "projected" fixes the form; ``None`` takes the cheaper for each batch, by rates that were
            measured (``laser.ops.segmented_attention.regime``). Gates, softmax, matches, a slope or a layout that is
            made before need the absorbed form, and get it.

    Raises:
        ValueError: when the segment width is not positive, or softmax is to know of matches.
    """

    def __init__(
        self,
        width: int,
        *,
        segment_width: int = 10,
        num_heads: int = 2,
        query_width: int = 16,
        gate: Gate = "sigmoid",
        gate_bias: float | None = None,
        score_scale: float | None = None,
        pooling: Pooling = "sum",
        ffn_multiple: int = 4,
        layer_norm: bool = True,
        rank_bias: bool = False,
        match_pairs: int = 0,
        match_newest: int = 16,
        regime: Regime | None = None,
    ) -> None:
        super().__init__()
        self.regime = regime
        if segment_width < 1:
            raise ValueError(f"segment_width is {segment_width}; a segment holds at least 1 event")
        self.segment_width, self.gate, self.pooling = segment_width, gate, pooling
        self.ffn_multiple = ffn_multiple
        self.heads = FoldedHeads(width, num_heads, query_width, score_scale)
        if gate == "sigmoid":
            initial = -math.log(segment_width) if gate_bias is None else gate_bias
            self.bias_H = nn.Parameter(torch.full((num_heads,), initial))
        self.slope_H = nn.Parameter(torch.zeros(num_heads)) if rank_bias else None
        if match_pairs and gate == "softmax":
            raise ValueError("match_gate changes sigmoid gates, and gate is softmax; set one of the two otherwise")
        self.match = MatchGate(match_pairs, num_heads, match_newest, segment_width) if match_pairs else None
        self.ffn = FeedForward(width, ffn_multiple) if ffn_multiple else None
        # Segments are many: under autocast they stay in half precision, as they do without a norm.
        self.norm = ResidualNorm(width, widens=False) if layer_norm else nn.Identity()

    def forward(
        self,
        x_TD: Tensor,
        off_U1: Tensor,
        target_BD: Tensor,
        history_of_B: Tensor,
        *,
        return_gates: bool = False,
        on_host: tuple[Tensor, Tensor] | None = None,
        found: Matches | None = None,
        layout: SegmentLayout | None = None,
    ) -> tuple[Tensor, Tensor, Gates | None]:
        """Segments of every sample.

        Args:
            x_TD: events, oldest first per history.
            off_U1: int64 offsets of the histories.
            target_BD: targets.
            history_of_B: int64 history of each sample.
            return_gates: also return the gates (softmax weights in that ablation).
            on_host: copies of ``off_U1`` and ``history_of_B`` in host memory, so that nothing waits for a GPU.
            found: matches of history and target, where the gates are to know of them.
            layout: of the segments, where it is known (sigmoid gates).

        Returns:
            segment_GD, seg_off_B1 (int64 offsets of the samples in it), and the gates or ``None``.
        """
        if self._projects(x_TD, off_U1, history_of_B, on_host, needs_absorbed=return_gates or layout is not None):
            z_GD, seg_off_B1 = projected_segments(
                self.heads, self.bias_H, x_TD, off_U1, target_BD, history_of_B, self.segment_width, on_host=on_host
            )
            return self._finished(z_GD, off_U1, history_of_B, seg_off_B1), seg_off_B1, None
        # Scores and gates stay in float32 under autocast: a gate of a long history is a small difference.
        with torch.autocast(x_TD.device.type, enabled=False):
            query_BHD = self.heads.query(target_BD.to(self.heads.query_HDQ.dtype))
            if self.slope_H is not None:
                x_TD, query_BHD = self._with_rank(x_TD, off_U1, query_BHD, self.slope_H)
            pooled_GHD, seg_off_B1, gates = self._pool(
                x_TD, off_U1, query_BHD, history_of_B, return_gates, on_host, layout
            )
            if self.match is not None:
                assert found is not None
                pooled_GHD, correction = self.match(pooled_GHD, x_TD, query_BHD, self.bias_H, seg_off_B1, found)
                if gates is not None:
                    gates = replace(gates, gate_EH=corrected_gates(gates.gate_EH, correction))
            pooled_GHD = pooled_GHD[..., : target_BD.shape[1]]  # the rank was for the scores alone
        z_GD = self.heads.value(pooled_GHD)
        return self._finished(z_GD, off_U1, history_of_B, seg_off_B1), seg_off_B1, gates

    def _projects(
        self,
        x_TD: Tensor,
        off_U1: Tensor,
        history_of_B: Tensor,
        on_host: tuple[Tensor, Tensor] | None,
        *,
        needs_absorbed: bool,
    ) -> bool:
        """Whether keys and values are projected."""
        plain = self.gate == "sigmoid" and self.slope_H is None and self.match is None
        if not plain or needs_absorbed or self.regime == "absorbed":
            return False
        options = {"on_host": on_host, "override": self.regime}
        return regime_of(self.heads, x_TD, off_U1, history_of_B, self.segment_width, **options) == "projected"

    def _finished(self, z_GD: Tensor, off_U1: Tensor, history_of_B: Tensor, seg_off_B1: Tensor) -> Tensor:
        """Segments of gated sums."""
        if self.pooling == "mean":
            z_GD = z_GD / self._sizes(off_U1, history_of_B, seg_off_B1, z_GD)[:, None]
        return self.normed(z_GD)

    def normed(self, z_GD: Tensor) -> Tensor:
        """LN(z + FFN(z)), or what is left of it where a part is switched off; leading dimensions are free."""
        if self.ffn is None:
            return self.norm(z_GD)
        if isinstance(self.norm, ResidualNorm):
            return self.norm(z_GD, self.ffn(z_GD))
        return z_GD + self.ffn(z_GD)

    def _pool(
        self,
        x_TD: Tensor,
        off_U1: Tensor,
        query_BHD: Tensor,
        history_of_B: Tensor,
        return_gates: bool,
        on_host: tuple[Tensor, Tensor] | None,
        layout: SegmentLayout | None,
    ) -> tuple[Tensor, Tensor, Gates | None]:
        if self.gate == "softmax":
            pooled = list(
                segmented_softmax_attention(x_TD, off_U1, query_BHD, history_of_B, self.segment_width, on_host)
            )
        else:
            pooled = list(
                segmented_target_attention(
                    x_TD,
                    off_U1,
                    query_BHD,
                    self.bias_H,
                    history_of_B,
                    self.segment_width,
                    return_gates=return_gates,
                    on_host=on_host,
                    layout=layout,
                )
            )
        if not return_gates:
            return pooled[0], pooled[1], None
        return pooled[0], pooled[1], Gates(pooled[2], pooled[3], self.segment_width, self.gate)

    def tiling(self, device: torch.device, dtype: torch.dtype) -> Callable[[bool], Tiling]:
        """Tiles of the op for events of this dtype, for a layout that is made before them."""
        heads, width, _ = self.heads.query_HDQ.shape
        wide = width + (self.slope_H is not None)
        x_TD, query_BHD = (torch.empty(*shape, wide, dtype=dtype, device=device) for shape in ((0,), (0, heads)))
        return tiling(x_TD, query_BHD, self.segment_width)

    def _with_rank(self, x_TD: Tensor, off_U1: Tensor, query_BHD: Tensor, slope_H: Tensor) -> tuple[Tensor, Tensor]:
        """Events and queries with one more value, whose product is the slope's part of the score."""
        rank_T = rank_from_newest(off_U1, owner(off_U1, x_TD.shape[0]))
        x_TD = torch.cat([x_TD, rank_T.float().log1p().to(x_TD.dtype)[:, None]], dim=1)
        slope_BH1 = slope_H.to(query_BHD.dtype).expand(query_BHD.shape[0], -1)[..., None]
        return x_TD, torch.cat([query_BHD, slope_BH1], dim=2)

    def _sizes(self, off_U1: Tensor, history_of_B: Tensor, seg_off_B1: Tensor, like_GD: Tensor) -> Tensor:
        """Events in each segment: all of them full, but for the oldest of a sample."""
        sample_G = owner(seg_off_B1, like_GD.shape[0])
        newer_G = rank_from_newest(seg_off_B1, sample_G) * self.segment_width
        length_G = off_U1.diff()[history_of_B][sample_G]
        return (length_G - newer_G).clamp(max=self.segment_width).to(like_GD.dtype)

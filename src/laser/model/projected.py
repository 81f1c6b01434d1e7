"""The segmented attention with keys and values projected once per history, for batches of many candidates a history.

``laser.model.folded`` moves W_K into the query and W_V behind the sums; here they act on the events, as in the paper.
Same parameters, same function; ``regime_of`` says which is cheaper for a batch.

Legend of shape suffixes: B samples; U histories; T events, packed; G segments, packed per sample; H heads; D width;
Q query width; V value width per head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from laser.model.folded import FoldedHeads
from laser.ops.segmented_attention.projected import projected_target_attention
from laser.ops.segmented_attention.regime import Regime, choose, load_of


def projected_segments(
    heads: FoldedHeads,
    bias_H: Tensor,
    x_TD: Tensor,
    off_U1: Tensor,
    target_BD: Tensor,
    history_of_B: Tensor,
    segment_width: int,
    *,
    on_host: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Gated sums of values per segment, before feed-forward network and norm.

    Queries and keys are float32 under autocast, too: a gate of a long history is a small difference.

    Args:
        heads: W_Q, W_K and W_V.
        bias_H: of the gates.
        x_TD: events, oldest first per history.
        off_U1: int64 offsets of the histories.
        target_BD: targets.
        history_of_B: int64 history of each sample.
        segment_width: events a segment.
        on_host: copies of ``off_U1`` and ``history_of_B`` in host memory.

    Returns:
        z_GD and seg_off_B1, as ``heads.value(segmented_target_attention(...))``.
    """
    with torch.autocast(x_TD.device.type, enabled=False):
        wide = heads.key_HDQ.dtype
        query_BHQ = torch.einsum("bd,hdq->bhq", target_BD.to(wide), heads.query_HDQ) * heads.scale
        key_THQ = torch.einsum("nd,hdq->nhq", x_TD.to(wide), heads.key_HDQ)
    value_THV = torch.einsum("nd,hdv->nhv", x_TD, heads.value_HDV)
    return projected_target_attention(
        key_THQ, value_THV, off_U1, query_BHQ, bias_H, history_of_B, segment_width, on_host=on_host
    )


def regime_of(
    heads: FoldedHeads,
    x_TD: Tensor,
    off_U1: Tensor,
    history_of_B: Tensor,
    segment_width: int,
    *,
    on_host: tuple[Tensor, Tensor] | None = None,
    override: Regime | None = None,
) -> Regime:
    """The cheaper form for a batch, or ``override``; arguments as above."""
    num_heads, width, query_width = heads.query_HDQ.shape
    load = load_of(
        *(on_host or (off_U1.cpu(), history_of_B.cpu())),
        width=width,
        num_heads=num_heads,
        query_width=query_width,
        segment_width=segment_width,
        itemsize=x_TD.element_size(),
    )
    return choose(load, x_TD.device, override)

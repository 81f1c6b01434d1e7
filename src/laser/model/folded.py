"""Multi-head attention of one query per sample, folded so that keys and values are never computed.

With a single query, ``<q W_Q, x W_K> = <q W_Q W_K^T, x>`` and ``sum_j a_j (x_j W_V) = (sum_j a_j x_j) W_V``: the
events are scored and pooled as they are, and the projections act on B queries and on pooled rows instead of on every
event. Exact as long as W_K and W_V have no bias (which is why they have none). What lies between ``query`` and
``value`` is an op: sigmoid gates within segments, or softmax over segments.

Legend of shape suffixes: B samples; D width; H heads; Q query width per head; V value width per head; N rows of any
kind (segments in the segmented attention, samples in the global one).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from laser.ops.folded_query import folded_query
from laser.ops.linear import grouped_linear


class FoldedHeads(nn.Module):
    """W_Q, W_K and W_V of H heads.

    Args:
        width: of the query's source, of the events, and of the concatenated values.
        num_heads: H; divides ``width``.
        query_width: Q.
        scale: factor of the scores; ``None`` is 1/sqrt(Q).

    Raises:
        ValueError: when ``num_heads`` does not divide ``width``.
    """

    def __init__(self, width: int, num_heads: int, query_width: int, scale: float | None = None) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(
                f"width {width} is not a multiple of num_heads {num_heads}; choose a number of heads that divides it"
            )
        self.scale = query_width**-0.5 if scale is None else scale
        self.query_HDQ = nn.Parameter(_xavier(num_heads, width, query_width))
        self.key_HDQ = nn.Parameter(_xavier(num_heads, width, query_width))
        self.value_HDV = nn.Parameter(_xavier(num_heads, width, width // num_heads))

    def query(self, source_BD: Tensor) -> Tensor:
        """Score vectors in event space, [B, H, D]: ``scale * (source W_Q) W_K^T`` per head."""
        return folded_query(source_BD, self.query_HDQ, self.key_HDQ, self.scale)

    def value(self, pooled_NHD: Tensor) -> Tensor:
        """Values of pooled events, heads concatenated: [N, D]."""
        return grouped_linear(pooled_NHD, self.value_HDV).flatten(1)


def _xavier(num_heads: int, inputs: int, outputs: int) -> Tensor:
    # The heads are columns of one matrix, so the fans are those of the whole matrix, not of a slice.
    bound = (6.0 / (inputs + num_heads * outputs)) ** 0.5
    return torch.empty(num_heads, inputs, outputs).uniform_(-bound, bound)

"""Segmented target attention on keys and values that were projected once per history, for its many candidates.

    a = sigmoid(query . key + bias);   z = per segment and head the sum of a * value

The same function as ``segmented_target_attention`` with the projections around it, where the events are projected and
not the query and the sums: less work from some candidates a history on (``regime.py``). Batched products over segments,
in plain PyTorch on any device; a history's segments are read once for all of its samples. Only the oldest segment of a
history is padded, and numbers of samples to the next power of two.

Legend of shape suffixes: B samples; U histories; T events, packed; G segments, packed per sample; J histories of a
group; S segments of a group's histories; C samples of a history, padded; W segment width; H heads; Q width of queries
and keys; V width of values; D = H V.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from laser.ops.segments import offsets


def projected_target_attention(
    key_THQ: Tensor,
    value_THV: Tensor,
    off_U1: Tensor,
    query_BHQ: Tensor,
    bias_H: Tensor,
    history_of_B: Tensor,
    width: int,
    *,
    on_host: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Gate every event of a sample's history by its target, and sum the values of each segment.

    Scores, gates and sums are float32 (float64 for float64), also under autocast.

    Args:
        key_THQ: keys [T, H, Q], each history oldest first.
        value_THV: values [T, H, V].
        off_U1: int64 [U + 1], where each history begins, and T.
        query_BHQ: [B, H, Q], with 1/sqrt(Q) absorbed.
        bias_H: [H], added to every score.
        history_of_B: int64 [B], the history of each sample.
        width: events a segment, at least 1.
        on_host: copies of ``off_U1`` and ``history_of_B`` in host memory; without them the host waits for a GPU's.

    Returns:
        z_GD [G, D] in the dtype of the values, and seg_off_B1, int64 [B + 1]; ordered as by
        ``segmented_target_attention``.

    Raises:
        ValueError: when shapes do not fit each other.
    """
    _check(key_THQ, value_THV, query_BHQ, bias_H, width)
    off, history = (tensor.cpu().numpy() for tensor in (on_host or (off_U1, history_of_B)))
    seg_off = offsets(-(-np.diff(off) // width)[history])
    wide = torch.promote_types(value_THV.dtype, torch.float32)
    inputs = (key_THQ.to(wide), value_THV.to(wide), query_BHQ.to(wide), bias_H.to(wide))
    groups = list(_groups(off, history, seg_off, width))
    with torch.autocast(value_THV.device.type, enabled=False):
        parts = [_attend(*inputs, group) for group in groups] or [_nothing(*inputs)]
        places = np.concatenate([np.zeros(0, np.int64), *(group.segment_P for group in groups)])
        row_G, seg_off_B1 = _on(value_THV.device, np.argsort(places), seg_off)
        return torch.cat(parts).index_select(0, row_G).to(value_THV.dtype), seg_off_B1


@dataclass(frozen=True)
class Group:
    """Histories with about as many samples, on the host.

    Args:
        row_SW: row of each event of each segment; where a short oldest segment has none, its history's first.
        live_SW: 1 where there is one.
        history_S: place in the group of each segment's history.
        sample_JC: samples of each history, the last repeated.
        pair_P: which of S x C pairs are real.
        segment_P: number, in the packed order of samples, of the segment that each makes.
    """

    row_SW: np.ndarray
    live_SW: np.ndarray
    history_S: np.ndarray
    sample_JC: np.ndarray
    pair_P: np.ndarray
    segment_P: np.ndarray


def _groups(off: np.ndarray, history: np.ndarray, seg_off: np.ndarray, width: int) -> Iterator[Group]:
    length, count = np.diff(off), np.bincount(history, minlength=len(off) - 1)
    by_history, first = np.argsort(history, kind="stable"), offsets(count)
    order_of_two = np.ceil(np.log2(np.maximum(count, 1))).astype(np.int64)
    used = (count > 0) & (length > 0)
    for power in np.unique(order_of_two[used]):
        own_J = np.flatnonzero(used & (order_of_two == power))
        number_J = -(-length[own_J] // width)
        history_S = np.repeat(np.arange(len(own_J)), number_J)
        segment_S = np.arange(len(history_S)) - offsets(number_J)[:-1][history_S]
        start_S1 = off[own_J][history_S, None]
        newest_S = off[own_J + 1][history_S] - (number_J[history_S] - segment_S) * width
        row_SW = newest_S[:, None] + np.arange(width)
        within_JC = np.minimum(np.arange(2**power), count[own_J, None] - 1)
        sample_JC = by_history[first[own_J][:, None] + within_JC]
        real_SC = (np.arange(2**power) < count[own_J, None])[history_S]
        segment_SC = seg_off[sample_JC][history_S] + segment_S[:, None]
        live_SW = (row_SW >= start_S1).astype(np.int64)
        pair_P = np.flatnonzero(real_SC)
        yield Group(np.maximum(row_SW, start_S1), live_SW, history_S, sample_JC, pair_P, segment_SC.ravel()[pair_P])


def _attend(key_THQ: Tensor, value_THV: Tensor, query_BHQ: Tensor, bias_H: Tensor, group: Group) -> Tensor:
    """Rows [P, D] of one group."""
    arrays = (group.row_SW, group.live_SW, group.history_S, group.sample_JC, group.pair_P)
    row_SW, live_SW, history_S, sample_JC, pair_P = _on(key_THQ.device, *arrays)
    key_SHWQ, value_SHWV = (_rows(tensor, row_SW).transpose(1, 2) for tensor in (key_THQ, value_THV))
    query_JHQC = _rows(query_BHQ, sample_JC).permute(0, 2, 3, 1)
    score_SHWC = key_SHWQ @ query_JHQC.index_select(0, history_S) + bias_H[:, None, None]
    gate_SHWC = score_SHWC.sigmoid() * live_SW[:, None, :, None]
    z_SHCV = gate_SHWC.transpose(2, 3) @ value_SHWV
    return z_SHCV.transpose(1, 2).flatten(2).flatten(0, 1).index_select(0, pair_P)


def _nothing(key_THQ: Tensor, value_THV: Tensor, query_BHQ: Tensor, bias_H: Tensor) -> Tensor:
    """No row [0, D], whose gradients are zeros for every input."""
    return value_THV[:0].flatten(1) + sum(tensor[:0].sum() for tensor in (key_THQ, query_BHQ, bias_H))


def _rows(tensor: Tensor, index: Tensor) -> Tensor:
    return tensor.index_select(0, index.flatten()).unflatten(0, index.shape)


def _on(device: torch.device, *arrays: np.ndarray) -> list[Tensor]:
    """The arrays on a device, in one copy for which the host does not wait."""
    flat = torch.from_numpy(np.concatenate([array.ravel() for array in arrays]))
    if device.type == "cuda":
        flat = flat.pin_memory()
    parts = flat.to(device, non_blocking=True).split([array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]


def _check(key_THQ: Tensor, value_THV: Tensor, query_BHQ: Tensor, bias_H: Tensor, width: int) -> None:
    T, H, Q = key_THQ.shape
    if value_THV.shape[:2] != (T, H) or query_BHQ.shape[1:] != (H, Q) or list(bias_H.shape) != [H]:
        raise ValueError(
            f"key_THQ is {[T, H, Q]}, value_THV {list(value_THV.shape)}, query_BHQ {list(query_BHQ.shape)} and bias_H "
            f"{list(bias_H.shape)}; expected [T, H, Q], [T, H, V], [B, H, Q] and [H]"
        )
    if width < 1:
        raise ValueError(f"segment width is {width}; pass at least 1")

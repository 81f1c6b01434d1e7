"""Gates against softmax weights: of the same scores, and of a model trained with a softmax.

Legend of shape suffixes: E events of samples, packed; G segments, packed; H heads; N histogram bins.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from laser.analysis.gate_file import GatedSamples, GateFile

BINS = 40


def implied_softmax(gate_EH: np.ndarray, event_off_G1: np.ndarray) -> np.ndarray:
    """Weights, float64 [E, H], that a softmax within segments would give to the scores behind sigmoid gates.

    A score is log(gate / (1 - gate)) minus the head's bias, which cancels: the weight is the event's odds over the sum
    of the segment's odds. Gates near 1 were rounded to half precision when written: their odds are known to some 10 %
    at 0.995.
    """
    # 2**-25 and 1 - 2**-12 are half the distance of a half-precision value to 0 and to 1.
    gate_EH = np.clip(gate_EH.astype(np.float64), 2.0**-25, 1 - 2.0**-12)
    odds_EH = gate_EH / (1 - gate_EH)
    if not len(odds_EH):
        return odds_EH
    total_GH = np.add.reduceat(odds_EH, event_off_G1[:-1], axis=0)
    return odds_EH / np.repeat(total_GH, np.diff(event_off_G1), axis=0)


@dataclass(frozen=True)
class Agreement:
    """Gates of one file beside weights of softmax on the same events.

    Args:
        title: what the weights are.
        edges_N1: of gates and of weights.
        events_HNN: int64, events by head, gate and weight.
        correlation_H: Pearson correlation of gate and weight.
        rank_correlation_H: mean over segments of the correlation of their ranks within the segment.
    """

    title: str
    edges_N1: np.ndarray
    events_HNN: np.ndarray
    correlation_H: np.ndarray
    rank_correlation_H: np.ndarray


def agreement(gates: GateFile, weights: GateFile | None = None) -> Agreement:
    """Compare sigmoid gates with softmax weights, event by event.

    Args:
        gates: of a model with sigmoid gates.
        weights: of a model with a softmax, on the same samples; ``None`` compares with the softmax of the same scores.

    Raises:
        ValueError: when the two files are not of the same samples and heads.
    """
    title = "softmax of the same scores" if weights is None else "weights of a model trained with softmax"
    edges, heads = np.linspace(0, 1, BINS + 1), gates.heads
    events_HNN, moments, ranks = np.zeros((heads, BINS, BINS), np.int64), np.zeros((6, heads)), np.zeros((2, heads))
    for one, weight_EH in _side_by_side(gates, weights):
        a_EH, b_EH = one.gate_EH.astype(np.float64), weight_EH
        for head in range(heads):
            events_HNN[head] += np.histogram2d(a_EH[:, head], b_EH[:, head], (edges, edges))[0].astype(np.int64)
        products = (np.ones_like(a_EH), a_EH, b_EH, a_EH**2, b_EH**2, a_EH * b_EH)
        moments += np.stack([product.sum(0) for product in products])
        ranks += _rank_correlations(a_EH, b_EH, one)
    n, a, b, aa, bb, ab = moments
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation_H = (n * ab - a * b) / np.sqrt((n * aa - a**2) * (n * bb - b**2))
        return Agreement(title, edges, events_HNN, correlation_H, ranks[0] / ranks[1])


def _side_by_side(gates: GateFile, weights: GateFile | None) -> Iterator[tuple[GatedSamples, np.ndarray]]:
    if weights is None:
        for chunk in gates.chunks():
            yield chunk, implied_softmax(chunk.gate_EH, chunk.event_off_G1)
        return
    if (gates.heads, gates.schema, len(gates)) != (weights.heads, weights.schema, len(weights)):
        raise ValueError(f"{gates.path} and {weights.path} differ in heads, samples or data set: {_ALIKE}")
    for one, other in pairs(gates, weights):
        yield one, other.gate_EH.astype(np.float64)


_ALIKE = "compare two models tested on the same split with the same data.max_history"


def pairs(first: GateFile, second: GateFile) -> Iterator[tuple[GatedSamples, GatedSamples]]:
    """The same samples of two files, however each is cut into row groups.

    Raises:
        ValueError: when they are not of the same samples and events.
    """
    others = second.chunks()
    other, used = next(others, None), 0
    for chunk in first.chunks():
        done = 0
        while done < len(chunk):
            while other is not None and used == len(other):
                other, used = next(others, None), 0
            if other is None:
                raise ValueError(f"{second.path} has fewer samples than {first.path}: {_ALIKE}")
            count = min(len(chunk) - done, len(other) - used)
            a, b = chunk.part(done, done + count), other.part(used, used + count)
            if not (
                np.array_equal(a.columns["row"], b.columns["row"]) and np.array_equal(a.event_off_G1, b.event_off_G1)
            ):
                raise ValueError(f"{first.path} and {second.path} differ in rows, histories or segments: {_ALIKE}")
            yield a, b
            done, used = done + count, used + count


def _rank_correlations(a_EH: np.ndarray, b_EH: np.ndarray, chunk: GatedSamples) -> np.ndarray:
    """Sum over segments of the correlation of ranks within them, and the number of segments that have one; [2, H]."""
    size_G = np.diff(chunk.event_off_G1)
    first_G, segment_E = chunk.event_off_G1[:-1], chunk.segment_E
    found = np.zeros((2, a_EH.shape[1]))
    if not len(first_G):
        return found
    middle_E = ((size_G - 1) / 2)[segment_E]
    for head in range(a_EH.shape[1]):
        ranks = [_ranks(values_EH[:, head], segment_E, first_G) - middle_E for values_EH in (a_EH, b_EH)]
        cross_G, *own = (np.add.reduceat(x * y, first_G) for x, y in ((ranks[0], ranks[1]), *zip(ranks, ranks)))
        several = size_G > 1
        found[0, head] = (cross_G[several] / np.sqrt(own[0][several] * own[1][several])).sum()
        found[1, head] = several.sum()
    return found


def _ranks(value_E: np.ndarray, segment_E: np.ndarray, first_G: np.ndarray) -> np.ndarray:
    """Rank of each event in its segment, from 0; ties in their order."""
    order_E = np.lexsort((value_E, segment_E))
    rank_E = np.empty(len(value_E))
    rank_E[order_E] = np.arange(len(value_E)) - first_G[segment_E]
    return rank_E

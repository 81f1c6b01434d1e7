"""Against sums over samples and events in plain Python."""

import json

import numpy as np
import pytest
import torch

from laser.train import gate_statistics
from laser.train.gate_statistics import BINS, RECENCY_EDGES, GateStatistics, sample_chunks


def slow(samples: list[np.ndarray], width: int, heads: int) -> dict:
    """One pass over the samples; each is [events, heads], oldest first."""
    gates = np.concatenate(samples)
    back = np.concatenate([np.arange(len(s))[::-1] for s in samples])
    bucket = np.searchsorted(RECENCY_EDGES, back, side="right") - 1
    segments = []
    for sample in samples:
        for stop in range(len(sample), 0, -width):
            segments.append((sample[max(0, stop - width) : stop] < 0.05).all(axis=0))
    used = bucket.max() + 1
    return {
        "events": len(gates),
        "mean": gates.mean(0),
        "share_below_0.05": (gates < 0.05).mean(0),
        "share_above_0.95": (gates > 0.95).mean(0),
        "silent_segments": np.mean(segments, axis=0),
        "recency": [gates[bucket == r].mean(0) for r in range(used)],
        "counts": [np.histogram(gates[:, h], BINS, (0, 1))[0] for h in range(heads)],
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_to_a_loop_over_samples(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    width, heads = 10, 4
    lengths = [0, 1, width - 1, width, width + 1, 63, 0, 250]
    samples = [torch.rand(n, heads, generator=generator).pow(6).to(dtype) for n in lengths]
    statistics = GateStatistics()
    for part in (samples[:3], samples[3:5], samples[5:], [samples[0]]):
        offsets = torch.tensor([0, *np.cumsum([len(s) for s in part])])
        statistics.update(torch.cat(part), offsets, width)
    found = json.loads(json.dumps(statistics.compute()))
    expected = slow([s.float().numpy() for s in samples], width, heads)
    assert (found["heads"], found["segment_width"], found["events"]) == (heads, width, expected["events"])
    for name in ("mean", "share_below_0.05", "share_above_0.95", "silent_segments"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-6, err_msg=name)
    np.testing.assert_allclose(found["by_recency"]["mean"], expected["recency"], atol=1e-6)
    assert found["by_recency"]["edges"] == [0, 10, 20, 50, 100, 200]
    assert sum(found["by_recency"]["events"]) == expected["events"]
    assert found["histogram"]["edges"][::10] == [0.0, 0.5, 1.0]
    np.testing.assert_allclose(found["histogram"]["counts"], expected["counts"], atol=1)
    assert np.sum(found["histogram"]["counts"]) == heads * expected["events"]


def test_nothing_and_reset() -> None:
    statistics = GateStatistics()
    assert statistics.compute() == {}
    statistics.update(torch.zeros(0, 2), torch.tensor([0, 0]), 5)
    found = statistics.compute()
    assert (found["heads"], found["events"], found["mean"]) == (2, 0, [None, None])
    statistics.reset()
    assert statistics.compute() == {}


def test_memory_is_bounded_and_the_result_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is looked at in runs of samples, of which only a single long sample may exceed the bound."""
    generator = torch.Generator().manual_seed(0)
    lengths = [0, 3, 40, 0, 7, 5, 12, 0, 0]
    offsets = torch.tensor([0, *np.cumsum(lengths)])
    gates = torch.rand(sum(lengths), 2, generator=generator)
    whole = GateStatistics()
    whole.update(gates, offsets, 10)
    monkeypatch.setattr(gate_statistics, "CHUNK_EVENTS", 15)
    sizes = []
    add = GateStatistics._add
    monkeypatch.setattr(GateStatistics, "_add", lambda self, g, o, w: (sizes.append(len(g)), add(self, g, o, w)))
    parts = GateStatistics()
    parts.update(gates, offsets, 10)
    assert sizes == [3, 40, 12, 12]
    assert parts.compute() == whole.compute()


@pytest.mark.parametrize("lengths", [[], [0], [0, 0], [5], [20, 0, 20], [4, 4, 4, 0]])
def test_chunks_are_everything_once(lengths: list[int]) -> None:
    offsets = np.array([0, *np.cumsum(lengths)], np.int64)
    found = list(sample_chunks(offsets, 8))
    assert [sample for samples, _ in found for sample in range(samples.start, samples.stop)] == [*range(len(lengths))]
    assert [event for _, events in found for event in range(events.start, events.stop)] == [*range(sum(lengths))]
    assert all(e.stop - e.start <= 8 or s.stop - s.start == 1 for s, e in found)

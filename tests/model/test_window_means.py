"""Means over windows of recency, against a loop."""

from __future__ import annotations

import pytest
import torch

from laser.model.laser import Laser
from laser.model.window_means import ends_in_segments, window_means

SEGMENTS = [0, 1, 5, 2, 9]


def by_hand(segment_GD: torch.Tensor, ends: list[int]) -> torch.Tensor:
    """[B, W, D], a sample and a window at a time."""
    rows = []
    for newest_first in (own.flip(0) for own in segment_GD.split(SEGMENTS)):
        windows = [newest_first[first:end] for first, end in zip([0, *ends], [*ends, None])]
        rows.append(torch.stack([w.mean(0) if len(w) else w.new_zeros(w.shape[1]) for w in windows]))
    return torch.stack(rows)


@pytest.mark.parametrize("ends", [[1], [1, 3], [2, 6, 9], [20]])
@pytest.mark.parametrize("surplus", [0, 3])
def test_equals_a_loop(ends, surplus):
    segment_GD = torch.randn(sum(SEGMENTS), 3, dtype=torch.float64).float().requires_grad_()
    offsets = torch.tensor([0, *SEGMENTS]).cumsum(0)
    behind = torch.full((surplus, 3), torch.nan, requires_grad=True)
    found = window_means(torch.cat([segment_GD, behind]), offsets, ends)
    wanted = by_hand(segment_GD, ends)
    torch.testing.assert_close(found, wanted)
    weight = torch.randn_like(wanted)
    (d_wanted,) = torch.autograd.grad((wanted * weight).sum(), segment_GD)
    d_found, d_behind = torch.autograd.grad((found * weight).sum(), [segment_GD, behind])
    torch.testing.assert_close(d_found, d_wanted)
    assert not d_behind.any()


def test_without_any_segment():
    segment_GD = torch.zeros(0, 3, requires_grad=True)
    found = window_means(segment_GD, torch.zeros(3, dtype=torch.int64), [1, 2])
    assert found.tolist() == torch.zeros(2, 3, 3).tolist()
    found.sum().backward()
    assert segment_GD.grad is not None


def test_half_precision_is_summed_in_float32():
    segment_GD = torch.ones(1000, 1, dtype=torch.bfloat16)
    assert window_means(segment_GD, torch.tensor([0, 1000]), [1]).flatten().tolist() == [1.0, 1.0]


def test_windows_are_whole_segments():
    assert ends_in_segments([10, 40, 150], 10) == [1, 5, 20]
    for windows in ([10, 15], [0], [-10]):
        with pytest.raises(ValueError, match=r"segment_windows are .* multiples of segment_width, 10"):
            ends_in_segments(windows, 10)


def test_each_window_is_a_group_of_the_mixer(schema, make_batch):
    options = {"width": 8, "segment_width": 2, "mixer_tokens": 8, "mixer_width": 16}
    plain, with_windows = Laser(schema, **options), Laser(schema, **options, segment_windows=[2, 6]).eval()
    assert sum(with_windows.fusion.tokens.runs) == sum(plain.fusion.tokens.runs) + 3
    assert with_windows(make_batch(schema, [12, 5], [0, 1])).logit_B.shape == (2,)

"""Factors of dropout: all implementations give the same bits, which are splitmix64's."""

from __future__ import annotations

import pytest
import torch

from laser.ops.keep_factor import keep_factor, naive, triton
from laser.ops.keep_factor.naive import keep_mask, mix, mix_scalar, scalar_hash, step_hash

EDGES = [0, 1, -1, 2**63 - 1, -(2**63), 123456789012345]


def test_mix_is_splitmix64() -> None:
    # First outputs of splitmix64 seeded with 0 and with 1234567, from its published reference vectors.
    golden = 0x9E3779B97F4A7C15
    expected = {golden: 0xE220A8397B1DCDAF, 2 * golden: 0x6E789E6AA1B965F4, 1234567 + golden: 6457827717110365317}
    for state, value in expected.items():
        assert mix_scalar(state) % 2**64 == value


def test_tensor_and_scalar_mix_give_the_same_bits() -> None:
    assert mix(torch.tensor(EDGES)).tolist() == [mix_scalar(value) for value in EDGES]


def test_a_step_in_a_tensor_gives_the_same_bits() -> None:
    for step in (0, 1, 10**12):
        assert int(step_hash(scalar_hash(3, 1), torch.tensor(step))) == step_hash(scalar_hash(3, 1), step)
        assert step_hash(scalar_hash(3, 1), step) == scalar_hash(3, 1, step)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_share_kept_and_independence(probability: float) -> None:
    keep = keep_mask(probability, scalar_hash(0, 1, 2), torch.arange(1000)[:, None], torch.arange(1000)).double()
    assert abs(keep.mean() - (1 - probability)) < 4 * (probability * (1 - probability) / 1e6) ** 0.5
    # Neighbours along either key are uncorrelated, and no row or column is dropped whole.
    for shifted in (keep.roll(1, 0), keep.roll(1, 1), keep.T):
        assert abs(torch.corrcoef(torch.stack([keep.flatten(), shifted.flatten()]))[0, 1]) < 5e-3
    assert keep.mean(0).min() > 0
    assert keep.mean(1).max() < 1


def test_mask_changes_with_step_seed_and_site() -> None:
    key, position = torch.arange(100)[:, None], torch.arange(100)
    masks = [
        keep_mask(0.5, scalar_hash(*parts), key, position) for parts in [(0, 1, 2), (0, 1, 3), (1, 1, 2), (0, 2, 2)]
    ]
    for i, mask in enumerate(masks):
        assert all(0.4 < (mask == other).double().mean() < 0.6 for other in masks[:i])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("in_tensor", [False, True])
def test_triton_equals_naive(probability: float, in_tensor: bool, dtype: torch.dtype, device: torch.device) -> None:
    key = torch.tensor([*EDGES, *range(2000)], device=device)
    place = key.flip(0).contiguous()
    for site, step in ((scalar_hash(0, 1), 0), (5, 7), (scalar_hash(9, 2), 123_456_789_012)):
        given = torch.tensor(step, device=device) if in_tensor else step
        for position in (place, 1, 3, 40):
            arguments = (probability, site, given, key, position, dtype)
            assert torch.equal(triton.keep_factor(*arguments), naive.keep_factor(*arguments)), (site, position)


def test_triton_of_strides_and_nothing(device: torch.device) -> None:
    key = torch.arange(20, device=device)[::2]
    for position in (key.flip(0), torch.arange(30, device=device)[::3], 4):
        arguments = (0.5, 1, 2, key, position, torch.float32)
        assert torch.equal(triton.keep_factor(*arguments), naive.keep_factor(*arguments))
    assert triton.keep_factor(0.5, 1, 2, key[:0], 7, torch.float32).shape == (0, 7)
    assert triton.keep_factor(0.5, 1, 2, key[:0], key[:0], torch.float32).shape == (0,)


def test_mistakes() -> None:
    with pytest.raises(ValueError, match=r"torch\.int64 \[N\]"):
        keep_factor(0.5, 1, 2, torch.arange(3), torch.arange(2), torch.float32)
    with pytest.raises(ValueError, match=r"torch\.int32"):
        keep_factor(0.5, 1, 2, torch.arange(3, dtype=torch.int32), 2, torch.float32)

import pytest
import torch

from laser.model.dropout import EventDropout, TokenDropout, keep_mask, mix, mix_scalar, scalar_hash


def test_mix_is_splitmix64():
    # First outputs of splitmix64 seeded with 0 and with 1234567, from its published reference vectors.
    golden = 0x9E3779B97F4A7C15
    expected = {golden: 0xE220A8397B1DCDAF, 2 * golden: 0x6E789E6AA1B965F4, 1234567 + golden: 6457827717110365317}
    for state, value in expected.items():
        assert mix_scalar(state) % 2**64 == value


def test_tensor_and_scalar_mix_give_the_same_bits():
    values = [0, 1, -1, 2**63 - 1, -(2**63), 123456789012345]
    assert mix(torch.tensor(values)).tolist() == [mix_scalar(value) for value in values]


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_share_kept_and_independence(probability):
    keep = keep_mask(probability, scalar_hash(0, 1, 2), torch.arange(1000)[:, None], torch.arange(1000)).double()
    assert abs(keep.mean() - (1 - probability)) < 4 * (probability * (1 - probability) / 1e6) ** 0.5
    # Neighbours along either key are uncorrelated, and no row or column is dropped whole.
    for shifted in (keep.roll(1, 0), keep.roll(1, 1), keep.T):
        assert abs(torch.corrcoef(torch.stack([keep.flatten(), shifted.flatten()]))[0, 1]) < 5e-3
    assert keep.mean(0).min() > 0
    assert keep.mean(1).max() < 1


def test_mask_changes_with_step_seed_and_site():
    key, position = torch.arange(100)[:, None], torch.arange(100)
    masks = [
        keep_mask(0.5, scalar_hash(*parts), key, position) for parts in [(0, 1, 2), (0, 1, 3), (1, 1, 2), (0, 2, 2)]
    ]
    for i, mask in enumerate(masks):
        assert all(0.4 < (mask == other).double().mean() < 0.6 for other in masks[:i])


def test_events_drop_whole_and_survivors_are_scaled():
    dropout = EventDropout(0.25).train()
    factor_T = dropout(torch.arange(500), torch.zeros(500, dtype=torch.int64), 1)
    assert factor_T.dtype == torch.float32
    assert set(factor_T.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert 0.15 < (factor_T == 0).double().mean() < 0.35


def test_tokens_drop_by_element_and_row_not_by_place_in_the_batch():
    tokens = torch.ones(6, 4, 8)
    row_B = torch.tensor([5, 3, 9, 11, 2, 5])
    dropout = TokenDropout(0.5).train()
    out = dropout(tokens, row_B, 7)
    assert 0.3 < (out == 0).double().mean() < 0.7
    assert torch.equal(out[0], out[5])
    assert torch.equal(dropout(tokens[2:4], row_B[2:4], 7), out[2:4])
    assert not torch.equal(dropout(tokens, row_B, 8), out)


@pytest.mark.parametrize("dropout", [EventDropout(0.5).eval(), EventDropout(0.0).train()])
def test_identity_in_evaluation_and_without_probability(dropout):
    assert dropout(torch.arange(5), torch.arange(5), 0) is None


def test_probability_of_one_is_refused():
    with pytest.raises(ValueError, match="dropout probability is 1"):
        TokenDropout(1.0)

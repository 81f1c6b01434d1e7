import pytest
import torch

from laser.model.dropout import EventDropout, TokenDropout


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

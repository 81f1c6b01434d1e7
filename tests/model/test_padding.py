import torch

from laser.model.baselines.attention import RandomSigns
from laser.model.padding import masked_softmax, pad, pad_to


def test_newest_event_is_in_the_last_column(schema, make_batch):
    batch = make_batch(schema, [3, 0, 1], [2, 0, 1, 0])
    padded = pad(batch)
    assert padded.index_BL.tolist() == [[4, 4, 3], [0, 1, 2], [4, 4, 4], [0, 1, 2]]
    assert padded.live_BL.tolist() == [[False, False, True], [True] * 3, [False] * 3, [True] * 3]
    assert padded.rows(torch.tensor([10, 11, 12, 13])).tolist() == [[0, 0, 13], [10, 11, 12], [0, 0, 0], [10, 11, 12]]
    assert pad(batch, newest=2).index_BL.tolist() == [[4, 3], [1, 2], [4, 4], [1, 2]]
    assert pad_to(batch, 4).index_BL.tolist() == [[4, 4, 4, 3], [4, 0, 1, 2], [4] * 4, [4, 0, 1, 2]]


def test_top_prefers_events_to_padding_and_newer_to_older(schema, make_batch):
    padded = pad(make_batch(schema, [4, 1, 0], [0, 1, 2]))
    score_BL = torch.tensor([[1.0, 3.0, 1.0, 1.0], [9.0, 9.0, 9.0, -5.0], [1.0, 1.0, 1.0, 1.0]])
    top = padded.top(score_BL, 3)
    assert top.index_BL[0].tolist() == [1, 3, 2]
    assert top.index_BL[1].tolist()[0] == 4
    assert top.live_BL.tolist() == [[True] * 3, [True, False, False], [False] * 3]
    assert padded.top(score_BL, 99).index_BL.shape == (3, 4)


def test_no_samples_and_no_events(schema, make_batch):
    for lengths, samples in ([], []), ([0], [0]), ([3], []):
        padded = pad(make_batch(schema, lengths, samples))
        assert padded.rows(torch.ones(sum(lengths), 2)).shape == (len(samples), 1, 2)


def test_masked_softmax_of_nothing_is_zero_with_a_gradient():
    score = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    weight = masked_softmax(score, torch.tensor([[True, False], [False, False]]))
    assert weight.tolist() == [[1.0, 0.0], [0.0, 0.0]]
    weight.square().sum().backward()
    assert score.grad.isfinite().all()


def test_signs_are_saved_and_agree_by_angle():
    torch.manual_seed(0)
    signs = RandomSigns(2, 20000)
    other = RandomSigns(2, 20000)
    other.load_state_dict(signs.state_dict())
    x_ND = torch.tensor([[1.0, 0.0], [1.0, 1.0]])  # 45 degrees apart
    assert torch.equal(signs(x_ND), other(x_ND))
    agreement = (signs(x_ND)[0] == signs(x_ND)[1]).float().mean().item()
    assert abs(agreement - 0.75) < 0.01

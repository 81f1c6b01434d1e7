import pytest
import torch

from laser.model.fusion import Fusion, Tokens, newest_mean


@pytest.mark.parametrize(
    ("tokens", "runs", "shares"), [(5, [1] * 5, [1] * 5), (8, [1] * 5, [2, 2, 2, 1, 1]), (2, [3, 2], [1, 1])]
)
def test_any_number_of_groups_becomes_m_tokens(tokens, runs, shares):
    widths = [3, 4, 5, 6, 7]
    module = Tokens(widths, tokens, 16)
    assert module.runs == runs
    assert [p.out_features // 16 for p in module.projections] == shares
    groups = [torch.randn(2, width) for width in widths]
    out = module(groups)
    assert out.shape == (2, tokens, 16)
    # Every group reaches at least one token, and a token sees its own group or run only.
    for changed in range(5):
        moved = [g + (i == changed) for i, g in enumerate(groups)]
        touched = (module(moved) != out).any(2).any(0).nonzero().flatten().tolist()
        if tokens == 5:
            assert touched == [changed]
        elif tokens == 8:
            assert touched == [[0, 1], [2, 3], [4, 5], [6], [7]][changed]
        else:
            assert touched == [0 if changed < 3 else 1]


def test_newest_mean():
    x_TD = torch.arange(12.0).view(6, 2)
    got = newest_mean(x_TD, torch.tensor([0, 0, 4, 5, 6]), newest=3)
    torch.testing.assert_close(got, torch.stack([torch.zeros(2), x_TD[1:4].mean(0), x_TD[4], x_TD[5]]))
    assert newest_mean(x_TD[:0], torch.tensor([0, 0]), 3).tolist() == [[0.0, 0.0]]


def test_groups_are_what_they_say():
    """With identity-like projections each group is read off its token."""
    fusion = Fusion(4, [4], tokens=7, token_width=7, newest_segments=2, newest_events=2)
    with torch.no_grad():
        for projection in fusion.tokens.projections:
            projection.weight.copy_(torch.eye(7, 4))
    user, target, context = (torch.randn(2, 4) for _ in range(3))
    segment_GD, x_TD = torch.randn(3, 4), torch.randn(5, 4)
    out = fusion(
        user,
        segment_GD,
        torch.tensor([0, 3, 3]),
        target,
        [context],
        x_TD,
        torch.tensor([0, 5, 5]),
        torch.tensor([0, 1]),
    )[..., :4]
    newest = [segment_GD[2], segment_GD[1]]
    expected = [user[0], segment_GD.max(0).values, *newest, target[0], context[0], x_TD[3:].mean(0)]
    torch.testing.assert_close(out[0], torch.stack(expected))
    nothing = torch.zeros(4)
    torch.testing.assert_close(out[1], torch.stack([user[1], *[nothing] * 3, target[1], context[1], nothing]))


def test_parts_can_be_left_out():
    fusion = Fusion(4, [], tokens=2, token_width=8, segment_maximum=False, newest_segments=0, newest_events=0)
    off = torch.tensor([0, 1])
    out = fusion(
        torch.ones(1, 4), torch.ones(1, 4), off, torch.ones(1, 4), [], torch.ones(1, 4), off, torch.tensor([0])
    )
    assert out.shape == (1, 2, 8)

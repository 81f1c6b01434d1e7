import pytest
import torch

from laser.model.baselines.din import DIN
from laser.model.baselines.encoder_model import EncoderModel
from laser.model.fusion import Fusion, Tokens, newest_of_events
from laser.model.laser import Laser
from laser.ops.newest_mean import triton as kernels


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


def mean_of_newest(x_TD, off_U1, newest):
    return newest_of_events(x_TD, off_U1, newest)[1]()


@pytest.mark.parametrize("joined", [False, True])
def test_newest_of_events(monkeypatch, joined):
    monkeypatch.setattr("laser.ops.newest_mean.use_triton", lambda _: joined)
    x_TD = torch.arange(12.0).view(6, 2)
    got = mean_of_newest(x_TD, torch.tensor([0, 0, 4, 5, 6]), newest=3)
    torch.testing.assert_close(got, torch.stack([torch.zeros(2), x_TD[1:4].mean(0), x_TD[4], x_TD[5]]))
    assert mean_of_newest(x_TD[:0], torch.tensor([0, 0]), 3).tolist() == [[0.0, 0.0]]


def test_on_the_cpu_the_mean_stays_the_last_use_of_the_events():
    """Of three gradients the sum's last bits depend on the order: it is the one that runs have always had."""
    torch.manual_seed(0)
    leaf, off_U1 = torch.randn(300, 8, requires_grad=True), torch.tensor([0, 120, 120, 300])
    weights = [torch.randn(300, 8) for _ in range(2)] + [torch.randn(3, 8)]

    def gradient(in_order: bool) -> torch.Tensor:
        x_TD = leaf * 1.0
        x_TD, newest = newest_of_events(x_TD, off_U1, 100)
        means = [] if in_order else [newest()]
        uses = [x_TD * weights[0], x_TD * weights[1], *(means or [newest()])]
        return torch.autograd.grad(uses, leaf, [torch.ones_like(uses[0]), torch.ones_like(uses[1]), weights[2]])[0]

    share_TD = torch.zeros(300, 8)
    for u, (start, end) in enumerate([(0, 120), (120, 120), (120, 300)]):
        share_TD[max(start, end - 100) : end] = weights[2][u] / 100
    assert torch.equal(gradient(True), share_TD + weights[1] + weights[0])
    assert not torch.equal(gradient(True), gradient(False)), "the order shows in no bit, so this test says nothing"


@pytest.mark.parametrize("match", [{}, {"item": "item"}], ids=str)
@pytest.mark.parametrize("model", ["laser", "encoder"])
def test_models_whose_gradients_are_joined_are_the_same(monkeypatch, schema, make_batch, model, match):
    """With the kernels of newest_mean, as on a GPU: every use of the events is behind the op."""
    batch = make_batch(schema, [0, 1, 9, 30, 11], [3, 0, 1, 2, 3, 4, 4, 3])
    batch.history["item"] %= 4
    batch.target["item"] %= 4
    torch.manual_seed(0)
    options = {"width": 32, "mixer_tokens": 8, "mixer_width": 32, "mixer_multiple": 2, "newest_events": 10}
    options["match"] = match
    network = Laser(schema, **options) if model == "laser" else EncoderModel(schema, DIN, **options)
    made, arrived = [], []
    add_gradient, events = kernels.add_gradient, network._events

    def watched_add_gradient(d_x_TD, *rest):
        add_gradient(d_x_TD, *rest)
        made.append(d_x_TD.clone())

    def watched_events(*args):
        x_TD = events(*args)
        x_TD.register_hook(lambda d_x_TD: arrived.append(d_x_TD.clone()))
        return x_TD

    monkeypatch.setattr(kernels, "add_gradient", watched_add_gradient)
    monkeypatch.setattr(network, "_events", watched_events)

    def run(joined: bool) -> dict[str, torch.Tensor]:
        monkeypatch.setattr("laser.ops.newest_mean.use_triton", lambda _: joined)
        network.zero_grad()
        logit_B = network(batch).logit_B
        logit_B.square().sum().backward()
        assert len(made) == joined
        return {"logit": logit_B.detach(), **{name: each.grad for name, each in network.named_parameters()}}

    expected, got = run(False), run(True)
    assert torch.equal(made[0], arrived[1]), "a gradient went around the op, and PyTorch had to add it"
    for name, value in got.items():
        # By norms: single elements are small differences of large numbers.
        assert (value - expected[name]).norm() <= 1e-5 * expected[name].norm(), name


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
        mean_of_newest(x_TD, torch.tensor([0, 5, 5]), 2),
    )[..., :4]
    newest = [segment_GD[2], segment_GD[1]]
    expected = [user[0], segment_GD.max(0).values, *newest, target[0], context[0], x_TD[3:].mean(0)]
    torch.testing.assert_close(out[0], torch.stack(expected))
    nothing = torch.zeros(4)
    torch.testing.assert_close(out[1], torch.stack([user[1], *[nothing] * 3, target[1], context[1], nothing]))


def test_parts_can_be_left_out():
    fusion = Fusion(4, [], tokens=2, token_width=8, segment_maximum=False, newest_segments=0, newest_events=0)
    off = torch.tensor([0, 1])
    out = fusion(torch.ones(1, 4), torch.ones(1, 4), off, torch.ones(1, 4), [])
    assert out.shape == (1, 2, 8)

import pytest
import torch
import torch.nn.functional as F
from torch.nn.functional import gelu, layer_norm

import laser.ops.residual_norm as norms
from laser.model.rankmixer import (
    COEFFICIENT_MINIMUM,
    PerTokenFeedForward,
    RankMixer,
    SparseFeedForward,
    per_token_weight,
)
from laser.ops.mixed_norm import mix_tokens


def test_mixing_by_hand_and_twice_is_nothing():
    x = torch.tensor([[[1, 2, 3, 4], [5, 6, 7, 8]]])
    assert mix_tokens(x).tolist() == [[[1, 2, 5, 6], [3, 4, 7, 8]]]
    y = torch.randn(3, 8, 32)
    assert torch.equal(mix_tokens(mix_tokens(y)), y)


def test_initial_weights_have_the_fan_of_a_slice():
    weight = per_token_weight(16, 128, 512)
    assert abs(weight.abs().max() / 128**-0.5 - 1) < 1e-3
    assert abs(weight.std() * 3**0.5 / 128**-0.5 - 1) < 0.01
    ffn = PerTokenFeedForward(16, 128, 512)
    assert abs(ffn.weight2_MFD.abs().max() / 512**-0.5 - 1) < 1e-3
    assert ffn.bias1_MF.abs().max() == ffn.bias2_MD.abs().max() == 0


def test_dense_block_by_hand():
    torch.manual_seed(0)
    mixer = RankMixer(4, 8, num_layers=1, multiple=2)
    block = mixer.blocks[0]
    for parameter in mixer.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(3, 4, 8)
    s = layer_norm(mix_tokens(x) + x, (8,), block.norm_mix.weight, block.norm_mix.bias)
    f = block.feed_forward
    v = torch.stack(
        [gelu(s[:, t] @ f.weight1_MDF[t] + f.bias1_MF[t]) @ f.weight2_MFD[t] + f.bias2_MD[t] for t in range(4)],
        1,
    )
    expected = layer_norm(v + s, (8,), block.norm_ffn.weight, block.norm_ffn.bias).mean(1)
    got, loss = mixer(x, 0, 3)
    assert loss is None
    torch.testing.assert_close(got, expected)


def test_tokens_stay_in_half_precision_up_to_the_last_norm(monkeypatch):
    """A norm of CUDA's autocast, which widens, in its place."""
    monkeypatch.setattr(norms, "layer_norm", lambda x, *rest: F.layer_norm(x.float(), *rest))
    torch.manual_seed(0)
    mixer, tokens = RankMixer(4, 8, num_layers=2, multiple=2), []
    for block in mixer.blocks:
        block.feed_forward.register_forward_pre_hook(lambda module, args: tokens.append(args[0]))
        block.register_forward_hook(lambda module, args, output: tokens.append(output[0]))
    x = torch.randn(3, 4, 8).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        pooled, _ = mixer(x, 0, 3)
    assert [each.dtype for each in tokens] == [torch.bfloat16] * 3 + [torch.float32]
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, tokens[-1].double().mean(1).float(), rtol=1e-6, atol=1e-6)
    pooled.square().sum().backward()
    assert x.grad.dtype == torch.bfloat16
    monkeypatch.undo()
    assert mixer.double()(x.double(), 0, 3)[0].dtype == torch.float64


def sparse(budget=0.25, experts=4):
    torch.manual_seed(0)
    return SparseFeedForward(3, 8, 16, experts=experts, budget=budget, seed=0, layer=0)


def test_sparse_output_by_hand_and_inference_uses_the_sparse_router():
    ffn = sparse().eval()
    torch.nn.init.normal_(ffn.sparse_bias_MX)
    x = torch.randn(5, 3, 8)
    got, loss = ffn(x, 0, 5)
    assert loss is None
    net = ffn.networks
    for t in range(3):
        expected = torch.zeros(5, 8)
        for e in range(4):
            row = t * 4 + e
            gate = (x[:, t] @ ffn.sparse_router_MDX[t, :, e] + ffn.sparse_bias_MX[t, e]).relu()
            hidden = gelu(x[:, t] @ net.weight1_MDF[row] + net.bias1_MF[row])
            expected += gate[:, None] * (hidden @ net.weight2_MFD[row] + net.bias2_MD[row])
        torch.testing.assert_close(got[:, t], expected)


def test_both_routers_learn_from_the_task_and_only_the_sparse_one_is_regularised():
    ffn, x = sparse().train(), torch.randn(5, 3, 8)
    used = set()
    for step in range(40):
        output, loss = ffn(x, step, 5)
        grads = torch.autograd.grad(
            output.sin().sum(), [ffn.dense_router_MDX, ffn.sparse_router_MDX], retain_graph=True
        )
        active = tuple(bool(grad.abs().max() > 0) for grad in grads)
        assert sum(active) == 1
        used.add(active)
        dense, rare = torch.autograd.grad(loss, [ffn.dense_router_MDX, ffn.sparse_router_MDX], allow_unused=True)
        assert dense is None
        assert rare.abs().max() > 0
    assert used == {(True, False), (False, True)}
    repeated = [torch.equal(ffn(x, 7, 5)[0], ffn(x, 7, 5)[0]) for _ in range(2)]
    assert repeated == [True, True]


@pytest.mark.parametrize(("budget", "direction"), [(0.01, 1.2), (1.0, 1 / 1.2)])
def test_coefficient_moves_towards_the_budget(budget, direction):
    ffn, x = sparse(budget).train(), torch.randn(50, 3, 8)
    ffn.coefficient.fill_(expected := 1e-4)
    for step in range(4):
        _, loss = ffn(x, step, 50)
        assert ffn.coefficient.item() == pytest.approx(expected, rel=1e-5)
        gate = (torch.einsum("bmd,mdx->bmx", x, ffn.sparse_router_MDX) + ffn.sparse_bias_MX).relu()
        assert loss.item() == pytest.approx(expected * gate.sum().item() / 50, rel=1e-4)
        expected *= direction
    ffn.eval()(x, 9, 50)
    assert ffn.coefficient.item() == pytest.approx(expected / direction, rel=1e-5)
    for step in range(150):
        ffn.train()(x, step, 50)
    assert ffn.coefficient.item() == pytest.approx(0.1 if direction > 1 else 1e-8)


def test_training_reaches_the_budget():
    """The active share starts near a half and comes to stay near the budget; a loss of the size of a click's."""
    ffn = sparse(0.25)
    optimizer = torch.optim.Adam(ffn.parameters(), lr=1e-3)
    shares = []
    for step in range(800):
        x = torch.randn(64, 3, 8)
        output, loss = ffn(x, step, 64)
        optimizer.zero_grad()
        (0.02 * (output - x).square().sum(-1).mean() + loss).backward()
        optimizer.step()
        shares.append((ffn.activity_2[0] / ffn.activity_2[1]).item())
    assert shares[0] > 0.4
    assert 0.2 < sum(shares[-300:]) / 300 < 0.3


def test_a_step_without_samples_moves_nothing():
    ffn = sparse(0.01).train()
    ffn(torch.randn(5, 3, 8), 0, 5)
    ffn(torch.randn(0, 3, 8), 1, 5)
    moved = ffn.coefficient.clone()
    ffn(torch.randn(0, 3, 8), 2, 5)
    assert moved == ffn.coefficient
    assert torch.equal(ffn.activity_2, torch.zeros(2))


def test_state_is_saved():
    ffn = sparse(0.01).train()
    ffn(torch.randn(5, 3, 8), 0, 5)
    ffn(torch.randn(5, 3, 8), 1, 5)
    other = sparse(0.01)
    other.load_state_dict(ffn.state_dict())
    assert other.coefficient == ffn.coefficient != COEFFICIENT_MINIMUM
    assert torch.equal(other.activity_2, ffn.activity_2)


def test_bad_budget_is_named():
    with pytest.raises(ValueError, match="expert_budget is 0"):
        sparse(0.0)

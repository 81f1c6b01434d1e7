"""ETA, TWIN and SIM against loops over events: what they choose, and the attention to it as it is published."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from laser.model.baselines.eta import ETA
from laser.model.baselines.sim import SIM
from laser.model.baselines.twin import TWIN


def scatter(model):
    for parameter in model.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    return model


def attention(block, t_D, x_KD, bias_HK=None):
    """Multi-head attention with keys and values of every event; a user without any gets zeros."""
    heads, out = block.heads, []
    for h in range(block.num_heads):
        score_K = (x_KD @ heads.key_HDQ[h]) @ (t_D @ heads.query_HDQ[h]) / math.sqrt(heads.query_HDQ.shape[-1])
        score_K = score_K if bias_HK is None else score_K + bias_HK[h]
        out.append(score_K.softmax(0) @ (x_KD @ heads.value_HDV[h]))
    return torch.cat(out) @ block.out.weight.T


def best(scores, count):
    """Indices of the highest scores; of equals the later."""
    return sorted(range(len(scores)), key=lambda i: (scores[i], i), reverse=True)[:count]


def test_eta(inputs, rows_of):
    torch.manual_seed(0)
    eta = scatter(ETA(16, 12, signs=8, top=5, num_heads=4))
    (got_BD,) = eta(inputs).vectors
    matrix = eta.hash.projection_SD
    for b in range(len(got_BD)):
        x_LD, item_LE = rows_of(inputs, b, inputs.x_TD), rows_of(inputs, b, inputs.item_TE)
        target = matrix @ inputs.item_BE[b] >= 0
        distances = [int(((matrix @ item >= 0) != target).sum()) for item in item_LE]
        chosen = best([-distance for distance in distances], 5)
        expected_D = attention(eta.attention, inputs.target_BD[b], x_LD[chosen])
        torch.testing.assert_close(got_BD[b], expected_D, rtol=1e-4, atol=1e-5)


def test_etas_projections_are_saved_with_it(inputs):
    eta, other = ETA(16, 12), ETA(16, 12)
    other.load_state_dict(eta.state_dict())
    assert torch.equal(eta(inputs).vectors[0], other(inputs).vectors[0])


def test_twin(inputs, rows_of):
    torch.manual_seed(0)
    twin = scatter(TWIN(16, 12, top=6, num_heads=2))
    (got_BD,) = twin(inputs).vectors
    heads = twin.attention.heads
    for b in range(len(got_BD)):
        x_LD, age_L = rows_of(inputs, b, inputs.x_TD), rows_of(inputs, b, inputs.batch.age_T)
        bucket_L = torch.tensor([min(int(math.log2(1 + age / 60)), 31) for age in age_L.tolist()], dtype=torch.long)
        bias_HL = twin.age.weight[bucket_L].T
        alpha_HL = torch.stack(
            [
                (x_LD @ heads.key_HDQ[h]) @ (inputs.target_BD[b] @ heads.query_HDQ[h]) / math.sqrt(8) + bias_HL[h]
                for h in range(2)
            ]
        )
        chosen = best(alpha_HL.sum(0).tolist(), 6)
        expected_D = attention(twin.attention, inputs.target_BD[b], x_LD[chosen], bias_HL[:, chosen])
        torch.testing.assert_close(got_BD[b], expected_D, rtol=1e-4, atol=1e-5)


def test_twins_age_bias_differs_between_events(inputs):
    """A bias that is constant over a history would cancel in the softmax and choose nothing."""
    twin = TWIN(16, 12, top=6)
    (before_BD,) = twin(inputs).vectors
    torch.nn.init.normal_(twin.age.weight)
    (after_BD,) = twin(inputs).vectors
    long = inputs.batch.off_U1.diff()[inputs.batch.history_of_B] > 1
    assert ((before_BD - after_BD).abs().amax(1) > 1e-4).tolist() == long.tolist()


def search(sim, t_D, x_LD):
    return (x_LD @ sim.search_event.weight.T) @ (sim.search_target.weight @ t_D)


def test_sim(inputs, rows_of):
    torch.manual_seed(0)
    sim = scatter(SIM(16, 12, top=5, num_heads=2, search_width=6, search_loss_weight=0.5)).train()
    encoded = sim(inputs)
    found = []
    for b in range(len(inputs.target_BD)):
        t_D, x_LD = inputs.target_BD[b], rows_of(inputs, b, inputs.x_TD)
        r_L = search(sim, t_D, x_LD)
        expected_D = attention(sim.attention, t_D, x_LD[best(r_L.tolist(), 5)])
        torch.testing.assert_close(encoded.vectors[0][b], expected_D, rtol=1e-4, atol=1e-5)
        found.append(torch.cat([r_L @ x_LD / max(len(x_LD), 1), t_D]))
    logit_B = sim.search_head(torch.stack(found)).squeeze(-1)
    loss = 0.5 * binary_cross_entropy_with_logits(logit_B, inputs.batch.label_B)
    torch.testing.assert_close(encoded.auxiliary_loss, loss)
    assert sim.eval()(inputs).auxiliary_loss is None


def test_sims_search_learns_by_its_own_loss_only(inputs):
    sim = SIM(16, 12, top=5).train()
    encoded = sim(inputs)
    encoded.vectors[0].sum().backward(retain_graph=True)
    assert sim.search_event.weight.grad is None
    encoded.auxiliary_loss.backward()
    assert sim.search_event.weight.grad.abs().max() > 0
    assert sim.search_target.weight.grad.abs().max() > 0


@pytest.mark.parametrize("kind", [ETA, TWIN, SIM])
def test_short_histories_are_seen_whole(inputs, rows_of, kind):
    """Padding never takes the place of an event, however badly it scores."""
    model = kind(16, 12, top=40).eval()
    (got_BD,) = model(inputs).vectors
    for b in range(len(got_BD)):
        expected_D = attention(model.attention, inputs.target_BD[b], rows_of(inputs, b, inputs.x_TD))
        torch.testing.assert_close(got_BD[b], expected_D, rtol=1e-4, atol=1e-5)

"""Matched events against loops over samples and events.

Legend of shape suffixes: B samples; T history events, packed; D width.
"""

from __future__ import annotations

import math

import pytest
import torch

from laser.batch import Batch
from laser.model.baselines.encoder_model import EncoderModel
from laser.model.baselines.newest_mean import NewestMean
from laser.model.laser import Laser
from laser.model.matching import MatchedEvents
from laser.model.sta import SegmentedTargetAttention

SMALL = {"width": 32, "query_width": 8, "mixer_tokens": 8, "mixer_width": 32, "mixer_multiple": 2}


def ids_of(value: torch.Tensor) -> set[int]:
    return set(value.reshape(-1).tolist()) - {0}


def naive(x_TD: torch.Tensor, batch: Batch, here: str, there: str, newest: int) -> torch.Tensor:
    """Mean of the newest matches and log(1 + matches), sample by sample."""
    rows = []
    sample = batch.target.get(there, batch.context.get(there))
    for b in range(len(batch)):
        u = int(batch.history_of_B[b])
        first, end = int(batch.off_U1[u]), int(batch.off_U1[u + 1])
        same = [e for e in range(first, end) if ids_of(batch.history[here][e]) & ids_of(sample[b])]
        mean = x_TD[same[-newest:]].mean(0) if same else torch.zeros(x_TD.shape[1])
        rows.append(torch.cat([mean, torch.tensor([math.log(1 + len(same))])]))
    return torch.stack(rows)


@pytest.fixture
def batch(schema, make_batch) -> Batch:
    """Few distinct items, so that many events match; user 0 has no history, histories are shared."""
    batch = make_batch(schema, [0, 1, 9, 30, 11], [3, 0, 1, 2, 3, 4, 4, 3])
    batch.history["item"] %= 4
    batch.target["item"] %= 4
    return batch


@pytest.mark.parametrize("newest", [1, 3, 100])
@pytest.mark.parametrize(("here", "there"), [("item", "item"), ("genre", "genre"), ("genre", "shelf")])
def test_equals_a_loop_with_gradients(schema, batch, here, there, newest):
    x_TD = torch.randn(51, 6, requires_grad=True)
    expected = naive(x_TD, batch, here, there, newest)
    counts = expected[:, -1].exp().round() - 1
    assert counts.max() > 3
    assert counts.min() == 0
    matched = MatchedEvents(schema, {here: there}, newest)
    (got,) = matched(x_TD, matched.find(batch))
    torch.testing.assert_close(got, expected)
    weight = torch.randn_like(got)
    gradients = [torch.autograd.grad((value * weight).sum(), x_TD)[0] for value in (got, expected)]
    torch.testing.assert_close(*gradients)


def test_unknown_ids_match_nothing(schema, make_batch):
    batch = make_batch(schema, [4], [0])
    batch.history["item"].zero_()
    batch.target["item"].zero_()
    matched = MatchedEvents(schema, {"item": "item"}, 3)
    (got,) = matched(torch.ones(4, 2), matched.find(batch))
    assert got.tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("match", "words"),
    [
        ({"action": "action"}, "'action' is no embedded field of target and context"),
        ({"seen": "item"}, "'seen' is no embedded field of the history"),
        ({"item": "genre"}, "table 'item'.*table 'genre'"),
    ],
)
def test_pairs_that_cannot_match_are_named(schema, match, words):
    with pytest.raises(ValueError, match=words):
        Laser(schema, match=match, **SMALL)


def test_what_is_averaged_must_be_something(schema):
    with pytest.raises(ValueError, match="match_newest is 0"):
        Laser(schema, match={"item": "item"}, match_newest=0, **SMALL)


def test_off_changes_nothing(schema, batch):
    torch.manual_seed(0)
    plain = Laser(schema, **SMALL)
    torch.manual_seed(0)
    off = Laser(schema, match={}, match_newest=2, **SMALL)
    assert torch.equal(plain(batch).logit_B, off(batch).logit_B)
    assert plain.state_dict().keys() == off.state_dict().keys()


@pytest.mark.parametrize("model", ["laser", "encoder"])
def test_the_head_sees_them_and_samples_stay_apart(schema, batch, take, model):
    torch.manual_seed(0)
    match = {"item": "item", "genre": "shelf"}
    if model == "laser":
        network = Laser(schema, match=match, **SMALL)
    else:
        options = {name: value for name, value in SMALL.items() if name != "query_width"}
        network = EncoderModel(schema, lambda width, item: NewestMean(width, item), match=match, **options)
    seen: list[torch.Tensor] = []
    tokens = network.fusion.tokens if model == "laser" else network.fusion
    tokens.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[0][-2:]))
    together = network(batch).logit_B
    assert [group.shape[1] for group in seen] == [33, 33]
    apart = torch.cat([network(take(batch, [b])).logit_B for b in range(len(batch))])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("lengths", "samples"), [([], []), ([0], []), ([0, 0], [1, 0]), ([5], [])], ids=str)
def test_empty_batches_have_all_gradients(schema, make_batch, lengths, samples):
    model = Laser(schema, match={"item": "item"}, match_gate=True, gate_rank_bias=True, **SMALL)
    model(make_batch(schema, lengths, samples)).logit_B.sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("newest", [3, 100])
@pytest.mark.parametrize("rank_bias", [False, True])
def test_gates_that_know_of_matches_equal_a_loop(schema, batch, newest, rank_bias):
    """Gates and gated sums, written out per event; with 3, older matches than the newest three keep their gate."""
    torch.manual_seed(1)
    matched = MatchedEvents(schema, {"item": "item", "genre": "shelf"}, newest)
    found = matched.find(batch)
    sta = SegmentedTargetAttention(
        6, segment_width=4, query_width=3, rank_bias=rank_bias, match_pairs=2, match_newest=newest
    )
    with torch.no_grad():
        for parameter in sta.parameters():
            parameter += torch.randn_like(parameter)
    x_TD, target_BD = torch.randn(51, 6), torch.randn(8, 6)
    arguments = (x_TD, batch.off_U1, target_BD, batch.history_of_B)
    segment_GD, seg_off_B1, gates = sta(*arguments, return_gates=True, found=found)
    query_BHD = sta.heads.query(target_BD)
    slope_H = sta.slope_H if rank_bias else torch.zeros(2)
    pooled_GHD, expected = torch.zeros(len(segment_GD), 2, 6), []
    for b in range(len(batch)):
        u = int(batch.history_of_B[b])
        first, end = int(batch.off_U1[u]), int(batch.off_U1[u + 1])
        seen = 0
        for e in reversed(range(first, end)):
            same = [
                bool(ids_of(batch.history[here][e]) & ids_of(sample[b]))
                for here, sample in (("item", batch.target["item"]), ("genre", batch.context["shelf"]))
            ]
            seen += any(same)
            extra_H = torch.tensor(same).float() @ sta.match.weight_PH if seen <= newest else 0.0
            score_H = query_BHD[b] @ x_TD[e] + sta.bias_H + slope_H * math.log(1 + end - 1 - e)
            expected.append((b, e, torch.sigmoid(score_H + extra_H)))
            pooled_GHD[int(seg_off_B1[b + 1]) - 1 - (end - 1 - e) // 4] += expected[-1][2][:, None] * x_TD[e]
    expected_EH = torch.stack([gate for _, _, gate in sorted(expected, key=lambda entry: entry[:2])])
    torch.testing.assert_close(gates.gate_EH, expected_EH.detach())
    z_GD = sta.heads.value(pooled_GHD)
    torch.testing.assert_close(segment_GD, sta.norm(z_GD + sta.ffn(z_GD)), rtol=1e-4, atol=1e-5)


def test_new_gates_begin_as_the_paper_has_them(schema, batch):
    def built(**options) -> Laser:
        torch.manual_seed(0)
        return Laser(schema, match={"item": "item"}, **SMALL, **options)

    plain, gated = built(), built(match_gate=True, gate_rank_bias=True)
    output = gated(batch)
    torch.testing.assert_close(output.logit_B, plain(batch).logit_B)
    output.logit_B.square().sum().backward()
    assert gated.sta.match.weight_PH.grad.abs().min() > 0
    assert gated.sta.slope_H.grad.abs().min() > 0


def test_a_gate_needs_something_to_know(schema):
    with pytest.raises(ValueError, match="match names no pair"):
        Laser(schema, match_gate=True, **SMALL)
    with pytest.raises(ValueError, match="gate is softmax"):
        Laser(schema, match={"item": "item"}, match_gate=True, gate="softmax", **SMALL)

"""The assembled model against a padded float64 reference, and what must not change its results."""

import copy

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from laser.model.laser import Laser

SMALL = {
    "width": 32,
    "query_width": 8,
    "recency": "both",
    "recency_ranks": 50,
    "newest_events": 20,
    "mixer_tokens": 8,
    "mixer_width": 32,
    "mixer_multiple": 2,
}


def small(schema, **options):
    torch.manual_seed(0)
    return Laser(schema, **{**SMALL, **options})


@pytest.mark.parametrize("tokens", [4, 8, 16, 32])
@pytest.mark.parametrize("segment_width", [1, 10])
def test_equals_the_padded_paper_form(schema, batch, reference, scatter, tokens, segment_width):
    model = scatter(small(schema, mixer_tokens=tokens, segment_width=segment_width)).eval()
    expected_B = reference(model, batch)
    assert expected_B.std() > 0.05
    torch.testing.assert_close(model(batch).logit_B.double(), expected_B, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    "features",
    [{"side": False}, {"context": False}, {"embedded_user": False}, {"context": False, "embedded_user": False}],
    ids=str,
)
def test_schemas_that_lack_something(make_schema, make_batch, reference, scatter, features):
    schema = make_schema(**features)
    batch = make_batch(schema, [0, 12, 3], [2, 0, 1])
    model = scatter(small(schema)).eval()
    torch.testing.assert_close(model(batch).logit_B.double(), reference(model, batch), rtol=1e-4, atol=2e-5)


def test_item_known_by_its_side_info_alone(make_schema, make_batch):
    schema = make_schema(embedded_item=False)
    assert small(schema)(make_batch(schema, [3], [0])).logit_B.isfinite().all()


@pytest.mark.parametrize(
    ("lengths", "samples"), [([], []), ([0], []), ([0, 0], [1, 0]), ([5], []), ([0, 3], [0])], ids=str
)
@pytest.mark.parametrize("options", [{}, {"gate": "softmax"}, {"experts": 2}, {"segment_pooling": "mean"}], ids=str)
def test_empty_batches_and_histories_have_all_gradients(schema, make_batch, lengths, samples, options):
    """A process without samples must still hand every gradient to the reduction over processes."""
    batch = make_batch(schema, lengths, samples)
    model = small(schema, event_dropout=0.5, token_dropout=0.5, **options).train()
    output = model(batch, return_gates=True)
    assert output.logit_B.shape == (len(samples),)
    loss = output.logit_B.sum() + (output.auxiliary_loss if output.auxiliary_loss is not None else 0.0)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    "options", [{}, {"gate": "softmax"}, {"segment_pooling": "mean"}, {"recency": "none"}], ids=str
)
def test_gradient_reaches_every_parameter(schema, batch, options):
    model = small(schema, **options)
    binary_cross_entropy_with_logits(model(batch).logit_B, batch.label_B).backward()
    silent = [name for name, parameter in model.named_parameters() if parameter.grad.abs().max() == 0]
    assert silent == []


def results(model, batches):
    """Logits by row, and gradients of the summed loss over all batches."""
    model = copy.deepcopy(model)
    logits = {}
    for batch in batches:
        output = model(batch)
        loss = binary_cross_entropy_with_logits(output.logit_B, batch.label_B, reduction="sum")
        (loss / batch.global_size + (output.auxiliary_loss or 0.0)).backward()
        logits.update(zip(batch.row_B.tolist(), output.logit_B.tolist()))
    return logits, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    "slices",
    [
        [range(10)],
        [range(5), range(5, 10)],
        [[9, 3, 7, 1, 5, 0, 2, 8, 6, 4]],
        [range(10), []],
        [[i] for i in range(10)],
    ],
    ids=["copies", "halves", "permuted", "empty slice", "one by one"],
)
@pytest.mark.parametrize("options", [{}, {"gate": "softmax"}], ids=str)
def test_same_whatever_way_samples_are_spread(schema, batch, take, options, slices):
    """Shared histories or copies, any order, any split: same logits and gradients, dropout included."""
    model = small(schema, event_dropout=0.2, token_dropout=0.2, **options).train()
    logits, grads = results(model, [batch])
    other_logits, other_grads = results(model, [take(batch, list(rows)) for rows in slices])
    assert other_logits == pytest.approx(logits, rel=1e-5, abs=1e-6)
    for name, grad in grads.items():
        torch.testing.assert_close(other_grads[name], grad, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("step", range(4))
def test_sparse_mixer_adds_up_over_processes(schema, batch, take, step):
    """Each process starts from the same coefficient; gradients and counts of active gates add up to one process's."""
    batch.step = step
    model = small(schema, experts=2).train()
    for block in model.mixer.blocks:
        block.feed_forward.coefficient.fill_(0.1)
    whole = copy.deepcopy(model)
    parts = [copy.deepcopy(model), copy.deepcopy(model)]
    for one, data in [
        (whole, batch),
        (parts[0], take(batch, [0, 4, 9])),
        (parts[1], take(batch, [1, 2, 3, 5, 6, 7, 8])),
    ]:
        output = one(data)
        (output.logit_B.sin().sum() / data.global_size + output.auxiliary_loss).backward()
    for name, parameter in whole.named_parameters():
        total = sum(part.get_parameter(name).grad for part in parts)
        torch.testing.assert_close(total, parameter.grad, rtol=1e-3, atol=1e-6, msg=name)
    for layer, block in enumerate(whole.mixer.blocks):
        counts = sum(part.mixer.blocks[layer].feed_forward.activity_2 for part in parts)
        assert torch.equal(counts, block.feed_forward.activity_2)


def test_dropout_repeats_with_the_step_and_is_off_in_evaluation(schema, make_batch):
    model = small(schema, event_dropout=0.3, token_dropout=0.3).train()
    third, again, fourth = (make_batch(schema, [30, 5], [0, 1], step=step) for step in (3, 3, 4))
    assert torch.equal(model(third).logit_B, model(again).logit_B)
    assert not torch.equal(model(third).logit_B, model(fourth).logit_B)
    model.eval()
    assert torch.equal(model(third).logit_B, model(fourth).logit_B)


def test_gates_are_those_of_the_paper_form(schema, batch):
    model = small(schema).eval()
    plain, output = model(batch), model(batch, return_gates=True)
    assert plain.gates is None
    assert torch.equal(plain.logit_B, output.logit_B)
    gates, lengths_B = output.gates, batch.off_U1.diff()[batch.history_of_B]
    assert gates.event_off_B1.tolist() == [0, *lengths_B.cumsum(0).tolist()]
    embedded = model.embeddings(batch)
    x_TD, target_BD = model._events(embedded, batch), model.target(embedded.target_BE)
    heads = model.sta.heads
    for b, u in enumerate(batch.history_of_B.tolist()):
        x_LD = x_TD[batch.off_U1[u] : batch.off_U1[u + 1]]
        key_HLQ = torch.einsum("ld,hdq->hlq", x_LD, heads.key_HDQ)
        query_HQ = torch.einsum("d,hdq->hq", target_BD[b], heads.query_HDQ)
        score_LH = torch.einsum("hlq,hq->lh", key_HLQ, query_HQ) / 8**0.5
        part = gates.gate_EH[gates.event_off_B1[b] : gates.event_off_B1[b + 1]]
        torch.testing.assert_close(part, torch.sigmoid(score_LH + model.sta.bias_H))


def test_mixed_precision_keeps_gates_and_logits_in_float32(schema, batch):
    model = small(schema, experts=2)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(batch, return_gates=True)
    exact = model(batch, return_gates=True)
    assert output.logit_B.dtype == output.gates.gate_EH.dtype == output.auxiliary_loss.dtype == torch.float32
    # bfloat16 values have at most 8 significant bits; float32 ones do not survive the round trip.
    assert not torch.equal(output.logit_B.bfloat16().float(), output.logit_B)
    assert not torch.equal(output.gates.gate_EH.bfloat16().float(), output.gates.gate_EH)
    torch.testing.assert_close(output.gates.gate_EH, exact.gates.gate_EH, rtol=0.02, atol=1e-3)
    torch.testing.assert_close(output.logit_B, exact.logit_B, rtol=0.05, atol=0.03)
    output.logit_B.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_a_later_event_and_another_sample_do_not_leak(schema, batch, take):
    """Logits of a sample depend on its own history and fields only."""
    model = small(schema).eval()
    before = model(batch).logit_B
    batch.history["item"][batch.off_U1[5] : batch.off_U1[6]] += 1
    batch.history["item"] %= 50
    changed = (model(batch).logit_B != before).tolist()
    assert changed == [u == 5 for u in batch.history_of_B.tolist()]


def test_the_model_learns_a_target_dependent_rule(make_schema, make_batch):
    """Click if the target is in the history: no prior of item or user knows that, only target attention does."""
    schema = make_schema(side=False, context=False, embedded_user=False)
    torch.manual_seed(0)
    model = Laser(schema, **{**SMALL, "recency": "item", "mixer_layers": 1})
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    losses = []
    for step in range(120):
        batch = make_batch(schema, [12] * 64, list(range(64)), seed=step, step=step)
        hit_B = torch.arange(64) % 2 == 0
        items_BL = batch.history["item"].view(64, 12)
        batch.target["item"] = torch.where(hit_B, items_BL[:, 4], 49 - items_BL[:, 0] // 7)
        label_B = (items_BL == batch.target["item"][:, None]).any(1).float()
        loss = binary_cross_entropy_with_logits(model(batch).logit_B, label_B)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) / 10 < 0.5 * losses[0]


def test_bad_sizes_are_named(schema):
    with pytest.raises(ValueError, match="mixer_width 32 is not a multiple of mixer_tokens 5"):
        small(schema, mixer_tokens=5)
    with pytest.raises(ValueError, match="width 32 is not a multiple of num_heads 3"):
        small(schema, num_heads=3)
    with pytest.raises(ValueError, match="experts is 3"):
        small(schema, experts=3)
    with pytest.raises(ValueError, match="num_layers is 0"):
        small(schema, num_layers=0)
    with pytest.raises(ValueError, match="segment_width is 0"):
        small(schema, segment_width=0)

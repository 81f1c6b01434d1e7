"""The recorded step against the network itself: same logits, same gradients, whatever sizes came before.

Without a GPU the work on the fixed tensors is called step by step; with one, CUDA graphs are replayed.
"""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from laser.data.distinct import distinct_ids
from laser.model.fixed_batch import FILLERS, Room, filled_offsets
from laser.model.flat import Flat
from laser.model.laser import Laser
from laser.model.recording import RecordedNetwork
from laser.ops.segments import Tiling
from laser.train.flat_adam import FlatAdam
from laser.train.optim import DenseOptimizer, TableOptimizer, build_optimizer

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
OPTIONS = {
    "width": 32,
    "query_width": 8,
    "recency_ranks": 50,
    "newest_events": 20,
    "mixer_tokens": 8,
    "mixer_width": 32,
    "mixer_multiple": 2,
    "event_dropout": 0.3,
    "token_dropout": 0.2,
    "embedding_std": 0.5,
}
SIZES = [
    ([9, 0, 30, 5], [0, 1, 2, 3]),
    ([9, 1, 28, 6], [0, 1, 2, 3]),  # the same number of events in other histories
    ([40, 21, 80, 5, 10, 11], [5, 1, 2, 3, 4, 0]),  # larger
    ([3], [0]),  # much smaller
    ([3, 4], []),  # no samples
    ([12, 7], [0, 0, 1, 1, 1]),  # shared histories
    ([12, 7, 0, 30], [0, 3, 1, 2]),  # not shared any more
]
MATCH = {"match": {"item": "item", "genre": "shelf"}, "match_newest": 4}


def parts(network):
    tables = {name: p for name, p in network.named_parameters() if ".collections." in name}
    return tables, {name: p for name, p in network.named_parameters() if name not in tables}


def results(call, network, batch):
    """Logits, and gradients by name."""
    network.zero_grad()
    logit_B = call(batch).logit_B
    binary_cross_entropy_with_logits(logit_B, batch.label_B, reduction="sum").backward()
    return logit_B.detach(), {
        name: None if p.grad is None else p.grad.clone() for name, p in network.named_parameters()
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        MATCH,
        {**MATCH, "match_gate": True, "gate_rank_bias": True},
        {"recency": "none", "head": "tokenmixer_large", "segment_windows": [10, 20]},
        {"newest_evolved": 8},
    ],
    ids=str,
)
def test_recorded_equals_the_network(schema, make_batch, scatter, options, as_loaded):
    torch.manual_seed(0)
    network = scatter(Laser(schema, **{**OPTIONS, **options})).to(DEVICE).train()
    assert network.recordable
    plain = copy.deepcopy(network)
    recorded = RecordedNetwork(network, list(parts(network)[1].values()))
    for step, (lengths, samples) in enumerate(SIZES):
        batch = as_loaded(make_batch(schema, lengths, samples, seed=step, step=step)).to(DEVICE)
        expected_B, expected = results(plain, plain, batch)
        found_B, found = results(recorded, network, batch)
        torch.testing.assert_close(found_B, expected_B, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        flat_P = recorded.flat_gradients()
        replayed = samples and not ("match" in options and len(set(samples)) < len(samples))
        assert (flat_P is not None) == bool(replayed)
        if flat_P is not None:
            assert torch.equal(flat_P, Flat(recorded.parameters).filled([p.grad for p in recorded.parameters]))
    assert 2 <= recorded.recordings <= len(SIZES) - 2


def test_autocast_is_for_the_forward_pass(schema, make_batch, scatter, as_loaded):
    """A step is recorded while autocast is on; its gradients are those of a backward pass without.

    With a GPU both are of one recording.
    """
    torch.manual_seed(0)
    network = scatter(Laser(schema, **OPTIONS)).to(DEVICE).train()
    recorded = RecordedNetwork(network, list(parts(network)[1].values()))
    batch = as_loaded(make_batch(schema, [9, 0, 30, 5], [0, 1, 2, 3])).to(DEVICE)
    gradients = []
    for within in (True, False):
        with torch.autocast(DEVICE.type, torch.bfloat16, cache_enabled=False):
            logit_B = recorded(batch).logit_B
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=within, cache_enabled=False):
                logit_B.sum().backward()
        gradients.append({name: p.grad.clone() for name, p in parts(network)[1].items()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


@pytest.mark.parametrize("options", [{}, {**MATCH, "match_gate": True}, {"head": "tokenmixer_large"}], ids=str)
def test_under_autocast_equals_the_network(schema, make_batch, scatter, options, as_loaded):
    """Also where weights are copied together: on a CPU, the products of which autocast makes are the same."""
    torch.manual_seed(0)
    network = scatter(Laser(schema, **{**OPTIONS, **options})).to(DEVICE).train()
    plain = copy.deepcopy(network)
    recorded = RecordedNetwork(network, list(parts(network)[1].values()))
    for step, (lengths, samples) in enumerate(SIZES[:3]):
        batch = as_loaded(make_batch(schema, lengths, samples, seed=step, step=step)).to(DEVICE)
        answers = []
        for call, net, half in ((plain, plain, True), (recorded, network, True), (plain, plain, False)):
            net.zero_grad()
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=half):
                logit_B = call(batch).logit_B
            logit_B.square().sum().backward()
            answers.append({"logit": logit_B.detach()} | {name: p.grad for name, p in net.named_parameters()})
        for name, (expected, found, exact) in {name: [each[name] for each in answers] for name in answers[0]}.items():
            assert found.dtype == torch.float32
            # Sums of other sizes round otherwise, by as much as those of the network do: on a GPU those of products,
            # on a CPU those of a norm, whose threads sum up rows of their own.
            rounding = (2 if DEVICE.type == "cuda" else 1) * (expected - exact).norm()
            error = (found - expected).norm()
            assert error <= 0.02 * expected.norm() + rounding + 1e-6, (name, float(error), float(expected.norm()))
        # What comes next has other weights, of which the copies must be made again.
        with torch.no_grad():
            for p, q in zip(network.parameters(), plain.parameters(), strict=True):
                noise = torch.randn(p.shape, device=p.device) / 10
                p += noise
                q += noise
    copied = {name for name, p in network.named_parameters() if any(p is q for q in _copied(recorded))}
    assert {"gsta.layers.0.ffn.0.weight", "target.weight"} <= copied
    assert not any("query_HDQ" in name or "norm" in name or name.startswith("logit") for name in copied)


def _copied(recorded):
    return [recorded.parameters[place] for place in recorded.copies.copies]


def test_steps_with_all_gradients_in_one_tensor(schema, make_batch, scatter, as_loaded):
    """And with gradients of their own, where a batch is not replayed."""
    torch.manual_seed(0)
    network = scatter(Laser(schema, **{**OPTIONS, **MATCH})).to(DEVICE).train()
    plain = copy.deepcopy(network)
    recorded = RecordedNetwork(network, list(parts(network)[1].values()))
    options = {"lr": 0.01, "betas": (0.9, 0.9999), "eps": 1e-8}
    flat = FlatAdam(recorded.parameters, recorded.flat_gradients, **options)
    adam = torch.optim.Adam(parts(plain)[1].values(), fused=True, **options)
    ways = set()
    for step, (lengths, samples) in enumerate(size for size in SIZES if size[1]):
        batch = as_loaded(make_batch(schema, lengths, samples, seed=step, step=step)).to(DEVICE)
        results(plain, plain, batch)
        results(recorded, network, batch)
        ways.add(recorded.flat_gradients() is None)
        for p, q in zip(recorded.parameters, parts(plain)[1].values(), strict=True):
            q.grad.copy_(p.grad)  # so that rounding does not grow
        flat.step()
        adam.step()
        for name, p in parts(network)[1].items():
            torch.testing.assert_close(p, parts(plain)[1][name], rtol=1e-6, atol=1e-8, msg=name)
    assert ways == {True, False}
    assert recorded.recordings < len(SIZES)  # addresses of parameters stay


def test_gradients_that_nobody_forgets(schema, make_batch, scatter, as_loaded):
    """Neither is a replayed step's added to those before, nor another's to those of a replayed one."""
    torch.manual_seed(0)
    network = scatter(Laser(schema, **{**OPTIONS, **MATCH})).to(DEVICE).train()
    plain = copy.deepcopy(network)
    recorded = RecordedNetwork(network, list(parts(network)[1].values()))
    optimizer = build_optimizer(
        parts(network)[1], [], TableOptimizer(), DenseOptimizer(), gradients=recorded.flat_gradients
    )
    ways = []
    for step, (lengths, samples) in enumerate(SIZES):
        batch = as_loaded(make_batch(schema, lengths, samples, seed=step, step=step)).to(DEVICE)
        _, expected = results(plain, plain, batch)
        logit_B = recorded(batch).logit_B
        optimizer.zero_grad()  # between the two passes, as Lightning does
        binary_cross_entropy_with_logits(logit_B, batch.label_B, reduction="sum").backward()
        ways.append(recorded.flat_gradients() is None)
        for name, p in parts(network)[1].items():
            found, known = (torch.zeros_like(p) if d is None else d for d in (p.grad, expected[name]))
            torch.testing.assert_close(found, known, rtol=1e-4, atol=1e-5, msg=name)
        kept = recorded.parameters[0].grad
        optimizer.zero_grad()
        assert recorded.parameters[0].grad is (None if ways[-1] else kept)
    assert ways == [False] * 4 + [True] * 2 + [False]


def test_parameters_that_move_are_noticed(schema, make_batch, as_loaded):
    """All of them or one alone: what is recorded reads them where they were."""
    network = Laser(schema, **OPTIONS).to(DEVICE).train()
    recorded = RecordedNetwork(network, list(parts(network)[1].values()))
    batch = as_loaded(make_batch(schema, [9, 4], [0, 1])).to(DEVICE)

    def recordings():
        with torch.autocast(DEVICE.type, torch.bfloat16):
            recorded(batch), recorded(batch)
        return recorded.recordings, recorded.copies.flat is not None

    assert recordings() == (1, False)
    FlatAdam(recorded.parameters, recorded.flat_gradients, lr=0.01)
    assert recordings() == (2, True)
    middle = recorded.parameters[len(recorded.parameters) // 2]
    middle.data = middle.data.clone()
    assert recordings() == (3, False)


def test_fillers_share_what_is_missing():
    off, history = filled_offsets(np.array([0, 2, 5]), np.array([1, 0]), 2, 105)
    lengths = np.diff(off)
    assert lengths[:2].tolist() == [2, 3]
    assert lengths[2:].tolist() == [0, 2] + [7] * (FILLERS - 2), "100 / 16 in whole events"
    assert int(off[-1]) == 105
    assert history.tolist() == [1, 0, *range(2, 2 + FILLERS)]


def test_samples_that_a_batch_lacks_are_fillers_too():
    """Otherwise a few fillers of the last batch of an epoch would have nearly all events."""
    off, history = filled_offsets(np.array([0, 2, 5]), np.array([1, 0, 1]), 1003, 50_010, piece=20)
    lengths = np.diff(off)
    assert lengths[:2].tolist() == [2, 3]
    assert int(lengths[2:].sum()) == 50_005
    assert history.tolist() == [1, 0, 1, *range(2, 1002), *range(1003, 1003 + FILLERS)]
    assert not lengths[1002], "a history of no sample has no events"
    assert int(lengths.max()) == 60, "50,005 / 1016 in pieces of 20"
    assert lengths[-1] == 60
    assert np.count_nonzero(lengths % 20) == 3, "those of the batch, and one"


def test_a_small_batch_finds_room(schema, make_batch, as_loaded, monkeypatch):
    """Of segments and tiles, though its fillers are many; and no filler is much longer than the histories were."""
    tiles = {False: Tiling(40, 80), True: Tiling(60, 20, 2, shared=True)}
    monkeypatch.setattr("laser.model.sta.SegmentedTargetAttention.tiling", lambda *_: tiles.__getitem__)
    network = Laser(schema, **OPTIONS).to(DEVICE).train()
    recorded = RecordedNetwork(network, list(parts(network)[1].values()))
    lengths = np.random.default_rng(0).integers(200, 300, 64).tolist()
    recorded(as_loaded(make_batch(schema, lengths, list(range(64)))).to(DEVICE))
    room = recorded.room
    for count in (1, 7, 40, 63):
        recorded(as_loaded(make_batch(schema, lengths[:count], list(range(count)))).to(DEVICE))
        assert recorded.room == room
        offsets = recorded.fixed.layout.parts.off_U1.diff()
        assert int(offsets.sum()) == room.events
        assert int(offsets.max()) <= 300 + 240, "the smallest multiple of all tiles more"
    assert recorded.recordings == 1


def test_what_cannot_be_recorded_says_so(schema):
    assert not Laser(schema, **OPTIONS, gate="softmax").recordable
    assert not Laser(schema, **OPTIONS, experts=2).recordable
    assert not Laser(schema, **{**OPTIONS, "recency": "both"}).recordable


def test_a_batch_with_items_of_every_event_is_not_recorded(schema, make_batch):
    network = Laser(schema, **OPTIONS).to(DEVICE).train()
    recorded = RecordedNetwork(network, list(parts(network)[1].values()))
    batch = make_batch(schema, [9, 4], [0, 1])
    groups = [{n: ids.numpy() for n, ids in part.items()} for part in (batch.history, batch.target, batch.context)]
    found = [{n: torch.from_numpy(ids) for n, ids in part.items()} for part in distinct_ids(schema, *groups)]
    batch = replace(batch, distinct=found[0], place=found[1]).to(DEVICE)
    torch.testing.assert_close(recorded(batch).logit_B, network(batch).logit_B)
    assert recorded.recordings == 0


def test_sizes_are_kept_for_a_resumed_run(schema, make_batch, as_loaded):
    network = Laser(schema, **OPTIONS).to(DEVICE).train()
    first, second = (RecordedNetwork(network, list(parts(network)[1].values())) for _ in range(2))
    large, small = (as_loaded(make_batch(schema, lengths, [0, 1])).to(DEVICE) for lengths in ([40, 9], [5, 6]))
    first(large), first(small)
    second.room = Room.restored(json.loads(json.dumps(first.room.stored())))
    second(small)
    assert second.room == first.room
    assert second.fixed.batch.age_T.shape == first.fixed.batch.age_T.shape


def test_nothing_of_an_earlier_batch_is_left(schema, make_batch, as_loaded):
    """How sums are grouped would depend on it, and a resumed run would round otherwise."""
    network = Laser(schema, **OPTIONS).to(DEVICE).train()
    recorded = RecordedNetwork(network, list(parts(network)[1].values()))
    recorded(as_loaded(make_batch(schema, [40, 9], [0, 1])).to(DEVICE))
    recorded(as_loaded(make_batch(schema, [5], [0])).to(DEVICE))
    fixed = recorded.fixed.batch
    assert not any(ids[5:].any() for ids in (*fixed.history.values(), fixed.age_T, fixed.item_of_T))
    assert not any(ids[2:].any() for ids in fixed.items.values())
    assert not any(ids[1:].any() for ids in (*fixed.target.values(), fixed.row_B))
    there = network.embeddings.numbers_of_ids(fixed)
    events = [part for name, ids in fixed.place.items() for part in ids.split(there[name]) if len(part) >= 49]
    assert events
    assert not any(part[15:].any() for part in events)


def test_a_batch_comes_by_addresses_as_by_copies(schema, make_batch, scatter, monkeypatch, as_loaded):
    """As on a GPU: the copies are part of what is recorded."""
    torch.manual_seed(0)
    network = scatter(Laser(schema, **OPTIONS)).to(DEVICE).train()
    copied, addressed = (RecordedNetwork(network, list(parts(network)[1].values())) for _ in range(2))
    for step, (lengths, samples) in enumerate(size for size in SIZES if size[1]):
        batch = as_loaded(make_batch(schema, lengths, samples, seed=step, step=step)).to(DEVICE)
        monkeypatch.setattr("laser.model.fixed_batch.use_triton", lambda _: False)
        expected_B, expected = results(copied, network, batch)
        monkeypatch.setattr("laser.model.fixed_batch.use_triton", lambda _: True)
        found_B, found = results(addressed, network, batch)
        assert copied.fixed.copy is None
        assert addressed.fixed.copy is not None
        same = zip(addressed.fixed.there, copied.fixed.there, strict=True)
        assert all(torch.equal(tensor, other) for tensor, other in same)
        assert torch.equal(addressed.fixed.layout.index_I, copied.fixed.layout.index_I)
        assert int(addressed.fixed.batch.step) == step
        if DEVICE.type == "cpu":
            assert torch.equal(found_B, expected_B)
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert addressed.recordings == copied.recordings < len(SIZES)

"""Items that are there once, not once an event: the same logits and gradients."""

from __future__ import annotations

import pytest
import torch

from laser.model.baselines.encoder_model import EncoderModel
from laser.model.baselines.sdim import SDIM
from laser.model.laser import Laser

SIZES = {"width": 24, "mixer_tokens": 4, "mixer_width": 24, "mixer_multiple": 2, "embedding_std": 0.5}
MATCH = {"match": {"item": "item", "genre": "shelf"}, "match_newest": 4}
NETWORKS = {
    "laser": lambda schema: Laser(schema, **SIZES, event_dropout=0.2),
    "laser with matches": lambda schema: Laser(schema, **SIZES, **MATCH),
    "reads the items' embeddings": lambda schema: EncoderModel(schema, SDIM, **SIZES),
}


def results(network, batch) -> dict[str, torch.Tensor]:
    network.zero_grad()
    logit_B = network(batch).logit_B
    logit_B.square().sum().backward()
    return {"logits": logit_B.detach()} | {
        n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("lengths", [[0, 1, 9, 30, 11], [1, 0, 0, 0, 0]], ids=str)
def test_equal_to_items_of_every_event(schema, make_batch, as_loaded, scatter, name, lengths):
    torch.manual_seed(0)
    network = scatter(NETWORKS[name](schema)).train()
    batch = as_loaded(make_batch(schema, lengths, [3, 0, 1, 2, 3, 4]))
    by_event = batch.by_event()
    assert len(batch.items["item"]) < len(by_event.history["item"]) or sum(lengths) == 1
    torch.testing.assert_close(results(network, batch), results(network, by_event), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_no_events_at_all(schema, make_batch, as_loaded, name):
    """And no gradient is missing, for another process may have some."""
    network = NETWORKS[name](schema).train()
    found = results(network, as_loaded(make_batch(schema, [0, 0], [0, 1, 1])))
    assert found["logits"].isfinite().all()
    assert set(found) == {"logits", *(name for name, _ in network.named_parameters())}


def test_ids_of_events(schema, make_batch, as_loaded):
    batch = as_loaded(make_batch(schema, [4, 0, 7], [0, 1, 2]))
    by_event = batch.by_event()
    assert list(by_event.history) == ["item", "genre", "action"]
    assert by_event.items == by_event.distinct == by_event.place == {}
    for name, ids in by_event.history.items():
        assert torch.equal(batch.event_ids(name), ids)
        assert torch.equal(by_event.event_ids(name), ids)
        for event in range(11):
            wanted = (
                batch.items[name][int(batch.item_of_T[event])] if name in batch.items else batch.history[name][event]
            )
            assert torch.equal(ids[event], wanted)

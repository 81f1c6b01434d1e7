"""The form of LASER for many candidates of one user against the form that is trained."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from laser.model.laser import Laser
from laser.model.shared_history import SharedHistory

SMALL = {"width": 8, "segment_width": 4, "query_width": 3, "mixer_tokens": 4, "mixer_width": 8, "recency_ranks": 9}
VARIANTS = {
    "paper": {},
    "softmax": {"gate": "softmax"},
    "mean": {"segment_pooling": "mean"},
    "bare": {
        "segment_ffn_multiple": 0,
        "segment_layer_norm": False,
        "recency": "none",
        "segment_maximum": False,
        "newest_segments": 0,
        "newest_events": 0,
    },
    "segment recency": {"recency": "segment", "newest_segments": 7, "newest_events": 2},
    "matches": {"match": {"item": "item", "genre": "genre"}, "match_newest": 3},
    "gates of matches": {"match": {"item": "item", "genre": "shelf"}, "match_gate": True, "match_newest": 2},
    "slope": {"gate_rank_bias": True},
    "windows": {"segment_windows": [4, 8]},
    "evolution": {"newest_evolved": 4, "match": {"item": "item"}},
    "another head": {"head": "dcnv2"},
    "softmax with a slope": {"gate_rank_bias": True, "gate": "softmax"},
    "both": {"recency": "both", "experts": 2, "num_layers": 1},
}


def trained(schema, **options) -> Laser:
    """A model whose every weight has some value, as after training."""
    torch.manual_seed(3)
    model = Laser(schema, **SMALL | options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def event_vectors(embedded) -> torch.Tensor:
    return torch.cat([found.vectors() for found in embedded.items + embedded.history], dim=-1)


def one_history(batch, length: int, samples: int):
    """A batch of which all samples share one history of that length."""
    device_free = replace(batch, on_host=None)
    return replace(
        device_free,
        history={name: ids[:length] for name, ids in batch.history.items()},
        age_T=batch.age_T[:length].sort(descending=True).values,
        off_U1=torch.tensor([0, length]),
        history_of_B=torch.zeros(samples, dtype=torch.int64),
        history_key_U=batch.history_key_U[:1],
    )


@pytest.mark.parametrize("options", VARIANTS.values(), ids=list(VARIANTS))
@pytest.mark.parametrize("length", [1, 3, 4, 5, 17])
def test_same_logits_and_gates(make_batch, schema, options, length):
    batch = one_history(make_batch(schema, [20, 3], [0] * 5), length, 5)
    model = trained(schema, **options)
    with torch.no_grad():
        wanted = model(batch, return_gates=True)
        embedded = model.embeddings(batch)
        shared = SharedHistory(model)
        rows_LC = shared.event_rows(event_vectors(embedded))
        found = shared(rows_LC, batch.age_T, embedded.target_BE, embedded.context, batch=batch)
    torch.testing.assert_close(found.logit_B, wanted.logit_B, rtol=1e-5, atol=1e-5)
    gate_BLH = wanted.gates.gate_EH.view(5, length, -1)
    torch.testing.assert_close(found.gate_HLB, gate_BLH.permute(2, 1, 0), rtol=1e-5, atol=1e-6)
    assert rows_LC.shape[1] == shared.row_width


def test_shut_gates_are_as_if_the_event_had_none(make_batch, schema):
    """An event whose gate is shut adds nothing to its segment, but keeps its place in it."""
    batch = one_history(make_batch(schema, [20, 3], [0, 0]), 6, 2)
    shared = SharedHistory(trained(schema, newest_events=0))
    with torch.no_grad():
        embedded = shared.network.embeddings(batch)
        rows_LC = shared.event_rows(event_vectors(embedded))
        open_LB = torch.ones(6, 2)
        open_LB[1, 1] = 0
        found = shared(rows_LC, batch.age_T, embedded.target_BE, embedded.context, open_LB)
        whole = shared(rows_LC, batch.age_T, embedded.target_BE, embedded.context)
    assert torch.equal(found.logit_B[0], whole.logit_B[0])
    assert found.logit_B[1] != whole.logit_B[1]
    assert (found.gate_HLB[:, 1, 1] == 0).all()


@pytest.mark.parametrize("options", [{}, {"newest_evolved": 6}], ids=str)
def test_it_can_be_exported_as_a_graph(make_batch, schema, options):
    """For any number of candidates and of whole segments; the packed form lays out segments on the host."""
    shared = SharedHistory(trained(schema, **options))

    def inputs(segments: int, samples: int) -> tuple:
        batch = one_history(make_batch(schema, [40], [0] * samples), 4 * segments, samples)
        with torch.no_grad():
            embedded = shared.network.embeddings(batch)
            return shared.event_rows(event_vectors(embedded)).clone(), batch.age_T, embedded.target_BE, embedded.context

    candidates, segments = torch.export.Dim("candidates", min=2), torch.export.Dim("segments", min=2)
    some = inputs(3, 5)
    shapes = ({0: 4 * segments}, {0: 4 * segments}, {0: candidates}, [{0: candidates}] * len(some[3]))
    graph = torch.export.export(shared, some, dynamic_shapes=shapes).module()
    for arguments in (inputs(2, 2), inputs(7, 11)):
        with torch.no_grad():
            torch.testing.assert_close(graph(*arguments).logit_B, shared(*arguments).logit_B, rtol=1e-5, atol=1e-5)

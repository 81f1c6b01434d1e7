"""One history for all candidates of a request: from the store through look-ups to the kernel, with equal gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from laser.batch import Batch
from laser.data.collate import Collator
from laser.data.loader import BatchLoader
from laser.data.order import Order, requests
from laser.data.prepared import PreparedData
from laser.model import sta
from laser.model.laser import Laser
from laser.train.loss import local_loss

MAX_HISTORY = 20
BATCH_SIZE = 128


@pytest.fixture(scope="module")
def data(prepared: Path):
    with PreparedData(prepared) as opened:
        yield opened


def batches(data: PreparedData, group_requests: bool) -> list[Batch]:
    order = Order(group_requests=group_requests)
    options = {"batch_size": BATCH_SIZE, "max_history": MAX_HISTORY, "shuffle": True, "seed": 1, "workers": 0}
    return list(BatchLoader(data, "train", **options, order=order))


def small(data: PreparedData) -> Laser:
    torch.manual_seed(0)
    return Laser(data.schema, width=16, segment_width=3, mixer_tokens=4, mixer_width=16, event_dropout=0.1)


def gradients(model: Laser, some: list[Batch]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    for batch in some:
        output = model(batch)
        local_loss(output.logit_B, batch, 1, output.auxiliary_loss).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_the_candidates_of_a_request_share_one_history_from_store_to_kernel(data, monkeypatch):
    grouped, apart = batches(data, True), batches(data, False)
    request_N = requests(data.split("train"))
    count, samples = len(np.unique(request_N)), len(request_N)
    # Only a request that the end of a batch divides is read twice.
    histories = sum(batch.num_histories for batch in grouped)
    assert count <= histories < count + len(grouped)
    assert histories < 0.9 * samples
    assert histories < sum(batch.num_histories for batch in apart)

    seen: dict[str, tuple[int, ...]] = {}
    kernel = sta.segmented_target_attention

    def watched(x_TD, off_U1, query_BHD, bias_H, history_of_B, width, **options):
        seen["events"], seen["samples"] = tuple(x_TD.shape), tuple(query_BHD.shape)
        seen["histories"], seen["shared"] = (len(off_U1) - 1,), (int(history_of_B.bincount().max()),)
        return kernel(x_TD, off_U1, query_BHD, bias_H, history_of_B, width, **options)

    monkeypatch.setattr(sta, "segmented_target_attention", watched)
    model, batch = small(data), grouped[3]
    embedded = model.embeddings(batch)
    model(batch)
    events = int(batch.off_U1[-1])
    assert {len(found.index) for found in embedded.history} == {events}
    assert {len(found.index) for found in embedded.items} == {int(batch.event_ids("item").unique().numel())}
    assert seen["events"][0] == events < int(batch.off_U1.diff()[batch.history_of_B].sum())
    assert (seen["samples"][0], seen["histories"][0]) == (len(batch), batch.num_histories)
    assert seen["shared"][0] > 1


def test_gradients_are_those_of_each_candidate_with_a_history_of_its_own(data):
    """The whole way again for each sample alone, so that nothing is shared; dropout included."""
    shared = batches(data, True)[3]
    samples, collate = data.split("train"), Collator(data, MAX_HISTORY)
    rows = [shared.row_B[[place]].numpy() for place in range(len(shared))]
    alone = [collate(samples.take(row), row, step=shared.step, global_size=len(shared)) for row in rows]
    assert sum(len(batch.age_T) for batch in alone) > len(shared.age_T)
    model = small(data).train()
    expected = gradients(model, alone)
    for name, gradient in gradients(model, [shared]).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-7, msg=name)

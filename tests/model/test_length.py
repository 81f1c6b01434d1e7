"""Memory is linear in the number of events: nothing is padded to the longest history, nothing grows with its square.

Every allocation of a training step is recorded by PyTorch's profiler, inside operators too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.profiler import ProfilerActivity, profile

from laser.batch import Batch
from laser.model.baselines.din import DIN
from laser.model.baselines.encoder_model import EncoderModel
from laser.model.laser import Laser

USERS, MEAN = 200, 105
SIZES = {"width": 32, "mixer_tokens": 4, "mixer_width": 16, "mixer_multiple": 1}


def allocated(model: torch.nn.Module, batch: Batch) -> tuple[int, int]:
    """Bytes of the largest single allocation of a training step, and most bytes in use at a time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        output = model(batch)
        binary_cross_entropy_with_logits(output.logit_B, batch.label_B).backward()
    events = sorted(record.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    changes = [event.nbytes() for event in events if event.name() == "[memory]"]
    in_use = torch.tensor(changes).cumsum(0)
    return max(changes), int(in_use.max())


def compared(
    model: Callable[[], torch.nn.Module], batch_of: Callable[[Sequence[int]], Batch], mean: int
) -> tuple[float, float]:
    """Both figures with one long history among short ones, over those with equal histories; as many events."""
    short = 5
    long = [short] * (USERS // 2) + [USERS * mean - short * (USERS - 1)] + [short] * (USERS - 1 - USERS // 2)
    figures = []
    for lengths in ([mean] * USERS, long):
        torch.manual_seed(0)
        figures.append(allocated(model(), batch_of(lengths)))
    (even_largest, even_peak), (largest, peak) = figures
    return largest / even_largest, peak / even_peak


@pytest.mark.parametrize(
    "options",
    [{}, {"match": {"item": "item"}, "match_gate": True, "recency": "both", "gate_rank_bias": True}],
    ids=["default", "everything"],
)
def test_one_user_with_20000_events_costs_what_her_events_cost(schema, make_batch, options):
    model = partial(Laser, schema, event_dropout=0.1, **SIZES, **options)
    largest, peak = compared(model, lambda lengths: make_batch(schema, lengths, range(USERS)), MEAN)
    assert largest <= 1.05
    assert peak <= 1.1


def test_the_measure_sees_padding(schema, make_batch):
    model = partial(EncoderModel, schema, partial(DIN, hidden_widths=(4,)), **{**SIZES, "width": 8})
    largest, peak = compared(model, lambda lengths: make_batch(schema, lengths, range(USERS)), 15)
    assert largest > 3
    assert peak > 3

"""Inputs of encoders with awkward lengths, padded a second time for references."""

from __future__ import annotations

import pytest
import torch

from laser.model.baselines.encoder import Inputs

WIDTH, ITEM_WIDTH = 16, 12


def encoder_inputs(make_batch, schema, lengths, samples, seed=0):
    batch = make_batch(schema, lengths, samples, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, requires_grad=True)  # noqa: E731
    events, rows = sum(lengths), len(samples)
    return Inputs(draw(events, WIDTH), draw(rows, WIDTH), draw(events, ITEM_WIDTH), draw(rows, ITEM_WIDTH), batch)


@pytest.fixture
def make_inputs(make_batch, schema):
    return lambda lengths, samples, seed=0: encoder_inputs(make_batch, schema, lengths, samples, seed)


@pytest.fixture
def inputs(make_inputs):
    """Empty, short and longer histories, shared and out of order."""
    return make_inputs([0, 1, 7, 40, 0, 12], [3, 0, 5, 1, 3, 2, 4])


@pytest.fixture
def rows_of():
    """``rows_of(inputs, b, packed)``: the rows of sample b, oldest first."""

    def rows(inputs, b, packed):
        u = int(inputs.batch.history_of_B[b])
        return packed[int(inputs.batch.off_U1[u]) : int(inputs.batch.off_U1[u + 1])]

    return rows

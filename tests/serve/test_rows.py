"""Rows in fewer bits."""

from __future__ import annotations

import pytest
import torch

from laser.serve.rows import BITS, PRECISIONS, Table, entries, quantised, restored
from laser.tensor_file import read_tensors, write_tensors


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("width", [1, 2, 7, 32])
def test_rows_come_back_within_half_a_step(precision, width):
    x_NW = torch.randn(50, width, generator=torch.Generator().manual_seed(0))
    x_NW[3] = 0.25  # a row of one value
    x_NW[4] = 0
    found_NW = restored(quantised(x_NW, precision), width)
    span_N1 = x_NW.amax(1, keepdim=True) - x_NW.amin(1, keepdim=True)
    allowed = {"fp32": 0, "fp16": x_NW.abs() * 2**-11}.get(precision, 0)
    if precision in BITS:
        allowed = span_N1 / (2 ** BITS[precision] - 1) / 2 + 1e-6
    assert ((found_NW - x_NW).abs() <= allowed).all()
    assert torch.equal(found_NW[4], torch.zeros(width))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_table_is_looked_up_in_its_file(precision, tmp_path, monkeypatch):
    monkeypatch.setattr("laser.serve.rows.BLOCK_ROWS", 7)
    x_RW = torch.randn(30, 5, generator=torch.Generator().manual_seed(1))
    write_tensors(tmp_path / "t", entries("item", 30, 5, lambda first, last: x_RW[first:last], precision))
    parts = {name.removeprefix("item."): tensor for name, tensor in read_tensors(tmp_path / "t")[0].items()}
    ids_N = torch.tensor([29, 0, 0, 7])
    assert torch.equal(Table(parts, 5)(ids_N), restored(quantised(x_RW, precision), 5)[ids_N])

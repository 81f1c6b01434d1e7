"""Event vectors as sums of rows of tables, those with few rows in groups of their own."""

from __future__ import annotations

import pytest
import torch

from laser.model.event_slots import EventSlots
from laser.ops import gather_sum as package
from laser.ops.gather_sum import sorted_pairs, triton

T, D = 40, 6


def table(rows: int, values: int = 1, weighted: bool = False):
    """Rows, and an index of every event in them; the last row is named."""
    index = torch.randint(0, rows, (T, values))
    index[0] = rows - 1
    weight = torch.rand(T, values) if weighted else None
    return torch.randn(rows, D, requires_grad=True), index if weighted else index[:, 0], weight


def plain_sum(tables, scale_T):
    total_TD = torch.zeros(T, D)
    for rows_RD, index, weight in tables:
        part = rows_RD[index] if weight is None else (rows_RD[index] * weight[..., None]).sum(1)
        total_TD = total_TD + part
    return total_TD * scale_T[:, None]


@pytest.mark.parametrize("by_triton", [False, True])
@pytest.mark.parametrize(
    ("sizes", "few"),
    [
        ([300], []),
        ([1], [(64, 1)]),
        ([300, 122, 19, 32, 1024], [(64, 2), (128, 1)]),
        ([65, 63, 2], [(64, 1), (64, 1), (128, 1)]),  # 2 and 63 do not fit one group
        ([64, 64, 64, 64, 64], [(64, 1)] * 4),
        ([128, 129, 3], [(64, 1), (128, 1)]),  # no room for 129
    ],
    ids=str,
)
@pytest.mark.parametrize("weighted", [False, True])
def test_sum_and_gradients(sizes, few, by_triton, weighted, monkeypatch):
    sorted_slots = []
    if by_triton:
        sort = sorted_pairs.pairs_by_row
        monkeypatch.setattr(package, "use_triton", lambda tensor: True)
        monkeypatch.setattr(triton, "FEW_PAIRS", 0)
        monkeypatch.setattr(
            sorted_pairs,
            "pairs_by_row",
            lambda index_N, rows: sorted_slots.append(len(index_N) // T) or sort(index_N, rows),
        )
    asked, op = [], package.gather_sum
    monkeypatch.setattr(
        "laser.model.event_slots.gather_sum", lambda *args, few: asked.append(list(few)) or op(*args, few=few)
    )
    torch.manual_seed(0)
    tables = [table(rows) for rows in sizes]
    if weighted:
        tables[0] = table(sizes[0], 3, weighted=True)
    scale_T = (torch.rand(T) > 0.2) / 0.8
    slots = EventSlots()
    for each in tables:
        slots.add(*each)
    found, wanted = slots.sum(scale_T), plain_sum(tables, scale_T)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    leaves, upstream = [rows for rows, _, _ in tables], torch.randn(T, D)
    torch.testing.assert_close(
        torch.autograd.grad(found, leaves, upstream),
        torch.autograd.grad(wanted, leaves, upstream),
        rtol=1e-5,
        atol=1e-5,
    )
    if not weighted:
        assert asked == [few]
    if by_triton:
        left = sum(index.numel() // T for _, index, _ in tables) - sum(slots for _, slots in asked[0])
        assert sorted_slots == [left] * (left > 0)

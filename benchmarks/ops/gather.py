"""Events as sums of rows on a GPU, against their specification."""

from __future__ import annotations

import torch
from harness import CASES, CUDA, DEVICE, Report, compare, gather_inputs
from torch import Tensor

from laser.ops.gather_sum import gather_sum, naive


def check_gather(dtype: torch.dtype, D: int) -> dict:
    """All slots sorted; then two of five sorted, beside groups of few rows, with factors of every kind."""
    rows, index, weight, scale = gather_inputs(5000, 5, 300, D, dtype)
    groups = ((128, 2), (64, 1))
    apart = torch.stack([*(index[:, :2].t() % 108), *(108 + index[:, 2:4].t() % 128), 236 + index[:, 4] % 64], 1)
    dropout = (scale > 0.1) / 0.9
    results: dict[str, object] = {"ok": True}
    for case, few, of_slots, of_events in (
        ("sorted", (), weight, scale),
        ("few", groups, None, None),
        ("few, dropout", groups, None, dropout),
        ("few, uneven", groups, None, scale),
        ("few, weights", groups, weight, dropout),
    ):
        given = (apart if few else index, of_slots, of_events)

        def reference(rows: Tensor, given: tuple = given) -> Tensor:
            factors = (each if each is None else each.to(rows.dtype) for each in given[1:])
            return naive.gather_sum(rows, given[0], *factors)

        def ours(rows: Tensor, given: tuple = given, few: tuple = few) -> Tensor:
            return gather_sum(rows, *given, few=few)

        found = compare(ours, reference, [rows], ["sum", "d_rows"])
        results |= {f"{case} {name}": value for name, value in found.items() if name != "ok"}
        results["ok"] = results["ok"] and found["ok"]
    return results


def check_large_few_rows() -> dict:
    """Gradients of more than 2^31 elements, all zeros but the last: counts, which are exact in bfloat16, too."""
    T, D, some = 17_000_000, 128, 4096
    d_sum = torch.zeros(T, D, device=DEVICE, dtype=torch.bfloat16)
    d_sum[-some:] = 1
    index = (torch.arange(T, device=DEVICE, dtype=torch.int32)[:, None] * 7 % 64).expand(-1, 2)
    rows = torch.zeros(64, D, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    (d_rows,) = torch.autograd.grad(gather_sum(rows, index, few=((64, 2),)), rows, d_sum)
    return {"ok": bool((d_rows == 2 * some // 64).all()), "elements": d_sum.numel()}


def correctness(report: Report) -> None:
    for dtype, D, _, _ in CASES:
        name = f"{str(dtype).split('.')[1]} D={D}"
        report.attempt(f"check events by sum of rows {name}", lambda c=(dtype, D): check_gather(*c))
    if CUDA:
        report.attempt("check events by sum of few rows past 2^31 elements", check_large_few_rows)

"""Gradients of gathered rows with and without a sort for tables of few rows, in a step's shape: ASSISTments-2017.

    PYTHONPATH=src python benchmarks/ops/few_rows.py --device cuda [--tune]

4096 histories of 384 events in the mean; slots: the item and the rank (sorted), the skill, the outcome and the age,
which have few rows. ms are of ten calls in a row; errors are relative to float64, root mean square. Without a GPU, in
Triton's interpreter (TRITON_INTERPRET=1), it runs a tiny shape, whose times mean nothing. ``--tune`` tries tiles and
launches of the kernel, and stops after a minute.

Legend of shape suffixes: T events, packed; S slots; R rows; U histories; D width.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from harness import CUDA, DEVICE, Report, milliseconds, relative_rms
from torch import Tensor

from laser.ops.gather_sum import few_rows, triton

ITEMS, RANKS = (2870, 1024) if CUDA else (30, 10)
SKILLS, OUTCOMES, AGES = 122, 19, 32
FEW = ((128, 1), (64, 2))
FIRST = ITEMS + RANKS
R, V, D = FIRST + 192, 192, 128 if CUDA else 16


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Gradients [T, D], indices [S, T], factors of a dropout of a tenth."""
    torch.manual_seed(0)
    U = 4096 if CUDA else 8
    length_U = torch.randint(0, 2 * (384 if CUDA else 20), (U,), device=DEVICE)
    T = int(length_U.sum())
    end_T = length_U.cumsum(0).repeat_interleave(length_U)
    rank_T = (end_T - 1 - torch.arange(T, device=DEVICE)).clamp(max=RANKS - 1)

    def skewed(rows: int) -> Tensor:
        return (rows ** torch.rand(T, device=DEVICE)).long() - 1

    skill_T, outcome_T, age_T = skewed(SKILLS), torch.randint(0, 3, (T,), device=DEVICE), skewed(AGES)
    places = skewed(ITEMS), ITEMS + rank_T, FIRST + skill_T, FIRST + 128 + outcome_T, FIRST + 128 + OUTCOMES + age_T
    d_sum_TD = torch.randn(T, D, device=DEVICE).to(torch.bfloat16 if CUDA else torch.float32)
    return d_sum_TD, torch.stack(places).int(), (torch.rand(T, device=DEVICE) > 0.1).float() / 0.9


def exact(d_sum_TD: Tensor, index_ST: Tensor, factor_T: Tensor | None) -> Tensor:
    """Gradients of all rows in float64."""
    d_TD = d_sum_TD.double() if factor_T is None else d_sum_TD.double() * factor_T.double()[:, None]
    d_rows_RD = d_TD.new_zeros(R, D)
    few_V = torch.arange(FIRST, R, device=DEVICE)
    for index_T in index_ST:
        # Additions to one row wait for each other; those to few rows would take seconds.
        d_rows_RD[FIRST:] += (index_T == few_V[:, None]).double() @ d_TD
        kept_T = (index_T < FIRST).nonzero()[:, 0]
        d_rows_RD.index_add_(0, index_T[kept_T], d_TD[kept_T])
    return d_rows_RD


def timed(report: Report, what: str, work: Callable[[], Tensor], wanted_RD: Tensor, moved: int) -> None:
    """Report time, rate of ``moved`` bytes, and errors."""

    def measured() -> dict:
        found_RD = work()
        again = "" if torch.equal(found_RD, work()) else "DIFFERENT BITS"
        error = relative_rms(found_RD, wanted_RD)
        ms, spread = milliseconds(work, 10 if CUDA else 1)
        return {"ms": ms, "spread": spread, "TB/s": moved / ms / 1e9, "error": error, "again": again}

    report.attempt(what, measured)


def few_alone(
    d_sum_TD: Tensor, index_ST: Tensor, weight_ST: Tensor | None, scale_T: Tensor | None
) -> Callable[[], Tensor]:
    """Gradients of the few rows, which all slots name."""

    def work() -> Tensor:
        d_rows_VD = d_sum_TD.new_empty(V, D)
        few_rows.backward(d_sum_TD, index_ST, weight_ST, scale_T, d_rows_VD, FEW, FIRST)
        return d_rows_VD

    return work


def compare(report: Report, d_sum_TD: Tensor, index_ST: Tensor, scale_T: Tensor) -> None:
    """Before and after, and what of it is left to the sort."""
    index_TS, gradient = index_ST.t(), d_sum_TD.nbytes
    wanted_RD = exact(d_sum_TD, index_ST, scale_T)
    for what, groups, passes in (("all slots sorted", (), 5), ("few rows apart", FEW, 3)):
        timed(
            report, what, lambda g=groups: triton.backward(d_sum_TD, index_TS, None, scale_T, R, g), wanted_RD,
            passes * gradient,
        )  # fmt: skip
    sorted_TS = index_ST[:2].t()
    timed(
        report, "item and rank, sorted", lambda: triton.backward(d_sum_TD, sorted_TS, None, scale_T, FIRST),
        wanted_RD[:FIRST], 2 * gradient,
    )  # fmt: skip


def factors(report: Report, d_sum_TD: Tensor, index_ST: Tensor, scale_T: Tensor) -> None:
    """Few rows alone, with factors of every kind."""
    few_ST, gradient = index_ST[2:], d_sum_TD.nbytes
    uneven_T, weight_ST = scale_T * torch.rand_like(scale_T), torch.rand(few_ST.shape, device=DEVICE)
    for what, scale in (("dropout", scale_T), ("no dropout", None), ("uneven scales", uneven_T)):
        wanted_VD = exact(d_sum_TD, few_ST, scale)[FIRST:]
        timed(report, f"few rows alone, {what}", few_alone(d_sum_TD, few_ST, None, scale), wanted_VD, gradient)
    by_slot = [exact(d_sum_TD, few_ST[s : s + 1], weight_ST[s] * scale_T)[FIRST:] for s in range(3)]
    work = few_alone(d_sum_TD, few_ST, weight_ST, scale_T)
    timed(report, "few rows alone, weights", work, torch.stack(by_slot).sum(0), gradient)


def tune(report: Report, d_sum_TD: Tensor, index_ST: Tensor, scale_T: Tensor) -> None:
    """The kernel under a dropout, with other tiles and launches."""
    wanted_VD, gradient = exact(d_sum_TD, index_ST, scale_T)[FIRST:], d_sum_TD.nbytes
    chosen = few_rows.stretch_config
    base = chosen(len(scale_T), V, D, CUDA)
    variants = [{}, {"BLOCK_E": 32}, {"num_warps": 4, "BLOCK_E": 32}, {"num_warps": 4}]
    variants += [{"EVENTS": 2048}, {"EVENTS": 8192}, {"num_warps": 4, "BLOCK_E": 32, "EVENTS": 2048}]
    variants += [{"BLOCK_E": 32, "BLOCK_D": 64, "maxnreg": 128}, {"BLOCK_E": 32, "maxnreg": 128}]
    variants += [{"num_warps": 4, "BLOCK_E": 32, "BLOCK_D": 64, "maxnreg": 168}, {"STAGES": 4}, {"STAGES": 2}]
    variants += [{"BLOCK_E": 32, "STAGES": 4}, {"num_warps": 4, "BLOCK_E": 32, "STAGES": 4}, {"BLOCK_E": 128}]
    work = few_alone(d_sum_TD, index_ST[2:], None, scale_T)
    for variant in variants:
        few_rows.stretch_config = lambda *_, v=variant: base | v
        timed(report, ", ".join(f"{k} {v}" for k, v in variant.items()) or "as chosen", work, wanted_VD, gradient)
    few_rows.stretch_config = chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default=DEVICE.type, help="that must be there")
    parser.add_argument("--tune", action="store_true", help="try tiles and launches")
    options = parser.parse_args()
    if options.device != DEVICE.type:
        parser.error(f"there is {DEVICE.type} here, not {options.device}")
    triton.FEW_PAIRS = triton.FEW_PAIRS if CUDA else 0
    given = inputs()
    print(f"{given[0].shape[0]:,} events, {given[0].nbytes / 1e6:.0f} MB of gradients", flush=True)
    report = Report(60.0 if CUDA else 600.0)
    compare(report, *given)
    if options.tune:
        tune(report, *given)
    factors(report, *given)


if __name__ == "__main__":
    main()

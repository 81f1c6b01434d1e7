"""Where projected keys and values overtake absorbed queries, measured and by the cost model, by candidates a history.

    PYTHONPATH=src python benchmarks/ops/regimes.py --out results

Shape W1 (on a CPU 64 samples of 200 events); the number of samples stays, so that more candidates mean fewer histories.
Times are of the whole: projections of queries, events or sums included, no feed-forward network. The last notes are the
rates of this machine as ``laser.ops.segmented_attention.regime`` wants them, and the model's times with them.

Legend of shape suffixes: B samples; U histories; T events, packed; G segments; D width; H heads; Q width of queries.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from harness import CUDA, DEVICE, copy_rate, milliseconds, offsets
from torch import Tensor

from laser.ops.segmented_attention import segmented_target_attention
from laser.ops.segmented_attention.projected import projected_target_attention
from laser.ops.segmented_attention.regime import Load, Rates, Regime, cheaper, load_of, seconds

sys.path.insert(0, str(Path(__file__).parents[1]))
from rows import Rows

D, H, Q, WIDTH = 128, 2, 16, 10
DTYPE = torch.bfloat16 if CUDA else torch.float32
CALIBRATION = 16
"""Candidates with which the rates of both ops are measured."""


class Case:
    """Inputs of both forms."""

    def __init__(self, samples: int, events: int, candidates: int) -> None:
        U = samples // candidates
        torch.manual_seed(0)
        self.x_TD = self._randn(U * events, D, scale=1.0)
        self.target_BD = self._randn(samples, D, scale=1.0)
        self.weights = [self._randn(D, H, Q), self._randn(D, H, Q), self._randn(H, D, D // H)]
        self.bias_H = torch.full((H,), -2.3, device=DEVICE, requires_grad=True)
        self.off_U1 = offsets(torch.full((U,), events))
        self.history_B = torch.arange(U, device=DEVICE).repeat_interleave(candidates)
        self.on_host = self.off_U1.cpu(), self.history_B.cpu()
        itemsize = self.x_TD.element_size()
        self.load: Load = load_of(*self.on_host, width=D, num_heads=H, query_width=Q, itemsize=itemsize)

    @staticmethod
    def _randn(*shape: int, scale: float = D**-0.5) -> Tensor:
        return (torch.randn(shape, device=DEVICE) * scale).to(DTYPE).requires_grad_()

    def query(self) -> Tensor:
        return torch.einsum("bd,dhq->bhq", self.target_BD, self.weights[0]) * Q**-0.5

    def absorbed_op(self, query_BHD: Tensor) -> Tensor:
        return segmented_target_attention(
            self.x_TD, self.off_U1, query_BHD, self.bias_H, self.history_B, WIDTH, on_host=self.on_host
        )[0]

    def absorbed(self) -> Tensor:
        pooled_GHD = self.absorbed_op(torch.einsum("bhq,dhq->bhd", self.query(), self.weights[1]))
        return torch.einsum("ghd,hdv->ghv", pooled_GHD, self.weights[2]).flatten(1)

    def rows(self) -> tuple[Tensor, Tensor]:
        """Keys and values, by one product."""
        value_DE = self.weights[2].permute(1, 0, 2).flatten(1)
        row_TC = self.x_TD @ torch.cat([self.weights[1].flatten(1), value_DE], dim=1)
        return row_TC[:, : H * Q].unflatten(1, (H, Q)), row_TC[:, H * Q :].unflatten(1, (H, -1))

    def projected_op(self, key_THQ: Tensor, value_THV: Tensor) -> Tensor:
        return projected_target_attention(
            key_THQ, value_THV, self.off_U1, self.query(), self.bias_H, self.history_B, WIDTH, on_host=self.on_host
        )[0]

    def projected(self) -> Tensor:
        return self.projected_op(*self.rows())

    def forward_backward(self, form: Callable[[], Tensor]) -> None:
        output = form()
        torch.autograd.grad(output, [self.x_TD, self.target_BD, self.bias_H, *self.weights], torch.ones_like(output))


def measure(samples: int, events: int, candidates: int) -> dict[str, Any]:
    case = Case(samples, events, candidates)
    found: dict[str, Any] = {"histories": samples // candidates}
    with torch.no_grad():
        difference = case.absorbed().float() - case.projected().float()
        found["difference"] = float(difference.norm() / case.absorbed().float().norm())
    for name, form in (("absorbed", case.absorbed), ("projected", case.projected)):
        forward = torch.no_grad()(form)
        found[f"{name}, forward ms"], _ = milliseconds(forward, repeats=10)
        found[f"{name}, both ms"], found[f"{name}, spread"] = milliseconds(
            lambda form=form: case.forward_backward(form), repeats=10
        )
    return found


@torch.no_grad()
def measured_rates(samples: int, events: int) -> Rates:
    """Of large products, of both ops with many candidates, and of a copy."""
    case = Case(samples, events, CALIBRATION)
    query_BHD = torch.einsum("bhq,dhq->bhd", case.query(), case.weights[1])
    key_THQ, value_THV = case.rows()
    large = case.x_TD.detach().repeat(max(1, 200_000 // len(case.x_TD)), 1)
    weight_DC = torch.randn(D, H * Q + D, device=DEVICE).to(DTYPE)
    times = [
        milliseconds(lambda: large @ weight_DC, calls=10)[0],
        milliseconds(lambda: case.absorbed_op(query_BHD), calls=10)[0],
        milliseconds(lambda: case.projected_op(key_THQ, value_THV), calls=10)[0],
    ]
    seen = case.load.seen
    macs = (large.shape[0] * D * (H * Q + D), seen * 2 * H * D, seen * (H * Q + D))
    dense, absorbed, projected = (1e3 * count / ms for count, ms in zip(macs, times, strict=True))
    return Rates(dense=dense, absorbed=absorbed, projected=projected, memory=1e3 * copy_rate())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--samples", type=int, default=2048 if CUDA else 64)
    parser.add_argument("--events", type=int, default=1000 if CUDA else 200)
    parser.add_argument("--seconds", type=float, default=90.0, help="start nothing new after so many")
    options = parser.parse_args()
    if options.samples < CALIBRATION or options.samples & (options.samples - 1):
        parser.error(f"--samples is {options.samples}; expected a power of two of at least {CALIBRATION}")
    rows = Rows(options.out, "regimes", "Absorbed queries against projected keys and values", options.seconds)
    numbers = [2**power for power in range(8) if 2**power <= options.samples]
    for candidates in numbers:
        rows.attempt(str(candidates), lambda n=candidates: measure(options.samples, options.events, n))
    for what in ("forward ms", "both ms"):
        done = [(n, rows.rows[str(n)]) for n in numbers if "failed" not in rows.rows[str(n)]]
        won = [n for n, row in done if row[f"projected, {what}"] < row[f"absorbed, {what}"]]
        rows.note(
            f"projected is faster, {what.removesuffix(' ms')}, with {won or 'none of these'} candidates a history"
        )
    predict(rows, measured_rates(options.samples, options.events), options, numbers)


def predict(rows: Rows, rates: Rates, options: argparse.Namespace, numbers: list[int]) -> None:
    rows.note(f"rates: {', '.join(f'{name}={value:.2g}' for name, value in vars(rates).items())}")
    for candidates in numbers:
        load = Case(options.samples, options.events, candidates).load
        told = [
            f"{form} {1e3 * seconds(cast('Regime', form), load, rates):.3g} ms" for form in ("absorbed", "projected")
        ]
        rows.note(f"model, {candidates} candidates, forward: {', '.join(told)}: {cheaper(load, rates)}")


if __name__ == "__main__":
    main()

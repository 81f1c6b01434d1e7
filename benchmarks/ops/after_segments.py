"""GSTA, fusion and RankMixer in shape W1 against the floors of their bytes and of their matrix products.

    PYTHONPATH=src python benchmarks/ops/after_segments.py --out results

2048 samples with 100 segments each, width 128, and the paper's mixer: 16 tokens of 256, two blocks (a small shape on a
CPU). Modules are those of ``Laser``, bfloat16 autocast on a GPU, recorded as a CUDA graph and replayed, as in training.
Gradients go to segments, target and all parameters; these, as in a recorded step, are copies in bfloat16 where autocast
would make some, which a step makes of all parameters in one launch (not measured here).

A part's floor is the larger of two times: its matrix products (a MAC is two operations; forward, and twice that
backward) at the rate of a large bfloat16 product of the same run, and its bytes at the rate of a device copy of the
same run. Bytes are what no implementation can leave out: segments are read once forward by either reader, read again
backward and their gradient written, the mixer's tokens are read and written once a block and direction, parameters are
read twice and their gradients written, in bfloat16. What is kept between forward and backward is not counted.

Legend of shape suffixes: B samples; G segments, packed by sample; M tokens; D width.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from attention import replayed
from harness import CUDA, DEVICE, copy_rate, milliseconds, offsets
from torch import Tensor, nn

from laser.model.costs import sequence_costs
from laser.model.fusion import Fusion
from laser.model.gsta import GlobalStackedTargetAttention
from laser.model.half_copies import HalfCopies
from laser.model.rankmixer import RankMixer

sys.path.insert(0, str(Path(__file__).parents[1]))
from rows import Rows

B, N, D, TOKENS, TOKEN_WIDTH, CONTEXT = (2048, 100, 128, 16, 256, 64) if CUDA else (64, 20, 32, 4, 32, 16)
HALF = 2
"""Bytes of a bfloat16."""
Inputs = list[Tensor]


def product_rate() -> float:
    """MACs per millisecond of a large product of random bfloat16 matrices."""
    size = 8192 if CUDA else 512
    a, b = (torch.randn(size, size, device=DEVICE).to(torch.bfloat16) for _ in range(2))
    ms, _ = milliseconds(lambda: a @ b)
    return size**3 / ms


class Called(nn.Module):
    """A module as it is called here, with inputs by name."""

    def __init__(self, module: nn.Module, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.module, self.call = module, call

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.call(*inputs.values())


class Part:
    """A module, its inputs, MACs of a sample and bytes that must move, forward and backward.

    Args:
        module: with the parameters.
        call: of the inputs.
        inputs: that get gradients.
        macs: of one sample, forward.
        moved: bytes of activations, forward and backward.
    """

    def __init__(
        self, module: nn.Module, call: Callable[..., Tensor], inputs: Inputs, macs: int, moved: tuple[int, int]
    ) -> None:
        self.inputs, self.macs = inputs, macs
        self.named = {str(place): tensor for place, tensor in enumerate(inputs)}
        parameters = list(module.parameters())
        dtype = torch.bfloat16 if CUDA else torch.float32
        self.copies = HalfCopies(Called(module, call), parameters, DEVICE.type, dtype, self.named)
        self.parameters = self.copies.leaves()
        weights = HALF * sum(parameter.numel() for parameter in self.parameters)
        self.moved = moved[0] + weights, moved[1] + 2 * weights

    def forward(self) -> Tensor:
        # Without autocast's cache, as in a recording.
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=CUDA, cache_enabled=False):
            return torch.func.functional_call(self.copies.network, self.copies.by_name, (), self.named)

    def both(self) -> None:
        output = self.forward()
        torch.autograd.grad(output, [*self.inputs, *self.parameters], torch.ones_like(output))

    def row(self, copied: float, multiplied: float) -> dict[str, Any]:
        floors = [
            max(self.macs * B * factor / multiplied, moved / copied)
            for factor, moved in zip((1, 2), self.moved, strict=True)
        ]
        found: dict[str, Any] = {"MACs": f"{self.macs:.3g}"}
        for name, work, floor in (
            ("forward", torch.no_grad()(self.forward), floors[0]),
            ("forward + backward", self.both, sum(floors)),
        ):
            ms, spread = milliseconds(replayed(work))
            found |= {
                f"{name} ms": ms,
                f"{name} spread": spread,
                f"{name} floor": floor,
                f"{name} of floor": floor / ms,
            }
        return found


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, device=DEVICE).to(torch.bfloat16 if CUDA else torch.float32).requires_grad_()


def parts() -> dict[str, Callable[[], Part]]:
    """By name; made when they are measured."""
    seg_off_B1 = offsets(torch.full((B,), N))
    segments = HALF * B * N * D

    def global_attention() -> Part:
        module = GlobalStackedTargetAttention(D).to(DEVICE)
        costs = sequence_costs(10 * N, width=D).parts
        macs = costs["global_attention"] + costs["global_ffn"]
        call = lambda target_BD, seg_GD: module(target_BD, seg_GD, seg_off_B1)[0]  # noqa: E731
        return Part(module, call, [leaf(B, D), leaf(B * N, D)], macs, (segments, 2 * segments))

    def fusion() -> Part:
        module = Fusion(D, [CONTEXT], tokens=TOKENS, token_width=TOKEN_WIDTH).to(DEVICE)

        def call(user_BD: Tensor, seg_GD: Tensor, target_BD: Tensor, context_BD: Tensor, newest_BD: Tensor) -> Tensor:
            return module(user_BD, seg_GD, seg_off_B1, target_BD, [context_BD], newest_BD)

        inputs = [leaf(B, D), leaf(B * N, D), leaf(B, D), leaf(B, CONTEXT), leaf(B, D)]
        tokens = HALF * B * TOKENS * TOKEN_WIDTH
        macs = sum(parameter.numel() for parameter in module.parameters() if parameter.dim() == 2)
        # Backward: the gradient of the tokens is read, that of the segments written.
        return Part(module, call, inputs, macs, (segments + tokens, segments + tokens))

    def mixer() -> Part:
        module = RankMixer(TOKENS, TOKEN_WIDTH).to(DEVICE)
        tokens = HALF * B * TOKENS * TOKEN_WIDTH * len(module.blocks)
        macs = sum(parameter.numel() for parameter in module.parameters() if parameter.dim() == 3)
        call = lambda tokens_BMD: module(tokens_BMD, 0, B)[0]  # noqa: E731
        return Part(module, call, [leaf(B, TOKENS, TOKEN_WIDTH)], macs, (2 * tokens, 3 * tokens))

    return {"GSTA, two layers": global_attention, "fusion": fusion, "RankMixer": mixer}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seconds", type=float, default=120.0, help="start nothing new after so many")
    options = parser.parse_args()
    torch.manual_seed(0)
    copied, multiplied = copy_rate(), product_rate()
    rows = Rows(options.out, "after_segments", "What follows the segments", options.seconds)
    rows.note(f"device copy {copied / 1e9:.3f} TB/s, bfloat16 product {2 * multiplied / 1e9:.0f} TFLOP/s")
    found = [
        rows.attempt(name, partial(lambda make: make().row(copied, multiplied), make)) for name, make in parts().items()
    ]
    done = [row for row in found if row is not None]
    for name in ("forward", "forward + backward"):
        floor, ms = (sum(row[f"{name} {what}"] for row in done) for what in ("floor", "ms"))
        rows.note(f"all {len(done)} parts, {name}: {ms:.3f} ms, floor {floor:.3f} ms, {floor / ms:.0%} of it")


if __name__ == "__main__":
    main()

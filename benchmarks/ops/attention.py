"""Segmented target attention beside what others run on the same events: time, memory and MACs, one table.

    PYTHONPATH=src python benchmarks/ops/attention.py --out results

Shape W1: 2048 samples with 1000 events each, width 128, 2 heads, segments of 10; bfloat16 on a GPU, float32 and a small
shape on a CPU. Every form goes from events x [B, L, D] (targets where it has them) to its output with its own
projections, as a layer would; forms with "core" are given queries, keys and values. None has a feed-forward network.
Gradients go to events, target and all weights.

- STA: absorbed query, this project's kernel, then W_V on the pooled segments; the layout of segments is made before;
- target attention: softmax over all events with one query a head (SDPA);
- causal: self-attention over the events (SDPA, FlexAttention);
- target-aware: candidates after the events, each seeing all events and itself (FlexAttention);
- HSTU: [U, V, Q, K] = SiLU(LN(x) W), A = SiLU(Q K^T / sqrt(d) + bias) / L, causal, x + W_o (LN(A V) * U), in plain
  PyTorch (our own), eager and compiled.

MACs are a sample's, of matrix products, the whole square of self-attention counted as papers do, though causal kernels
skip half. On a GPU each form is recorded as a CUDA graph and replayed, as LASER's training step is: the time is the
device's, not that of launching. MB is beyond inputs and weights, launched one by one. "parts": the batch had to be cut
into so many to fit, one after another.

Legend of shape suffixes: B samples; U sequences; L events; S rows of a sequence; D width; H heads; N segments.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import CUDA, DEVICE, milliseconds, offsets
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import layer_norm, scaled_dot_product_attention, silu

from laser.ops.segmented_attention import segmented_target_attention, tiling
from laser.ops.segments import SegmentLayout, segment_layout

sys.path.insert(0, str(Path(__file__).parents[1]))
from rows import Rows

QUERY_WIDTH = 16


@dataclass(frozen=True)
class Shape:
    """Of all forms, and their inputs."""

    B: int
    L: int
    D: int = 128
    H: int = 2
    width: int = 10
    dtype: torch.dtype = torch.bfloat16 if CUDA else torch.float32

    def randn(self, *sizes: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*sizes, device=DEVICE) * scale).to(self.dtype).requires_grad_()

    def weight(self, inputs: int, outputs: int) -> Tensor:
        return self.randn(inputs, outputs, scale=inputs**-0.5)

    def heads(self, x: Tensor) -> Tensor:
        """[..., S, D] -> [..., H, S, D / H]."""
        return x.unflatten(-1, (self.H, -1)).transpose(-3, -2)


@dataclass
class Form:
    """A function of tensors with the sequence (or sample) first, and of weights."""

    inputs: list[Tensor]
    weights: list[Tensor]
    macs: int
    function: Callable[..., Tensor]
    most_parts: int = 8
    values: dict[str, Any] = field(default_factory=dict)

    def forward(self, parts: int) -> Tensor:
        outputs = [self.function(*some, *self.weights) for some in self._cut(parts)]
        return outputs[-1]

    def forward_backward(self, parts: int) -> None:
        for some in self._cut(parts):
            output = self.function(*some, *self.weights)
            torch.autograd.grad(output, [*some, *self.weights], torch.ones_like(output))

    def _cut(self, parts: int) -> list[tuple[Tensor, ...]]:
        if parts == 1:
            return [tuple(self.inputs)]
        cut = [tensor.detach().chunk(parts) for tensor in self.inputs]
        return [tuple(tensor.requires_grad_() for tensor in some) for some in zip(*cut, strict=True)]


def measure(form: Form) -> dict[str, Any]:
    """Forward alone and with backward; what fails is said in its place."""
    found: dict[str, Any] = {"MACs": f"{form.macs:.3g}"}
    for name, work in (("forward", torch.no_grad()(form.forward)), ("forward + backward", form.forward_backward)):
        try:
            found |= in_parts(name, work, form.most_parts)
        except Exception as error:
            found[f"{name} ms"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
    return found


def in_parts(name: str, work: Callable[[int], object], most: int) -> dict[str, Any]:
    """In one part if it fits, otherwise in two, ..."""
    parts = 1
    while True:
        try:
            work(parts)
            break
        except torch.cuda.OutOfMemoryError:
            if parts == most:
                raise
        torch.cuda.empty_cache()
        parts *= 2
    if CUDA:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work(parts)
        megabytes = round((torch.cuda.max_memory_allocated() - before) / 2**20)
    ms, spread = milliseconds(replayed(lambda: work(parts)), repeats=10)
    found: dict[str, Any] = {f"{name} ms": ms, f"{name} spread": spread}
    if CUDA:
        found[f"{name} MB"] = megabytes
    return found | ({f"{name} parts": parts} if parts > 1 else {})


def replayed(work: Callable[[], object]) -> Callable[[], object]:
    """The same kernels as one launch: a layer inside a recorded step, not the host's pace, is what is compared."""
    if not CUDA:
        return work
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        work()
    return graph.replay


def sta(shape: Shape, candidates: int) -> Form:
    """From events and targets to segments [G, D]."""
    U, D, H = shape.B // candidates, shape.D, shape.H
    lengths, history_B = torch.full((U,), shape.L), torch.arange(U).repeat_interleave(candidates)
    off_U1 = offsets(lengths)
    layout, history_B = laid_out(shape, off_U1, history_B), history_B.to(DEVICE)
    bias_H = torch.full((H,), -2.3, device=DEVICE, requires_grad=True)

    def layer(x_ULD: Tensor, target_BD: Tensor, query_DHQ: Tensor, key_DHQ: Tensor, value_HDV: Tensor, bias_H: Tensor):
        query_BHQ = torch.einsum("bd,dhq->bhq", target_BD, query_DHQ) * QUERY_WIDTH**-0.5
        query_BHD = torch.einsum("bhq,dhq->bhd", query_BHQ, key_DHQ)
        x_TD = x_ULD.flatten(0, 1)
        pooled = segmented_target_attention(x_TD, off_U1, query_BHD, bias_H, history_B, shape.width, layout=layout)
        return torch.einsum("ghd,hdv->ghv", pooled[0], value_HDV).flatten(1)

    segments, small = -(-shape.L // shape.width), D * H * QUERY_WIDTH
    weights = [shape.randn(D, H, QUERY_WIDTH, scale=D**-0.5) for _ in range(2)]
    weights += [shape.randn(H, D, D // H, scale=D**-0.5), bias_H]
    inputs = [shape.randn(U, shape.L, D), shape.randn(shape.B, D)]
    return Form(inputs, weights, 2 * small + 2 * shape.L * H * D + segments * D * D, layer, most_parts=1)


def laid_out(shape: Shape, off_U1: Tensor, history_B: Tensor) -> SegmentLayout:
    """Made once, as in training, where one layout serves all layers of a batch."""
    tiles = tiling(shape.randn(0, shape.D), shape.randn(0, shape.H, shape.D), shape.width)
    return segment_layout(off_U1.cpu(), history_B, shape.width, tiles, DEVICE)


def sta_core(shape: Shape) -> Form:
    """The op alone."""
    off_U1, history_B = offsets(torch.full((shape.B,), shape.L)), torch.arange(shape.B)
    layout, history_B = laid_out(shape, off_U1, history_B), history_B.to(DEVICE)
    bias_H = torch.full((shape.H,), -2.3, device=DEVICE, requires_grad=True)

    def core(x_BLD: Tensor, query_BHD: Tensor, bias_H: Tensor) -> Tensor:
        x_TD = x_BLD.flatten(0, 1)
        return segmented_target_attention(x_TD, off_U1, query_BHD, bias_H, history_B, shape.width, layout=layout)[0]

    inputs = [shape.randn(shape.B, shape.L, shape.D), shape.randn(shape.B, shape.H, shape.D, scale=shape.D**-0.5)]
    return Form(inputs, [bias_H], 2 * shape.L * shape.H * shape.D, core, most_parts=1)


def target_attention(shape: Shape, candidates: int, core: bool) -> Form:
    """Softmax over the events, one query a candidate and head."""
    U, L, D = shape.B // candidates, shape.L, shape.D
    if core:
        inputs = [shape.randn(U, shape.H, candidates, D // shape.H)]
        inputs += [shape.randn(U, shape.H, L, D // shape.H) for _ in range(2)]
        return Form(inputs, [], 2 * L * D, scaled_dot_product_attention)

    def layer(x_ULD: Tensor, target_UCD: Tensor, query_DD: Tensor, key_DD: Tensor, value_DD: Tensor) -> Tensor:
        parts = (target_UCD @ query_DD, x_ULD @ key_DD, x_ULD @ value_DD)
        return scaled_dot_product_attention(*(shape.heads(part) for part in parts))

    inputs = [shape.randn(U, L, D), shape.randn(U, candidates, D)]
    macs = 2 * L * D * D // candidates + 2 * L * D + D * D
    return Form(inputs, [shape.weight(D, D) for _ in range(3)], macs, layer)


def self_attention(shape: Shape, attend: Callable[..., Tensor], core: bool, candidates: int = 0) -> Form:
    """Softmax self-attention over events, and over the candidates behind them where there are any."""
    rows, D = shape.L + candidates, shape.D
    U, per_sample = shape.B // max(1, candidates), max(1, candidates)
    if core:
        inputs = [shape.randn(U, shape.H, rows, D // shape.H) for _ in range(3)]
        return Form(inputs, [], 2 * rows * rows * D // per_sample, attend)

    def layer(x_USD: Tensor, weight_DE: Tensor) -> Tensor:
        return attend(*(shape.heads(part) for part in (x_USD @ weight_DE).chunk(3, dim=-1)))

    macs = (3 * rows * D * D + 2 * rows * rows * D) // per_sample
    return Form([shape.randn(U, rows, D)], [shape.weight(D, 3 * D)], macs, layer)


def flex(shape: Shape, compiled: bool, candidates: int = 0) -> Callable[..., Tensor]:
    """FlexAttention with a causal or a target-aware mask."""
    length, rows = shape.L, shape.L + candidates

    def causal(_b: Tensor, _h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        return q >= kv

    def target_aware(_b: Tensor, _h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        return (q >= kv) & ((kv < length) | (q == kv))

    mask = create_block_mask(target_aware if candidates else causal, None, None, rows, rows, device=str(DEVICE))
    attend = torch.compile(flex_attention, dynamic=False) if compiled else flex_attention
    return lambda q, k, v: attend(q, k, v, block_mask=mask)


def hstu(shape: Shape, compiled: bool) -> Form:
    """One layer."""
    L, D, H = shape.L, shape.D, shape.H
    seen_LL = torch.ones(L, L, device=DEVICE, dtype=shape.dtype).tril() / L

    def layer(x_BLD: Tensor, weight_DE: Tensor, out_DD: Tensor, distance_HE: Tensor) -> Tensor:
        bias_HLL = distance_HE.unfold(1, L, 1).flip(-1)  # by the distance of query and key, 2 L - 1 of them
        gate, *parts = silu(layer_norm(x_BLD, (D,)) @ weight_DE).chunk(4, dim=-1)
        value, query, key = (shape.heads(part) for part in parts)
        score_BHLL = query @ key.transpose(2, 3) * (D // H) ** -0.5 + bias_HLL
        mixed_BLD = ((silu(score_BHLL) * seen_LL) @ value).transpose(1, 2).flatten(2)
        return x_BLD + (layer_norm(mixed_BLD, (D,)) * gate) @ out_DD

    weights = [shape.weight(D, 4 * D), shape.weight(D, D), shape.randn(H, 2 * L - 1, scale=0.02)]
    function = torch.compile(layer, dynamic=False) if compiled else layer
    return Form([shape.randn(shape.B, L, D)], weights, 5 * L * D * D + 2 * L * L * D, function)


def forms(shape: Shape, compiled: bool, candidates: int) -> dict[str, Callable[[], Form]]:
    """Made one at a time: inputs are large."""
    many = f", {candidates} candidates a history"
    causal_sdpa = partial(scaled_dot_product_attention, is_causal=True)
    return {
        "STA": lambda: sta(shape, 1),
        "target attention, SDPA": lambda: target_attention(shape, 1, False),
        "causal, SDPA": lambda: self_attention(shape, causal_sdpa, False),
        "HSTU, eager": lambda: hstu(shape, False),
        "STA, core": lambda: sta_core(shape),
        "target attention, SDPA, core": lambda: target_attention(shape, 1, True),
        "causal, SDPA, core": lambda: self_attention(shape, causal_sdpa, True),
        f"STA{many}": lambda: sta(shape, candidates),
        f"target attention, SDPA{many}": lambda: target_attention(shape, candidates, False),
        "causal, FlexAttention": lambda: self_attention(shape, flex(shape, compiled), False),
        f"target-aware, FlexAttention{many}": lambda: self_attention(
            shape, flex(shape, compiled, candidates), False, candidates
        ),
        **({"HSTU, compiled": lambda: hstu(shape, True)} if compiled else {}),
        "target-aware, FlexAttention": lambda: self_attention(shape, flex(shape, compiled, 1), False, 1),
        "causal, FlexAttention, core": lambda: self_attention(shape, flex(shape, compiled), True),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--batch", type=int, default=2048 if CUDA else 16, help="samples, a multiple of 8")
    parser.add_argument("--events", type=int, default=1000 if CUDA else 100)
    parser.add_argument("--eager", action="store_true", help="nothing through torch.compile; the default on a CPU")
    parser.add_argument("--only", default="", help="forms whose name has this in it")
    parser.add_argument("--seconds", type=float, default=90.0, help="start nothing new after so many")
    options = parser.parse_args()
    if options.batch % 8 or options.batch < 8:
        parser.error(f"--batch is {options.batch}; expected a multiple of 8")
    rows = Rows(options.out, "attention", "Attention over equal shapes", options.seconds)
    torch.manual_seed(0)
    shape = Shape(options.batch, options.events)
    made = forms(shape, CUDA and not options.eager, 8)
    for name, form in made.items():
        if options.only in name:
            rows.attempt(name, lambda form=form: measure(form()))
            torch.compiler.reset()  # each form is compiled for its own shape
    ratios(rows)


def ratios(rows: Rows) -> None:
    """Every layer against STA with as many candidates."""
    for name, row in rows.rows.items():
        ours = rows.rows.get("STA" + (", 8 candidates a history" if "8 candidates" in name else ""), {})
        if "core" in name or row is ours:
            continue
        told = []
        for what in ("forward ms", "forward + backward ms", "forward MB", "forward + backward MB"):
            theirs, mine = row.get(what), ours.get(what)
            if isinstance(theirs, int | float) and isinstance(mine, int | float) and mine:
                told.append(f"{what.removesuffix(' ms')} {theirs / mine:.1f}")
        if told:
            rows.note(f"{name}, times STA's: {', '.join(told)}")


if __name__ == "__main__":
    main()

"""Compile every launch of the ops for a GPU that need not be there; ``test_compiles.py`` runs it as a process.

    python tests/ops/compile_kernels.py 90 bfloat16 float32

Ops are called with tensors of the CPU as if they were a GPU's; where a kernel would be launched it is compiled for the
compute capability instead, with the arguments' types and the launch's own options. What ops return means nothing.
Prints a line a kernel: module, name, first tensor's type, shared memory in bytes.
"""

from __future__ import annotations

import sys
from itertools import product
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from laser.ops.address_copy.triton import AddressCopy
from laser.ops.attention_tail import attention_tail
from laser.ops.click_loss import click_loss
from laser.ops.feed_forward import grouped_feed_forward
from laser.ops.folded_query import folded_query
from laser.ops.gated_recurrence import gated_recurrence
from laser.ops.gather_sum import gather_sum
from laser.ops.keep_factor import keep_factor
from laser.ops.linear import grouped_linear, linear
from laser.ops.mixed_norm import mixed_norm
from laser.ops.newest_mean import newest_mean
from laser.ops.residual_norm import residual_norm
from laser.ops.segment_readout import segment_readout
from laser.ops.segmented_attention import segmented_target_attention
from laser.ops.target_attention import joined_attention, segment_softmax_attention

POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
}
OPTIONS = ("num_warps", "num_stages", "maxnreg")
WIDTH = 128


def type_of(value: Any) -> str:
    if isinstance(value, Tensor):
        return POINTERS[value.dtype]
    return "fp32" if isinstance(value, float) else "i64"


def compiled(self: JITFunction, *arguments: Any, grid: Any, warmup: bool = False, **named: Any) -> None:
    """In place of a launch."""
    options = {name: named.pop(name) for name in OPTIONS if name in named}
    values = dict(zip(self.arg_names, arguments)) | named
    fixed = {p.name: values[p.name] for p in self.params if p.is_constexpr}
    signature = {p.name: "constexpr" if p.is_constexpr else type_of(values[p.name]) for p in self.params}
    # Tensors begin at multiples of 16 bytes: else nothing is copied to shared memory ahead of its use.
    aligned = {(place,): [["tt.divisibility", 16]] for place, kind in enumerate(signature.values()) if kind[0] == "*"}
    source = ASTSource(fn=self, signature=signature, constexprs=fixed, attrs=aligned)
    kernel = triton.compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options=options)
    first = next(kind for kind in signature.values() if kind.startswith("*"))
    assert kernel.asm["cubin"]
    print(self.fn.__module__, self.fn.__name__, first[1:], kernel.metadata.shared, flush=True)


def backward(*outputs: Tensor) -> None:
    sum(output.float().sum() for output in outputs).backward()


def call_all(dtype: torch.dtype) -> None:
    """Every op, forward and backward: histories of 25, 0 and 7 events, with and without candidates that share one."""
    off = torch.tensor([0, 25, 25, 32])
    events = torch.randn(32, WIDTH, dtype=dtype, requires_grad=True)
    for history in (torch.arange(3), torch.tensor([0, 0, 1, 2, 2])):
        query = torch.randn(len(history), 2, WIDTH, requires_grad=True)
        bias = torch.zeros(2, requires_grad=True)
        backward(segmented_target_attention(events, off, query, bias, history, 10)[0])
        segmented_target_attention(events, off, query, bias, history, 10, return_gates=True)
    for heads in (2, 9):
        query = torch.randn(3, heads, WIDTH, requires_grad=True)
        backward(segment_softmax_attention(query, events, off))
        backward(*joined_attention(query, events, off))
    backward(*segment_readout(events, off, 4))
    index, weight, scale = torch.zeros(9000, 3, dtype=torch.int32), torch.ones(9000, 3), torch.ones(9000)
    rows = torch.randn(200, WIDTH, dtype=dtype, requires_grad=True)
    for weights, scales in product((None, weight), (None, scale)):
        backward(gather_sum(events, index, weights, scales))
        backward(gather_sum(rows, index, weights, scales, few=((64, 1), (128, 1))))
    backward(gather_sum(events, index[:9], None, None))
    backward(*newest_mean(events, off, 4))
    for other in (torch.float32, dtype):
        a = torch.randn(32, 8, WIDTH, dtype=other, requires_grad=True)
        b = torch.randn(8, 32, WIDTH, dtype=dtype, requires_grad=True)
        weight_D, bias_D = (torch.ones(WIDTH, requires_grad=True) for _ in range(2))
        backward(residual_norm(a, b.transpose(0, 1), weight_D, bias_D))
    for M, D in ((2, 16), (16, 256), (8, 1024)):
        x = torch.randn(M, 32, D, dtype=dtype, requires_grad=True)
        weight_D, bias_D = (torch.ones(D, requires_grad=True) for _ in range(2))
        backward(mixed_norm(x.transpose(0, 1), weight_D, bias_D))
    for D in (64, WIDTH):
        products, scales, gates, candidate = (
            torch.randn(*shape, dtype=dtype, requires_grad=True)
            for shape in ((3, 5, 3 * D), (3, 5), (2 * D, D), (D, D))
        )
        backward(gated_recurrence(products, scales, gates, candidate))
    for rows in (3, 3000):
        x = torch.randn(rows, 2, WIDTH, dtype=dtype)
        weight, bias = (torch.randn(*shape, WIDTH, dtype=dtype, requires_grad=True) for shape in ((2, WIDTH), (2,)))
        backward(grouped_linear(x, weight, bias))
        backward(linear(x, weight[0], bias[0]))
        backward(grouped_feed_forward(x, weight, bias, weight, bias))
    for Q in (16, WIDTH // 2, WIDTH):
        weights = (torch.randn(2, WIDTH, Q, requires_grad=True) for _ in range(2))
        backward(folded_query(torch.randn(3, WIDTH, requires_grad=True), *weights, 1.0))
    for D, H in ((32, 1), (WIDTH, 1), (WIDTH, 2)):
        shapes = (3, D), (3, H, D), (H, D, D // H), (D, D), (D,), (D,), (4 * D, D), (4 * D,), (D, 4 * D), *[(D,)] * 3
        leaves = [torch.ones(shape, requires_grad=True) for shape in shapes]
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            backward(attention_tail(*leaves))
    keep_factor(0.1, 1, torch.tensor(2), off, off, dtype)
    keep_factor(0.1, 1, 2, off, 1024, dtype)
    click_loss(scale, scale, 7)
    copy = AddressCopy([off, events.detach()])
    copy(torch.tensor(copy.sources([off, events.detach()])))


if __name__ == "__main__":
    for name, module in list(sys.modules.items()):
        if name.startswith("laser.ops") and hasattr(module, "use_triton"):
            module.use_triton = lambda tensor: True
    JITFunction.run = compiled
    for kind in sys.argv[2:]:
        call_all(getattr(torch, kind))

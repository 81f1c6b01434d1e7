"""Every op on a GPU against the bytes that it has to move, and beside other ways to compute the same."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from harness import (
    CUDA,
    DEVICE,
    Report,
    copy_rate,
    gather_inputs,
    offsets,
    timed,
)
from torch import Tensor

from laser.ops.gather_sum import gather_sum
from laser.ops.keep_factor import keep_factor
from laser.ops.keep_factor import naive as keep_naive
from laser.ops.mixed_norm import mix_tokens, mixed_norm
from laser.ops.newest_mean import naive as newest_naive
from laser.ops.newest_mean import newest_mean
from laser.ops.residual_norm import residual_norm
from laser.ops.segment_readout import cpu as readout_cpu
from laser.ops.segment_readout import segment_readout
from laser.ops.segmented_attention import attend, lay_out, segmented_target_attention
from laser.ops.segmented_attention import cpu as segmented_cpu
from laser.ops.segments import SegmentLayout
from laser.ops.target_attention import segment_softmax_attention


class W1:
    """The reference shape (reduced on a CPU), with its floors."""

    def __init__(self, copy_bytes_per_ms: float, candidates: int = 1, dtype: torch.dtype = torch.bfloat16) -> None:
        self.B, self.L = (2048, 1000) if CUDA else (64, 200)
        self.D, self.H, self.width = 128, 2, 10
        self.dtype = dtype if CUDA else torch.float32
        U = self.B // candidates
        torch.manual_seed(0)
        self.x = torch.randn(U * self.L, self.D, device=DEVICE).to(self.dtype).requires_grad_()
        self.query = (torch.randn(self.B, self.H, self.D, device=DEVICE) / self.D**0.5).to(self.dtype).requires_grad_()
        self.bias = torch.full((self.H,), -2.3, device=DEVICE, requires_grad=True)
        self.off = offsets(torch.full((U,), self.L))
        self.history = torch.arange(self.B, device=DEVICE) % U
        self.on_host = self.off.cpu(), self.history.cpu()
        self.layout = self.lay_out()
        pooled, self.gate = self.implementation().forward(
            self.x.detach(), self.query.detach(), self.bias.detach(), self.layout
        )
        self.upstream = torch.randn_like(pooled)
        size_x, size_pooled = self.x.nbytes, pooled.nbytes
        self.forward_floor = (size_x + size_pooled) / copy_bytes_per_ms
        self.gates_floor = (size_x + size_pooled + self.gate.nbytes) / copy_bytes_per_ms
        self.backward_floor = (2 * size_x + size_pooled) / copy_bytes_per_ms

    def lay_out(self) -> SegmentLayout:
        return lay_out(self.x, self.query, *self.on_host, self.width)

    def implementation(self):
        if not CUDA:
            return segmented_cpu
        from laser.ops.segmented_attention import triton

        return triton

    def forward_backward(self) -> object:
        pooled, _ = segmented_target_attention(
            self.x, self.off, self.query, self.bias, self.history, self.width, on_host=self.on_host
        )
        return torch.autograd.grad(pooled, (self.x, self.query, self.bias), self.upstream)


def measure_segmented(report: Report, shape: W1, label: str) -> None:
    x, query, bias, layout = shape.x.detach(), shape.query.detach(), shape.bias.detach(), shape.layout
    ours = shape.implementation()
    keep = not CUDA
    report.attempt(f"STA {label} layout on the host, one copy", lambda: timed(shape.lay_out))
    for name, work, floor, calls in (
        ("forward kernel", lambda: ours.forward(x, query, bias, layout, keep_gates=keep), shape.forward_floor, 10),
        ("forward kernel with gates", lambda: ours.forward(x, query, bias, layout), shape.gates_floor, 10),
        (
            "backward kernels",
            lambda: ours.backward(shape.upstream, x, query, bias, shape.gate, layout),
            shape.backward_floor,
            10,
        ),
        ("forward, op on a known layout", lambda: attend(x, query, bias, layout), shape.forward_floor, 1),
        (
            "forward, public op",
            lambda: segmented_target_attention(
                x, shape.off, query, bias, shape.history, shape.width, on_host=shape.on_host
            ),
            shape.forward_floor,
            1,
        ),
        ("forward + backward, public op", shape.forward_backward, shape.forward_floor + shape.backward_floor, 1),
    ):
        report.attempt(f"STA {label} {name}", lambda w=work, f=floor, c=calls: timed(w, f, c))


def measure_others(report: Report, copy_bytes_per_ms: float) -> None:
    B, N = (2048, 100) if CUDA else (64, 20)
    dtype = torch.bfloat16 if CUDA else torch.float32
    seg = torch.randn(B * N, 128, device=DEVICE).to(dtype).requires_grad_()
    query = (torch.randn(B, 2, 128, device=DEVICE) / 11).to(dtype).requires_grad_()
    seg_off = offsets(torch.full((B,), N))
    read = seg.nbytes / copy_bytes_per_ms

    def attention() -> Tensor:
        return segment_softmax_attention(query, seg, seg_off)

    def readout() -> Tensor:
        maximum, newest = segment_readout(seg, seg_off, 4)
        return torch.cat([maximum[:, None], newest], 1)

    for name, op, inputs in (("target attention", attention, (query, seg)), ("segment readout", readout, (seg,))):
        upstream = torch.randn_like(op())
        report.attempt(f"{name} forward", lambda op=op: timed(torch.no_grad()(op), read))
        report.attempt(
            f"{name} forward + backward",
            lambda op=op, inputs=inputs, upstream=upstream: timed(
                lambda: torch.autograd.grad(op(), inputs, upstream), 3 * read
            ),
        )


def measure_residual(report: Report, copy_bytes_per_ms: float) -> None:
    """A norm of a sum as the models have it, beside PyTorch's. Floors: a, b, y; then d_y, a, b, and d_a, d_b."""
    D = 128
    for N in (2048, 32_768) if CUDA else (2048,):
        a = torch.randn(N, D, device=DEVICE, requires_grad=True)
        b = torch.randn(N, D, device=DEVICE).to(torch.bfloat16 if CUDA else torch.float32).requires_grad_()
        weight, bias = (torch.ones(D, device=DEVICE, requires_grad=True) for _ in range(2))
        upstream = torch.randn(N, D, device=DEVICE)
        inputs = (a, b, weight, bias)
        floor = (a.nbytes + b.nbytes + upstream.nbytes) / copy_bytes_per_ms
        both = floor + (2 * a.nbytes + 2 * b.nbytes + upstream.nbytes) / copy_bytes_per_ms

        def ours(inputs: tuple[Tensor, ...] = inputs) -> Tensor:
            return residual_norm(*inputs)

        def plain(inputs: tuple[Tensor, ...] = inputs) -> Tensor:
            return F.layer_norm(inputs[0] + inputs[1], (D,), *inputs[2:])

        for name, op in (("residual norm", ours), ("layer_norm(a + b)", plain)):
            what = f"{name}, {N} rows"
            report.attempt(f"{what} forward", lambda op=op, f=floor: timed(torch.no_grad()(op), f, 10))
            report.attempt(
                f"{what} forward + backward",
                lambda op=op, i=inputs, u=upstream, f=both: timed(lambda: torch.autograd.grad(op(), i, u), f, 10),
            )


def measure_mixed(report: Report, copy_bytes_per_ms: float) -> None:
    """The mixer's first norm, beside a mixed copy and the norm of a sum. Floors: x, y; then d_y, x, d_x."""
    B, M, D = (2048, 16, 256) if CUDA else (64, 16, 256)
    x, weight, bias = (torch.randn(*shape, device=DEVICE) for shape in ((B, M, D), (D,), (D,)))
    inputs = [leaf.requires_grad_() for leaf in (x.to(torch.bfloat16 if CUDA else torch.float32), weight, bias)]
    upstream = torch.randn_like(inputs[0])
    floor = 2 * upstream.nbytes / copy_bytes_per_ms

    def ours() -> Tensor:
        return mixed_norm(*inputs)

    def copied() -> Tensor:
        return residual_norm(mix_tokens(inputs[0]), *inputs)

    for name, op in (("mixed norm", ours), ("mixed norm by a copy and the residual norm", copied)):
        report.attempt(f"{name} forward", lambda op=op: timed(torch.no_grad()(op), floor, 10))
        report.attempt(
            f"{name} forward + backward",
            lambda op=op: timed(lambda: torch.autograd.grad(op(), inputs, upstream), 2.5 * floor, 10),
        )


def measure_gather(report: Report, copy_bytes_per_ms: float) -> None:
    """Events of a step of ASSISTments (three fields, one with three values, age and rank), against copies per event."""
    T, R, D = (400_000, 3_200, 128) if CUDA else (20_000, 500, 128)
    dtype = torch.bfloat16 if CUDA else torch.float32
    rows, index, weight, scale = gather_inputs(T, 6, R, D, dtype)
    rows.requires_grad_()
    upstream = torch.randn(T, D, device=DEVICE).to(dtype)
    write = upstream.nbytes / copy_bytes_per_ms
    embeddings = torch.randn(R, 64, device=DEVICE, requires_grad=True)
    layer = torch.nn.Linear(4 * 64, D, device=DEVICE)

    def copies() -> Tensor:
        parts = [F.embedding(index[:, field], embeddings) for field in (0, 4, 5)]
        parts.append((F.embedding(index[:, 1:4], embeddings) * weight[:, 1:4, None]).sum(1))
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=CUDA):
            return layer(torch.cat(parts, 1)) * scale.to(dtype)[:, None]

    def gathered() -> Tensor:
        return gather_sum(rows, index, weight, scale)

    def plain() -> Tensor:
        return gather_sum(rows, index, None, scale)

    for name, op, inputs in (
        ("sum of rows", gathered, (rows,)),
        ("sum of rows, no weights", plain, (rows,)),
        ("copies", copies, (embeddings, layer.weight)),
    ):
        report.attempt(f"events by {name}, forward", lambda op=op: timed(torch.no_grad()(op), write))
        report.attempt(
            f"events by {name}, forward + backward",
            lambda op=op, inputs=inputs: timed(lambda: torch.autograd.grad(op(), inputs, upstream), 2 * write),
        )


def measure_keep(report: Report, copy_bytes_per_ms: float) -> None:
    """Dropout's factors of events and of tokens."""
    T, B, E = (404_000, 1024, 1024) if CUDA else (20_000, 64, 1024)
    step, key_T, key_B = torch.tensor(7, device=DEVICE), torch.arange(T, device=DEVICE), torch.arange(B, device=DEVICE)
    for name, function in (("op", keep_factor), ("naive", keep_naive.keep_factor)):
        for what, work, moved in (
            ("events", lambda f=function: f(0.1, 5, step, key_T, key_T, torch.float32), T * 20),
            ("tokens", lambda f=function: f(0.1, 5, step, key_B, E, torch.bfloat16), B * E * 2),
        ):
            report.attempt(f"dropout of {what}, {name}", lambda w=work, m=moved: timed(w, m / copy_bytes_per_ms, 10))


def measure_newest(report: Report, copy_bytes_per_ms: float) -> None:
    """Beside one other use of the events, as in a training step, by the op and as PyTorch does it."""
    U, T, D, newest = (1024, 404_000, 128, 100) if CUDA else (64, 20_000, 128, 100)
    dtype = torch.bfloat16 if CUDA else torch.float32
    x = torch.randn(T, D, device=DEVICE).to(dtype).requires_grad_()
    off = torch.linspace(0, T, U + 1, device=DEVICE, dtype=torch.float64).long()
    upstream = torch.randn(T, D, device=DEVICE).to(dtype), torch.randn(U, D, device=DEVICE).to(dtype)
    forward = U * newest * D * x.itemsize / copy_bytes_per_ms
    both = 3 * forward + 2 * x.nbytes / copy_bytes_per_ms

    def work(function: Callable) -> object:
        out, mean = function(x, off, newest)
        # view_as is the other use: its gradient is made already, and no kernel of its own is timed.
        return torch.autograd.grad((out.view_as(out), mean), x, upstream)

    for name, function in (("op", newest_mean), ("naive", newest_naive.newest_mean)):
        without = torch.no_grad()(lambda f=function: f(x, off, newest))
        report.attempt(f"newest mean, {name}, forward", lambda w=without: timed(w, forward, 10))
        report.attempt(f"newest mean, {name}, forward + backward", lambda f=function: timed(lambda: work(f), both, 10))


def measure_peers(report: Report, shape: W1) -> None:
    """The same mathematics in plain PyTorch, and what others would run instead, on equal padded shapes."""
    B, L, D, H, w = shape.B, shape.L, shape.D, shape.H, shape.width
    x_BLD = shape.x.detach().view(B, L, D).requires_grad_()
    query_BHD, bias_H = shape.query, shape.bias
    key_weight = torch.randn(D, 32, device=DEVICE, dtype=shape.dtype) / D**0.5
    value_weight = torch.randn(D, D, device=DEVICE, dtype=shape.dtype) / D**0.5
    small_query = torch.randn(B, H, 16, device=DEVICE, dtype=shape.dtype, requires_grad=True)

    def paper(x: Tensor, q: Tensor) -> Tensor:
        key = (x @ key_weight).view(B, L // w, w, H, 16)
        value = (x @ value_weight).view(B, L // w, w, H, D // H)
        gate = torch.sigmoid((key * q[:, None, None]).sum(-1).float() / 4 + bias_H).to(value.dtype)
        return (gate[..., None] * value).sum(2)

    def absorbed(x: Tensor, q: Tensor) -> Tensor:
        x = x.view(B, L // w, w, D)
        gate = torch.sigmoid(torch.einsum("bnwd,bhd->bnwh", x, q).float() + bias_H).to(x.dtype)
        return torch.einsum("bnwh,bnwd->bnhd", gate, x)

    def measure_form(name: str, form: Callable[[Tensor, Tensor], Tensor], q: Tensor) -> None:
        def forward_backward() -> tuple[Tensor, ...]:
            return torch.autograd.grad(form(x_BLD, q), (x_BLD, q), upstream)

        upstream = torch.randn(B, L // w, H, D if q is query_BHD else D // H, device=DEVICE)
        upstream = upstream.to(shape.dtype)
        floor = shape.forward_floor + shape.backward_floor
        forward = torch.no_grad()(lambda: form(x_BLD, q))
        report.attempt(f"{name}, forward", lambda: timed(forward, shape.forward_floor))
        report.attempt(f"{name}, forward + backward", lambda: timed(forward_backward, floor))

    measure_form("paper form, eager", paper, small_query)
    measure_form("absorbed form, eager", absorbed, query_BHD)
    heads = x_BLD.detach().view(B, L, H, D // H).transpose(1, 2)
    one = torch.randn(B, H, 1, D // H, device=DEVICE, dtype=shape.dtype)
    report.attempt(
        "SDPA, one target over L, K and V given, forward",
        lambda: timed(lambda: F.scaled_dot_product_attention(one, heads, heads)),
    )
    report.attempt(
        "SDPA, causal over L, q k v given, forward",
        lambda: timed(lambda: F.scaled_dot_product_attention(heads, heads, heads, is_causal=True)),
    )
    if CUDA:
        measure_form("paper form, compiled", torch.compile(paper), small_query)
        measure_form("absorbed form, compiled", torch.compile(absorbed), query_BHD)


def measure(report: Report) -> None:
    rate = copy_rate()
    report.add("device copy", TB_per_s=rate / 1e9)
    measure_gather(report, rate)
    measure_keep(report, rate)
    measure_newest(report, rate)
    shape = W1(rate)
    measure_segmented(report, shape, "W1")
    measure_segmented(report, W1(rate, candidates=8), "W1, 8 candidates a history")
    if CUDA:
        measure_segmented(report, W1(rate, dtype=torch.float32), "W1 in float32")
    measure_others(report, rate)
    measure_residual(report, rate)
    measure_mixed(report, rate)
    measure_peers(report, shape)
    if not CUDA:
        seg_off = offsets(torch.full((64,), 20))
        seg = torch.randn(64 * 20, 128)
        report.attempt("segment readout, tiles alone", lambda: timed(lambda: readout_cpu.forward(seg, seg_off, 4)))

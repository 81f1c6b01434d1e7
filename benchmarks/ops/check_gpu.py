"""Verify every op on a GPU, then measure it: one command, under three minutes, everything needed to fix what fails.

    PYTHONPATH=src python benchmarks/ops/check_gpu.py --out results

Needs torch, Triton and numpy only. Prints a table, full tracebacks of what failed (it goes on), and writes
``ops.json`` and ``ops.md`` under ``--out``. Without a GPU it runs the CPU paths in a reduced shape.

Shape W1: B=2048 histories of L=1000 events, width 10, D=128, H=2, bfloat16 (and float32). Floors: x read once and
pooled written, at the rate of a device copy measured in the same run; with gates, those too (backward: x and d_pooled
read, d_x written). Kernels are timed over ten calls in a row, so that launching hides behind computing.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from laser.ops.gather_sum import gather_sum
from laser.ops.gather_sum import naive as gather_naive
from laser.ops.keep_factor import keep_factor
from laser.ops.keep_factor import naive as keep_naive
from laser.ops.newest_mean import naive as newest_naive
from laser.ops.newest_mean import newest_mean
from laser.ops.residual_norm import naive as residual_naive
from laser.ops.residual_norm import residual_norm
from laser.ops.segment_readout import cpu as readout_cpu
from laser.ops.segment_readout import naive as readout_naive
from laser.ops.segment_readout import segment_readout
from laser.ops.segmented_attention import attend, lay_out, segmented_target_attention
from laser.ops.segmented_attention import cpu as segmented_cpu
from laser.ops.segmented_attention import naive as segmented_naive
from laser.ops.segments import SegmentLayout
from laser.ops.target_attention import naive as target_naive
from laser.ops.target_attention import segment_softmax_attention

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
LENGTHS = [0, 1, 9, 10, 11, 63, 0, 500, 1000, 3]
CASES = [
    (torch.float32, 128, 2, 10),
    (torch.bfloat16, 128, 2, 10),
    (torch.float16, 128, 2, 10),
    (torch.float32, 40, 1, 3),
    (torch.bfloat16, 200, 3, 7),
    (torch.float32, 512, 4, 10),
    (torch.bfloat16, 16, 2, 1),
    (torch.float32, 1, 1, 1000),
]


class Report:
    """Rows as they come, printed at once, written at the end."""

    def __init__(self, seconds: float, only: str = "") -> None:
        self.rows: list[dict] = []
        self.start, self.seconds, self.only = time.perf_counter(), seconds, only

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.start

    def add(self, what: str, **values: object) -> None:
        self.rows.append({"what": what, **values})
        shown = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
        print(f"[{self.elapsed:5.0f} s] {what:58s} {shown}", flush=True)

    def attempt(self, what: str, work: Callable[[], dict | None]) -> None:
        if self.only not in what:
            return
        if self.elapsed > self.seconds:
            self.add(what, skipped="out of time")
            return
        try:
            if (values := work()) is not None:
                self.add(what, **values)
        except Exception as error:
            self.add(what, failed=f"{type(error).__name__}: {str(error).splitlines()[:1]}")
            traceback.print_exc()
            if CUDA:
                torch.cuda.empty_cache()


def offsets(lengths: list[int] | Tensor) -> Tensor:
    return F.pad(torch.as_tensor(lengths, device=DEVICE).cumsum(0), (1, 0))


def relative_rms(value: Tensor, exact: Tensor) -> float:
    return float((value.double() - exact).norm() / exact.norm().clamp(min=1e-300))


def run(function: Callable[..., Tensor], inputs: list[Tensor], seed: int) -> tuple[Tensor, ...]:
    """Output and gradients of every input, for one fixed upstream gradient."""
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    output = function(*inputs)
    generator = torch.Generator(device=DEVICE).manual_seed(seed)
    upstream = torch.randn(output.shape, device=DEVICE, generator=generator).to(inputs[0].dtype).to(output.dtype)
    return output.detach(), *torch.autograd.grad(output, inputs, upstream)


def compare(fast: Callable, naive: Callable, inputs: list[Tensor], names: list[str]) -> dict:
    """The project's rule: error against float64 at most twice that of plain PyTorch in the same dtype."""
    exact = run(naive, [tensor.double() for tensor in inputs], 1)
    plain, ours, again = run(naive, inputs, 1), run(fast, inputs, 1), run(fast, inputs, 1)
    result: dict[str, object] = {}
    worst, floor = 0.0, 4 * torch.finfo(torch.float32).eps
    for name, e, p, o, a in zip(names, exact, plain, ours, again, strict=True):
        error, allowed = relative_rms(o, e), 2 * relative_rms(p, e) + floor
        worst = max(worst, error / allowed)
        if not error <= allowed:
            result[name] = f"WRONG {error:.2e} > {allowed:.2e}"
        if not torch.equal(o, a):
            result[f"{name} repeated"] = "DIFFERENT BITS"
    return {"ok": not result, "error_over_allowed": worst, **result}


def check_segmented(dtype: torch.dtype, D: int, H: int, width: int) -> dict:
    off_U1 = offsets(LENGTHS)
    history_of_B = torch.tensor([9, 0, 1, 2, 3, 8, 3, 4, 5, 6, 7, 8, 7, 7], device=DEVICE)
    torch.manual_seed(0)
    x = torch.randn(int(off_U1[-1]), D, device=DEVICE).to(dtype)
    query = (torch.randn(len(history_of_B), H, D, device=DEVICE) / D**0.5).to(dtype)
    bias = torch.randn(H, device=DEVICE)

    def op(function: Callable) -> Callable:
        return lambda x, q, b: function(x, off_U1, q, b, history_of_B, width)[0]

    names = ["pooled", "d_x", "d_query", "d_bias"]
    result = compare(
        op(segmented_target_attention), op(segmented_naive.segmented_target_attention), [x, query, bias], names
    )
    gates = [
        f(x, off_U1, query, bias, history_of_B, width, return_gates=True)[2]
        for f in (segmented_target_attention, segmented_naive.segmented_target_attention)
    ]
    return {**result, "gate_difference": float((gates[0] - gates[1]).abs().max())}


def check_target(dtype: torch.dtype, D: int, H: int) -> dict:
    seg_off = offsets([0, 1, 15, 100, 7, 1000, 0])
    torch.manual_seed(0)
    seg = torch.randn(int(seg_off[-1]), D, device=DEVICE).to(dtype)
    query = (torch.randn(7, H, D, device=DEVICE) / D**0.5).to(dtype)
    return compare(
        lambda q, s: segment_softmax_attention(q, s, seg_off),
        lambda q, s: target_naive.segment_softmax_attention(q, s, seg_off),
        [query, seg],
        ["pooled", "d_query", "d_seg"],
    )


def gather_inputs(T: int, S: int, R: int, D: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows, and events that use them unevenly: half of all slots name row 0."""
    torch.manual_seed(0)
    rows = torch.randn(R, D, device=DEVICE).to(dtype)
    index = (torch.rand(T, S, device=DEVICE).pow(3) * (R - 1)).int()
    index[torch.rand(T, S, device=DEVICE) < 0.5] = 0
    return rows, index, torch.rand(T, S, device=DEVICE), torch.rand(T, device=DEVICE)


def check_gather(dtype: torch.dtype, D: int) -> dict:
    rows, index, weight, scale = gather_inputs(5000, 5, 300, D, dtype)

    def naive(rows: Tensor) -> Tensor:
        return gather_naive.gather_sum(rows, index, weight.to(rows.dtype), scale.to(rows.dtype))

    return compare(lambda rows: gather_sum(rows, index, weight, scale), naive, [rows], ["sum", "d_rows"])


def check_readout(dtype: torch.dtype, D: int, newest: int) -> dict:
    seg_off = offsets([0, 1, 15, 100, 7, 1000, 0])
    torch.manual_seed(0)
    seg = torch.randn(int(seg_off[-1]), D, device=DEVICE).to(dtype)

    def op(function: Callable) -> Callable:
        def both(s: Tensor) -> Tensor:
            max_BD, newest_BRD = function(s, seg_off, newest)
            return torch.cat([max_BD[:, None], newest_BRD], 1)

        return both

    return compare(op(segment_readout), op(readout_naive.segment_readout), [seg], ["output", "d_seg"])


def check_keep(dtype: torch.dtype, D: int) -> dict:
    """Dropout's factors, per row and per element: to the bit, but for the last one of what survives."""
    key = torch.randint(-(2**62), 2**62, (3000,), device=DEVICE)
    step = torch.tensor(7, device=DEVICE)
    pairs = [
        [function(0.1, 5, step, key, position, dtype) for function in (keep_factor, keep_naive.keep_factor)]
        for position in (D, key.flip(0))
    ]
    same = [torch.equal(ours != 0, reference != 0) for ours, reference in pairs]
    close = [torch.allclose(ours.float(), reference.float(), rtol=1e-6) for ours, reference in pairs]
    return {"ok": all(same + close)}


def check_newest(dtype: torch.dtype, D: int, newest: int) -> dict:
    """The mean alone; the mean and the events that are handed on; and the mean's dtype under autocast."""
    off_U1 = offsets([*LENGTHS, newest - 1, newest, newest + 1])
    torch.manual_seed(0)
    # Some events lie behind the last history.
    x = torch.randn(int(off_U1[-1]) + 5, D, device=DEVICE).to(dtype)

    def mean(function: Callable) -> Callable:
        return lambda x: function(x, off_U1, newest)[1]

    def both(function: Callable) -> Callable:
        return lambda x: torch.cat(function(x, off_U1, newest))

    naive = newest_naive.newest_mean
    alone = compare(mean(newest_mean), mean(naive), [x], ["mean", "d_x of the mean"])
    result = {**alone, **compare(both(newest_mean), both(naive), [x], ["output", "d_x"])}
    with torch.autocast(DEVICE.type, torch.bfloat16):
        dtypes = [mean(function)(x).dtype for function in (newest_mean, naive)]
    worst = max(alone["error_over_allowed"], result["error_over_allowed"])
    ok = alone["ok"] and result["ok"] and dtypes[0] == dtypes[1]
    return {**result, "ok": ok, "error_over_allowed": worst, "dtypes_under_autocast": [str(each) for each in dtypes]}


def check_residual(dtype: torch.dtype, D: int) -> dict:
    """Contiguous rows, then what the mixer has: float32 tokens beside a transposed product in half precision."""
    torch.manual_seed(0)
    weight, bias = torch.rand(D, device=DEVICE) + 0.5, torch.randn(D, device=DEVICE)
    names = ["normed", "d_a", "d_b", "d_weight", "d_bias"]
    results = {}
    for case, (B, M, first) in {"rows": (5003, 1, dtype), "tokens": (301, 16, torch.float32)}.items():
        a = (5 + 3 * torch.randn(B, M, D, device=DEVICE)).to(first)
        b = torch.randn(M, B, D, device=DEVICE).to(dtype).transpose(0, 1)
        inputs = [a, b, weight, bias]
        found = compare(
            lambda *x: residual_norm(*x, 1e-5), lambda *x: residual_naive.residual_norm(*x, 1e-5), inputs, names
        )
        results |= {f"{case} {name}": value for name, value in found.items() if name != "ok"}
        results["ok"] = results.get("ok", True) and found["ok"]
    return results


def check_empty() -> dict:
    """No sample; no history; only empty histories; all under autocast and no_grad, too."""
    none = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    x = torch.randn(0, 8, device=DEVICE, requires_grad=True)
    bias = torch.zeros(2, device=DEVICE, requires_grad=True)
    for B, U in ((0, 0), (0, 3), (4, 3)):
        off, history = none.expand(U + 1).contiguous(), torch.zeros(B, dtype=torch.int64, device=DEVICE)
        query = torch.randn(B, 2, 8, device=DEVICE, requires_grad=True)
        pooled, seg_off = segmented_target_attention(x, off, query, bias, history, 3)
        user = segment_softmax_attention(query, x, seg_off)
        maximum, newest = segment_readout(x, seg_off, 2)
        _, mean = newest_mean(x, off, 3)
        loss = pooled.sum() + user.sum() + maximum.sum() + newest.sum() + mean.sum()
        grads = torch.autograd.grad(loss, (x, query, bias))
        assert all(not g.isnan().any() and not g.any() for g in grads), "gradients of nothing are not zero"
        assert not any(tensor.any() for tensor in (user, maximum, newest, mean)), (
            "what is read from nothing is not zero"
        )
        assert not any(tensor.any() for tensor in (user, maximum, newest)), "what is read from nothing is not zero"
    weights = [torch.ones(8, device=DEVICE, requires_grad=True) for _ in range(2)]
    grads = torch.autograd.grad(residual_norm(x, x, *weights).sum(), [x, *weights])
    assert not any(g.any() for g in grads), "gradients of a norm of nothing are not zero"
    x = torch.randn(20, 8, device=DEVICE, requires_grad=True)
    off, history = offsets([20]), torch.zeros(1, dtype=torch.int64, device=DEVICE)
    query = torch.randn(1, 2, 8, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        segmented_target_attention(x, off, query, bias, history, 3)[0].sum().backward()
    assert (x.grad.dtype, query.grad.dtype) == (torch.float32, torch.bfloat16)
    half = torch.randn(20, 8, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        normed, plain = residual_norm(half, half, *weights), F.layer_norm(half + half, (8,), *weights)
    assert normed.dtype == plain.dtype, f"a norm is {normed.dtype} under autocast, not {plain.dtype}"
    normed.sum().backward()
    assert (half.grad.dtype, weights[0].grad.dtype) == (torch.bfloat16, torch.float32)
    with torch.no_grad():
        segmented_target_attention(x, off, query, bias, history, 3)
    return {"ok": True}


def check_large() -> dict:
    """x past 2^31 elements: the last histories equal the same histories alone."""
    U, L, D = 17_500, 1000, 128
    x = torch.zeros(U * L, D, device=DEVICE, dtype=torch.bfloat16)
    x[-4 * L :].normal_()
    off, history = offsets(torch.full((U,), L)), torch.arange(U, device=DEVICE)
    query = torch.randn(U, 2, D, device=DEVICE, dtype=torch.bfloat16) / D**0.5
    bias = torch.zeros(2, device=DEVICE)
    inputs = [tensor.requires_grad_() for tensor in (x, query, bias)]
    pooled, _ = segmented_target_attention(x, off, query, bias, history, 10)
    d_x, d_query, _ = torch.autograd.grad(pooled, inputs, torch.ones_like(pooled))
    few = [x.detach()[-4 * L :].clone().requires_grad_(), query.detach()[-4:].clone().requires_grad_(), bias]
    alone, _ = segmented_target_attention(few[0], offsets([L] * 4), few[1], bias, history[:4], 10)
    d_few = torch.autograd.grad(alone, few, torch.ones_like(alone))
    same = [
        torch.equal(pooled[-400:], alone),
        torch.equal(d_x[-4 * L :], d_few[0]),
        torch.equal(d_query[-4:], d_few[1]),
    ]
    return {"ok": all(same), "elements": x.numel(), "pooled_dx_dquery": same}


def check_newest_large() -> dict:
    """The mean of newest events past 2^31 elements: the last histories equal the same histories alone."""
    U, L, D = 17_500, 1000, 128
    x = torch.zeros(U * L, D, device=DEVICE, dtype=torch.bfloat16)
    x[-4 * L :].normal_()
    few = x[-4 * L :].clone()
    outputs = []
    for rows, histories in ((x, U), (few, 4)):
        leaf = rows.requires_grad_()
        _, mean = newest_mean(leaf, offsets(torch.full((histories,), L)), 100)
        (d_x,) = torch.autograd.grad(mean, leaf, torch.ones_like(mean))
        outputs.append((mean.detach()[-4:], d_x[-4 * L :].clone()))
    same = [torch.equal(*pair) for pair in zip(*outputs, strict=True)]
    same.append(bool(outputs[0][1].view(4, L, D)[:, -100:].all()))
    return {"ok": all(same), "elements": x.numel(), "mean_dx_newest": same}


def check_large_residual() -> dict:
    """Past 2^31 elements: the last rows equal the same rows alone, in both layouts."""
    N, D, few = 4_200_000, 512, 4096
    a = torch.zeros(N, D, device=DEVICE, dtype=torch.bfloat16)
    a[-few:].normal_()
    weights = [torch.randn(D, device=DEVICE, requires_grad=True) for _ in range(2)]
    results: dict[str, object] = {"ok": True, "elements": a.numel()}
    for case, rows in {"rows": a, "tokens": a.view(2, -1, D).transpose(0, 1)}.items():
        rows = rows.detach().requires_grad_()
        y = residual_norm(rows, rows.detach(), *weights)
        d_rows = torch.autograd.grad(y, rows, torch.ones_like(y))[0]
        # The last of tokens lie with as many rows of zeros, which are those of the first half.
        last = slice(-few, None) if case == "rows" else slice(-few // 2, None)
        alone = rows.detach()[last]
        alone = alone.clone() if case == "rows" else alone.transpose(0, 1).contiguous().transpose(0, 1)
        alone.requires_grad_()
        y_alone = residual_norm(alone, alone.detach(), *weights)
        d_alone = torch.autograd.grad(y_alone, alone, torch.ones_like(y_alone))[0]
        results[case] = [torch.equal(y[last], y_alone), torch.equal(d_rows[last], d_alone)]
        results["ok"] = results["ok"] and all(results[case])
        del rows, y, d_rows
    return results


def check_recorded_residual() -> dict:
    """Forward and backward replayed on other values: the bits of calls without a graph."""
    leaves = [torch.randn(1000, 16, 128, device=DEVICE, dtype=torch.bfloat16) for _ in range(2)]
    leaves += [torch.randn(128, device=DEVICE) for _ in range(2)]
    leaves = [leaf.requires_grad_() for leaf in leaves]

    def step() -> list[Tensor]:
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            y = residual_norm(*leaves)
        return [y, *torch.autograd.grad(y.mean(1).square().sum(), leaves)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = step()
    with torch.no_grad():
        for leaf in leaves:
            leaf.normal_()
    graph.replay()
    same = [torch.equal(one, other) for one, other in zip(recorded, step(), strict=True)]
    return {"ok": all(same), "same": same}


def milliseconds(work: Callable[[], object], calls: int = 1, repeats: int = 20) -> tuple[float, float]:
    """Median and half the interquartile range of one of ``calls`` calls in a row."""
    for _ in range(3 if CUDA else 1):
        work()
    times = []
    for _ in range(repeats if CUDA else 3):
        if CUDA:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            begin.record()
            for _ in range(calls):
                work()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end) / calls)
        else:
            begin_s = time.perf_counter()
            work()
            times.append((time.perf_counter() - begin_s) * 1e3)
    times.sort()
    n = len(times)
    return times[n // 2], (times[(3 * n) // 4] - times[n // 4]) / 2


def timed(work: Callable[[], object], floor_ms: float | None = None, calls: int = 1) -> dict:
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    ms, spread = milliseconds(work, calls)
    values: dict[str, object] = {"ms": ms, "spread": spread}
    if floor_ms is not None:
        values["of_floor"] = floor_ms / ms
    if CUDA:
        values["extra_MB"] = (torch.cuda.max_memory_allocated() - before) / 2**20
    return values


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


def copy_rate() -> float:
    """Bytes read and written by a device copy, per millisecond."""
    source = torch.empty(2**29 if CUDA else 2**24, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    ms, _ = milliseconds(lambda: target.copy_(source))
    return 2 * source.nbytes / ms


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

    def promised() -> Tensor:
        return gather_sum(rows, index, None, alike, 1.0)

    alike = (scale > 0.1).float()
    for name, op, inputs in (
        ("sum of rows", gathered, (rows,)),
        ("sum of rows, no weights", plain, (rows,)),
        ("sum of rows, no weights, survivors alike", promised, (rows,)),
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


def correctness(report: Report) -> None:
    for dtype, D, H, width in CASES:
        name = f"{str(dtype).split('.')[1]} D={D} H={H}"
        report.attempt(f"check STA {name} width={width}", lambda c=(dtype, D, H, width): check_segmented(*c))
        report.attempt(f"check target attention {name}", lambda c=(dtype, D, H): check_target(*c))
        report.attempt(f"check readout {name}", lambda c=(dtype, D, H): check_readout(*c))
        report.attempt(f"check dropout {name}", lambda c=(dtype, D): check_keep(*c))
        report.attempt(f"check newest mean {name}", lambda c=(dtype, D): check_newest(*c, 100))
        report.attempt(f"check events by sum of rows {name}", lambda c=(dtype, D): check_gather(*c))
        # On a CPU it is PyTorch's norm; of a single value, whose gradient is 0, errors are not relative to anything.
        if CUDA and D > 1:
            report.attempt(f"check residual norm {name}", lambda c=(dtype, D): check_residual(*c))
    report.attempt("check nothing, autocast, no_grad", check_empty)
    if CUDA:
        report.attempt("check past 2^31 elements", check_large)
        report.attempt("check newest mean past 2^31 elements", check_newest_large)
        report.attempt("check residual norm past 2^31 elements", check_large_residual)
        report.attempt("check residual norm in a CUDA graph", check_recorded_residual)


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
    measure_peers(report, shape)
    if not CUDA:
        seg_off = offsets(torch.full((64,), 20))
        seg = torch.randn(64 * 20, 128)
        report.attempt("segment readout, tiles alone", lambda: timed(lambda: readout_cpu.forward(seg, seg_off, 4)))


def write(report: Report, out: Path, machine: dict) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "ops.json").write_text(json.dumps({"machine": machine, "rows": report.rows}, indent=1))
    lines = ["# Ops", "", ", ".join(f"{k} {v}" for k, v in machine.items()), "", "| what | result |", "|---|---|"]
    for row in report.rows:
        values = {k: v for k, v in row.items() if k != "what"}
        shown = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
        lines.append(f"| {row['what']} | {shown} |")
    (out / "ops.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--seconds", type=float, default=170.0, help="start nothing new after this many seconds")
    parser.add_argument("--only", default="", help="checks and measurements whose name has this in it")
    parser.add_argument("--checks", action="store_true", help="measure nothing; exit with 1 if a check fails")
    options = parser.parse_args()
    machine = {
        "device": torch.cuda.get_device_name() if CUDA else platform.processor() or "cpu",
        "torch": torch.__version__,
    }
    if CUDA:
        import triton

        machine["triton"] = triton.__version__
    print(machine, flush=True)
    report = Report(options.seconds, options.only)
    for part in (correctness,) if options.checks else (correctness, measure):
        part(report)
    write(report, options.out, machine)
    bad = [row["what"] for row in report.rows if "failed" in row or row.get("ok") is False]
    print(f"{len(bad)} failed: {bad}" if bad else "all checks passed")
    if options.checks and (bad or not report.rows):
        raise SystemExit(1 if bad else f"no check has {options.only!r} in its name")


if __name__ == "__main__":
    main()

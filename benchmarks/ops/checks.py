"""Every op against its specification on a GPU: at awkward sizes, of nothing, past 2^31 elements, recorded."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from harness import (
    CASES,
    CUDA,
    DEVICE,
    LENGTHS,
    Report,
    compare,
    offsets,
    same_when_replayed,
)
from torch import Tensor

from laser.ops.keep_factor import keep_factor
from laser.ops.keep_factor import naive as keep_naive
from laser.ops.mixed_norm import mixed_norm
from laser.ops.newest_mean import naive as newest_naive
from laser.ops.newest_mean import newest_mean
from laser.ops.residual_norm import naive as residual_naive
from laser.ops.residual_norm import residual_norm
from laser.ops.segment_readout import naive as readout_naive
from laser.ops.segment_readout import segment_readout
from laser.ops.segmented_attention import naive as segmented_naive
from laser.ops.segmented_attention import segmented_target_attention
from laser.ops.target_attention import naive as target_naive
from laser.ops.target_attention import segment_softmax_attention


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
    """Contiguous rows, then tokens, in float32 beside a transposed product in half precision."""
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
    grads = torch.autograd.grad(mixed_norm(x.view(0, 2, 8), *weights).sum(), [x, *weights])
    assert not any(g.any() for g in grads), "gradients of a mixed norm of nothing are not zero"
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

    return same_when_replayed(step, leaves)


def correctness(report: Report) -> None:
    for dtype, D, H, width in CASES:
        name = f"{str(dtype).split('.')[1]} D={D} H={H}"
        report.attempt(f"check STA {name} width={width}", lambda c=(dtype, D, H, width): check_segmented(*c))
        report.attempt(f"check target attention {name}", lambda c=(dtype, D, H): check_target(*c))
        report.attempt(f"check readout {name}", lambda c=(dtype, D, H): check_readout(*c))
        report.attempt(f"check dropout {name}", lambda c=(dtype, D): check_keep(*c))
        report.attempt(f"check newest mean {name}", lambda c=(dtype, D): check_newest(*c, 100))
        # On a CPU it is PyTorch's norm; of a single value, whose gradient is 0, errors are not relative to anything.
        if CUDA and D > 1:
            report.attempt(f"check residual norm {name}", lambda c=(dtype, D): check_residual(*c))
    report.attempt("check nothing, autocast, no_grad", check_empty)
    if CUDA:
        report.attempt("check past 2^31 elements", check_large)
        report.attempt("check newest mean past 2^31 elements", check_newest_large)
        report.attempt("check residual norm past 2^31 elements", check_large_residual)
        report.attempt("check residual norm in a CUDA graph", check_recorded_residual)

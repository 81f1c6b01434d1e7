"""Linear layers on a GPU: against their specification, and beside PyTorch's own backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from harness import CASES, CUDA, DEVICE, Report, compare, same_when_replayed, timed
from torch import Tensor

from laser.ops.attention_tail import attention_tail
from laser.ops.attention_tail import naive as attention_tail_naive
from laser.ops.feed_forward import grouped_feed_forward
from laser.ops.feed_forward import naive as feed_forward_naive
from laser.ops.folded_query import folded_query
from laser.ops.folded_query import naive as folded_query_naive
from laser.ops.linear import grouped_linear, linear, naive, side_by_side


def normal(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(shape, device=DEVICE).to(dtype).requires_grad_() for shape in shapes]


def apart(op: Callable) -> Callable[..., Tensor]:
    """``side_by_side`` of inputs that lie beside each other."""

    def call(x: Tensor, *rest: Tensor) -> Tensor:
        weights, biases = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        return op([[part] for part in x.split([weight.shape[1] for weight in weights], 1)], weights, biases)

    return call


def plain_layers(inputs: list[list[Tensor]], weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    return torch.cat([F.linear(torch.cat(x, 1), *layer) for x, *layer in zip(inputs, weights, biases, strict=True)], 1)


def check_linear(dtype: torch.dtype, D: int) -> dict:
    """Few rows and many; small weights of a few groups, and many groups; layers side by side, some of them alike."""
    torch.manual_seed(0)
    half = max(1, D // 2)
    results: dict[str, object] = {"ok": True}
    sizes = [(D, half), (D, half), (half, D), (D, half)]
    shapes = [(301, sum(I for I, _ in sizes)), *((O, I) for I, O in sizes), *((O,) for _, O in sizes)]
    for case, ops, inputs in (
        ("few rows", (linear, naive.linear), normal((1040, D), (half, D), (half,), dtype=dtype)),
        ("many rows", (linear, naive.linear), normal((5003, D), (half, D), (half,), dtype=dtype)),
        (
            "heads",
            (grouped_linear, lambda x, w: naive.grouped_linear(x, w, None)),
            normal((5003, 2, D), (2, D, half), dtype=dtype),
        ),
        (
            "tokens",
            (grouped_linear, naive.grouped_linear),
            normal((301, 16, D), (16, D, half), (16, half), dtype=dtype),
        ),
        ("side by side", (apart(side_by_side), apart(naive.side_by_side)), normal(*shapes, dtype=dtype)),
    ):
        found = compare(*ops, inputs, ["y", *(f"gradient {place}" for place in range(len(inputs)))])
        results |= {f"{case} {name}": value for name, value in found.items() if name != "ok"}
        results["ok"] = results["ok"] and found["ok"]
    return results


def check_feed_forward(dtype: torch.dtype, D: int) -> dict:
    """A network for all rows, and one a group, through the op; float32 takes layers."""
    torch.manual_seed(0)
    results: dict[str, object] = {"ok": True}
    for rows, groups in ((5003, 1), (301, 16)):
        shapes = (rows, groups, D), (groups, D, 4 * D), (groups, 4 * D), (groups, 4 * D, D), (groups, D)
        scales = 1.0, D**-0.5, 1.0, (4 * D) ** -0.5, 1.0
        inputs = [normal(shape)[0].detach().mul(k).to(dtype) for shape, k in zip(shapes, scales, strict=True)]
        names = ["y", "d_x", "d_weight1", "d_bias1", "d_weight2", "d_bias2"]
        found = compare(grouped_feed_forward, feed_forward_naive.grouped_feed_forward, inputs, names)
        results |= {f"{groups} groups {name}": value for name, value in found.items() if name != "ok"}
        results["ok"] = results["ok"] and found["ok"]
    return results


def attention_tail_inputs(rows: int, D: int, H: int, dtype: torch.dtype) -> list[Tensor]:
    shapes = [(rows, D), (rows, H, D), (H, D, D // H), (D, D), (D,), (D,), (4 * D, D), (4 * D,), (D, 4 * D)]
    scales = 1.0, 1.0, D**-0.5, D**-0.5, 1.0, 1.0, D**-0.5, 1.0, (4 * D) ** -0.5, 1.0, 1.0, 1.0
    leaves = zip(shapes + [(D,)] * 3, scales, strict=True)
    return [normal(shape)[0].detach().mul(scale).to(dtype).requires_grad_() for shape, scale in leaves]


def check_attention_tail(dtype: torch.dtype, D: int, H: int) -> dict:
    """Rows that do and do not fill programs, through the op."""
    torch.manual_seed(0)
    results: dict[str, object] = {"ok": True}
    names = [
        "y", "d_user", "d_pooled", "d_value", "d_out", "d_inner_weight", "d_inner_bias",
        "d_weight1", "d_bias1", "d_weight2", "d_bias2", "d_outer_weight", "d_outer_bias",
    ]  # fmt: skip
    for rows in (1, 1040, 5003):
        inputs = attention_tail_inputs(rows, D, H, dtype)
        found = compare(attention_tail, attention_tail_naive.attention_tail, inputs, names)
        results |= {f"{rows} rows {name}": value for name, value in found.items() if name != "ok"}
        results["ok"] = results["ok"] and found["ok"]
    return results


def check_folded_query(D: int, Q: int) -> dict:
    torch.manual_seed(0)
    inputs = normal((1041, D), (2, D, Q), (2, D, Q))
    ours, plain = (lambda *x, op=op: op(*x, 0.3) for op in (folded_query, folded_query_naive.folded_query))
    return compare(ours, plain, inputs, ["y", "d_source", "d_query", "d_key"])


def check_large_sum() -> dict:
    """A bias' gradient of more than 2^31 elements, as rows and as tokens, of whole numbers: exact."""
    from laser.ops.linear.triton import column_sum

    N, D, few = 4_200_000, 512, 4096
    x = torch.zeros(N, D, device=DEVICE, dtype=torch.bfloat16)
    # Ones, of which less than 256 are added up: exact in bfloat16, too.
    x[-few:] = (torch.arange(few * D, device=DEVICE).view(few, D) % 37 == 0).to(x.dtype)
    tokens = x.view(2, -1, D)
    same = [
        torch.equal(column_sum(x[None])[0], x[-few:].float().sum(0).to(x.dtype)),
        torch.equal(column_sum(tokens)[1], x[-few:].float().sum(0).to(x.dtype)),
        torch.equal(column_sum(x.view(-1, 2, D).transpose(0, 1)), x[-few:].view(-1, 2, D).float().sum(0).to(x.dtype)),
    ]
    return {"ok": all(same), "elements": x.numel(), "same": same}


def check_recorded() -> dict:
    """Forward and backward replayed on other values: the bits of calls without a graph."""
    x, weight, bias = normal((3000, 2, 128), (2, 128, 64), (64,))
    other, d = normal((64, 128), (3000, 64))
    tail, weights = attention_tail_inputs(1000, 128, 2, torch.float32), normal((2, 128, 64), (2, 128, 64))

    def step() -> list[Tensor]:
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            y = grouped_linear(x, weight).flatten(1)
            y = side_by_side([[y], [y]], [other, other], [bias, bias])[:, 64:] + linear(y, other, bias)
            user = attention_tail(*tail)
        folded = folded_query(tail[0], *weights, 0.3)
        gradients = torch.autograd.grad(y, [x, weight, bias, other], d.detach().to(y.dtype))
        gradients += torch.autograd.grad(user.square().sum() + folded.square().sum(), [*tail, *weights])
        return [y, user, folded, *gradients]

    return same_when_replayed(step, [x, weight, bias, other, *tail, *weights])


def correctness(report: Report) -> None:
    for dtype, D, H, _ in CASES:
        name = f"{str(dtype).split('.')[1]} D={D} H={H}"
        # On a CPU the layers are PyTorch's.
        if CUDA and D > 1:
            report.attempt(f"check linear layers {name}", lambda c=(dtype, D): check_linear(*c))
            report.attempt(f"check feed-forward networks {name}", lambda c=(dtype, D): check_feed_forward(*c))
    for dtype in (torch.bfloat16, torch.float16):
        for D, H in ((32, 2), (64, 1), (128, 1), (128, 2), (128, 8)) if CUDA else ():
            name = f"{str(dtype).split('.')[1]} D={D} H={H}"
            report.attempt(f"check attention's tail {name}", lambda c=(dtype, D, H): check_attention_tail(*c))
    for D, Q in ((32, 16), (64, 32), (128, 16), (128, 64), (128, 128)) if CUDA else ():
        report.attempt(f"check folded queries D={D} Q={Q}", lambda c=(D, Q): check_folded_query(*c))
    if CUDA:
        report.attempt("check linear layers past 2^31 elements", check_large_sum)
        report.attempt("check linear layers in a CUDA graph", check_recorded)


def measure(report: Report, copy_bytes_per_ms: float) -> None:
    """What a step of ASSISTments has: 44,000 segments, 1040 samples, 8 tokens, 2 heads. Floors: gradients read once."""
    segments, samples = (44_000, 1040) if CUDA else (2000, 100)
    half = torch.bfloat16 if CUDA else torch.float32
    if CUDA:
        from laser.ops.linear.triton import column_sum

        for shape in ((1, segments, 128), (1, segments, 512), (1, samples, 128), (8, samples, 512)):
            x = normal(shape, dtype=half)[0].detach()
            floor = x.nbytes / copy_bytes_per_ms
            for name, op in (
                ("kernel", lambda x=x: column_sum(x)),
                ("PyTorch", lambda x=x: x.sum(1)),
            ):
                report.attempt(
                    f"linear layers: gradient of a bias {list(shape)}, {name}", lambda op=op, f=floor: timed(op, f, 10)
                )
    if CUDA:
        inputs = attention_tail_inputs(samples, 128, 2, half)
        upstream = torch.randn_like(inputs[0])
        # Floors: inputs read once, the result written; and backward as much for gradients.
        floor = sum(x.nbytes for x in (*inputs, upstream)) / copy_bytes_per_ms
        for name, call, floors in (
            ("forward", lambda: attention_tail(*inputs), 1),
            ("forward + backward", lambda: torch.autograd.grad(attention_tail(*inputs), inputs, upstream), 2),
        ):
            what = f"attention's tail, {samples} rows, {name}"
            report.attempt(what, lambda c=call, f=floors * floor: timed(c, f, 10))
    einsum = lambda x, weight: torch.einsum("nhi,hio->nho", x, weight)  # noqa: E731
    sizes = [(256, 128), *[(128, 128)] * 5, (64, 128), (128, 128)]
    layers = [(samples, sum(I for I, _ in sizes)), *((O, I) for I, O in sizes), *((O,) for _, O in sizes)]
    key = normal((samples, 2, 64), (2, 64, 128))
    for what, ours, plain, inputs in (
        ("values of segments", grouped_linear, einsum, normal((segments, 2, 128), (2, 128, 64), dtype=half)),
        ("keys in queries", grouped_linear, einsum, key),
        ("layer on segments", linear, F.linear, normal((segments, 128), (512, 128), (512,), dtype=half)),
        ("layers of tokens", apart(side_by_side), apart(plain_layers), normal(*layers, dtype=half)),
    ):
        upstream = torch.randn_like(ours(*inputs))
        floor = (2 * inputs[0].nbytes + 2 * upstream.nbytes) / copy_bytes_per_ms
        for name, op in (("ours", ours), ("PyTorch", plain)):
            report.attempt(
                f"linear layers: {what}, {name}, forward + backward",
                lambda op=op, i=inputs, u=upstream, f=floor: timed(lambda: torch.autograd.grad(op(*i), i, u), f, 10),
            )

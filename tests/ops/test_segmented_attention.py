"""Segmented attention: every implementation against float64 naive, output and each gradient by name.

Legend of shape suffixes: B samples; U histories; T events, packed; E events per sample; G segments; H heads; D width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from laser.ops.segmented_attention import cpu, naive, segmented_target_attention, triton
from laser.ops.segments import Capacity, counted, segment_layout

NAMES = ["pooled", "gate", "d_x", "d_query", "d_bias"]
IMPLEMENTATIONS = {"cpu": cpu, "triton": triton}


def offsets(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def inputs(
    lengths: list[int], history_of_B: list[int], D: int, H: int, dtype: torch.dtype, device: torch.device, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x_TD, off_U1, query_BHD, bias_H, history_of_B."""
    generator = torch.Generator().manual_seed(seed)
    off_U1 = offsets(lengths)
    x_TD = torch.randn(int(off_U1[-1]), D, generator=generator).to(device, dtype)
    query_BHD = torch.randn(len(history_of_B), H, D, generator=generator).div(D**0.5).to(device, dtype)
    bias_H = torch.randn(H, generator=generator).to(device)
    return x_TD, off_U1.to(device), query_BHD, bias_H, torch.tensor(history_of_B, dtype=torch.int64, device=device)


def by_naive(case: tuple[Tensor, ...], width: int, upstream: Tensor) -> list[Tensor]:
    x_TD, off_U1, query_BHD, bias_H, history_of_B = case
    leaves = [tensor.detach().requires_grad_() for tensor in (x_TD, query_BHD, bias_H)]
    pooled, _, gate, _ = naive.segmented_target_attention(
        leaves[0], off_U1, leaves[1], leaves[2], history_of_B, width, return_gates=True
    )
    return [pooled.detach(), gate, *torch.autograd.grad(pooled, leaves, upstream.to(pooled.dtype))]


def laid_out(implementation, x_TD: Tensor, off_U1: Tensor, query_BHD: Tensor, history_of_B: Tensor, width: int):
    tiling = partial(implementation.tiling, x_TD.dtype, *query_BHD.shape[1:], width)
    return segment_layout(off_U1, history_of_B, width, tiling)


def by(implementation, case: tuple[Tensor, ...], width: int, upstream: Tensor) -> list[Tensor]:
    x_TD, off_U1, query_BHD, bias_H, history_of_B = case
    layout = laid_out(implementation, x_TD, off_U1, query_BHD, history_of_B, width)
    pooled, gate = implementation.forward(x_TD, query_BHD, bias_H, layout)
    return [pooled, gate, *implementation.backward(upstream.to(pooled.dtype), x_TD, query_BHD, bias_H, gate, layout)]


def widened(case: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in case)


def relative_error(value: Tensor, exact: Tensor) -> float:
    return float((value.double() - exact).norm() / exact.norm().clamp(min=1e-30))


def truncated(value: Tensor) -> Tensor:
    """To bfloat16 as Triton's interpreter does it: cutting bits, where a GPU (and PyTorch) rounds."""
    return value.float().view(torch.int32).bitwise_and(-65536).view(torch.float32)


def assert_within_twice_naive(
    implementation, case: tuple[Tensor, ...], width: int, upstream: Tensor, check: Callable[[str, float, float], None]
) -> None:
    """Error against float64 at most twice that of plain PyTorch in the same dtype."""
    exact = by_naive(widened(case, torch.float64), width, upstream.double())
    plain = by_naive(case, width, upstream)
    interpreted = implementation is triton and case[0].device.type == "cpu"
    if case[0].dtype == torch.bfloat16 and interpreted:
        plain = [truncated(value) for value in by_naive(widened(case, torch.float32), width, upstream)]
    ours = by(implementation, case, width, upstream)
    for name, value, same_dtype, reference in zip(NAMES, ours, plain, exact, strict=True):
        assert value.shape == reference.shape, name
        # Four roundings of float32 are granted where naive happens to be exact, as in a sum of one number. Products of
        # six on tensor cores round more often than a few sums do.
        roundings = 8 if case[0].is_cuda else 4
        allowed = 2 * relative_error(same_dtype, reference) + roundings * torch.finfo(torch.float32).eps
        check(name, relative_error(value, reference), allowed)


def device_of(implementation: str, device: torch.device) -> torch.device:
    """``cpu`` adds without an order on a GPU, where it does not serve."""
    return torch.device("cpu") if implementation == "cpu" else device


def within(name: str, error: float, allowed: float) -> None:
    assert error <= allowed, f"{name}: error {error:.2e}, allowed {allowed:.2e}"


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("D", "H", "width", "dtype"),
    [
        (16, 2, 10, torch.float32),
        (1, 1, 1, torch.float32),
        (40, 3, 3, torch.float32),
        (200, 2, 7, torch.float32),
        (16, 2, 10, torch.bfloat16),
        (24, 2, 10, torch.float16),
        (8, 2, 100, torch.float32),
    ],
)
def test_output_gates_and_gradients(
    implementation: str, D: int, H: int, width: int, dtype: torch.dtype, device: torch.device
) -> None:
    lengths = [0, 1, max(width - 1, 0), width, width + 1, 63, 0]
    case = inputs(lengths, [5, 0, 1, 5, 2, 3, 4, 3], D, H, dtype, device)
    layout = segment_layout(case[1], case[4], width)
    upstream = torch.randn(layout.size.num_segments, H, D).to(device, dtype)
    assert_within_twice_naive(IMPLEMENTATIONS[implementation], case, width, upstream, within)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_long_histories(implementation: str, device: torch.device) -> None:
    case = inputs([500, 1000, 63], [1, 0, 2], 8, 2, torch.float32, device)
    upstream = torch.randn(50 + 100 + 7, 2, 8).to(device)
    assert_within_twice_naive(IMPLEMENTATIONS[implementation], case, 10, upstream, within)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("width", [3, 7])
def test_histories_of_several_programs(width: int, dtype: torch.dtype, device: torch.device) -> None:
    """Also where a step is not a divisor of the width, and neighbours hold large numbers."""
    lengths = [150 * width + 1, 0, 31 * width]
    case = inputs(lengths, [1, 0, 2], 128, 2, dtype, device)
    case[0][: len(case[0]) // 2] *= 3
    tiles = triton.tiling(dtype, 2, 128, width, shared=False)
    assert 16 * max(tiles[:2]) < lengths[0]  # more partial sums than are added up at once
    assert width % triton.one_sample_config(dtype, 2, 128, width, backward=dtype != torch.float32)["STEP"]
    upstream = torch.randn(151 + 31, 2, 128).to(device)
    assert_within_twice_naive(triton, case, width, upstream, within)


def test_widest(device: torch.device) -> None:
    case = inputs([7, 25], [0, 1, 1], 512, 4, torch.float32, device)
    upstream = torch.randn(1 + 3 + 3, 4, 512).to(device)
    assert_within_twice_naive(triton, case, 10, upstream, within)


def test_cpu_cuts_chunks_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunk borders fall inside samples and inside a sample's short oldest segment's neighbourhood."""
    case = inputs([25, 0, 3, 17], [3, 0, 1, 2, 3], 4, 2, torch.float32, torch.device("cpu"))
    upstream = torch.randn(5 + 2 * 4 + 1, 2, 4)
    whole = by(cpu, case, 5, upstream)
    for segments in (1, 2, 3, 5):
        monkeypatch.setattr("laser.ops.chunks.CHUNK_BYTES", segments * 5 * 4 * 4)
        for name, value, expected in zip(NAMES, by(cpu, case, 5, upstream), whole, strict=True):
            torch.testing.assert_close(value, expected, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("function", ["naive", "op"])
def test_by_hand(function: str) -> None:
    """Three events, width 2, one head: the oldest segment is short; gates 1/2 and 3/4."""
    op = {"naive": naive.segmented_target_attention, "op": segmented_target_attention}[function]
    x_TD = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
    three = torch.tensor(3.0).log()
    pooled, seg_off, gate, event_off = op(
        x_TD,
        torch.tensor([0, 3]),
        torch.tensor([[[0.0, 1.0]]]) * three,
        torch.tensor([0.0]),
        torch.tensor([0]),
        2,
        return_gates=True,
    )
    torch.testing.assert_close(gate, torch.tensor([[0.5], [0.75], [0.9]]))
    torch.testing.assert_close(pooled, torch.tensor([[[0.5, 0.0]], [[1.8, 0.75 + 1.8]]]))
    assert seg_off.tolist() == [0, 2]
    assert event_off.tolist() == [0, 3]


def test_gradcheck() -> None:
    x, off, query, bias, history = widened(
        inputs([0, 5, 3], [2, 0, 1, 1], 3, 2, torch.float32, torch.device("cpu")), torch.float64
    )
    leaves = tuple(tensor.requires_grad_() for tensor in (x, query, bias))
    op = lambda x, query, bias: segmented_target_attention(x, off, query, bias, history, 2)[0]  # noqa: E731
    assert torch.autograd.gradcheck(op, leaves)


@pytest.mark.parametrize(("num_samples", "num_histories"), [(0, 0), (0, 3), (4, 3)])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_nothing(implementation: str, num_samples: int, num_histories: int, device: torch.device) -> None:
    case = inputs([0] * num_histories, [0] * num_samples, 4, 2, torch.float32, device)
    pooled, gate, d_x, d_query, d_bias = by(
        IMPLEMENTATIONS[implementation], case, 3, torch.zeros(0, 2, 4, device=device)
    )
    assert pooled.shape == (0, 2, 4)
    assert gate.shape == (0, 2)
    assert d_x.shape == (0, 4)
    assert not d_query.any()
    assert not d_bias.any()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_histories_that_no_sample_sees(implementation: str, device: torch.device) -> None:
    case = inputs([4, 6, 5], [1], 4, 1, torch.float32, device)
    d_x = by(IMPLEMENTATIONS[implementation], case, 3, torch.ones(2, 1, 4, device=device))[2]
    assert not d_x[:4].any()
    assert not d_x[10:].any()
    assert d_x[4:10].all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_padding_of_a_short_segment_contributes_nothing(implementation: str, device: torch.device) -> None:
    """Another history's events lie where the short oldest segment would reach: they may even be NaN."""
    case = inputs([3, 3], [1], 4, 2, torch.float32, device)
    upstream = torch.ones(2, 2, 4, device=device)
    clean = by(IMPLEMENTATIONS[implementation], case, 2, upstream)
    case[0][:3] = float("nan")
    for name, value, expected in zip(NAMES, by(IMPLEMENTATIONS[implementation], case, 2, upstream), clean, strict=True):
        assert torch.equal(value, expected), name


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_longer_past_moves_no_segment(implementation: str, device: torch.device) -> None:
    x, off, query, bias, history = inputs([13], [0], 4, 2, torch.float32, device)
    ours = IMPLEMENTATIONS[implementation]
    short, _ = ours.forward(x, query, bias, laid_out(ours, x, off, query, history, 5))
    longer = torch.cat([torch.randn(5, 4).to(device), x])
    extended, _ = ours.forward(longer, query, bias, laid_out(ours, longer, off * 18 // 13, query, history, 5))
    torch.testing.assert_close(extended[2:], short[1:])
    assert len(extended) == len(short) + 1


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_samples_permuted_and_a_batch_split(implementation: str, device: torch.device) -> None:
    lengths, samples, width = [7, 0, 12], [0, 2, 1, 2, 0], 5
    x, off, query, bias, history = inputs(lengths, samples, 4, 2, torch.float32, device)
    ours = IMPLEMENTATIONS[implementation]
    layout = laid_out(ours, x, off, query, history, width)
    pooled, _ = ours.forward(x, query, bias, layout)
    parts = pooled.split(layout.parts.seg_off_B1.diff().tolist())

    order = [3, 0, 4, 2, 1]
    permuted, _ = ours.forward(x, query[order], bias, laid_out(ours, x, off, query, history[order], width))
    torch.testing.assert_close(permuted, torch.cat([parts[i] for i in order]))

    halves = [
        ours.forward(x, query[part].contiguous(), bias, laid_out(ours, x, off, query, history[part], width))[0]
        for part in (slice(0, 2), slice(2, 5))
    ]
    torch.testing.assert_close(torch.cat(halves), pooled)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_shared_history_equals_copies(implementation: str, device: torch.device) -> None:
    """Three samples of one history: the same outputs as three copies of it, and the gradient is their sum."""
    x, off, query, bias, history = inputs([70], [0, 0, 0], 4, 2, torch.float32, device)
    upstream = torch.randn(21, 2, 4).to(device)
    ours = IMPLEMENTATIONS[implementation]
    shared = by(ours, (x, off, query, bias, history), 10, upstream)
    copies = (x.repeat(3, 1), offsets([70] * 3).to(device), query, bias, torch.arange(3, device=device))
    apart = by(ours, copies, 10, upstream)
    apart[2] = apart[2].view(3, 70, 4).sum(0)
    for name, value, expected in zip(NAMES, shared, apart, strict=True):
        torch.testing.assert_close(value, expected, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_equal_inputs_give_equal_bits(implementation: str, device: torch.device) -> None:
    device = device_of(implementation, device)
    case = inputs([200, 30], [0, 1, 0, 1, 1], 16, 2, torch.float32, device)
    upstream = torch.randn(40 + 9, 2, 16).to(device)
    first, second = (by(IMPLEMENTATIONS[implementation], case, 10, upstream) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_op_under_autocast_no_grad_compile_and_with_views(device: torch.device) -> None:
    x, off, query, bias, history = inputs([7, 12], [1, 0], 4, 2, torch.float32, device)
    leaves = [tensor.requires_grad_() for tensor in (x, query, bias)]
    plain = segmented_target_attention(x, off, query, bias, history, 5)[0]
    gradients = torch.autograd.grad(plain.square().sum(), leaves)
    with torch.autocast(device.type, torch.bfloat16):
        same = segmented_target_attention(x, off, query, bias, history, 5)[0]
        assert torch.equal(plain, same)
        for one, other in zip(gradients, torch.autograd.grad(same.square().sum(), leaves), strict=True):
            assert torch.equal(one, other)
    with torch.no_grad():
        assert torch.equal(plain, segmented_target_attention(x, off, query, bias, history, 5)[0])
    strided = x.detach().t().contiguous().t()
    assert torch.equal(plain, segmented_target_attention(strided, off, query, bias, history, 5)[0])
    compiled = torch.compile(
        lambda x, q, b: segmented_target_attention(x, off, q, b, history, 5)[0].square().sum(), backend="aot_eager"
    )
    for one, other in zip(gradients, torch.autograd.grad(compiled(*leaves), leaves), strict=True):
        torch.testing.assert_close(one, other)


def test_sizes_from_the_host(device: torch.device) -> None:
    """With copies on the host nothing else is read there; on a GPU the call then never waits."""
    x, off, query, bias, history = inputs([7, 0, 12], [1, 0, 2, 2], 4, 2, torch.float32, device)
    plain = segmented_target_attention(x, off, query, bias, history, 5, return_gates=True)
    elsewhere = torch.full_like(off, -1), torch.full_like(history, -1)
    told = segmented_target_attention(
        x, elsewhere[0], query, bias, elsewhere[1], 5, return_gates=True, on_host=(off.cpu(), history.cpu())
    )
    assert all(map(torch.equal, plain, told))


@pytest.mark.parametrize("lengths", [[5, 2], [4, 3, 1], []])
def test_parts_of_a_layout_are_aligned(lengths: list[int]) -> None:
    """Triton compiles a kernel anew for an argument that does not begin at a multiple of 16 bytes."""
    history_of_B = torch.arange(len(lengths))
    layout = segment_layout(offsets(lengths), history_of_B, 2, partial(triton.tiling, torch.float32, 2, 16, 2))
    starts = [part.storage_offset() for part in layout.parts]
    assert all(start % 2 == 0 for start in starts), starts
    assert [len(part) for part in layout.parts] == list(layout.lengths)


def test_gates_carry_no_gradient(device: torch.device) -> None:
    x, off, query, bias, history = inputs([7], [0], 4, 1, torch.float32, device)
    gate = segmented_target_attention(x.requires_grad_(), off, query, bias, history, 5, return_gates=True)[2]
    assert not gate.requires_grad
    assert gate.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_BHD": torch.zeros(1, 2, 5)}, "absorb the key projection"),
        ({"bias_H": torch.zeros(3)}, r"pass \[2\], \[1\]"),
        ({"off_U1": torch.tensor([0, 3], dtype=torch.int32)}, r"torch\.int64"),
        ({"width": 0}, "at least 1"),
    ],
)
def test_mistakes(change: dict, message: str) -> None:
    arguments = {
        "x_TD": torch.zeros(3, 4),
        "off_U1": torch.tensor([0, 3]),
        "query_BHD": torch.zeros(1, 2, 4),
        "bias_H": torch.zeros(2),
        "history_of_B": torch.tensor([0]),
        "width": 2,
    }
    segmented_target_attention(**arguments)
    with pytest.raises(ValueError, match=message):
        segmented_target_attention(**(arguments | change))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("lengths", "samples"), [([7, 0, 12, 5], [0, 1, 2, 3]), ([7, 0, 30, 3], [2, 0, 0, 2, 1, 3])], ids=["own", "shared"]
)
def test_a_layout_with_room_to_spare_changes_nothing(
    implementation: str, lengths: list[int], samples: list[int], device: torch.device
) -> None:
    """The last history has the last sample alone. Segments that belong to no sample are zeros."""
    device = device_of(implementation, device)
    ours, width, (H, D) = IMPLEMENTATIONS[implementation], 3, (2, 16)
    case = inputs(lengths, samples, D, H, torch.float32, device)
    x_TD, off_U1, query_BHD, bias_H, history_of_B = case
    tiles = ours.tiling(x_TD.dtype, H, D, width, len(samples) > len(lengths))
    needed = counted(off_U1.cpu().numpy(), history_of_B.cpu().numpy(), width, lambda _: tiles).needed
    room = Capacity(*(count + 5 for count in needed))
    layout = segment_layout(off_U1, history_of_B, width, lambda _: tiles, capacity=room)
    pooled, gate = ours.forward(x_TD, query_BHD, bias_H, layout)
    count = needed.num_segments
    assert not pooled[count:].any()
    assert len(pooled) == count + 5
    upstream = torch.randn(count, H, D, device=device)
    poisoned = torch.cat([upstream, upstream.new_full((5, H, D), torch.nan)])
    found = ours.backward(poisoned, x_TD, query_BHD, bias_H, gate, layout)
    expected = by(ours, case, width, upstream)
    torch.testing.assert_close([pooled[:count], *found], [expected[0], *expected[2:]], rtol=0, atol=0)
    with pytest.raises(ValueError, match="a layout needs"):
        segment_layout(off_U1, history_of_B, width, lambda _: tiles, capacity=needed._replace(num_segments=1))

"""Sums of gathered rows against the specification, forward and backward, at awkward sizes."""

from __future__ import annotations

import itertools

import pytest
import torch

from laser.ops.gather_sum import cpu, few_rows, gather_sum, naive, sorted_pairs, triton

IMPLEMENTATIONS = {"cpu": cpu, "triton": triton, "triton, sorted": triton}
EPS = torch.finfo(torch.float32).eps


@pytest.fixture(autouse=True)
def few_pairs(request, monkeypatch):
    """Few pairs are sorted, too, where the implementation says so."""
    if "sorted" in request.node.name:
        monkeypatch.setattr(triton, "FEW_PAIRS", 0)


def make(T: int, S: int, R: int, D: int, dtype: torch.dtype, device: torch.device, *, skewed: bool = True):
    """Rows and events; skewed: half of all slots name row 0, row R - 1 is named by none, runs of every length."""
    rows_RD = torch.randn(R, D).to(device, dtype)
    index_TS = (torch.rand(T, S).pow(3) * max(R - 1, 1)).int()
    if skewed:
        index_TS[torch.rand(T, S) < 0.5] = 0
    weight_TS = torch.rand(T, S) * (torch.rand(T, S) > 0.2)
    scale_T = (torch.rand(T) > 0.1) / 0.9
    return rows_RD, index_TS.to(device), weight_TS.to(device), scale_T.float().to(device)


def relative(value: torch.Tensor, exact: torch.Tensor) -> float:
    return float((value.double() - exact).norm() / exact.norm().clamp(min=1e-300))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("weighted", "scaled"), itertools.product([False, True], [False, True]))
@pytest.mark.parametrize(
    ("T", "S", "R", "D", "dtype"),
    [
        (1, 1, 1, 1, torch.float32),
        (7, 3, 5, 16, torch.float32),
        (64, 1, 2, 40, torch.float32),
        (65, 2, 300, 24, torch.float32),
        (133, 5, 40, 130, torch.float32),
        (150, 4, 30, 64, torch.bfloat16),
        (150, 4, 30, 64, torch.float16),
    ],
)
def test_equals_naive(implementation, weighted, scaled, T, S, R, D, dtype, device):
    rows, index, weight, scale = make(T, S, R, D, dtype, device)
    scale *= torch.rand(T, device=device)
    rest = (index, weight if weighted else None, scale if scaled else None)
    upstream = torch.randn(T, D, device=device).to(dtype)

    def reference(to: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = rows.to(to).requires_grad_()
        value = naive.gather_sum(leaf, *(t if t is None or not t.is_floating_point() else t.to(to) for t in rest))
        return value.detach(), torch.autograd.grad(value, leaf, upstream.to(to))[0]

    module = IMPLEMENTATIONS[implementation]
    ours = module.forward(rows, *rest), module.backward(upstream, *rest, R)
    for name, value, exact, plain in zip(("sum", "d_rows"), ours, reference(torch.float64), reference(dtype)):
        assert value.dtype == dtype
        assert not value.isnan().any(), name
        assert relative(value, exact) <= 2 * relative(plain, exact) + 8 * EPS, name
    again = module.forward(rows, *rest), module.backward(upstream, *rest, R)
    assert all(torch.equal(a, b) for a, b in zip(ours, again)), "equal inputs gave other bits"


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize(
    "lengths",
    [[512], [16, 17, 0, 15, 1], [511, 1, 512, 513], [0, 0, 40, 0], [1024, 1025, 17], [1] * 70 + [18] * 3 + [2] * 50],
)
def test_rows_of_every_number_of_pairs(implementation, lengths, slots, device):
    """Short rows, rows of one chunk of 512 pairs and of several, beside each other: sums of ones are counts."""
    index = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).int()
    index = index[torch.randperm(len(index))]
    index = torch.cat([index, index[: len(index) % slots]]).view(-1, slots).to(device)
    ones = torch.ones(len(index), 8, device=device)
    counts = IMPLEMENTATIONS[implementation].backward(ones, index, None, None, len(lengths))
    expected = torch.bincount(index.flatten(), minlength=len(lengths)).float()[:, None].expand(-1, 8)
    assert torch.equal(counts, expected)


def test_a_row_of_more_chunks_than_a_tile_holds(monkeypatch, device):
    """And none of the others, whose chunks are launched for nothing."""
    monkeypatch.setattr(sorted_pairs, "CHUNK", 32)
    index = torch.full((5000, 1), 3, dtype=torch.int32, device=device)
    upstream = torch.randn(5000, 130, device=device)  # 32 partial sums a tile, of which there are 157
    got = triton.backward(upstream, index, None, None, 8)
    assert not got[:3].any()
    assert not got[4:].any()
    torch.testing.assert_close(got[3], upstream.sum(0), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("num_rows", [32_767, 32_768, 40_000])
def test_rows_at_the_end_of_16_bits(num_rows, device):
    index = torch.tensor([num_rows - 1, 0, num_rows - 1], dtype=torch.int32, device=device)
    pair_N, off_R1 = sorted_pairs.pairs_by_row(index, num_rows)
    assert pair_N.tolist() == [1, 0, 2]
    assert off_R1.tolist() == [0] + [1] * (num_rows - 1) + [3]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_index_and_weights_with_slots_first(implementation, device):
    rows, index, weight, scale = make(50, 3, 9, 16, torch.float32, device)
    module, upstream = IMPLEMENTATIONS[implementation], torch.randn(50, 16, device=device)
    turned = index.t().contiguous().t(), weight.t().contiguous().t(), scale
    for given in ((index, weight, scale), turned):
        assert torch.equal(module.forward(rows, *given), module.forward(rows, index, weight, scale))
        assert torch.equal(module.backward(upstream, *given, 9), module.backward(upstream, index, weight, scale, 9))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("T", "S", "R"), [(0, 2, 3), (3, 0, 2), (0, 0, 0)])
def test_nothing(implementation, T, S, R, device):
    module = IMPLEMENTATIONS[implementation]
    index = torch.zeros(T, S, dtype=torch.int32, device=device)
    value = module.forward(torch.ones(R, 4, device=device), index, None, None)
    gradient = module.backward(torch.ones(T, 4, device=device), index, None, None, R)
    assert value.shape == (T, 4)
    assert gradient.shape == (R, 4)
    assert not value.any()
    assert not gradient.any()


@pytest.mark.parametrize("few", [0, 1 << 12], ids=["sorted", "few"])
@pytest.mark.parametrize("weighted", [False, True])
def test_what_has_no_part_is_not_read(weighted, few, monkeypatch, device):
    """Of dropped events and unused slots, forward and backward."""
    monkeypatch.setattr(triton, "FEW_PAIRS", few)
    index = torch.tensor([0] * 150 + [1, 2] * 50, dtype=torch.int32, device=device)[:, None]
    part = torch.cat([torch.arange(150) >= 140, torch.arange(100) % 3 > 0]).to(device)
    factor = part.float() / 2
    upstream = torch.where(part, 4.0, torch.nan)[:, None].expand(-1, 8).contiguous()
    weight, scale = (factor[:, None], None) if weighted else (None, factor)
    got = triton.backward(upstream, index, weight, scale, 3)
    counts = torch.zeros(3, device=device).index_add_(0, index[:, 0].long(), part.float())
    assert got.tolist() == (2 * counts[:, None].expand(-1, 8)).tolist()
    own = torch.arange(250, dtype=torch.int32, device=device)[:, None]  # a row for each event
    assert triton.forward(upstream, own, weight, scale).tolist() == (2 * part.float()[:, None].expand(-1, 8)).tolist()


FEW = [
    # events, rows and slots of the others, groups of few rows, width
    (1, 1, 1, ((64, 1),), 1),
    (70, 9, 2, ((64, 2),), 24),
    (200, 0, 0, ((64, 1), (128, 2)), 40),
    (130, 40, 1, ((128, 1), (64, 3)), 130),
]


def make_few(T, rows, slots, few, D, dtype, device):
    """As ``make``, with slots of few rows behind; a last row of each group that no event names."""
    index, first = [torch.randint(0, max(rows, 1), (T, slots))], rows
    for group_rows, group_slots in few:
        # Of a group's rows the first is named by half of the events, often by two slots of one.
        index.append(first + torch.randint(1 - group_rows, group_rows - 1, (T, group_slots)).clamp(min=0))
        first += group_rows
    index_TS = torch.cat(index, 1).int().to(device)
    _, _, weight_TS, scale_T = make(T, index_TS.shape[1], 1, 1, dtype, device)
    return torch.randn(first, D).to(device, dtype), index_TS, weight_TS, scale_T


@pytest.fixture
def sorts(monkeypatch) -> list[int]:
    """Numbers of pairs that were sorted; few pairs are sorted, too."""
    monkeypatch.setattr(triton, "FEW_PAIRS", 0)
    counts, sort = [], sorted_pairs.pairs_by_row
    monkeypatch.setattr(
        sorted_pairs, "pairs_by_row", lambda index_N, rows: counts.append(len(index_N)) or sort(index_N, rows)
    )
    return counts


@pytest.mark.parametrize("factors", ["none", "dropout", "uneven", "weights", "weights and dropout"])
@pytest.mark.parametrize(
    ("case", "dtype"),
    [*((case, torch.float32) for case in FEW), (FEW[1], torch.bfloat16), (FEW[1], torch.float16)],
    ids=str,
)
def test_few_rows_equal_naive(case, dtype, factors, sorts, device):
    T, rows, slots, few, D = case
    leaf, index, weight, scale = make_few(*case, dtype, device)
    scale *= torch.rand(T, device=device) if factors == "uneven" else 1
    rest = (index, weight if "weights" in factors else None, None if factors in ("none", "weights") else scale)
    upstream = torch.randn(T, D, device=device).to(dtype)

    def reference(to: torch.dtype) -> torch.Tensor:
        wide = leaf.to(to).requires_grad_()
        value = naive.gather_sum(wide, *(t if t is None or not t.is_floating_point() else t.to(to) for t in rest))
        return torch.autograd.grad(value, wide, upstream.to(to))[0]

    got = triton.backward(upstream, *rest, len(leaf), few)
    exact, plain = reference(torch.float64), reference(dtype)
    assert sorts == [T * slots] * (slots > 0)
    for part in (slice(rows), slice(rows, None)):
        assert relative(got[part], exact[part]) <= 2 * relative(plain[part], exact[part]) + 8 * EPS
    assert torch.equal(got, triton.backward(upstream, *rest, len(leaf), few)), "equal inputs gave other bits"
    assert not got[rows + few[0][0] - 1].any(), "a row that no event names"
    assert relative(cpu.backward(upstream, *rest, len(leaf), few), exact) <= 2 * relative(plain, exact) + 8 * EPS


@pytest.mark.parametrize("stretches", [1, 3, 1000])
@pytest.mark.parametrize("T", [63, 64, 65, 300, 4200])
def test_few_rows_are_counted(T, stretches, monkeypatch, device):
    """One long stretch, and more than are added up at once: sums of ones are counts, of a row named twice as well."""
    monkeypatch.setattr(triton, "FEW_PAIRS", 0)
    monkeypatch.setattr(few_rows, "STRETCHES", stretches)
    index = torch.randint(0, 64, (T, 1), device=device).int().expand(-1, 2).contiguous()
    counts = triton.backward(torch.ones(T, 8, device=device), index, None, None, 64, ((64, 2),))
    assert torch.equal(counts, 2 * torch.bincount(index[:, 0], minlength=64).float()[:, None].expand(-1, 8))


def test_scales_that_differ_in_one_stretch_alone(monkeypatch, device):
    """Stretches without any event, with one scale, with several."""
    monkeypatch.setattr(triton, "FEW_PAIRS", 0)
    scale = torch.cat([torch.zeros(64), torch.full((64,), -2.0), torch.tensor([1.0, 3.0, 0.0, -2.0] * 16)]).to(device)
    index = torch.arange(192, device=device).int()[:, None] % 64
    got = triton.backward(torch.ones(192, 4, device=device), index, None, scale, 64, ((64, 1),))
    assert torch.equal(got, scale.view(3, 64).sum(0)[:, None].expand(-1, 4))


@pytest.mark.parametrize("even", [False, True])
def test_dropped_events_of_few_rows_are_not_read(even, monkeypatch, device):
    monkeypatch.setattr(triton, "FEW_PAIRS", 0)
    scale = (torch.arange(100) % 3 > 0).float() * (2.0 if even else torch.arange(100) / 4)
    index = torch.randint(0, 64, (100, 2)).int()
    upstream = torch.where(scale > 0, 1.0, torch.nan)[:, None].expand(-1, 8).contiguous()
    got = triton.backward(upstream.to(device), index.to(device), None, scale.to(device), 64, ((64, 2),))
    wanted = torch.zeros(64).index_add_(0, index.flatten(), scale[:, None].expand(-1, 2).flatten())
    assert torch.equal(got.cpu(), wanted[:, None].expand(-1, 8))


def test_few_rows_of_no_events(device):
    index = torch.zeros(0, 3, dtype=torch.int32, device=device)
    for module in (cpu, triton):
        gradient = module.backward(torch.ones(0, 4, device=device), index, None, None, 70, ((64, 2),))
        assert gradient.shape == (70, 4)
        assert not gradient.any()


def test_gradcheck_of_few_rows(monkeypatch):
    rows, index, weight, scale = make_few(9, 3, 1, ((64, 2),), 2, torch.float64, torch.device("cpu"))
    rows.requires_grad_()
    weight, scale = weight.double(), scale.double()
    assert torch.autograd.gradcheck(lambda r: gather_sum(r, index, weight, scale, few=((64, 2),)), (rows,))
    torch.library.opcheck(torch.ops.laser.gather_sum.default, (rows, index, weight, scale, [64], [2]))


def test_gradcheck():
    rows, index, weight, scale = make(9, 2, 4, 3, torch.float64, torch.device("cpu"))
    rows.requires_grad_()
    weight, scale = weight.double(), scale.double()
    assert torch.autograd.gradcheck(lambda r: gather_sum(r, index, weight, scale), (rows,))
    torch.library.opcheck(torch.ops.laser.gather_sum.default, (rows, index, weight, scale, [], []))


def test_mistakes():
    rows, index = torch.ones(3, 2), torch.zeros(4, 2, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"torch\.int32 \[T, S\]"):
        gather_sum(rows, index.long())
    with pytest.raises(ValueError, match="one weight an index"):
        gather_sum(rows, index, torch.ones(4, 3))
    with pytest.raises(ValueError, match="one factor an event"):
        gather_sum(rows, index, None, torch.ones(3))
    for few, message in (
        (((48, 1),), "powers of two"),
        (((32, 1),), "at least 64"),
        (((128, 1), (256, 1)), "at most 256"),
        (((64, 1),), "than there are, 3 and 2"),
        (((64, 0),), "at least one slot"),
        (((64, 2), (64, 1)), "than there are, 200 and 2"),
    ):
        with pytest.raises(ValueError, match=message):
            gather_sum(rows if "3 and" in message else torch.ones(200, 2), index, few=few)

"""Feed-forward networks: kernels against naive in float64, every gradient by name; elsewhere what the layers give."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import laser.ops.feed_forward as package
from laser.model.dense import FeedForward as Network
from laser.model.half_copies import HalfCopies
from laser.model.rankmixer import PerTokenFeedForward
from laser.ops.feed_forward import feed_forward, grouped_feed_forward, naive, triton
from laser.ops.feed_forward.functions import FeedForward

NAMES = ["y", "d_x", "d_weight1", "d_bias1", "d_weight2", "d_bias2"]
BFLOAT16, FLOAT16, FLOAT32 = torch.bfloat16, torch.float16, torch.float32


def inputs(N: int, H: int, I: int, F: int, O: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """x, weights and biases."""
    tensors = torch.randn(N, H, I), torch.randn(H, I, F), torch.randn(H, F), torch.randn(H, F, O), torch.randn(H, O)
    scales = 1.0, I**-0.5, 1.0, F**-0.5, 1.0
    return [(tensor * scale).to(device, dtype) for tensor, scale in zip(tensors, scales, strict=True)]


def run(op, tensors: list[Tensor], upstream: Tensor) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    y = op(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, upstream.to(y.dtype))]


def error(value: Tensor, exact: Tensor) -> float:
    return float((value.detach().double() - exact).norm() / exact.norm().clamp(min=1e-30))


def check(tensors: list[Tensor], upstream: Tensor) -> list[Tensor]:
    """Kernels obey the acceptance rule for these tensors; their answers."""
    exact = run(naive.grouped_feed_forward, [tensor.double() for tensor in tensors], upstream.double())
    plain, ours = run(naive.grouped_feed_forward, tensors, upstream), run(FeedForward.apply, tensors, upstream)
    cut = 2**-8 if tensors[0].dtype == BFLOAT16 and upstream.device.type == "cpu" else 0.0  # the interpreter cuts
    for name, value, same_dtype, reference in zip(NAMES, ours, plain, exact, strict=True):
        allowed = 2 * error(same_dtype, reference) + cut
        assert (value.dtype, value.shape) == (same_dtype.dtype, same_dtype.shape), name
        assert error(value, reference) <= allowed, f"{name}: {error(value, reference):.2e} > {allowed:.2e}"
    return ours


@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [
        ((1, 1, 16, 16, 16), FLOAT16),
        ((3, 3, 40, 72, 24), FLOAT16),
        ((130, 1, 16, 130, 32), FLOAT16),
        ((129, 2, 80, 24, 70), FLOAT16),
        ((130, 1, 32, 64, 32), BFLOAT16),
        ((5, 9, 16, 24, 16), BFLOAT16),
    ],
    ids=str,
)
def test_output_and_gradients(sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    tensors = inputs(*sizes, dtype, device)
    check(tensors, torch.randn(sizes[0], sizes[1], sizes[4]).to(device, dtype))


def test_strides(device: torch.device) -> None:
    """x by columns of groups, weights as of ``nn.Linear``, an expanded upstream; gradients have weights' strides."""
    x, weight1, bias1, weight2, bias2 = inputs(9, 2, 16, 32, 24, FLOAT16, device)
    upstream = torch.randn(24).to(device, FLOAT16).expand(9, 2, 24)
    expected = check([x, weight1, bias1, weight2, bias2], upstream.contiguous())
    strided = [
        x.transpose(0, 1).contiguous().transpose(0, 1),
        *(weight.mT.contiguous().mT for weight in (weight1, weight2)),
    ]
    leaves = [strided[0], strided[1], bias1, strided[2], bias2]
    found = run(FeedForward.apply, leaves, upstream)
    for name, value, same in zip(NAMES, found, expected, strict=True):
        torch.testing.assert_close(value, same, msg=lambda text, name=name: f"{name}: {text}")
    assert found[2].stride() == leaves[1].stride()


def test_equal_bits_and_a_batch_split_in_two(device: torch.device) -> None:
    x, *weights = inputs(140, 1, 16, 32, 16, FLOAT16, device)
    upstream = torch.randn(140, 1, 16).to(device, FLOAT16)
    whole = run(FeedForward.apply, [x, *weights], upstream)
    assert all(map(torch.equal, whole, run(FeedForward.apply, [x, *weights], upstream)))
    parts = [run(FeedForward.apply, [x[some], *weights], upstream[some]) for some in (slice(0, 9), slice(9, 140))]
    for place in (0, 1):
        torch.testing.assert_close(torch.cat([part[place] for part in parts]), whole[place])
    nothing = run(FeedForward.apply, [x, *weights], torch.zeros_like(upstream))
    assert not any(gradient.any() for gradient in nothing[1:])


def test_far_from_zero(device: torch.device) -> None:
    """GELU there is x or 0, and its slope 1 or 0."""
    x, weight1, _, weight2, bias2 = inputs(4, 1, 16, 16, 16, FLOAT16, device)
    bias1 = torch.tensor([60.0, -60.0], device=device, dtype=FLOAT16).repeat(8)[None]
    y, _, _, d_bias1, d_weight2, _ = run(FeedForward.apply, [x, weight1, bias1, weight2, bias2], torch.ones_like(x))
    assert y.isfinite().all()
    assert not d_bias1[0, 1::2].any()
    assert not d_weight2[0, 1::2].any()
    assert d_bias1[0, ::2].all()


@pytest.mark.parametrize("dtype", [FLOAT32, torch.float64])
def test_elsewhere_it_is_the_layers(dtype: torch.dtype) -> None:
    device = torch.device("cpu")
    x, weight1, bias1, weight2, bias2 = inputs(6, 1, 16, 32, 24, dtype, device)
    upstream = torch.randn(6, 24, dtype=dtype)
    of_linear = [x[:, 0], weight1[0].t(), bias1[0], weight2[0].t(), bias2[0]]

    def layers(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
        hidden = nn.functional.gelu(nn.functional.linear(x, weight1, bias1))
        return nn.functional.linear(hidden, weight2, bias2)

    assert all(map(torch.equal, run(feed_forward, of_linear, upstream), run(layers, of_linear, upstream)))
    tensors = inputs(6, 3, 16, 32, 24, dtype, device)
    upstream = torch.randn(6, 3, 24, dtype=dtype)
    found, exact = (run(op, tensors, upstream) for op in (grouped_feed_forward, naive.grouped_feed_forward))
    for name, value, reference in zip(NAMES, found, exact, strict=True):
        torch.testing.assert_close(value, reference, msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """As on a GPU: what goes to the kernels."""
    taken: list[torch.Size] = []
    apply = FeedForward.apply
    monkeypatch.setattr(package, "use_triton", lambda tensor: True)
    monkeypatch.setattr(FeedForward, "apply", lambda *args: taken.append(args[0].shape) or apply(*args))
    return taken


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels do not run on tensors of the CPU where there is a GPU")
def test_networks_of_the_model_under_autocast(launched: list[torch.Size]) -> None:
    for network, x in (
        (Network(16, 2), torch.randn(3, 5, 16)),
        (PerTokenFeedForward(3, 16, 32), torch.randn(7, 3, 16)),
    ):
        parameters = dict(network.named_parameters())
        exact = network.double()(x.double()).float()
        wanted = torch.autograd.grad(network(x.double()).sum(), list(parameters.values()))
        network.float()
        assert not launched
        with torch.autocast("cpu", BFLOAT16):
            y = network(x)
        assert (y.dtype, y.shape) == (BFLOAT16, exact.shape)
        assert error(y, exact) < 2e-2
        for name, value, reference in zip(
            parameters, torch.autograd.grad(y.sum(), list(parameters.values())), wanted, strict=True
        ):
            assert value.dtype == FLOAT32, name
            assert error(value, reference) < 2e-2, name
        assert len(launched) == 1
        launched.clear()


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels do not run on tensors of the CPU where there is a GPU")
def test_what_goes_to_the_kernels(launched: list[torch.Size]) -> None:
    tensors = inputs(4, 2, 16, 32, 16, BFLOAT16, torch.device("cpu"))
    grouped_feed_forward(*tensors)
    assert launched == [(4, 2, 16)]
    launched.clear()
    grouped_feed_forward(tensors[0][:0], *tensors[1:])
    for narrow in ((15, 32, 16), (16, 15, 16), (16, 32, 15)):
        grouped_feed_forward(*inputs(4, 2, *narrow, BFLOAT16, torch.device("cpu")))
    grouped_feed_forward(*inputs(4, 2, 16, 32, 16, FLOAT32, torch.device("cpu")))
    assert not launched


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels do not run on tensors of the CPU where there is a GPU")
def test_what_is_traced_goes_elsewhere(launched: list[torch.Size]) -> None:
    """Of any number of rows."""
    network = Network(16, 2).bfloat16()
    x = torch.randn(3, 16, dtype=BFLOAT16)
    program = torch.export.export(network, (x,), dynamic_shapes={"input": {0: torch.export.Dim("rows", min=2)}})
    assert program.module()(torch.cat([x, x])).shape == (6, 16)
    assert not launched
    network(x)
    assert launched == [(3, 1, 16)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels do not run on tensors of the CPU where there is a GPU")
@pytest.mark.parametrize(
    ("place", "shape"),
    [(0, (4, 2, 32)), (1, (2, 24, 32)), (1, (2, 16, 24)), (2, (2, 48)), (3, (2, 48, 16)), (4, (2, 24))],
    ids=str,
)
def test_widths_that_do_not_fit(place: int, shape: tuple[int, ...], launched: list[torch.Size]) -> None:
    """Are PyTorch's error: kernels would read beyond the end of a tensor."""
    tensors = inputs(4, 2, 16, 32, 16, FLOAT16, torch.device("cpu"))
    tensors[place] = torch.randn(shape).half()
    with pytest.raises(RuntimeError):
        grouped_feed_forward(*tensors)
    x, weight1, bias1, weight2, bias2 = tensors
    with pytest.raises(RuntimeError):
        feed_forward(x[:, 0], weight1[0].t(), bias1[0], weight2[0].t(), bias2[0])
    assert not launched


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels do not run on tensors of the CPU where there is a GPU")
def test_groups_that_do_not_fit(launched: list[torch.Size]) -> None:
    """Of weights likewise; a bias of one group is PyTorch's for all."""
    x, weight1, bias1, weight2, bias2 = inputs(4, 2, 16, 32, 16, FLOAT16, torch.device("cpu"))
    for wrong in ((x[:, :1], weight1, weight2), (x, weight1[:1], weight2), (x, weight1, weight2[:1])):
        with pytest.raises(RuntimeError):
            grouped_feed_forward(wrong[0], wrong[1], bias1, wrong[2], bias2)
    y = grouped_feed_forward(x, weight1, bias1[:1], weight2, bias2)
    assert not launched
    expected = grouped_feed_forward(x, weight1, bias1[:1].expand(2, 32), weight2, bias2)
    torch.testing.assert_close(y, expected, rtol=4e-3, atol=4e-3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels do not run on tensors of the CPU where there is a GPU")
def test_one_dtype_without_autocast(launched: list[torch.Size]) -> None:
    tensors = inputs(4, 2, 16, 32, 16, FLOAT16, torch.device("cpu"))
    for place, other in ((1, FLOAT32), (2, BFLOAT16), (3, BFLOAT16)):
        with pytest.raises(RuntimeError):
            grouped_feed_forward(*tensors[:place], tensors[place].to(other), *tensors[place + 1 :])
    assert not launched


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels do not run on tensors of the CPU where there is a GPU")
def test_parameters_are_cast_as_they_are(launched: list[torch.Size]) -> None:
    """So that copies in half precision, made in one launch, stand in for them; gradients lie as they do."""
    network, x = Network(16, 2), torch.randn(5, 16)
    copies = HalfCopies(network, list(network.parameters()), "cpu", BFLOAT16, {"input": x})
    assert sorted(copies.by_name) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    with torch.autocast("cpu", BFLOAT16):
        y = copies(input=x)
        assert torch.equal(y, network(x))
    gradients = torch.autograd.grad(y.float().sum(), copies.leaves())
    assert [gradient.stride() for gradient in gradients] == [leaf.stride() for leaf in network.parameters()]
    assert len(launched) == 3


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16])
def test_gelu_is_that_of_what_was_rounded(dtype: torch.dtype, device: torch.device) -> None:
    x, weight, bias, *_ = inputs(70, 1, 16, 80, 16, dtype, device)
    hidden, active = triton.hidden(x, weight, bias)
    wide = nn.functional.gelu(hidden.float())
    # Half a last place where results are rounded, a whole one where the interpreter cuts them to bfloat16; an unrounded
    # sum's would differ by as much again.
    places = 1.0 if dtype == BFLOAT16 and device.type == "cpu" else 0.5
    assert bool(((active.float() - wide).abs() <= places * torch.finfo(dtype).eps * wide.abs() + 1e-6).all())


def test_gelu_and_its_slope_element_by_element(device: torch.device) -> None:
    """Far out, too, where 1 + erf would be a difference of nearly equal numbers; what is not finite stays so."""
    x = torch.cat([torch.linspace(-3.4, 3.4, 30 * 16), torch.tensor([-60.0, -9.0, -5.0, 5.0, 9.0, 60.0] + [0.0] * 10)])
    x = x.view(31, 1, 16).to(device, FLOAT16)
    eye, ones = torch.eye(16, device=device, dtype=FLOAT16)[None], torch.ones_like(x)
    hidden, active = triton.hidden(x, eye, torch.zeros(1, 16, device=device, dtype=FLOAT16))
    slope, _ = triton.d_hidden(ones, eye, hidden)
    leaf = x.double().requires_grad_()
    exact = torch.nn.functional.gelu(leaf)
    exact.sum().backward()
    torch.testing.assert_close(active[0].double(), exact.detach()[:, 0], rtol=6e-4, atol=1e-6)
    torch.testing.assert_close(slope[0].double(), leaf.grad[:, 0], rtol=6e-4, atol=2e-5)  # 0 is crossed
    odd = torch.full_like(x, float("nan"))
    odd[0, 0] = float("inf")
    hidden, active = triton.hidden(odd, torch.ones_like(eye), torch.zeros(1, 16, device=device, dtype=FLOAT16))
    assert not active.isfinite().any()
    assert not triton.d_hidden(ones, eye, hidden)[0].isfinite().any()

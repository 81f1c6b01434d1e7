"""Which parameters are copied to half precision before a network is called."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from laser.model.flat import Flat
from laser.model.half_copies import HalfCopies


class Network(nn.Module):
    """One weight that autocast copies, one that is used in float32 as well, one in float32 alone, one not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.copied, self.both, self.exact, self.unused = (nn.Parameter(torch.randn(3, 3)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        products = nn.functional.linear(x, self.copied) + nn.functional.linear(x, self.both)
        return products.float() * self.both.sum() + self.exact.sum()


def test_only_what_autocast_copies_and_nothing_else_uses() -> None:
    network, x = Network(), torch.randn(2, 3)
    copies = HalfCopies(network, list(network.parameters()), "cpu", torch.bfloat16, {"x": x})
    assert list(copies.by_name) == ["copied"]
    with torch.autocast("cpu", torch.bfloat16):
        ours, expected = copies(x=x), network(x)
    assert torch.equal(ours, expected)
    found = torch.autograd.grad(ours.sum(), copies.leaves(), allow_unused=True)
    assert [None if gradient is None else gradient.dtype for gradient in found] == [
        torch.bfloat16,
        torch.float32,
        torch.float32,
        None,
    ]
    for gradient, reference in zip(found, torch.autograd.grad(expected.sum(), copies.parameters, allow_unused=True)):
        assert (gradient is None and reference is None) or torch.equal(gradient.float(), reference)


def test_parameters_in_one_tensor_are_copied_in_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same copies; parameters that were moved since are not in it any more."""
    network, x = Network(), torch.randn(2, 3)
    parameters = list(network.parameters())[::-1]  # so that the one that is copied is not the first
    apart = HalfCopies(network, parameters, "cpu", torch.bfloat16, {"x": x})
    flat = Flat(parameters)
    for parameter, view in zip(parameters, flat.views(flat.filled([p.detach() for p in parameters])), strict=True):
        parameter.data = view
    together = HalfCopies(network, parameters, "cpu", torch.bfloat16, {"x": x})
    assert apart.flat is None
    assert together.flat is not None
    assert list(together.copies) == list(apart.copies)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            expected = apart(x=x)
            with monkeypatch.context() as patch:
                patch.delattr(torch, "_foreach_copy_")
                ours = together(x=x)
        assert torch.equal(ours, expected)
        found, known = (
            torch.autograd.grad(answer.sum(), copies.leaves(), allow_unused=True)
            for answer, copies in ((ours, together), (expected, apart))
        )
        assert all(f is k is None or torch.equal(f, k) for f, k in zip(found, known, strict=True))
        with torch.no_grad():
            network.copied += 1  # what comes next has other weights
    network.both.data = network.both.data.clone()
    assert HalfCopies(network, parameters, "cpu", torch.bfloat16, {"x": x}).flat is None


def test_nothing_is_copied_without_autocast() -> None:
    network, x = Network(), torch.randn(2, 3)
    copies = HalfCopies(network, list(network.parameters()), "cpu", torch.float32, {"x": x})
    assert not copies.copies
    assert torch.equal(copies(x=x), network(x))
    assert copies.leaves() == copies.parameters


def test_gradients_that_lie_otherwise_are_copied_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """One among them, and PyTorch copies all one by one."""
    network = Network()
    copies = HalfCopies(network, list(network.parameters()), "cpu", torch.bfloat16, {"x": torch.randn(2, 3)})
    gradients = [torch.randn(3, 3).bfloat16(), torch.randn(3, 3).T, torch.randn(3, 3), torch.randn(3, 3)]
    together, copy = [], torch._foreach_copy_
    monkeypatch.setattr(torch, "_foreach_copy_", lambda to, given: (together.append(given), copy(to, given)))
    there = [torch.zeros(3, 3) for _ in gradients]
    copies.write(gradients, there)
    assert all(torch.equal(to, gradient.float()) for to, gradient in zip(there, gradients, strict=True))
    assert [[gradient.dtype for gradient in given] for given in together] == [[torch.bfloat16], [torch.float32] * 2]

"""Adam on one tensor makes the steps of PyTorch's Adam, whether gradients lie in one tensor, apart, or are missing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from laser.model.flat import MULTIPLE, Flat
from laser.train.flat_adam import FlatAdam

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
OPTIONS = {"lr": 0.05, "betas": (0.9, 0.99), "eps": 1e-8}


class Steps:
    """The same model with both optimizers, and the flat one's gradients."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(7, 33), nn.LayerNorm(33), nn.Linear(33, 1, bias=False)).to(DEVICE)
        self.plain = copy.deepcopy(self.model)
        self.gradient_P: Tensor | None = None
        self.flat = FlatAdam(self.model.parameters(), lambda: self.gradient_P, **OPTIONS)
        self.adam = torch.optim.Adam(self.plain.parameters(), fused=True, **OPTIONS)

    def step(self, *, one_tensor: bool, without: int | None = None) -> None:
        parameters = list(self.model.parameters())
        gradients = [torch.randn_like(parameter) for parameter in parameters]
        flat = Flat(parameters)
        self.gradient_P = flat.filled(gradients) if one_tensor else None
        views = gradients if self.gradient_P is None else flat.views(self.gradient_P)
        for at, (p, q) in enumerate(zip(parameters, self.plain.parameters(), strict=True)):
            p.grad = None if at == without else views[at]
            q.grad = None if at == without else gradients[at]
        self.flat.step()
        self.adam.step()

    def check(self) -> None:
        for p, q in zip(self.model.parameters(), self.plain.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-8)
            mine, other = self.flat.state[p], self.adam.state[q]
            assert mine.keys() == other.keys()
            for name in mine:
                torch.testing.assert_close(mine[name], other[name], rtol=1e-6, atol=1e-8)


@pytest.fixture
def steps() -> Steps:
    return Steps()


def test_steps_of_every_kind(steps):
    for one_tensor in (True, True, False, True, False):
        steps.step(one_tensor=one_tensor)
        steps.check()


def test_what_has_no_gradient_stays(steps):
    """Its own step too, so that its next one is corrected as its second."""
    steps.step(one_tensor=False)
    steps.step(one_tensor=False, without=2)
    steps.step(one_tensor=False)
    steps.check()


def test_the_learning_rate_is_followed(steps):
    for rate in (0.05, 0.5):
        for optimizer in (steps.flat, steps.adam):
            optimizer.param_groups[0]["lr"] = rate
        steps.step(one_tensor=True)
    steps.check()


def test_parameters_keep_values_and_begin_where_kernels_want_them(steps):
    for p, q in zip(steps.model.parameters(), steps.plain.parameters(), strict=True):
        assert torch.equal(p, q)
        assert p.data_ptr() % (4 * MULTIPLE) == steps.flat.flat_P.data_ptr() % (4 * MULTIPLE)
        assert p.is_contiguous()


def test_what_is_read_into_the_state_counts(steps):
    steps.step(one_tensor=True)
    other = Steps()
    with torch.no_grad():
        for p, q in zip(other.model.parameters(), steps.model.parameters(), strict=True):
            p.copy_(q)
            for name, tensor in other.flat.state[p].items():
                tensor.copy_(steps.flat.state[q][name])
    other.plain, other.adam = steps.plain, steps.adam
    other.step(one_tensor=True)
    other.check()


def test_parameters_that_were_moved_are_stepped_where_they_are(steps):
    steps.step(one_tensor=True)
    for parameter in steps.model.parameters():
        parameter.data = parameter.data.clone()
    steps.step(one_tensor=True)
    steps.check()

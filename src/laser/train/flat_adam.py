"""Adam on parameters that lie one after another, in two launches where their gradients do, too.

PyTorch's fused Adam gathers parameters, gradients and states of some hundred tensors on the host in every step.

Legend of shape suffixes: P all parameters, one after another (``laser.model.flat``); N parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam

from laser.model.flat import Flat


class FlatAdam(Adam):
    """``torch.optim.Adam(fused=True)``, bit for bit, which moves its parameters into one tensor.

    Args:
        parameters: float32, on one device; they keep their values, but not their memory.
        gradients: gives their gradients [P], one after another in the same order; ``None`` if they lie apart.
        options: ``lr``, ``betas`` and ``eps``.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], gradients: Callable[[], Tensor | None], **options: Any
    ) -> None:
        super().__init__(list(parameters), fused=True, **options)
        self.gradients = gradients
        self.parameters: list[nn.Parameter] = self.param_groups[0]["params"]
        flat, values = Flat(self.parameters), [parameter.detach() for parameter in self.parameters]
        self.flat_P = flat.filled(values)
        self.first_P, self.second_P = torch.zeros_like(self.flat_P), torch.zeros_like(self.flat_P)
        self.step_N = torch.zeros(len(values), device=self.flat_P.device)
        moments = zip(self.step_N, flat.views(self.first_P), flat.views(self.second_P), strict=True)
        for parameter, view, state in zip(self.parameters, flat.views(self.flat_P), moments, strict=True):
            parameter.data = view
            self.state[parameter] = dict(zip(("step", "exp_avg", "exp_avg_sq"), state, strict=True))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Run ``closure``, if there is one, and change the parameters."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradient_P = self.gradients()
        if gradient_P is None or self.parameters[0].data_ptr() != self.flat_P.data_ptr():
            super().step()
            return loss
        (group,) = self.param_groups
        self.step_N += 1
        torch._fused_adam_(
            [self.flat_P],
            [gradient_P],
            [self.first_P],
            [self.second_P],
            [],
            [self.step_N[0]],
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=0.0,
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )
        return loss

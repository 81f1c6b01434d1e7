"""Copies in half precision of the parameters that autocast would copy one by one in every step, made in one launch.

A parameter is copied here if all that the network does with it is to have autocast copy it: what else is computed with
it is computed in float32, and stays so. Gradients are those of the copies, which is what autocast hands on as well.

Legend of shape suffixes: P all parameters, one after another (``laser.model.flat``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from laser.model.flat import Flat


class HalfCopies:
    """Stands in for some parameters of a network while it is called.

    Args:
        network: to be called.
        parameters: those that may be copied.
        device_type: of autocast.
        dtype: of autocast; float32 where it is off, and nothing is copied.
        inputs: with which the network is called once, so that it can be seen what becomes of the parameters.
    """

    def __init__(
        self,
        network: nn.Module,
        parameters: Sequence[nn.Parameter],
        device_type: str,
        dtype: torch.dtype,
        inputs: dict[str, Any],
    ) -> None:
        self.network, self.parameters = network, list(parameters)
        self.copies: dict[int, Tensor] = {}
        """By place among the parameters."""
        self.flat: tuple[Tensor, Tensor] | None = None
        """All parameters [P] and their copies [P], where parameters lie in one tensor: there is less to launch then."""
        if dtype != torch.float32:
            autocast = torch.autocast(device_type, dtype, cache_enabled=False)
            with autocast, torch.no_grad(), _Uses(self.parameters, dtype) as uses:
                network(**inputs)
            self._make(sorted(uses.copied - uses.used), dtype)
        places = {id(parameter): place for place, parameter in enumerate(self.parameters)}
        named = ((name, places.get(id(parameter))) for name, parameter in network.named_parameters())
        self.by_name = {name: self.copies[place] for name, place in named if place in self.copies}

    def _make(self, places: list[int], dtype: torch.dtype) -> None:
        flat = Flat(self.parameters)
        whole_P = flat.holding(self.parameters)
        if whole_P is not None:
            self.flat = whole_P, whole_P.to(dtype)
            views = flat.views(self.flat[1])
            self.copies = {place: views[place].detach().requires_grad_() for place in places}
        else:
            self.copies = {place: self.parameters[place].detach().to(dtype).requires_grad_() for place in places}

    def __call__(self, **inputs: Any) -> Any:
        """What the network answers, with the parameters as they are now."""
        if not self.copies:
            return self.network(**inputs)
        with torch.no_grad():
            if self.flat is not None:
                self.flat[1].copy_(self.flat[0])
            else:
                torch._foreach_copy_(list(self.copies.values()), [self.parameters[place] for place in self.copies])
        return torch.func.functional_call(self.network, self.by_name, (), inputs)

    def leaves(self) -> list[Tensor]:
        """What gradients are to be asked of: a parameter or its copy, in the order of the parameters."""
        return [self.copies.get(place, parameter) for place, parameter in enumerate(self.parameters)]

    def write(self, gradients: list[Tensor], to: list[Tensor]) -> None:
        """Copy gradients of ``leaves`` to float32 tensors, in one launch all of one dtype that lie as their places do.

        One that lies otherwise would make PyTorch copy each by itself.
        """
        alike: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
        for gradient, place in zip(gradients, to, strict=True):
            if gradient.stride() == place.stride():
                alike.setdefault(gradient.dtype, []).append((gradient, place))
            else:
                place.copy_(gradient)
        for pairs in alike.values():
            torch._foreach_copy_([place for _, place in pairs], [gradient for gradient, _ in pairs])


class _Uses(TorchDispatchMode):
    """Sees which parameters are copied to a dtype, and with which anything else is done."""

    def __init__(self, parameters: list[nn.Parameter], dtype: torch.dtype) -> None:
        super().__init__()
        self.place_of = {id(parameter): place for place, parameter in enumerate(parameters)}
        self.dtype = dtype
        self.copied: set[int] = set()
        self.used: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        is_copy = func is torch.ops.aten._to_copy.default and answer.dtype == self.dtype
        touched = {self.place_of[id(leaf)] for leaf in tree_leaves((args, kwargs)) if id(leaf) in self.place_of}
        (self.copied if is_copy else self.used).update(touched)
        return answer

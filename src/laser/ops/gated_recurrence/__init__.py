"""A gated recurrence over events (GRU) whose update gate is scaled from outside: one launch for all events.

    u = sigmoid(p_u + W_u h) s;   r = sigmoid(p_r + W_r h);   c = tanh(p_c + W_c (r h));   h' = (1 - u) h + u c

with h = 0 before the first event: the GRU of arXiv 1406.1078, and with attention as s the AUGRU of arXiv 1809.03672.

``naive`` is the specification, a loop that autograd differentiates, and serves off CUDA, in float64 and where a width
does not fit a program; ``triton`` serves the rest.

Legend of shape suffixes: B samples; L events; D width; P products of update, reset and candidate, 3D (of weights of
both gates, 2D).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from laser.ops.availability import use_triton
from laser.ops.gated_recurrence import naive

__all__ = ["gated_recurrence"]

WIDEST, WIDEST_APART = 128, 64
"""D of which a program holds three square matrices in bfloat16 in its registers, and of which it has room for one at a
time in another dtype."""
MOST_ROWS = 1 << 30
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def gated_recurrence(
    products_BLP: Tensor, scale_BL: Tensor, gates_weight_PD: Tensor, candidate_weight_DD: Tensor
) -> Tensor:
    """States after every event.

    Where ``scale_BL`` is 0 the state stays, to the bit, and the products have no gradient: that is how to pad, at the
    old end. State, gates and sums are float32 (float64 for float64), also under autocast, which casts the weights
    alone, as it does a linear layer's. In Triton differentiable once; equal inputs give equal bits, forward and
    backward, as far as PyTorch's matrix products do, which the gradients of the weights are.

    Args:
        products_BLP: [B, L, 3D] products of the inputs for update, reset and candidate, in this order, with whatever
            biases there are; float32, bfloat16, float16, or float64 (not in Triton). Any strides.
        scale_BL: [B, L] factors of the update gate, in any of these dtypes.
        gates_weight_PD: [2D, D] recurrent weights of update and reset, in any of these dtypes.
        candidate_weight_DD: [D, D] that of the candidate, of the same dtype.

    Returns:
        states_BLD, [B, L, D] in the dtype of ``products_BLP``: rounded once, and not what the next state is made of.

    Raises:
        ValueError: when shapes or dtypes do not fit each other.
    """
    _check(products_BLP, scale_BL, gates_weight_PD, candidate_weight_DD)
    inputs = (products_BLP, scale_BL, *_as_autocast_would(gates_weight_PD, candidate_weight_DD))
    with torch.autocast(products_BLP.device.type, enabled=False):
        # Traced first: a compiler can look into plain PyTorch alone.
        if torch.compiler.is_compiling() or not _serves(*inputs):
            return naive.gated_recurrence(*inputs)
        return _forward(*inputs).to(products_BLP.dtype)


def _check(products_BLP: Tensor, scale_BL: Tensor, gates_weight_PD: Tensor, candidate_weight_DD: Tensor) -> None:
    D = candidate_weight_DD.shape[0]
    shapes = [list(x.shape) for x in (products_BLP, scale_BL, gates_weight_PD, candidate_weight_DD)]
    if len(shapes[0]) != 3 or shapes != [[*shapes[0][:2], 3 * D], shapes[0][:2], [2 * D, D], [D, D]]:
        raise ValueError(f"the shapes are {shapes}; pass [B, L, 3D], [B, L], [2D, D] and [D, D]")
    if gates_weight_PD.dtype != candidate_weight_DD.dtype or not scale_BL.is_floating_point():
        raise ValueError(
            f"the weights are {gates_weight_PD.dtype} and {candidate_weight_DD.dtype}, scale_BL is {scale_BL.dtype}; "
            "pass weights of one dtype and a scale of any floating one"
        )


def _as_autocast_would(*weights: Tensor) -> list[Tensor]:
    """In autocast's dtype where it is on.

    Parameters are cast as they are, not a view of them: ``laser.model.half_copies`` looks for that.
    """
    device = weights[0].device.type
    if not torch.is_autocast_enabled(device) or weights[0].dtype == torch.float64:
        return list(weights)
    return [weight.to(torch.get_autocast_dtype(device)) for weight in weights]


def _serves(products_BLP: Tensor, *others: Tensor) -> bool:
    """Whether Triton takes these tensors."""
    (B, L, P), dtype = products_BLP.shape, others[-1].dtype
    widest = WIDEST if dtype == torch.bfloat16 else WIDEST_APART
    if not 0 < P <= 3 * widest or B * L > MOST_ROWS:
        return False
    return all(use_triton(tensor) and tensor.dtype in DTYPES for tensor in (products_BLP, *others))


@torch.library.custom_op("laser::gated_recurrence", mutates_args=())
def _forward(products_BLP: Tensor, scale_BL: Tensor, gates_weight_PD: Tensor, candidate_weight_DD: Tensor) -> Tensor:
    from laser.ops.gated_recurrence import triton

    inputs = (products_BLP, scale_BL, gates_weight_PD, candidate_weight_DD)
    return triton.forward(*(tensor.contiguous() for tensor in inputs))


@torch.library.custom_op("laser::gated_recurrence_backward", mutates_args=())
def _backward(
    d_states_BLD: Tensor,
    products_BLP: Tensor,
    scale_BL: Tensor,
    gates_weight_PD: Tensor,
    candidate_weight_DD: Tensor,
    states_BLD: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from laser.ops.gated_recurrence import triton

    inputs = (d_states_BLD, products_BLP, scale_BL, gates_weight_PD, candidate_weight_DD, states_BLD)
    with torch.autocast(products_BLP.device.type, enabled=False):
        return triton.backward(*(tensor.contiguous() for tensor in inputs))


@_forward.register_fake
def _(products_BLP, scale_BL, gates_weight_PD, candidate_weight_DD):
    shape = (*products_BLP.shape[:2], candidate_weight_DD.shape[0])
    return products_BLP.new_empty(shape, dtype=torch.float32)


@_backward.register_fake
def _(d_states_BLD, *inputs_and_states):
    return tuple(x.new_empty(x.shape) for x in inputs_and_states[:-1])


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs, output)


def _gradients(ctx: Any, d_states_BLD: Tensor) -> tuple[Tensor, ...]:
    return _backward(d_states_BLD, *ctx.saved_tensors)


_forward.register_autograd(_gradients, setup_context=_setup_context)

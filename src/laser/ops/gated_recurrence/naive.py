"""A gated recurrence as a loop over events, in plain PyTorch: the specification.

Legend of shape suffixes: B samples; L events; D width; P products of update, reset and candidate, 3D (of weights of
both gates, 2D).
"""

from __future__ import annotations

import torch
from torch import Tensor


def gated_recurrence(
    products_BLP: Tensor, scale_BL: Tensor, gates_weight_PD: Tensor, candidate_weight_DD: Tensor
) -> Tensor:
    """States after every event; see the package for shapes and dtypes."""
    wide = torch.promote_types(products_BLP.dtype, torch.float32)
    gates_DP, candidate_DD = gates_weight_PD.to(wide).t(), candidate_weight_DD.to(wide).t()
    B, L, D = *products_BLP.shape[:2], len(candidate_weight_DD)
    if not L:
        # Zeros that depend on all inputs, so that no event still has (zero) gradients.
        return products_BLP[:, :, :D] + (scale_BL.sum() + gates_DP.sum() + candidate_DD.sum()) * 0
    state_BD, states = products_BLP.new_zeros(B, D, dtype=wide), []
    for products_BP, scale_B in zip(products_BLP.to(wide).unbind(1), scale_BL.to(wide).unbind(1)):
        update_BD, reset_BD, candidate_BD = products_BP.chunk(3, -1)
        more_update_BD, more_reset_BD = (state_BD @ gates_DP).chunk(2, -1)
        update_BD = torch.sigmoid(update_BD + more_update_BD) * scale_B[:, None]
        reset_BD = torch.sigmoid(reset_BD + more_reset_BD)
        candidate_BD = torch.tanh(candidate_BD + (reset_BD * state_BD) @ candidate_DD)
        state_BD = (1 - update_BD) * state_BD + update_BD * candidate_BD
        states.append(state_BD)
    return torch.stack(states, 1).to(products_BLP.dtype)

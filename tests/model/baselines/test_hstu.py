import math

import pytest
import torch
from torch.nn.functional import layer_norm, silu

from laser.model.baselines.hstu import HSTU


def norm(layer, x):
    return layer_norm(x, x.shape[-1:], layer.weight, layer.bias)


def published(hstu, x_LD, t_D):
    """History and target as one causal sequence, every row, loops over heads and pairs masked after the SiLU."""
    x_SD = torch.cat([x_LD, t_D[None]])
    mask_SS = torch.ones(len(x_SD), len(x_SD)).tril()
    for layer in hstu.layers:
        u, v, q, k = silu(norm(layer.norm_input, x_SD) @ layer.parts.weight.T + layer.parts.bias).split(16, dim=1)
        size, mixed = 16 // layer.num_heads, []
        for h in range(layer.num_heads):
            part = slice(h * size, (h + 1) * size)
            weight_SS = silu(q[:, part] @ k[:, part].T / math.sqrt(size)) * mask_SS / layer.length_scale
            mixed.append(weight_SS @ v[:, part])
        gated = norm(layer.norm_mixed, torch.cat(mixed, 1)) * u
        x_SD = x_SD + torch.cat([u, x_SD, gated], 1) @ layer.out.weight.T + layer.out.bias
    return norm(hstu.norm, x_SD[-1])


@pytest.mark.parametrize("num_layers", [1, 3])
def test_equals_the_published_equations(inputs, rows_of, num_layers):
    torch.manual_seed(0)
    hstu = HSTU(16, 12, num_layers=num_layers, num_heads=4, length_scale=10)
    for parameter in hstu.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    (got_BD,) = hstu(inputs).vectors
    for b in range(len(got_BD)):
        expected_D = published(hstu, rows_of(inputs, b, inputs.x_TD), inputs.target_BD[b])
        torch.testing.assert_close(got_BD[b], expected_D, rtol=1e-3, atol=1e-4)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="num_heads 3 for width 16"):
        HSTU(16, 12, num_heads=3)

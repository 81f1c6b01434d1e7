import math

import pytest
import torch
from torch.nn.functional import layer_norm, silu

from laser.model.baselines.stca import STCA


def swiglu(block, x):
    return (silu(x @ block.gate.weight.T) * (x @ block.up.weight.T)) @ block.down.weight.T


def norm(layer, x):
    return layer_norm(x, x.shape[-1:], layer.weight, layer.bias)


def attention(block, q_D, x_LD):
    out = []
    for h in range(block.num_heads):
        key, value, query = block.heads.key_HDQ[h], block.heads.value_HDV[h], block.heads.query_HDQ[h]
        out.append(((x_LD @ key) @ (q_D @ query) / math.sqrt(key.shape[1])).softmax(0) @ (x_LD @ value))
    return torch.cat(out) @ block.out.weight.T


@pytest.mark.parametrize("num_layers", [1, 3])
def test_equals_the_published_equations(inputs, rows_of, num_layers):
    torch.manual_seed(0)
    stca = STCA(16, 12, num_layers=num_layers, num_heads=4, multiple=2)
    for parameter in stca.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    (got_BD,) = stca(inputs).vectors
    for b in range(len(got_BD)):
        x_LD, t_D = rows_of(inputs, b, inputs.x_TD), inputs.target_BD[b]
        q_D, found = norm(stca.query[1], swiglu(stca.query[0], t_D)), []
        for i in range(num_layers):
            layer_LD = norm(stca.history[i][1], swiglu(stca.history[i][0], x_LD))
            found.append(attention(stca.attention[i], q_D, layer_LD))
            joined = torch.cat([*found, t_D])
            if i + 1 < num_layers:
                fusion = stca.fusion[i]
                q_D = norm(fusion[2], swiglu(fusion[1], joined @ fusion[0].weight.T))
        z_D = swiglu(stca.output[1], joined @ stca.output[0].weight.T)
        torch.testing.assert_close(got_BD[b], z_D, rtol=1e-4, atol=1e-5)
    assert not any("bias" in name for name, p in stca.named_parameters() if p.dim() == 2)


def test_no_layers_is_refused():
    with pytest.raises(ValueError, match="num_layers of STCA is 0"):
        STCA(16, 12, num_layers=0)

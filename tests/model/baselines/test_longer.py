import math

import pytest
import torch
from torch.nn.functional import gelu, layer_norm, linear

from laser.model.baselines.longer import LONGER


def norm(layer, x):
    return layer_norm(x, x.shape[-1:], layer.weight, layer.bias)


def one_layer(layer, queries, others, sees):
    """Row by row: ``sees[i]`` lists the rows of ``others`` that query i attends to."""
    out = []
    normed = norm(layer.norm_attention, others)
    key, value = (normed @ layer.key_value.weight.T).split(16, dim=1)
    size = 16 // layer.num_heads
    for x_D, seen in zip(queries, sees):
        q_D, heads = layer.query(norm(layer.norm_attention, x_D)), []
        for h in range(layer.num_heads):
            part = slice(h * size, (h + 1) * size)
            score = key[seen][:, part] @ q_D[part] / math.sqrt(size)
            heads.append(score.softmax(0) @ value[seen][:, part])
        x_D = x_D + layer.out(torch.cat(heads)) if seen else x_D
        hidden = gelu(linear(norm(layer.norm_ffn, x_D), layer.ffn[0].weight, layer.ffn[0].bias))
        out.append(x_D + linear(hidden, layer.ffn[2].weight, layer.ffn[2].bias))
    return torch.stack(out)


@pytest.mark.parametrize(("merge", "newest"), [(1, 5), (4, 3), (3, 100)])
def test_equals_a_loop_over_tokens(inputs, rows_of, merge, newest):
    torch.manual_seed(0)
    longer = LONGER(16, 12, merge=merge, newest=newest, num_heads=4, ffn_multiple=2, self_layers=2)
    for parameter in longer.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    got = torch.stack(longer(inputs).vectors, dim=1)
    for b in range(len(got)):
        events = rows_of(inputs, b, inputs.x_TD)
        tokens = []
        for stop in range(len(events), 0, -merge):
            group = events[max(stop - merge, 0) : stop].flatten()
            group = torch.cat([torch.zeros(merge * 16 - len(group)), group])
            tokens.insert(0, longer.projection(group))
        n, k = len(tokens), min(len(tokens), newest)
        x = torch.stack([inputs.target_BD[b], *longer.learned_GD, *tokens[n - k :]])
        others = torch.stack([inputs.target_BD[b], *longer.learned_GD, *tokens])
        sees = [list(range(3 + n))] * 3 + [list(range(3, 3 + n - k + i + 1)) for i in range(k)]
        x = one_layer(longer.cross, x, others, sees)
        sees = [list(range(3 + k))] * 3 + [list(range(3, 3 + i + 1)) for i in range(k)]
        for layer in longer.inner:
            x = one_layer(layer, x, x, sees)
        torch.testing.assert_close(got[b], norm(longer.norm, x[:3]), rtol=1e-3, atol=1e-4)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="merge 0"):
        LONGER(16, 12, merge=0)

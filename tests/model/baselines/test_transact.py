import pytest
import torch
from torch import nn

from laser.model.baselines.transact import TransAct


def pytorchs(layer, num_heads):
    """PyTorch's own encoder layer with the same weights."""
    width, hidden = layer.ffn[0].in_features, layer.ffn[0].out_features
    other = nn.TransformerEncoderLayer(width, num_heads, hidden, 0.0, "gelu", batch_first=True)
    with torch.no_grad():
        other.self_attn.in_proj_weight.copy_(layer.query_key_value.weight)
        other.self_attn.in_proj_bias.zero_()
        other.self_attn.out_proj.weight.copy_(layer.out.weight)
        other.self_attn.out_proj.bias.zero_()
        for mine, theirs in [
            (layer.ffn[0], other.linear1),
            (layer.ffn[2], other.linear2),
            (layer.norm_attention, other.norm1),
            (layer.norm_ffn, other.norm2),
        ]:
            theirs.load_state_dict(mine.state_dict())
    return other


@pytest.mark.parametrize("num_heads", [1, 4])
def test_equals_pytorchs_encoder(inputs, rows_of, num_heads):
    torch.manual_seed(0)
    model = TransAct(16, 12, num_heads=num_heads, newest=9, newest_outputs=3)
    for parameter in model.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    vectors = model(inputs).vectors
    assert len(vectors) == model.vectors == 4
    layers = [pytorchs(layer, num_heads) for layer in model.layers]
    fuse = torch.cat([model.fuse_event.weight, model.fuse_target.weight], dim=1)
    for b in range(len(vectors[0])):
        x_LD = rows_of(inputs, b, inputs.x_TD)[-9:]
        expected = torch.zeros(4, 16)
        if len(x_LD):
            target_LD = inputs.target_BD[b].expand_as(x_LD)
            x_1LD = nn.functional.linear(torch.cat([x_LD, target_LD], dim=1), fuse, model.fuse_event.bias)[None]
            for layer in layers:
                x_1LD = layer(x_1LD)
            newest = x_1LD[0].flip(0)[:3]
            expected[: len(newest)], expected[3] = newest, x_1LD[0].max(0).values
        torch.testing.assert_close(torch.stack([v[b] for v in vectors]), expected, rtol=1e-4, atol=1e-4)


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="num_heads 3 for width 16"):
        TransAct(16, 12, num_heads=3)

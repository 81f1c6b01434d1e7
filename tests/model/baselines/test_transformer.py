import pytest
import torch
from torch import nn

from laser.model.baselines.transformer import Transformer


def pytorchs(layer, num_heads):
    """PyTorch's own encoder layer with the same weights."""
    width = layer.ffn[0].in_features
    other = nn.TransformerEncoderLayer(
        width, num_heads, layer.ffn[0].out_features, 0.0, "gelu", batch_first=True, norm_first=True
    )
    heads, attention = layer.attention.heads, other.self_attn
    parts = [
        weight.permute(0, 2, 1).reshape(width, width) for weight in (heads.query_HDQ, heads.key_HDQ, heads.value_HDV)
    ]
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat(parts))
        attention.in_proj_bias.zero_()
        attention.out_proj.weight.copy_(layer.attention.out.weight)
        attention.out_proj.bias.zero_()
        for mine, theirs in [
            (layer.ffn[0], other.linear1),
            (layer.ffn[2], other.linear2),
            (layer.norm_attention, other.norm1),
            (layer.norm_ffn, other.norm2),
        ]:
            theirs.load_state_dict(mine.state_dict())
    return other


@pytest.mark.parametrize("num_layers", [1, 3])
def test_equals_pytorchs_encoder(inputs, rows_of, num_layers):
    torch.manual_seed(0)
    model = Transformer(16, 12, num_layers=num_layers, num_heads=4, ffn_multiple=2)
    for parameter in model.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    (got_BD,) = model(inputs).vectors
    layers = [pytorchs(layer, 4) for layer in model.layers]
    for b in range(len(got_BD)):
        x_1SD = torch.cat([rows_of(inputs, b, inputs.x_TD), inputs.target_BD[b : b + 1]])[None]
        for layer in layers:
            x_1SD = layer(x_1SD)
        torch.testing.assert_close(got_BD[b], model.norm(x_1SD[0, -1]), rtol=1e-4, atol=1e-4)


def test_last_row_is_that_of_all_rows():
    model = Transformer(16, 12)
    x_BSD, live_BS = torch.randn(3, 9, 16), torch.rand(3, 9) < 0.7
    live_BS[:, -1] = True
    layer = model.layers[0]
    torch.testing.assert_close(layer.last_row(x_BSD, live_BS), layer(x_BSD, live_BS)[:, -1])


def test_no_layers_is_refused():
    with pytest.raises(ValueError, match="num_layers of the Transformer is 0"):
        Transformer(16, 12, num_layers=0)

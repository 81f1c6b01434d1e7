"""Other heads than RankMixer over the same tokens, for comparison: TokenMixer-Large, DCNv2 and FinalMLP.

Each turns the tokens of a sample into one vector, of which a Linear makes the logit.

Legend of shape suffixes: B samples; M tokens; D width of a token; X = M D, all tokens one after another; F hidden
width; C bilinear heads; O width of a stream's output per bilinear head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from laser.model.dense import linear
from laser.model.rankmixer import check_mixing, per_token_weight
from laser.ops.mixed_norm import mix_tokens

SMALL_DOWN = 0.01
"""Factor of the initial W_down of TokenMixer-Large, with which a new block is almost the identity."""


class PerTokenSwiGLU(nn.Module):
    """W_down_m ( swish(W_gate_m x_m) * W_up_m x_m ) for each token m, without biases.

    Args:
        tokens: M.
        width: D.
        hidden: F.
    """

    def __init__(self, tokens: int, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_MDF = per_token_weight(tokens, width, hidden)
        self.up_MDF = per_token_weight(tokens, width, hidden)
        self.down_MFD = per_token_weight(tokens, hidden, width)
        with torch.no_grad():
            self.down_MFD.mul_(SMALL_DOWN)

    def forward(self, x_BMD: Tensor) -> Tensor:
        """[B, M, D] -> [B, M, D]."""
        x_MBD = x_BMD.transpose(0, 1)
        hidden_MBF = nn.functional.silu(x_MBD @ self.gate_MDF) * (x_MBD @ self.up_MDF)
        return (hidden_MBF @ self.down_MFD).transpose(0, 1)


class TokenMixerLargeBlock(nn.Module):
    """H = mix(X); H' = H + SwiGLU(RMSNorm(H)); X' = X + SwiGLU(RMSNorm(unmix(H')))."""

    def __init__(self, tokens: int, width: int, hidden: int) -> None:
        super().__init__()
        self.norm_mixed, self.norm_own = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.mixed = PerTokenSwiGLU(tokens, width, hidden)
        self.own = PerTokenSwiGLU(tokens, width, hidden)

    def forward(self, x_BMD: Tensor) -> Tensor:
        """[B, M, D] -> [B, M, D]; mixing is its own inverse."""
        h_BMD = mix_tokens(x_BMD)
        h_BMD = h_BMD + self.mixed(self.norm_mixed(h_BMD))
        return x_BMD + self.own(self.norm_own(mix_tokens(h_BMD)))


class TokenMixerLarge(nn.Module):
    """Pre-norm blocks whose residuals stay with their own tokens, then the mean over tokens (arXiv 2602.06563).

    As many mixed tokens as tokens. Without its sparse experts, interval residuals, middle losses and global token.

    Args:
        tokens: M; divides ``width``.
        width: D.
        num_layers: blocks.
        multiple: F in units of D.

    Raises:
        ValueError: when ``tokens`` does not divide ``width``.
    """

    def __init__(self, tokens: int, width: int, *, num_layers: int, multiple: int) -> None:
        super().__init__()
        check_mixing(tokens, width)
        self.width = width
        self.blocks = nn.ModuleList(TokenMixerLargeBlock(tokens, width, multiple * width) for _ in range(num_layers))

    def forward(self, tokens_BMD: Tensor, step: int, global_size: int) -> tuple[Tensor, None]:
        """Pooled tokens [B, D]; no auxiliary loss."""
        for block in self.blocks:
            tokens_BMD = block(tokens_BMD)
        return tokens_BMD.mean(1), None


def perceptron(inputs: int, hidden: int, num_layers: int) -> nn.Sequential:
    """``num_layers`` times Linear to ``hidden`` and ReLU."""
    layers: list[nn.Module] = []
    for layer in range(num_layers):
        layers += [linear(hidden if layer else inputs, hidden), nn.ReLU()]
    return nn.Sequential(*layers)


class DCNv2(nn.Module):
    """Cross layers x' = x_0 * (W x + b) + x beside a deep network, side by side (arXiv 2008.13535).

    Args:
        tokens: M.
        width: D.
        num_layers: of either part.
        multiple: hidden width of the deep network in units of D.
    """

    def __init__(self, tokens: int, width: int, *, num_layers: int, multiple: int) -> None:
        super().__init__()
        inputs, hidden = tokens * width, multiple * width
        self.cross = nn.ModuleList(linear(inputs, inputs) for _ in range(num_layers))
        self.deep = perceptron(inputs, hidden, num_layers)
        self.width = inputs + hidden

    def forward(self, tokens_BMD: Tensor, step: int, global_size: int) -> tuple[Tensor, None]:
        """Both parts' outputs [B, M D + F]; no auxiliary loss."""
        first_BX = crossed_BX = tokens_BMD.flatten(1)
        for layer in self.cross:
            crossed_BX = first_BX * layer(crossed_BX) + crossed_BX
        return torch.cat([crossed_BX, self.deep(first_BX)], dim=1), None


class FinalMLP(nn.Module):
    """Two deep networks over differently gated inputs, and a bilinear term between them (arXiv 2304.00902).

    A stream's gates 2 sigmoid(g(c)) come from a learned vector c, as in the publication where no context is chosen:
    tokens mix fields of user and item, so that there is none to choose.

    Args:
        tokens: M.
        width: D.
        num_layers: of each stream.
        multiple: F, hidden width of the streams, in units of D.
        bilinear_heads: C, slices of the streams' outputs that are multiplied; divides F.

    Raises:
        ValueError: when it does not.
    """

    def __init__(self, tokens: int, width: int, *, num_layers: int, multiple: int, bilinear_heads: int = 4) -> None:
        super().__init__()
        inputs, hidden = tokens * width, multiple * width
        if hidden % bilinear_heads:
            raise ValueError(
                f"mixer_multiple x mixer_width is {hidden}; FinalMLP needs a multiple of its {bilinear_heads} bilinear "
                "heads"
            )
        self.heads = bilinear_heads
        self.context_2D = nn.Parameter(0.02 * torch.randn(2, width))
        self.gates = nn.ModuleList(
            nn.Sequential(linear(width, width), nn.ReLU(), linear(width, inputs)) for _ in range(2)
        )
        self.streams = nn.ModuleList(perceptron(inputs, hidden, num_layers) for _ in range(2))
        self.bilinear_COO = per_token_weight(bilinear_heads, hidden // bilinear_heads, hidden // bilinear_heads)
        self.width = 2 * hidden + bilinear_heads

    def forward(self, tokens_BMD: Tensor, step: int, global_size: int) -> tuple[Tensor, None]:
        """Both streams' outputs and the bilinear terms [B, 2 F + C]; no auxiliary loss."""
        x_BX = tokens_BMD.flatten(1)
        one_BF, other_BF = (
            stream(x_BX * (2 * torch.sigmoid(gate(context_D))).to(x_BX.dtype))
            for stream, gate, context_D in zip(self.streams, self.gates, self.context_2D)
        )
        one_CBO, other_CBO = (out.unflatten(1, (self.heads, -1)).transpose(0, 1) for out in (one_BF, other_BF))
        together_CB = ((one_CBO @ self.bilinear_COO) * other_CBO).sum(-1)
        return torch.cat([one_BF, other_BF, together_CB.T], dim=1), None

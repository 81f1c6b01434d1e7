"""DIN: a small network scores every event against the target (arXiv 1706.06978).

    a_i = MLP([t, x_i, t - x_i, t * x_i]);   out = sum_i a_i x_i

The weights are not normalised, as in the publication ("softmax" is an option because some implementations do).
PReLU instead of Dice, whose statistics would depend on the batch. The first layer is computed as one product per
sample, ``x_i (W_x - W_d + diag(t) W_p) + t (W_t + W_d)``, so that the four-fold wide input is never stored.

Legend of shape suffixes: B samples; L padded history; D width; F first hidden width.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from laser.model.baselines.encoder import Encoded, Encoder, Inputs
from laser.model.costs import Form
from laser.model.dense import linear
from laser.model.padding import masked_softmax, pad


class ActivationUnit(nn.Module):
    """The network that scores pairs of target and event.

    Args:
        width: D.
        hidden_widths: of its hidden layers.
    """

    def __init__(self, width: int, hidden_widths: tuple[int, ...]) -> None:
        super().__init__()
        self.width, self.hidden_widths = width, tuple(hidden_widths)
        self.first = linear(4 * width, hidden_widths[0])
        layers: list[nn.Module] = [nn.PReLU()]
        for inputs, outputs in pairwise(hidden_widths):
            layers += [linear(inputs, outputs), nn.PReLU()]
        self.rest = nn.Sequential(*layers, linear(hidden_widths[-1], 1))

    def forward(self, target_BD: Tensor, x_BLD: Tensor) -> Tensor:
        """Scores [B, L]."""
        target_FD, event_FD, difference_FD, product_FD = self.first.weight.chunk(4, dim=1)
        weight_BFD = (event_FD - difference_FD) + product_FD * target_BD[:, None]
        constant_BF = nn.functional.linear(target_BD, target_FD + difference_FD, self.first.bias)
        hidden_BLF = x_BLD @ weight_BFD.transpose(1, 2) + constant_BF[:, None]
        return self.rest(hidden_BLF).squeeze(-1)

    def macs(self, length: int, form: Form = "folded") -> int:
        """For ``length`` events; the published form multiplies the four-fold wide input."""
        first, blocks = self.hidden_widths[0], 4 if form == "paper" else 1
        deeper = sum(a * b for a, b in zip(self.hidden_widths, [*self.hidden_widths[1:], 1]))
        target = 0 if form == "paper" else self.width * first
        return length * (blocks * self.width * first + deeper) + target


class DIN(Encoder):
    """Sum of all events, weighted by the activation unit.

    Args:
        width: D.
        item_width: not used.
        hidden_widths: of the activation unit.
        softmax: normalise the weights over the history.
        newest: consider only so many events; null is all of them.
    """

    def __init__(
        self,
        width: int,
        item_width: int,
        *,
        hidden_widths: tuple[int, ...] = (80, 40),
        softmax: bool = False,
        newest: int | None = None,
    ) -> None:
        super().__init__()
        self.width, self.softmax, self.newest = width, softmax, newest
        self.unit = ActivationUnit(width, hidden_widths)

    def forward(self, inputs: Inputs) -> Encoded:
        """One vector."""
        padded = pad(inputs.batch, self.newest)
        x_BLD = padded.rows(inputs.x_TD)
        score_BL = self.unit(inputs.target_BD, x_BLD)
        weight_BL = masked_softmax(score_BL, padded.live_BL) if self.softmax else score_BL * padded.live_BL
        return Encoded([(weight_BL.to(x_BLD.dtype)[:, None] @ x_BLD).squeeze(1)])

    def macs(self, length: int, form: Form = "folded") -> int:
        """Scores and weighted sum."""
        length = length if self.newest is None else min(length, self.newest)
        return self.unit.macs(length, form) + length * self.width

"""MultiWindowDIN: DIN whose weighted events are pooled per window of recency instead of all together.

    a_i = MLP([t, x_i, t - x_i, t * x_i]);   out_w = sum_{i in window w} a_i x_i / |window w|

As in Alibaba's open TorchEasyRec (``MultiWindowDINEncoder``), the activation unit is shared by all windows and each
window is averaged over the events that it holds. Here windows are consecutive, counted from the newest event, and the
last one holds all older events.

Legend of shape suffixes: B samples; L padded history; W windows; D width.
"""

from __future__ import annotations

import torch

from laser.model.baselines.din import ActivationUnit
from laser.model.baselines.encoder import Encoded, Encoder, Inputs
from laser.model.costs import Form
from laser.model.padding import pad


class MultiWindowDIN(Encoder):
    """One vector per window.

    Args:
        width: D.
        item_width: not used.
        windows: events of each window, newest first; one more window holds what is older.
        hidden_widths: of the activation unit.
    """

    ends_W: torch.Tensor

    def __init__(
        self,
        width: int,
        item_width: int,
        *,
        windows: tuple[int, ...] = (10, 40, 150),
        hidden_widths: tuple[int, ...] = (80, 40),
    ) -> None:
        super().__init__()
        if not windows or min(windows) < 1:
            raise ValueError(f"windows of MultiWindowDIN are {list(windows)}; each must hold at least 1 event")
        self.width, self.vectors = width, len(windows) + 1
        self.unit = ActivationUnit(width, hidden_widths)
        self.register_buffer("ends_W", torch.tensor(windows).cumsum(0), persistent=False)

    def forward(self, inputs: Inputs) -> Encoded:
        """The windows' vectors, newest first."""
        padded = pad(inputs.batch)
        x_BLD = padded.rows(inputs.x_TD)
        window_L = torch.bucketize(padded.rank_L, self.ends_W, right=True)
        member_WL = window_L == torch.arange(self.vectors, device=window_L.device)[:, None]
        member_BWL = (member_WL & padded.live_BL[:, None]).to(x_BLD.dtype)
        score_BL = self.unit(inputs.target_BD, x_BLD)
        weight_BWL = member_BWL * score_BL[:, None] / member_BWL.sum(-1, keepdim=True).clamp(min=1)
        return Encoded(list((weight_BWL.to(x_BLD.dtype) @ x_BLD).unbind(1)))

    def macs(self, length: int, form: Form = "folded") -> int:
        """Scores, and one weighted sum per window (the published form visits each event once)."""
        return self.unit.macs(length, form) + length * self.width * (1 if form == "paper" else self.vectors)

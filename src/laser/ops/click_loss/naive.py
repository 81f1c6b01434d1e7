"""Binary cross-entropy by PyTorch.

Legend of shape suffixes: B samples.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


def click_loss(logit_B: Tensor, label_B: Tensor, size: int) -> Tensor:
    """See ``laser.ops.click_loss``."""
    return binary_cross_entropy_with_logits(logit_B, label_B, reduction="sum") / size

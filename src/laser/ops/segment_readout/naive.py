"""Elementwise maximum over a sample's segments and its newest segments, in plain PyTorch: the specification.

Legend of shape suffixes: B samples; G segments, packed; S segments of one sample;
R newest segments; D width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def segment_readout(seg_GD: Tensor, seg_off_B1: Tensor, newest: int) -> tuple[Tensor, Tensor]:
    """Maximum and newest segments of every sample; see the package for shapes and dtypes."""
    # A zero row that depends on the input, so that a batch without segments still has (zero) gradients.
    zero_D = seg_GD.sum(0) * 0
    maxima, newests = [zero_D], [zero_D.expand(newest, -1)]
    for seg_SD in seg_GD.split(seg_off_B1.diff().tolist()):
        # max, not amax: among equals, the gradient goes to the oldest alone.
        maxima.append(seg_SD.max(0).values if len(seg_SD) else zero_D)
        newest_RD = seg_SD[max(len(seg_SD) - newest, 0) :].flip(0)
        newests.append(torch.cat([newest_RD, zero_D.expand(newest - len(newest_RD), -1)]))
    return torch.stack(maxima)[1:], torch.stack(newests)[1:]

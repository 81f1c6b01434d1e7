"""The loss that is trained.

Legend of shape suffixes: B samples of this process.
"""

from __future__ import annotations

from torch import Tensor

from laser.batch import Batch
from laser.ops.click_loss import click_loss


def local_loss(logit_B: Tensor, batch: Batch, world_size: int, auxiliary: Tensor | None = None) -> Tensor:
    """Binary cross-entropy such that the mean over processes is the mean over all samples of the step.

    Gradients of dense parameters and of the fused tables are both averaged over processes. A process with few or no
    samples must therefore weigh less: the sum over its samples is divided by the size of the whole batch, and
    multiplied by the number of processes.

    Args:
        logit_B: logits of this process's samples, none included.
        batch: labels and ``global_size``.
        world_size: number of processes.
        auxiliary: scalar that is added; already divided by ``global_size``.

    Returns:
        float32 scalar.
    """
    loss = click_loss(logit_B.float(), batch.label_B, batch.global_size)
    if auxiliary is not None:
        loss = loss + auxiliary
    return loss * world_size if world_size > 1 else loss  # a launch less in either pass

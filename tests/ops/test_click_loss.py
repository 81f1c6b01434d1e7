"""The fused loss is PyTorch's, and so are its gradients."""

from __future__ import annotations

import pytest
import torch

from laser.ops import click_loss as op
from laser.ops.click_loss import click_loss, naive, triton


@pytest.mark.parametrize("samples", [1, 1000, 3000])
def test_equals_pytorch(samples: int, device: torch.device) -> None:
    """Also where the samples fill several blocks, and logits are so large that a plain exponential overflows."""
    logit = torch.randn(samples, device=device) * 8
    logit[0] = 200.0
    logit[-1] = -200.0
    label = torch.randint(0, 2, (samples,), device=device).float()
    answers = []
    for function in (naive.click_loss, triton.click_loss):
        logit_B = logit.clone().requires_grad_()
        loss = function(logit_B, label, 4096)
        (3 * loss).backward()
        answers.append((loss.detach(), logit_B.grad))
    torch.testing.assert_close(answers[1], answers[0], rtol=1e-5, atol=1e-9)


def test_who_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """By one program only few, and none that are not there."""
    served = []
    monkeypatch.setattr(op, "use_triton", lambda _: True)
    monkeypatch.setattr(triton, "click_loss", lambda logit_B, *_: served.append(len(logit_B)))
    for samples in (0, 1, op.MOST, op.MOST + 1):
        click_loss(torch.zeros(samples), torch.zeros(samples), 8)
    assert served == [1, op.MOST]

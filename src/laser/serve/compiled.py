"""What of LASER depends on the candidates, as native code: ``torch.export`` and AOTInductor.

The file holds machine code, so that loading it is trusting it. A bundle may have one for a host and one for a GPU; they
are loaded only when asked for, and only on what they were built for.

Legend of shape suffixes: B candidates; P padded events; C width of a row; E concatenated embedding widths.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from laser.model.shared_history import SharedHistory
from laser.serve.compiler import check_compiler

LEAST = 2
"""Candidates, and segments, from which on it can be used: torch.export treats a size of 1 as a case of its own."""

Compiled = Callable[[Tensor, Tensor, Tensor, list[Tensor]], Tensor]
"""``event_PC, live_P, target_BE, context`` -> logits [B]; see ``SharedHistory.candidates``."""


class Candidates(nn.Module):
    """The graph that is compiled.

    Args:
        shared: a trained LASER for requests.
    """

    def __init__(self, shared: SharedHistory) -> None:
        super().__init__()
        self.shared = shared

    def forward(self, event_PC: Tensor, live_P: Tensor, target_BE: Tensor, context: list[Tensor]) -> Tensor:
        """Logits [B]."""
        return self.shared.candidates(event_PC, live_P, target_BE, context).logit_B


def built_for(device: str) -> dict[str, str]:
    """What code made here runs on."""
    facts = {"torch": torch.__version__, "machine": platform.machine()}
    if device == "cuda":
        return facts | {"gpu": "sm_{}{}".format(*torch.cuda.get_device_capability())}
    return facts | {"instructions": torch.backends.cpu.get_cpu_capability()}


def compile_candidates(shared: SharedHistory, context_widths: list[int], file: Path) -> None:
    """Write native code for any number of candidates and of whole segments.

    Args:
        shared: on the device to compile for.
        context_widths: of the embeddings of each context field.
        file: to write.

    Raises:
        ValueError: when the model matches events with candidates, or there is no compiler whose code can be used.
    """
    if shared.network.matched.pairs:
        raise ValueError("models that match events with candidates cannot be compiled; leave out --compile")
    check_compiler()
    event_width, width = shared.network.target.in_features, shared.network.segment_width
    device, segments, size = shared.project_DC.device, 4, 8
    some = (
        torch.zeros(segments * width, shared.row_width, device=device),
        torch.ones(segments * width, device=device),
        torch.zeros(size, event_width, device=device),
        [torch.zeros(size, each, device=device) for each in context_widths],
    )
    candidates = torch.export.Dim("candidates", min=LEAST)
    events = width * torch.export.Dim("segments", min=LEAST)
    shapes = ({0: events}, {0: events}, {0: candidates}, [{0: candidates}] * len(context_widths))
    # Not ``inference_mode``: its tensors cannot be traced.
    with torch.no_grad():
        program = torch.export.export(Candidates(shared).eval(), some, dynamic_shapes=shapes)
    try:
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(file), inductor_configs={"cpp.dynamic_threads": True}
        )
    except RuntimeError as error:
        raise ValueError(
            f"the model cannot be compiled here ({' '.join(str(error).split())[:300]}); leave out --compile"
        ) from None


def load_candidates(file: Path, facts: dict[str, Any], device: str) -> Compiled:
    """Load native code: it can do whatever this process may do.

    Args:
        file: that ``compile_candidates`` wrote.
        facts: ``built_for`` where it was written.
        device: "cpu" or "cuda".

    Raises:
        ValueError: when it was built for something else, or is no such file.
    """
    here = built_for(device)
    if wrong := [name for name in here if facts.get(name) != here[name]]:
        name = wrong[0]
        raise ValueError(
            f"{file} was compiled for {name} {facts.get(name)}, here is {here[name]}; export it again with --compile "
            f"{device} here, or do without compiled code"
        )
    try:
        return torch._inductor.aoti_load_package(str(file))
    except RuntimeError as error:
        raise ValueError(f"{file} cannot be loaded ({' '.join(str(error).split())[:300]})") from None

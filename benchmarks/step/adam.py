"""Time of the host for a step of Adam on many small parameters: ours on one tensor against PyTorch's, taking turns.

    python benchmarks/step/adam.py [--device cuda] [--parameters 120]

On a GPU it is the time until a step is started. Gradients lie in one tensor, as after a recorded step.
"""

from __future__ import annotations

import argparse
import copy
import time

import numpy as np
import torch
from torch import nn

from laser.model.flat import Flat
from laser.train.flat_adam import FlatAdam

OPTIONS = {"lr": 1e-3, "betas": (0.9, 0.9999), "eps": 1e-8}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--parameters", type=int, default=120, help="of 16 numbers each")
    parser.add_argument("--turns", type=int, default=20, help="of 100 steps each")
    options = parser.parse_args()
    parameters = [nn.Parameter(torch.randn(16, device=options.device)) for _ in range(options.parameters)]
    others = copy.deepcopy(parameters)
    flat = Flat(parameters)
    gradient_P = torch.randn(flat.size, device=options.device)
    for p, q, gradient in zip(parameters, others, flat.views(gradient_P), strict=True):
        p.grad = q.grad = gradient
    ways = {
        "ours": FlatAdam(parameters, lambda: gradient_P, **OPTIONS),
        "PyTorch's": torch.optim.Adam(others, fused=True, **OPTIONS),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(options.turns + 1):
        for name, optimizer in ways.items():
            began = time.perf_counter()
            for _ in range(100):
                optimizer.step()
            if turn:
                times[name].append(10 * (time.perf_counter() - began))
    for name, each in times.items():
        print(f"{name:10} {np.median(each):.3f} ({min(each):.3f} ... {max(each):.3f}) ms a step")


if __name__ == "__main__":
    main()

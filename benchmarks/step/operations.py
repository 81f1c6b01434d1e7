"""How many operations of PyTorch a recorded training step consists of, forward and backward; needs no GPU.

    OMP_NUM_THREADS=1 python benchmarks/step/operations.py

Counts what is called under autocast to bfloat16 on the CPU, views left out. On a GPU most are a kernel each, and a CUDA
graph runs them one after another. Where the CPU takes PyTorch's way and CUDA one of our kernels (dropout, norms, the
mean of the newest events), the GPU's number is smaller.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from workload import make_batch, make_schema

from laser.model.laser import Laser
from laser.model.recording import RecordedNetwork

OPTIONS = {"newest_segments": 4, "mixer_tokens": 8, "mixer_width": 128, "event_dropout": 0.1, "token_dropout": 0.1}
"""Of ``conf/assistments.yaml``."""


class Calls(TorchDispatchMode):
    """Counts operations that write memory of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        first = args[0] if args else None
        is_view = isinstance(answer, Tensor) and isinstance(first, Tensor) and answer.data_ptr() == first.data_ptr()
        self.counts[str(func).removesuffix(".default")] += not is_view
        return answer


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    schema = make_schema(10_000, 16)
    batch = make_batch(schema, torch.randint(0, 80, (64,), generator=generator), generator)
    network = Laser(schema, table_device="cpu", **OPTIONS).train()
    recorded = RecordedNetwork(network, [p for name, p in network.named_parameters() if ".collections." not in name])
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        recorded(batch)
        for work in (recorded._forward, recorded._backward):
            with Calls() as calls:
                work()
            most = ", ".join(f"{count} {name}" for name, count in calls.counts.most_common(8))
            print(f"{work.__name__[1:]}: {calls.counts.total()} ({most})")


if __name__ == "__main__":
    main()

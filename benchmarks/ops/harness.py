"""What checks and measurements of the ops share: a report, comparison with the specification, timing."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
LENGTHS = [0, 1, 9, 10, 11, 63, 0, 500, 1000, 3]
CASES = [
    (torch.float32, 128, 2, 10),
    (torch.bfloat16, 128, 2, 10),
    (torch.float16, 128, 2, 10),
    (torch.float32, 40, 1, 3),
    (torch.bfloat16, 200, 3, 7),
    (torch.float32, 512, 4, 10),
    (torch.bfloat16, 16, 2, 1),
    (torch.float32, 1, 1, 1000),
]


class Report:
    """Rows as they come, printed at once, written at the end."""

    def __init__(self, seconds: float, only: str = "") -> None:
        self.rows: list[dict] = []
        self.start, self.seconds, self.only = time.perf_counter(), seconds, only

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.start

    def add(self, what: str, **values: object) -> None:
        self.rows.append({"what": what, **values})
        shown = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
        print(f"[{self.elapsed:5.0f} s] {what:58s} {shown}", flush=True)

    def attempt(self, what: str, work: Callable[[], dict | None]) -> None:
        if self.only not in what:
            return
        if self.elapsed > self.seconds:
            self.add(what, skipped="out of time")
            return
        try:
            if (values := work()) is not None:
                self.add(what, **values)
        except Exception as error:
            self.add(what, failed=f"{type(error).__name__}: {str(error).splitlines()[:1]}")
            traceback.print_exc()
            if CUDA:
                torch.cuda.empty_cache()


def offsets(lengths: list[int] | Tensor) -> Tensor:
    return F.pad(torch.as_tensor(lengths, device=DEVICE).cumsum(0), (1, 0))


def relative_rms(value: Tensor, exact: Tensor) -> float:
    return float((value.double() - exact).norm() / exact.norm().clamp(min=1e-300))


def run(function: Callable[..., Tensor], inputs: list[Tensor], seed: int) -> tuple[Tensor, ...]:
    """Output and gradients of every input, for one fixed upstream gradient."""
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    output = function(*inputs)
    generator = torch.Generator(device=DEVICE).manual_seed(seed)
    upstream = torch.randn(output.shape, device=DEVICE, generator=generator).to(inputs[0].dtype).to(output.dtype)
    return output.detach(), *torch.autograd.grad(output, inputs, upstream)


def compare(fast: Callable, naive: Callable, inputs: list[Tensor], names: list[str]) -> dict:
    """The project's rule: error against float64 at most twice that of plain PyTorch in the same dtype."""
    exact = run(naive, [tensor.double() for tensor in inputs], 1)
    plain, ours, again = run(naive, inputs, 1), run(fast, inputs, 1), run(fast, inputs, 1)
    result: dict[str, object] = {}
    worst, floor = 0.0, 4 * torch.finfo(torch.float32).eps
    for name, e, p, o, a in zip(names, exact, plain, ours, again, strict=True):
        error, allowed = relative_rms(o, e), 2 * relative_rms(p, e) + floor
        worst = max(worst, error / allowed)
        if not error <= allowed:
            result[name] = f"WRONG {error:.2e} > {allowed:.2e}"
        if not torch.equal(o, a):
            result[f"{name} repeated"] = "DIFFERENT BITS"
    return {"ok": not result, "error_over_allowed": worst, **result}


def same_when_replayed(step: Callable[[], list[Tensor]], leaves: list[Tensor]) -> dict:
    """A step recorded in a CUDA graph and replayed on other values: the bits of one that is called."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = step()
    with torch.no_grad():
        for leaf in leaves:
            leaf.normal_()
    graph.replay()
    same = [torch.equal(one, other) for one, other in zip(recorded, step(), strict=True)]
    return {"ok": all(same), "same": same}


def milliseconds(work: Callable[[], object], calls: int = 1, repeats: int = 20) -> tuple[float, float]:
    """Median and half the interquartile range of one of ``calls`` calls in a row."""
    for _ in range(3 if CUDA else 1):
        work()
    times = []
    for _ in range(repeats if CUDA else 3):
        if CUDA:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            begin.record()
            for _ in range(calls):
                work()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end) / calls)
        else:
            begin_s = time.perf_counter()
            work()
            times.append((time.perf_counter() - begin_s) * 1e3)
    times.sort()
    n = len(times)
    return times[n // 2], (times[(3 * n) // 4] - times[n // 4]) / 2


def timed(work: Callable[[], object], floor_ms: float | None = None, calls: int = 1) -> dict:
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    ms, spread = milliseconds(work, calls)
    values: dict[str, object] = {"ms": ms, "spread": spread}
    if floor_ms is not None:
        values["of_floor"] = floor_ms / ms
    if CUDA:
        values["extra_MB"] = (torch.cuda.max_memory_allocated() - before) / 2**20
    return values


def copy_rate() -> float:
    """Bytes read and written by a device copy, per millisecond."""
    source = torch.empty(2**29 if CUDA else 2**24, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    ms, _ = milliseconds(lambda: target.copy_(source))
    return 2 * source.nbytes / ms


def gather_inputs(T: int, S: int, R: int, D: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows, and events that use them unevenly: half of all slots name row 0."""
    torch.manual_seed(0)
    rows = torch.randn(R, D, device=DEVICE).to(dtype)
    index = (torch.rand(T, S, device=DEVICE).pow(3) * (R - 1)).int()
    index[torch.rand(T, S, device=DEVICE) < 0.5] = 0
    return rows, index, torch.rand(T, S, device=DEVICE), torch.rand(T, device=DEVICE)

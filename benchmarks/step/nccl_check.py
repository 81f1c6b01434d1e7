"""Distributed training on 1 and 2 GPUs under NCCL: what CI can only check on CPUs, in one table, within minutes.

    python benchmarks/step/nccl_check.py --out results [--seconds 240] [--only TEXT] [--device cpu]

Runs the jobs of tests/distributed/worker.py on a small synthetic data set: equality of process counts, sharding types,
table optimizers, number formats and memories, resuming, background checkpoints, lost processes; then
benchmarks/step/scaling.py. A job that fails is named and the next one runs; exit code 1 if any failed. What there was
no time for is listed. ``--device cpu`` tries the script itself.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])

from synthetic import write_prepared  # noqa: E402

from laser.train.stored_tensors import StoredTensors  # noqa: E402

WORKER = ROOT / "tests" / "distributed" / "worker.py"
LAUNCH = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED")
BATCH_SIZE, MIDDLE = 170, 4
RESUMED = ("adam", "uvm_caching", "float16", "experts", "managed")
HALF = {"stochastic_rounding": False, "epochs": 1}


class Checks:
    """Outcomes, printed as they come."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.began = time.monotonic()
        self.lines: list[str] = []
        self.failed = 0

    @property
    def left(self) -> float:
        """Seconds."""
        return self.options.seconds - (time.monotonic() - self.began)

    def say(self, outcome: str, name: str, detail: str = "") -> None:
        self.failed += outcome == "FAIL"
        line = f"{outcome:5} {time.monotonic() - self.began:5.0f}s  {name:44} {detail}".rstrip()
        self.lines.append(line)
        print(line, flush=True)

    def check(self, name: str, action: Callable[[], str]) -> None:
        """Run ``action``; what it returns is a remark, and any error a failure."""
        if self.options.only and self.options.only not in name:
            return
        try:
            self.say("PASS", name, action())
        except Skipped as error:
            self.say("SKIP", name, str(error))
        except Exception as error:
            self.say("FAIL", name, " ".join(f"{type(error).__name__}: {error}".split())[:300])


class Skipped(Exception):
    """There was nothing to check."""


class Runs:
    """Runs jobs of the tests' worker.

    Args:
        root: folder for their results.
        data: prepared data set.
        checks: for outcomes and the time that is left.
    """

    def __init__(self, root: Path, data: Path, checks: Checks) -> None:
        self.root, self.data, self.checks = root, data, checks
        self.device = checks.options.device
        self.errors: dict[str, str] = {}

    def job(self, name: str, **options: Any) -> dict[str, Any]:
        accelerator = {"accelerator": "gpu" if self.device == "cuda" else "cpu"}
        common = {"folder": str(self.root / name), "data": str(self.data), "batch_size": BATCH_SIZE}
        return common | accelerator | options

    def middle(self, name: str) -> str:
        return str(self.root / name / "middle.ckpt")

    def launch(self, world_size: int, jobs: list[dict[str, Any]], limit: float = 1e9) -> None:
        """Run jobs in order; when one fails the processes are started again for those after it."""
        while jobs and self.checks.left > 15:
            errors = self._start(world_size, jobs, min(limit, self.checks.left - 5))
            done = 0
            while done < len(jobs) and (Path(jobs[done]["folder"]) / "done").exists():
                done += 1
            if done < len(jobs) and errors is not None:
                name = Path(jobs[done]["folder"]).name
                self.errors[name] = errors
                print(f"---- {name}, {world_size} processes:\n{errors[-2500:]}\n----", flush=True)
            jobs = jobs[done + 1 :]

    def _start(self, world_size: int, jobs: list[dict[str, Any]], limit: float) -> str | None:
        file = self.root / "jobs.json"
        file.write_text(json.dumps(jobs))
        processes = [
            subprocess.Popen(
                [sys.executable, str(WORKER), str(file)],
                env=environment() | {"MASTER_PORT": self.port, "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank)},
                stdout=subprocess.DEVNULL,
                stderr=(self.root / f"stderr.{rank}").open("w"),
            )
            for self.port in [free_port()]
            for rank in range(world_size)
        ]
        end = time.monotonic() + limit
        while time.monotonic() < end and all(process.poll() is None for process in processes):
            time.sleep(0.2)
        if any(process.poll() for process in processes):  # let the others say what they have to say
            time.sleep(3)
        else:
            while time.monotonic() < end and any(process.poll() is None for process in processes):
                time.sleep(0.2)
        slow = [rank for rank, process in enumerate(processes) if process.poll() is None]
        for process in processes:
            process.kill()
            process.wait()
        if any(process.returncode for process in processes):
            texts = [(self.root / f"stderr.{rank}").read_text() for rank in range(world_size)]
            hung = f"still running: {slow}\n" if slow else ""
            return hung + "\n".join(f"rank {rank}: {text[-1200:]}" for rank, text in enumerate(texts))
        return None

    def losses(self, name: str) -> dict[int, float]:
        file = self.root / name / "losses.0.json"
        if name in self.errors:
            raise RuntimeError(self.errors[name].strip().splitlines()[-1])
        if not file.exists():
            raise Skipped("not run")
        return {int(step): loss for step, loss in json.loads(file.read_text())["losses"].items()}

    def close(self, name: str, other: str, loss: float = 1e-4, rtol: float = 2e-3, atol: float = 2e-4) -> str:
        """Losses of the steps that both have, and all tensors at the end, agree to rounding."""
        a, b = self.losses(name), self.losses(other)
        gap = max(abs(a[step] - b[step]) / abs(b[step]) for step in a.keys() & b.keys())
        assert gap < loss, f"losses differ by {gap:.2g}"
        one, two = (StoredTensors(self.root / n / "end.ckpt") for n in (name, other))
        assert one.names == two.names, set(one.names) ^ set(two.names)
        most, same = 0.0, True
        for key in one.names:
            x, y = one.read(key), two.read(key)
            same &= torch.equal(x, y)
            most = max(most, float((x.double() - y.double()).abs().max()) if x.numel() else 0.0)
            torch.testing.assert_close(x.float(), y.float(), rtol=rtol, atol=atol, msg=lambda m, k=key: f"{k}: {m}")
        return "bitwise" if same and gap == 0 else f"losses within {gap:.1g}, tensors within {most:.1g}"


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return str(listener.getsockname()[1])


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in LAUNCH}
    return kept | {"MASTER_ADDR": "localhost", "NODE_RANK": "0", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def variants(device: str) -> dict[str, dict[str, Any]]:
    """Runs of one epoch that 1 and 2 processes must agree on."""
    found: dict[str, dict[str, Any]] = {
        "sgd": {"optimizer": "sgd", "epochs": 1},
        "rowwise": {"optimizer": "rowwise_adagrad", "epochs": 1, "table_options": {"weight_decay": 0.01}},
        "float16": HALF | {"storage": {"weights": "float16"}},
        "experts": {"experts": 4, "epochs": 1},
        "managed": {"managed_ids": {"item": {"rows": 40, "interval": 3}}, "epochs": 1},
        "balanced": {"order": {"balance_events": True, "group_requests": True}, "epochs": 1},
    }
    if device == "cuda":
        found |= {
            "adam": {"optimizer": "adam", "epochs": 1, "table_options": {"learning_rate": 0.001}},
            "bfloat16": HALF | {"outputs": "bfloat16"},
            "uvm": {"storage": {"memory": "uvm"}, "epochs": 1},
            "uvm_caching": {"storage": {"memory": "uvm_caching"}, "epochs": 1},
            "bf16-mixed": {"precision": "bf16-mixed", "epochs": 1},
        }
    return found


TOLERANCES = {
    "float16": {"loss": 5e-3, "rtol": 5e-2, "atol": 2e-2},
    "bfloat16": {"loss": 2e-2, "rtol": 0.1, "atol": 5e-2},
    "bf16-mixed": {"loss": 5e-2, "rtol": 1.0, "atol": 0.2},
    "adam": {"loss": 1e-3, "rtol": 2e-2, "atol": 2e-3},
}
"""Rounding grows with the format; bf16-mixed is only checked to train alike."""


def run_jobs(runs: Runs) -> None:
    chosen = variants(runs.device)
    one = [
        runs.job("hand", by_hand=True),
        runs.job("one", save_after=MIDDLE, test=True),
        runs.job("one resumed", checkpoint=runs.middle("one")),
        *(runs.job(f"one {name}", save_after=MIDDLE, **options) for name, options in chosen.items()),
        runs.job("one background", save_after=MIDDLE, background=True),
    ]
    runs.launch(1, one)
    if runs.device == "cuda" and torch.cuda.device_count() < 2:
        return
    two = [
        runs.job("two", save_after=MIDDLE, test=True),
        runs.job("two resumed", checkpoint=runs.middle("two")),
        runs.job("two from one", checkpoint=runs.middle("one")),
        runs.job("two table_wise", sharding="table_wise"),
        runs.job("two column_wise", sharding="column_wise"),
        runs.job("two data_parallel", sharding="data_parallel", save_after=MIDDLE),
        runs.job("two data_parallel resumed", sharding="data_parallel", checkpoint=runs.middle("two data_parallel")),
        runs.job("two table_wise from row_wise", sharding="table_wise", checkpoint=runs.middle("one")),
        *(runs.job(f"two {name}", save_after=MIDDLE, **options) for name, options in chosen.items()),
        runs.job("two background", save_after=MIDDLE, background=True),
        runs.job("two background resumed", checkpoint=runs.middle("two background"), background=True),
    ]
    resumed = [name for name in RESUMED if name in chosen]
    two += [runs.job(f"two {name} resumed", checkpoint=runs.middle(f"two {name}"), **chosen[name]) for name in resumed]
    runs.launch(2, two)
    runs.launch(1, [runs.job("one from two", checkpoint=runs.middle("two"))])


def compare(runs: Runs, checks: Checks) -> None:
    """One line per claim."""

    def by_hand() -> str:
        a, b = runs.losses("one"), runs.losses("hand")
        gap = max(abs(a[step] - b[step]) / abs(b[step]) for step in b)
        assert gap < 1e-3, f"losses differ by {gap:.2g}"
        return f"losses within {gap:.1g} (by hand on the CPU)"

    checks.check("1 process = a hand-written loop", by_hand)
    checks.check("1 process, resumed in an epoch = whole", lambda: runs.close("one resumed", "one"))
    checks.check("1 process, background checkpoints = none", lambda: runs.close("one background", "one"))
    checks.check("2 processes = 1, row_wise", lambda: runs.close("two", "one"))
    checks.check("2 processes = 1, table_wise", lambda: runs.close("two table_wise", "one"))
    checks.check("2 processes = 1, column_wise", lambda: runs.close("two column_wise", "one"))
    checks.check("2 processes = 1, data_parallel", lambda: runs.close("two data_parallel", "one"))
    checks.check(
        "data_parallel, resumed in an epoch = whole",
        lambda: runs.close("two data_parallel resumed", "two data_parallel"),
    )
    checks.check("2 processes, resumed in an epoch = whole", lambda: runs.close("two resumed", "two"))
    checks.check("2 processes from a checkpoint of 1", lambda: runs.close("two from one", "one"))
    checks.check("1 process from a checkpoint of 2", lambda: runs.close("one from two", "one"))
    checks.check("table_wise from row_wise", lambda: runs.close("two table_wise from row_wise", "one"))
    checks.check("2 processes, background checkpoints = none", lambda: runs.close("two background", "two"))
    checks.check("2 processes, resumed from one of them", lambda: runs.close("two background resumed", "two"))
    for name in variants(runs.device):
        options = TOLERANCES.get(name, {})
        checks.check(f"2 processes = 1, {name}", lambda n=name, o=options: runs.close(f"two {n}", f"one {n}", **o))
    for name in RESUMED:
        if name in variants(runs.device):
            checks.check(
                f"2 processes, {name}, resumed = whole", lambda n=name: runs.close(f"two {n} resumed", f"two {n}")
            )
    for name in ("uvm", "uvm_caching"):
        if name in variants(runs.device):
            checks.check(
                f"{name} = device memory",
                lambda n=name: f"losses within {gap_of_losses(runs, f'one {n}', 'one'):.1g}",
            )
    if "uvm_caching" in variants(runs.device):
        for processes in ("one", "two"):
            checks.check(f"uvm_caching, cache of {processes}", lambda p=processes: cache_hits(runs, f"{p} uvm_caching"))


def cache_hits(runs: Runs, name: str) -> str:
    """Hit rate of the tables' cache on each process."""
    runs.losses(name)
    ranks = json.loads((runs.root / name / "ranks.json").read_text())["ranks"]
    for rank in ranks:
        assert 0 < rank["table_cache_hit_rate"] <= 1, rank
    return ", ".join(
        f"{rank['table_cache_hit_rate']:.3f} hits, {rank['table_cache_misses']:.1f} misses a step" for rank in ranks
    )


def gap_of_losses(runs: Runs, name: str, other: str) -> float:
    a, b = runs.losses(name), runs.losses(other)
    gap = max(abs(a[step] - b[step]) / abs(b[step]) for step in a.keys() & b.keys())
    assert gap < 1e-4, f"losses differ by {gap:.2g}"
    return gap


RECIPE = """
seed_everything: 0
data: {batch_size: 200, max_history: 12}
model:
  network:
    class_path: laser.model.laser.Laser
    init_args: {width: 16, segment_width: 3, mixer_tokens: 4, mixer_width: 16}
trainer:
  devices: 2
  max_epochs: 10000
  strategy:
    class_path: laser.train.strategy.TorchRecStrategy
    init_args: {timeout_seconds: 30, save_in_background: true}
  enable_progress_bar: false
  logger: [{class_path: laser.train.loggers.CSVLog}]
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {filename: last, every_n_train_steps: 4, enable_version_counter: false}
"""


def lost_process(runs: Runs, how: signal.Signals) -> str:
    """Kill or stop the second of two processes; it must be named once, and both must end.

    A killed one is named after some 5 s, a stopped one after 3/4 of ``timeout_seconds``.
    """
    run = runs.root / f"lost {how.name}"
    run.mkdir()
    (run / "recipe.yaml").write_text(RECIPE)
    accelerator = "gpu" if runs.device == "cuda" else "cpu"
    command = [sys.executable, "-m", "laser.cli", "fit", "-c", str(run / "recipe.yaml"), "--data.path", str(runs.data)]
    command += ["--trainer.default_root_dir", str(run), "--trainer.accelerator", accelerator]
    errors = run / "stderr"  # a file: a child that is left over would keep a pipe open
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors.open("w"), env=environment())
    children: list[int] = []

    def wait_for(condition: Callable[[], bool], seconds: float, otherwise: str) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end or (not children and process.poll() is not None):
                raise RuntimeError(f"{otherwise}: {errors.read_text()[-400:]}")
            time.sleep(0.1)

    try:
        wait_for((run / "checkpoints" / "last.ckpt").exists, min(90, runs.checks.left - 45), "no checkpoint")
        for file in Path(f"/proc/{process.pid}/task").glob("*/children"):
            children += [int(child) for child in file.read_text().split() if trains(int(child))]
        os.kill(children[0], how)
        began = time.monotonic()
        wait_for(lambda: process.poll() is not None, 40, "still running 40 s later")
        took = time.monotonic() - began
        wait_for(lambda: not any(map(trains, children)), 5, "outlived by the process that was stopped")
    finally:
        process.kill()
        process.wait()
        for child in filter(trains, children):
            os.kill(child, signal.SIGKILL)
    lines = errors.read_text().splitlines()
    said = [line for line in lines if line.startswith("laser: ")]
    assert len(said) == 1, f"said {len(said)} times, exit code {process.returncode}: {' '.join(lines)[-400:]}"
    assert "process 1 of 2 was lost" in said[0], said[0]
    assert process.returncode == 3, f"exit code {process.returncode}"
    return f"both ended after {took:.0f} s, {len(lines) - 1} other lines on stderr"


def trains(process: int) -> bool:
    """Whether it is a training process that is not dead; of a dead one the command line is empty."""
    try:
        return "laser.cli" in Path(f"/proc/{process}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def step_benchmark(options: argparse.Namespace, left: float) -> str:
    sizes = ["--batch", str(options.step_batch), "--rows", str(options.step_rows)]
    sizes += ["--events", "400", "--width", "32", "--precision", "bf16-mixed"]
    if options.device == "cpu":
        sizes = ["--batch", "8", "--events", "10", "--rows", "1000", "--steps", "3"]
    command = [sys.executable, str(HERE.with_name("scaling.py")), "--device", options.device, *sizes]
    done = subprocess.run(
        [*command, "--out", str(options.out), "--limit", f"{left:.0f}"],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=left,
    )
    print(done.stdout, flush=True)
    assert done.returncode == 0, done.stderr[-1500:]
    return "see above"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("nccl_check"))
    parser.add_argument("--seconds", type=float, default=240.0, help="for everything")
    parser.add_argument("--only", default="", help="compare only checks whose name has this text")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--step_rows", type=int, default=100_000, help="of the step benchmark's item table")
    parser.add_argument("--step_batch", type=int, default=256, help="samples of each process in the step benchmark")
    parser.add_argument("--skip", nargs="*", default=[], choices=["jobs", "lost", "step"])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    checks = Checks(options)
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder), write_prepared(Path(folder) / "prepared"), checks)
        pair = options.device == "cpu" or torch.cuda.device_count() > 1
        if "step" not in options.skip:
            checks.check("step benchmark", lambda: step_benchmark(options, max(checks.left * 0.4, 20)))
        if "jobs" not in options.skip:
            run_jobs(runs)
            compare(runs, checks)
        for how in (signal.SIGKILL, signal.SIGSTOP):
            if pair and "lost" not in options.skip and checks.left > 60:
                checks.check(f"a process lost by {how.name} is named", lambda how=how: lost_process(runs, how))
    print("\n" + "\n".join(checks.lines))
    print(f"{checks.failed} failed of {len(checks.lines)}, {time.monotonic() - checks.began:.0f} s")
    (options.out / "nccl_check.txt").write_text("\n".join(checks.lines) + "\n")
    return int(checks.failed > 0)


if __name__ == "__main__":
    sys.exit(main())

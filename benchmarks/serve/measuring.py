"""What the benchmarks of this folder share: a service to measure, processor time, bytes on the wire, reports."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import resource
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

TOKEN = "benchmark-token-of-32-characters"
BYTES_ACKED = 120
"""Where Linux's ``struct tcp_info`` has the bytes sent and confirmed, then those received, 8 each."""


class Service:
    """``laser vault serve`` in a process of its own."""

    def __init__(self, path: Path, *options: str, port: int = 0) -> None:
        tokens = path.parent / "tokens"
        tokens.write_text(TOKEN)
        command = [sys.executable, "-m", "laser.cli", "vault", "serve", str(path), "--write_tokens_file", str(tokens)]
        command += ["--port", str(port), *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.location = json.loads(self.process.stdout.readline())["location"]
        self.port = int(self.location.rpartition(":")[2])

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait()


def cpu_seconds(processes: Sequence[int]) -> float:
    """Processor time of this process and others."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    total = own.ru_utime + own.ru_stime
    for process in processes:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def resident_bytes(process: int) -> int:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize()


def wire_bytes(ports: Sequence[int]) -> int:
    """Bytes sent and received so far by this process's connections to ports."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as opened:
                if opened.family in (socket.AF_INET, socket.AF_INET6) and opened.getpeername()[1] in ports:
                    info = opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, BYTES_ACKED + 16)
                    total += sum(struct.unpack_from("<QQ", info, BYTES_ACKED))
    return total


def interleaved(
    ways: dict[str, tuple[Callable[[np.ndarray], int], Sequence[int], Sequence[int]]], batches: list[np.ndarray]
) -> dict[str, dict[str, float]]:
    """Read the batches in every way, one after the other for each batch, so that all meet the same weather.

    Args:
        ways: by name how to read a batch (returns its events), processes that serve it, and their ports.
        batches: users.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    cpu, wire, events = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0), dict.fromkeys(ways, 0)
    for read, _, _ in ways.values():
        for batch in batches[:5]:
            read(batch)
    for batch in batches:
        for name, (read, processes, ports) in ways.items():
            sent, used, start = wire_bytes(ports), cpu_seconds(processes), time.perf_counter()
            events[name] += read(batch)
            times[name].append(time.perf_counter() - start)
            cpu[name] += cpu_seconds(processes) - used
            wire[name] += wire_bytes(ports) - sent
    users = sum(map(len, batches))
    assert len(set(events.values())) == 1, events
    return {
        name: {
            "p50 ms": float(np.median(found)) * 1e3,
            "p99 ms": float(np.percentile(found, 99)) * 1e3,
            "users/s": users / sum(found),
            "CPU s/1k users": cpu[name] / users * 1e3,
            "wire bytes/event": wire[name] / events[name],
        }
        for name, found in times.items()
    }


def report(title: str, rows: dict[str, dict[str, float]], told: dict[str, Any], out: Path | None) -> None:
    """Print a table, and write it with its figures beside where ``out`` says (a path without suffix)."""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = [f"# {title}", "", *(f"- {name}: {value}" for name, value in (told | machine()).items()), ""]
    lines += ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join(_figure(row.get(column)) for column in columns) + " |")
    print("\n".join(lines))
    if out is not None:
        out.with_suffix(".md").write_text("\n".join(lines) + "\n")
        out.with_suffix(".json").write_text(json.dumps({"rows": rows, **told, **machine()}, indent=1) + "\n")


def machine() -> dict[str, str]:
    told = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(":")[2].strip() for line in told if "model name" in line), platform.machine())
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    return {"date": date.today().isoformat(), "hardware": f"{os.cpu_count()} x {cpu}", "load": load}


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


@contextlib.contextmanager
def redis_server(folder: Path, port: int) -> Iterator[subprocess.Popen]:
    """One Redis server without a cluster."""
    import redis

    folder.mkdir(parents=True, exist_ok=True)
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    process = subprocess.Popen([*command, "--appendonly", "yes"], stdout=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with contextlib.suppress(redis.exceptions.RedisError), redis.Redis(port=port) as client:
                client.ping()
                break
            time.sleep(0.1)
        yield process
    finally:
        process.terminate()
        process.wait()

"""``laser plan``: what each process of a cluster would hold and exchange, without training and without the cluster.

An estimate by counting: every look-up is counted, though a process looks up and exchanges each id of its share once
(``Cluster.distinct`` is for that), every history as its own, and of the bytes only those of the tables. Not modelled:
skew of ids over rows, latency, overlap with the dense part.

For N processes and n ids of a table in a step (all processes together), width W, rows handed on in float32:

=============  =====================  ==========================  ============================
sharding       ids a process serves   exchanged to it (forward)   exchanged by it (forward)
=============  =====================  ==========================  ============================
row_wise       n / N                  8 n / N (1 - 1/N)           4 W n / N (1 - 1/N)
table_wise     n for the owner        8 n (1 - 1/N)               4 W n (1 - 1/N)
column_wise    n                      8 n (1 - 1/N)               4 W / N n (1 - 1/N)
=============  =====================  ==========================  ============================

Backward sends as many gradients as forward sent embeddings.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from laser.schema import Feature, Schema
from laser.train.optim import TableOptimizer
from laser.train.placement import Placement, Sharding, TableSize, place
from laser.train.table_storage import VALUE_BYTES, Storage, check_table_names

STATE_BYTES, ID_BYTES = 4, 8
STATE_VALUES = {"sgd": 0.0, "adagrad": 1.0, "adam": 2.0}
"""Optimizer state of a table in units of its values; row-wise Adagrad keeps one value a row."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The machines to plan for; they need not exist.

    Args:
        processes: one per GPU.
        memory_gb: memory for tables on each, in 10^9 bytes.
        memory_rate: bytes a second that a process reads and writes there at random.
        exchange_rate: bytes a second that a process sends to all others.
        distinct: distinct ids of a process's batch as a share of its look-ups; 1 if no id is ever repeated.
        rows: rows to plan for instead of the data set's, by table.
    """

    processes: int = 1
    memory_gb: float = 80.0
    memory_rate: float = 2e12
    exchange_rate: float = 4e10
    distinct: float = 1.0
    rows: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.processes < 1 or min(self.memory_gb, self.memory_rate, self.exchange_rate) <= 0:
            raise ValueError(f"{self} cannot be planned for; give at least one process and positive sizes and rates")
        if not 0 < self.distinct <= 1:
            raise ValueError(f"cluster.distinct is {self.distinct}; expected a share above 0 and up to 1")


@dataclass
class Load:
    """Of one process and step; bytes."""

    weights: float = 0.0
    state: float = 0.0
    host: float = 0.0
    """Of both, what lies in host memory (``uvm``, ``uvm_caching``)."""
    ids: float = 0.0
    exchanged: float = 0.0
    """Sent forward (embeddings) and backward (gradients) plus ids received."""
    touched: float = 0.0
    """Read forward, and read and written with its state by the update."""

    def held(self) -> float:
        """Weights and optimizer state in the memory of the process's device."""
        return self.weights + self.state - self.host


@dataclass(frozen=True)
class Plan:
    """Placement, ids a step of each table, and load of each process."""

    sizes: list[TableSize]
    placements: dict[str, Placement]
    ids: dict[str, float]
    loads: list[Load]
    cluster: Cluster

    @property
    def fits(self) -> bool:
        """Whether every process has the memory."""
        return max(load.held() for load in self.loads) <= 1e9 * self.cluster.memory_gb


def table_sizes(schema: Schema, rows: dict[str, int]) -> list[TableSize]:
    """Tables of a data set, with other numbers of rows where wanted.

    Raises:
        ValueError: when ``rows`` names a table that there is not.
    """
    if unknown := sorted(rows.keys() - schema.tables.keys()):
        raise ValueError(f"cluster.rows names {unknown[0]!r}; tables of {schema.name} are {', '.join(schema.tables)}")
    return [TableSize(t.name, rows.get(t.name, t.rows), t.width) for t in schema.tables.values()]


def ids_per_sample(schema: Schema, events: float) -> dict[str, float]:
    """Ids that a sample with a history of ``events`` looks up in each table."""
    found = dict.fromkeys(schema.tables, 0.0)

    def count(features: tuple[Feature, ...], times: float) -> None:
        for feature in features:
            if feature.table is not None:
                found[feature.table] += times * feature.length

    count(schema.history, events)
    count(schema.target, 1.0)
    count(schema.context, 1.0)
    return found


def mean_history(data: Path, max_history: int) -> float:
    """Mean events of a training sample's history, from the data set's report, at most ``max_history``."""
    try:
        report = json.loads((data / "report.json").read_text())
        return min(float(report["samples"]["train"]["history_length"]["mean"]), max_history)
    except (OSError, KeyError, TypeError, json.JSONDecodeError):  # a data set that laser-prep did not write
        return float(max_history)


def plan(
    sizes: list[TableSize],
    sharding: Sharding,
    optimizer: TableOptimizer,
    ids: dict[str, float],
    cluster: Cluster,
    storage: Storage = Storage(),  # noqa: B008
) -> Plan:
    """Place the tables and add up what each process holds and does.

    Args:
        sizes: of all tables.
        sharding: of the recipe.
        optimizer: of the tables.
        ids: looked up in each table in a step, all processes together.
        cluster: to plan for.
        storage: of the recipe.

    Raises:
        ValueError: as ``place``, or when ``storage`` names a table that there is not.
    """
    count = cluster.processes
    placements = place(sizes, sharding, count)
    check_table_names("storage.tables", storage.tables, [size.name for size in sizes])
    handed_on = VALUE_BYTES[storage.outputs]
    loads = [Load() for _ in range(count)]
    away = 1 - 1 / count
    for size in sizes:
        placement = placements[size.name]
        cut = len(placement.ranks)
        width = size.width / cut if placement.kind == "column_wise" else size.width
        rows = size.rows / cut if placement.kind == "row_wise" else size.rows
        served = ids[size.name] / (cut if placement.kind == "row_wise" else 1)
        state = rows if optimizer.name == "rowwise_adagrad" else STATE_VALUES[optimizer.name] * rows * width
        kept = storage.of(size.name)
        row_bytes = VALUE_BYTES[kept.weights] * width
        on_host = {"device": 0.0, "uvm": 1.0, "uvm_caching": 1.0 - storage.cache_share}[kept.memory]
        state_bytes = 2 * STATE_BYTES * STATE_VALUES.get(optimizer.name, 0.0) * width
        for rank in placement.ranks:
            load = loads[rank]
            load.weights += rows * row_bytes
            load.state += STATE_BYTES * state
            load.host += on_host * (rows * row_bytes + STATE_BYTES * state)
            load.ids += served
            load.exchanged += away * served * (ID_BYTES + 2 * handed_on * width)
            load.touched += served * (3 * row_bytes + state_bytes)
    return Plan(sizes, placements, ids, loads, cluster)


def describe(found: Plan) -> str:
    """The plan as two tables: by table, and by process, with equal processes in one line."""
    lines = [f"{'table':20} {'rows':>16} {'width':>6} {'sharding':12} {'held by':14} {'ids a step':>14}"]
    for size in found.sizes:
        placement = found.placements[size.name]
        ranks = f"process {placement.ranks[0]}" if len(placement.ranks) == 1 else f"{len(placement.ranks)} processes"
        ids = found.ids[size.name]
        lines.append(f"{size.name:20} {size.rows:16,} {size.width:6} {placement.kind:12} {ranks:14} {ids:14,.0f}")
    head = ("process", "weights", "optimizer", "ids served", "exchanged", "exchange ms", "look-up ms")
    lines += ["", f"{head[0]:12}" + "".join(f"{name:>14}" for name in head[1:])]
    for ranks, load in _alike(found.loads):
        cells = [
            f"{ranks:12}",
            f"{_bytes(load.weights):>14}",
            f"{_bytes(load.state):>14}",
            f"{load.ids:14,.0f}",
            f"{_bytes(load.exchanged):>14}",
            f"{1e3 * load.exchanged / found.cluster.exchange_rate:14.3f}",
            f"{1e3 * load.touched / found.cluster.memory_rate:14.3f}",
        ]
        lines.append("".join(cells))
    most = max(load.held() for load in found.loads)
    room = 1e9 * found.cluster.memory_gb
    total = sum(load.held() for load in found.loads)
    verdict = "fits" if found.fits else "DOES NOT FIT: shard it row_wise, add processes, or keep smaller tables"
    lines += ["", f"{_bytes(total)} in all; the fullest process holds {_bytes(most)} of {_bytes(room)}: {verdict}"]
    if host := max(load.host for load in found.loads):
        lines += [f"besides, up to {_bytes(host)} of host memory a process"]
    return "\n".join(lines)


def _alike(loads: list[Load]) -> list[tuple[str, Load]]:
    """Runs of neighbours with the same load."""
    found: list[tuple[int, int, Load]] = []
    for rank, load in enumerate(loads):
        if found and found[-1][2] == load:
            found[-1] = (found[-1][0], rank, load)
        else:
            found.append((rank, rank, load))
    return [(f"{first}" if first == last else f"{first}-{last}", load) for first, last, load in found]


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.4g} {unit}"
        number /= 1000
    return f"{number:,.4g} TB"


def plan_of(
    data: Any,
    table_optimizer: TableOptimizer,
    sharding: Sharding,
    cluster: Cluster,
    storage: Storage = Storage(),  # noqa: B008
) -> Plan:
    """The plan of a recipe.

    Args:
        data: the recipe's section of that name: ``path``, ``batch_size``, ``max_history``.
        table_optimizer: of the recipe.
        sharding: of the recipe.
        cluster: to plan for.
        storage: of the recipe.

    Raises:
        ValueError: when there is no data set, or a table cannot be placed.
    """
    path = Path(data.path)
    schema = Schema.load(path / "schema.json")
    each = ids_per_sample(schema, mean_history(path, data.max_history))
    ids = {name: count * data.batch_size * cluster.distinct for name, count in each.items()}
    return plan(table_sizes(schema, cluster.rows), sharding, table_optimizer, ids, cluster, storage)

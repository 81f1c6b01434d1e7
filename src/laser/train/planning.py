"""``laser plan``: what each process of a cluster would hold and exchange, without training and without the cluster.

An estimate by counting. A process looks up and exchanges each id of its share once: of a table never more than its
rows; ``Cluster.distinct`` tells how often ids of larger ones repeat. Every history counts as its own, and of the bytes
only those of the tables. Not modelled: skew of ids over rows, latency, overlap with the dense part.

For N processes in hosts of L, n ids of a table in a step (all processes together), width W, rows handed on in float32:

==============  ======================  ==========================  ============================
sharding        ids a process serves    exchanged to it (forward)   exchanged by it (forward)
==============  ======================  ==========================  ============================
row_wise        n / N                   8 n / N (1 - 1/N)           4 W n / N (1 - 1/N)
table_wise      n for the owner         8 n (1 - 1/N)               4 W n (1 - 1/N)
column_wise     n                       8 n (1 - 1/N)               4 W / N n (1 - 1/N)
table_row_wise  n / L on one host       8 n / L (1 - 1/N)           4 W n / L (1 - 1/N)
data_parallel   n / N, its own          0                           0
==============  ======================  ==========================  ============================

Backward sends as many gradients as forward sent embeddings; of a data_parallel table of R rows all processes add up
2 x 4 W R (1 - 1/N) bytes each instead, whatever the batch, and update all rows. A share (N - L) / (N - 1) of what is
exchanged goes to or comes from other hosts. Time of an exchange is that of its slower part, as both go on at once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
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
        reserved_gb: part of it that is not for tables: dense parameters, activations, buffers of the exchange.
        memory_rate: bytes a second that a process reads and writes there at random.
        host_processes: processes of a host.
        host_exchange_rate: bytes a second that a process exchanges with others of its host.
        exchange_rate: bytes a second that it exchanges with those of other hosts.
        distinct: distinct ids of a process's batch as a share of its look-ups; 1 if no id is ever repeated.
        rows: rows to plan for instead of the data set's, by table.
    """

    processes: int = 1
    memory_gb: float = 80.0
    reserved_gb: float = 0.0
    memory_rate: float = 2e12
    host_processes: int = 8
    host_exchange_rate: float = 3e11
    exchange_rate: float = 4e10
    distinct: float = 1.0
    rows: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rates = (self.memory_rate, self.exchange_rate, self.host_exchange_rate)
        if min(self.processes, self.host_processes) < 1 or min(self.room, *rates) <= 0 or self.reserved_gb < 0:
            raise ValueError(
                f"{self} cannot be planned for; give at least one process (of a host, too), positive "
                "sizes and rates, and reserve less than there is"
            )
        if not 0 < self.distinct <= 1:
            raise ValueError(f"cluster.distinct is {self.distinct}; expected a share above 0 and up to 1")

    @property
    def room(self) -> float:
        """Bytes for tables on each process."""
        return 1e9 * (self.memory_gb - self.reserved_gb)

    @property
    def share_between_hosts(self) -> float:
        """Of what a process exchanges evenly with all others, the part that leaves its host."""
        if self.processes == 1:
            return 0.0
        return max(self.processes - self.host_processes, 0) / (self.processes - 1)

    def seconds(self, exchanged: float) -> float:
        """Time of an exchange of so many bytes: of its slower part, inside of hosts or between them."""
        between = exchanged * self.share_between_hosts
        return max((exchanged - between) / self.host_exchange_rate, between / self.exchange_rate)


@dataclass
class Load:
    """Of one process and step; bytes."""

    weights: float = 0.0
    state: float = 0.0
    host: float = 0.0
    """Of both, what lies in host memory (``uvm``, ``uvm_caching``)."""
    ids: float = 0.0
    exchanged: float = 0.0
    """Sent forward (embeddings) and backward (gradients) plus ids received; of replicas, gradients added up."""
    touched: float = 0.0
    """Read forward, and read and written with its state by the update."""

    def add(self, other: Load) -> None:
        """Take on what another table adds."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

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
        return max(load.held() for load in self.loads) <= self.cluster.room


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
    placements = place(sizes, sharding, cluster.processes, cluster.host_processes)
    check_table_names("storage.tables", storage.tables, [size.name for size in sizes])
    loads = [Load() for _ in range(cluster.processes)]
    for size in sizes:
        placement = placements[size.name]
        part = load_of(size, placement, ids[size.name], optimizer, storage, cluster.processes)
        for rank in placement.ranks:
            loads[rank].add(part)
    return Plan(sizes, placements, ids, loads, cluster)


def load_of(
    size: TableSize, placement: Placement, ids: float, optimizer: TableOptimizer, storage: Storage, processes: int
) -> Load:
    """What a table adds to the load of each process that holds a part of it."""
    by_rows = placement.kind in ("row_wise", "table_row_wise")
    whole = placement.kind == "data_parallel"
    cut = len(placement.ranks)
    width = size.width / cut if placement.kind == "column_wise" else size.width
    rows = size.rows / cut if by_rows else size.rows
    served = ids / cut if by_rows or whole else ids
    state = rows if optimizer.name == "rowwise_adagrad" else STATE_VALUES[optimizer.name] * rows * width
    kept = storage.of(size.name)
    row_bytes = VALUE_BYTES[kept.weights] * width
    state_bytes = 2 * STATE_BYTES * STATE_VALUES.get(optimizer.name, 0.0) * width
    on_host = {"device": 0.0, "uvm": 1.0, "uvm_caching": 1.0 - storage.cache_share}[kept.memory]
    away = 1 - 1 / processes
    exchanged = served * (ID_BYTES + 2 * VALUE_BYTES[storage.outputs] * width)
    touched = served * (3 * row_bytes + state_bytes)
    if whole:
        exchanged = 2 * rows * row_bytes
        touched = served * row_bytes + rows * (3 * row_bytes + state_bytes)
    return Load(
        weights=rows * row_bytes,
        state=STATE_BYTES * state,
        host=on_host * (rows * row_bytes + STATE_BYTES * state),
        ids=served,
        exchanged=away * exchanged,
        touched=touched,
    )


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
    sizes = table_sizes(schema, cluster.rows)
    looked_up = {size.name: each[size.name] * data.batch_size * cluster.distinct for size in sizes}
    ids = {size.name: min(looked_up[size.name], float(size.rows * cluster.processes)) for size in sizes}
    return plan(sizes, sharding, table_optimizer, ids, cluster, storage)

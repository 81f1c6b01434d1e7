"""Writes a synthetic raw log: blocks of users, each simulated, sorted by time and written as one Parquet part.

A block needs no other, so memory does not grow with the log, blocks may run in several processes, and their content
does not depend on how many.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import starmap
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.synthetic import users
from data_prep.synthetic.mapping import recipe_text
from data_prep.synthetic.truth import Tally
from data_prep.synthetic.world import DAY_MS, SCENARIOS, START_MS, World

BLOCK_EVENTS = 500_000
"""Mean events of a part; about 150 bytes of memory each."""


def generate(
    world: World, out: Path, processes: int = 1, advance: Callable[[int], None] = lambda events: None
) -> dict[str, Any]:
    """Write ``log/part-*.parquet``, ``items.parquet``, ``recipe.yaml`` and, last, ``truth.json`` into a new folder.

    Columns of the log: user, item, time (ms), click, scenario, hour, weekday; and, as truth that no recipe maps,
    ``probability`` (of the click), ``propensity`` (of the ranker showing this item within its slate) and
    ``evidence_age`` (events since the newest evidence, 0 where there is none).

    Args:
        world: what to simulate.
        out: new or empty folder.
        processes: that simulate; the result does not depend on it.
        advance: told the number of events of each finished block.

    Returns:
        Content of ``truth.json``.

    Raises:
        ValueError: when the folder holds files already, or cannot be written.
    """
    if processes < 1:
        raise ValueError(f"processes is {processes}; expected at least 1")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not an empty folder; give a new one for the synthetic log")
    try:
        (out / "log").mkdir(parents=True)
    except OSError as error:
        raise ValueError(f"cannot write to {out}: {error.strerror}; give another folder") from None
    write_item_table(world, out / "items.parquet")
    tally = Tally(world)
    with _starmap(processes) as starmapped:
        for found in starmapped(write_block, _blocks(world, out / "log")):
            tally += found
            advance(int(found.sums_S6[:, users.COUNT].sum()))
    (out / "recipe.yaml").write_text(recipe_text(world))
    truth = tally.describe()
    (out / "truth.json").write_text(json.dumps(truth, indent=1) + "\n")
    return truth


def _blocks(world: World, folder: Path) -> Iterator[tuple[World, int, int, Path]]:
    size = max(1, round(BLOCK_EVENTS * world.num_users / world.events))
    for part, first in enumerate(range(0, world.num_users, size)):
        yield world, first, min(first + size, world.num_users), folder / f"part-{part:06d}.parquet"


@contextmanager
def _starmap(processes: int) -> Iterator[Callable[..., Iterator[Tally]]]:
    if processes == 1:
        yield starmap
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield lambda work, blocks: pool.imap(_Unpacked(work), blocks)


class _Unpacked:
    """``pool.imap`` hands over one argument; results come in the order of the blocks."""

    def __init__(self, work: Callable[..., Tally]) -> None:
        self.work = work

    def __call__(self, block: tuple[Any, ...]) -> Tally:
        return self.work(*block)


def write_block(world: World, first: int, stop: int, path: Path) -> Tally:
    """Simulate the users [first, stop) and write their events in the order of time."""
    constants = world.constants()
    counts = users.events_of_users(constants, first, stop)
    total = int(counts.sum())
    found = {
        "time": np.empty(total, np.int64),
        "item": np.empty(total, np.int64),
        "topic": np.empty(total, np.int64),
        "click": np.empty(total, np.int8),
        "scenario": np.empty(total, np.int8),
        "propensity": np.empty(total, np.float32),
        "probability": np.empty(total, np.float64),
        "evidence_age": np.empty(total, np.int32),
    }
    tally = Tally(world)
    horizons = np.array(world.horizons, np.int64)
    users.simulate(constants, horizons, first, counts, *found.values(), *tally.arrays())
    del found["topic"]
    found["user"] = np.repeat(np.arange(first + 1, stop + 1), counts)
    order = np.argsort(found["time"], kind="stable")
    _write(path, {name: values[order] for name, values in found.items()})
    return tally


def _write(path: Path, columns: dict[str, np.ndarray]) -> None:
    time = columns["time"]
    scenario = pa.DictionaryArray.from_arrays(pa.array(columns["scenario"]), pa.array(SCENARIOS))
    table = pa.table(
        {name: columns[name] for name in ("user", "item", "time", "click")}
        | {
            "scenario": scenario.cast(pa.string()),
            "hour": (time % DAY_MS // (DAY_MS // 24)).astype(np.int8),
            "weekday": ((time - START_MS) // DAY_MS % 7).astype(np.int8),
        }
        | {name: columns[name] for name in ("probability", "propensity", "evidence_age")}
    )
    repeating = ["user", "click", "scenario", "hour", "weekday", "evidence_age"]
    temporary = path.with_suffix(".tmp")
    pq.write_table(table, temporary, compression="zstd", compression_level=1, use_dictionary=repeating)
    os.replace(temporary, path)


def write_item_table(world: World, path: Path) -> None:
    """Write item, topic and category of every item; background topics form the last category."""
    item = np.arange(world.num_items)
    topic = item // world.items_per_topic
    category = np.where(topic < world.topics, topic % world.categories, world.categories)
    pq.write_table(pa.table({"item": item, "topic": topic, "category": category}), path, compression="zstd")

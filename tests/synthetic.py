"""A small log with a known rule, prepared without ``data_prep``: what tests of loader, model and training share.

Each user likes some categories. A user's click on an item is 1 with probability 0.9 when its category is liked and 0.1
when not; the rating stored with the event says the same as the click. So the past tells the next click, through the
items' side info, and to a lesser part so does the item alone, because some categories are liked by most.

Awkward on purpose: the first users' samples have no event in the store at all, every user's first sample has no event
before it, and several rows of a user share a timestamp.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from laser.schema import Feature, Kind, Schema, names
from laser.seqvault import SeqVault

CATEGORIES = 8
TAGS = 3
SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}
WITHOUT_EVENTS = 2
"""The first users are unknown to the store."""


def make_schema(users: int, items: int, width: int, name: str = "synthetic") -> Schema:
    """User, item with one and with several values of side info, event side info, one context field."""
    sized = {"width": width}
    return Schema(
        name,
        (
            Feature(name="user", kind=Kind.USER, dtype="uint32", cardinality=users + 1),
            Feature(name="item", kind=Kind.ITEM, dtype="uint32", cardinality=items + 1, table="item", **sized),
            Feature(
                name="category",
                kind=Kind.ITEM_SIDE,
                dtype="uint8",
                cardinality=CATEGORIES + 1,
                table="category",
                **sized,
            ),
            Feature(name="tags", kind=Kind.ITEM_SIDE, dtype="uint8", cardinality=12, table="tag", length=TAGS, **sized),
            Feature(name="rating", kind=Kind.EVENT_SIDE, dtype="uint8", cardinality=3, table="rating", **sized),
            Feature(name="device", kind=Kind.CONTEXT, dtype="uint8", cardinality=4, table="device", **sized),
            Feature(name="click", kind=Kind.LABEL, dtype="uint8"),
            Feature(name="timestamp", kind=Kind.TIMESTAMP, dtype="int64"),
        ),
    )


def make_items(items: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Side info by item code; row 0, the unknown item, has none."""
    category = np.r_[0, rng.integers(1, CATEGORIES + 1, items)].astype(np.uint8)
    tags = rng.integers(1, 12, (items + 1, TAGS)).astype(np.uint8)
    tags[np.arange(TAGS) >= rng.integers(0, TAGS + 1, items + 1)[:, None]] = 0
    tags[0] = 0
    return {"item": np.arange(items + 1, dtype=np.uint32), "category": category, "tags": tags}


def make_log(users: int, category: np.ndarray, events: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Rows ordered by time: 1 to 2 x ``events`` - 1 rows a user."""
    liking = np.linspace(0.9, 0.1, CATEGORIES)
    likes = np.c_[np.zeros(users + 1), rng.random((users + 1, CATEGORIES)) < liking].astype(bool)
    counts = rng.integers(1, 2 * events, users)
    user = np.repeat(np.arange(1, users + 1), counts).astype(np.uint32)
    item = rng.integers(1, len(category), user.size).astype(np.uint32)
    click = rng.random(user.size) < np.where(likes[user, category[item]], 0.9, 0.1)
    timestamp = 1_600_000_000 + 600 * rng.integers(0, 40 * events, user.size)
    order = np.argsort(timestamp, kind="stable")
    log = {
        "user": user,
        "timestamp": timestamp,
        "item": item,
        "rating": (1 + click).astype(np.uint8),
        "device": rng.integers(0, 4, user.size).astype(np.uint8),
        "click": click.astype(np.uint8),
    }
    # A tie in time for each third row of a user: it gets the time of the row before it.
    log = {name: values[order] for name, values in log.items()}
    for code in range(1, users + 1):
        own = np.flatnonzero(log["user"] == code)
        log["timestamp"][own[2::3]] = log["timestamp"][own[1::3]][: len(own[2::3])]
    order = np.argsort(log["timestamp"], kind="stable")
    return {name: values[order] for name, values in log.items()}


def write_prepared(
    path: Path, *, users: int = 60, items: int = 80, events: int = 30, width: int = 8, seed: int = 0
) -> Path:
    """Write a prepared data set to ``path`` and, beside what belongs to one, ``log.parquet``: the raw rows."""
    rng = np.random.default_rng(seed)
    schema = make_schema(users, items, width)
    side = make_items(items, rng)
    log = make_log(users, side["category"], events, rng)
    path.mkdir(parents=True)
    schema.save(path / "schema.json")
    tags = pa.FixedSizeListArray.from_arrays(pa.array(side["tags"].ravel()), TAGS)
    raw = pa.array([f"item-{code}" for code in side["item"]])
    pq.write_table(pa.table(side | {"tags": tags, "raw": raw}), path / "items.parquet")
    pq.write_table(pa.table(log), path / "log.parquet")
    stored = log["user"] > WITHOUT_EVENTS
    by_user = np.flatnonzero(stored)[np.argsort(log["user"][stored], kind="stable")]
    with SeqVault.create(path / "vault", schema) as vault:
        vault.append(log["user"][by_user], {name: log[name][by_user] for name in names(schema.event)})
        vault.compact()
    rows = write_samples(path / "samples", log, ["user", "item", "timestamp", "click", "device"])
    write_ids(path / "ids", users, items)
    report = {"rows": {"in": len(stored), "out": sum(rows.values()), "rejected": {}}, "samples": rows}
    (path / "report.json").write_text(json.dumps(report))
    return path


def write_samples(folder: Path, log: dict[str, np.ndarray], columns: list[str]) -> dict[str, int]:
    """Splits by global time, train in two parts; returns the samples of each."""
    edges = np.cumsum([0.0, *SHARES.values()]) * len(log["user"])
    counts = {}
    for split, start, stop in zip(SHARES, edges[:-1].astype(int), edges[1:].round().astype(int), strict=True):
        rows = pa.table({"row": np.arange(stop - start)} | {name: log[name][start:stop] for name in columns})
        (folder / split).mkdir(parents=True)
        half = len(rows) // 2 if split == "train" else len(rows)
        pq.write_table(rows[:half], folder / split / "part-00000.parquet")
        if half < len(rows):
            pq.write_table(rows[half:], folder / split / "part-00001.parquet")
        counts[split] = len(rows)
    return counts


def write_ids(folder: Path, users: int, items: int) -> None:
    """Dictionaries of raw ids."""
    folder.mkdir()
    for name, count in (("user", users), ("item", items)):
        raw = [f"{name}-{code}" for code in range(1, count + 1)]
        pq.write_table(pa.table({"raw": raw, "code": np.arange(1, count + 1)}), folder / f"{name}.parquet")

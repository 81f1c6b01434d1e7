"""Writes a bundle: everything but ``bundle.json`` first, then what the model answers to a few requests, then that."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from laser.data.prepared import PreparedData
from laser.data.samples import Samples
from laser.schema import names
from laser.seqvault.ragged import Ragged
from laser.serve.bundle import (
    COMPILED,
    FACTS,
    FORMAT,
    GOLDEN,
    IDS,
    ITEMS,
    SCHEMA,
    TABLES,
    WEIGHTS,
    Bundle,
    checksum,
    code_versions,
)
from laser.serve.compiled import built_for, compile_candidates
from laser.serve.engine import Engine
from laser.serve.loading import load_engine
from laser.serve.requests import CodedRequest
from laser.serve.rows import Precision, entries
from laser.tensor_file import Entry, write_tensors

LOAD = (
    "import sys; from pathlib import Path; from laser.serve.bundle import Bundle; "
    "from laser.serve.loading import load_engine; "
    "load_engine(Bundle.open(Path(sys.argv[1])), device=sys.argv[2], compiled=True)"
)
GOLDEN_REQUESTS, GOLDEN_CANDIDATES = 8, 8


@dataclass(frozen=True)
class Trained:
    """A trained model.

    Args:
        network: ``class_path`` and ``init_args``.
        seed: that it was trained with.
        max_history: newest events that it sees.
        weights: what is not a table, by its name in the model.
        table: gives the float32 rows of a table by its name.
        checkpoint: facts to record about where it comes from.
    """

    network: dict[str, Any]
    seed: int
    max_history: int
    weights: Mapping[str, Tensor]
    table: Callable[[str], Tensor]
    checkpoint: dict[str, Any]


def write_bundle(
    folder: Path, data: PreparedData, trained: Trained, precision: Precision, compiled: str | None = None
) -> Bundle:
    """Write a bundle into an empty folder and open it.

    Args:
        folder: of the bundle.
        data: that the model was trained on.
        trained: the model.
        precision: of the tables.
        compiled: "cpu" or "cuda" to write native code for it, too.

    Raises:
        ValueError: when weights and options do not fit each other, the two ways of scoring differ, or the model cannot
            be compiled, or what was compiled does not run.
    """
    schema = data.schema
    schema.save(folder / SCHEMA)
    write_tensors(folder / WEIGHTS, {name: Entry.of(tensor) for name, tensor in trained.weights.items()})
    tables: dict[str, Entry] = {}
    for name, table in schema.tables.items():
        read = _one_at_a_time(trained.table, name)
        tables |= entries(name, table.rows, table.width, read, precision)
    write_tensors(folder / TABLES, tables)
    items = {name: Entry.of(torch.from_numpy(np.ascontiguousarray(ids))) for name, ids in data.items.items()}
    write_tensors(folder / ITEMS, items)
    (folder / IDS).mkdir()
    wanted = names((schema.user, *schema.history, *schema.context))
    for file in sorted((data.path / IDS).glob("*.parquet")):
        if file.stem in wanted:
            shutil.copyfile(file, folder / IDS / file.name)
    facts = {
        "format": FORMAT,
        "data_set": schema.name,
        "schema": schema.fingerprint(),
        "network": trained.network,
        "seed": trained.seed,
        "max_history": trained.max_history,
        "tables": precision,
        "hashed": _hashed(data),
        "checkpoint": trained.checkpoint,
        "versions": code_versions(),
    }
    engine = load_engine(Bundle(folder, facts, schema), verify=False)
    golden = [_answered(engine, *case) for case in _golden_cases(data, trained.max_history)]
    (folder / GOLDEN).write_text(json.dumps({"requests": golden}))
    if compiled is not None:
        facts["compiled"] = {compiled: _compile(Bundle(folder, facts, schema), compiled)}
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    facts["files"] = {str(f.relative_to(folder)): [f.stat().st_size, checksum(f)] for f in files}
    (folder / FACTS).write_text(json.dumps(facts, indent=1))
    bundle = Bundle.open(folder)
    load_engine(bundle)
    if compiled is not None:
        try_compiled(folder, compiled)
    return bundle


def try_compiled(folder: Path, device: str) -> None:
    """Let another process load the native code and answer the golden requests, lest a fault in it end this one.

    Raises:
        ValueError: when it cannot, with its last words.
    """
    command = [sys.executable, "-c", LOAD, str(folder), device]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        killed = done.returncode < 0
        how = (
            signal.Signals(-done.returncode).name if killed else (done.stderr.strip().splitlines() or ["no words"])[-1]
        )
        raise ValueError(
            f"native code for {device} was made, but a process that loaded it to try it ended with {how}; leave out "
            "--compile"
        )


def _compile(bundle: Bundle, device: str) -> dict[str, str]:
    shared = load_engine(bundle, device=device, verify=False).shared
    if shared is None:
        raise ValueError("only LASER can be compiled; leave out --compile")
    widths = [int(f.width or 0) for f in shared.network.embeddings.context]
    compile_candidates(shared, widths, bundle.path / COMPILED[device])
    return built_for(device)


def _one_at_a_time(table: Callable[[str], Tensor], name: str) -> Callable[[int, int], Tensor]:
    """Reads parts of one table, which is in memory only while it is written."""
    held: list[Tensor] = []

    def read(first: int, last: int) -> Tensor:
        if not held or first == 0:
            held[:] = [table(name)]
        part = held[0][first:last]
        if last == len(held[0]):
            held.clear()
        return part

    return read


def _hashed(data: PreparedData) -> list[str]:
    """Features whose values are all coded by hash, as the data set's report says."""
    report = data.path / "report.json"
    rules = json.loads(report.read_text()).get("ids", {}) if report.exists() else {}
    return sorted(name for name, rule in rules.items() if rule.get("hash"))


def _golden_cases(data: PreparedData, max_history: int) -> list[tuple[CodedRequest, Ragged]]:
    """Samples spread over the test split, each with the items of its neighbours as candidates beside its own."""
    samples = data.split("test")
    rows = np.unique(np.linspace(0, len(samples) - 1, GOLDEN_REQUESTS).astype(np.int64))
    cases = []
    for place, row in enumerate(rows):
        size = 1 if place == 0 else GOLDEN_CANDIDATES
        request = golden_request(samples, np.arange(row, row + size) % len(samples), row)
        events = data.vault.read([request.key], before=request.time, last_n=max_history)
        cases.append((request, events))
    return cases


def golden_request(samples: Samples, candidate_rows: np.ndarray, row: int) -> CodedRequest:
    """A sample's user, time and context with the items of some samples as candidates."""
    size = len(candidate_rows)
    context = {name: np.repeat(codes[row : row + 1], size, axis=0) for name, codes in samples.context.items()}
    return CodedRequest(
        int(samples.user_N[row]),
        int(samples.timestamp_N[row]),
        samples.item_N[candidate_rows].astype(np.int64),
        {name: codes.astype(np.int64) for name, codes in context.items()},
    )


def _answered(engine: Engine, request: CodedRequest, events: Ragged) -> dict[str, Any]:
    """A golden request with the answer of the packed way, which is that of training."""
    found = [np.empty(len(request), np.float32)]
    with torch.inference_mode():
        engine.score_packed([request], events, [(0, 0, len(request))], found)
    return {
        "key": request.key,
        "time": request.time,
        "items": request.item_B.tolist(),
        "context": {name: codes.tolist() for name, codes in request.context.items()},
        "history": {name: values.tolist() for name, values in events.fields.items()},
        "probability": [float(value) for value in found[0]],
    }

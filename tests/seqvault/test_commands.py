"""The verbs of ``laser vault``, run as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from laser.schema import Feature, Kind, Schema
from laser.seqvault.commands import main

FEATURES = (
    Feature(name="user", kind=Kind.USER, dtype="int64"),
    Feature(name="item", kind=Kind.ITEM, dtype="int32", cardinality=10),
    Feature(name="tags", kind=Kind.EVENT_SIDE, dtype="uint8", cardinality=9, length=2),
    Feature(name="label", kind=Kind.LABEL, dtype="uint8"),
    Feature(name="timestamp", kind=Kind.TIMESTAMP, dtype="int64"),
)


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    Schema("toy", FEATURES).save(tmp_path / "schema.json")
    return tmp_path / "schema.json"


@pytest.fixture
def events(tmp_path: Path) -> Path:
    count = np.arange(1000)
    tags = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(2000) % 9, pa.uint8()), 2)
    columns = {"user": count % 7, "timestamp": count, "item": count % 10, "tags": tags}
    parquet.write_table(pa.table(columns), tmp_path / "events.parquet", row_group_size=300)
    return tmp_path / "events.parquet"


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_the_life_of_a_vault(path: Path, schema: Path, events: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("create", path, schema) == 0
    assert run("load", path, f'["{events}"]', "--compact", "true") == 0
    assert "1000 events of 7 users" in capsys.readouterr().out
    assert run("append", path, 3, '{"timestamp": 5000, "item": 4, "tags": [1, 2]}') == 0
    assert run("read", path, "[3]", "--last_n", 2, "--fields", '["timestamp", "tags"]') == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["timestamp"] for line in lines] == [997, 5000]
    assert lines[1] == {"user": 3, "timestamp": 5000, "tags": [1, 2]}
    assert run("check", path) == 0
    assert run("delete-user", path, 3) == 0
    capsys.readouterr()
    assert run("stats", path) == 0
    assert json.loads(capsys.readouterr().out)["users"] == 6
    assert run("compact", path, "--keep_last", 1) == 0
    assert run("bench", path, "--seconds", 0.1) == 0
    assert "users/s" in capsys.readouterr().out
    (segment,) = path.glob("*.seg")
    segment.write_bytes(segment.read_bytes()[:-9])
    assert run("check", path) == 1
    assert "damaged" in capsys.readouterr().out


def test_mistakes_are_one_sentence(path: Path, schema: Path, events: Path) -> None:
    run("create", path, schema)
    with pytest.raises(ValueError, match="no column owner"):
        run("load", path, f'["{events}"]', "--user", "owner")
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        run("load", path, f'["{schema}"]')
    with pytest.raises(ValueError, match="is not JSON"):
        run("append", path, 3, "{")
    with pytest.raises(ValueError, match="JSON list"):
        run("append", path, 3, "[]")
    with pytest.raises(ValueError, match="has no users"):
        run("bench", path)

"""The verbs of ``laser vault``, run as a user runs them; the last tests run the program itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from laser.cli import main as program
from laser.schema import Feature, Kind, Schema
from laser.seqvault import SeqVault
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
    assert run("export", path, events.with_name("out.parquet")) == 0
    assert "1000 events in" in capsys.readouterr().out
    exported = parquet.read_table(events.with_name("out.parquet"))
    assert exported.num_rows == 1000
    assert exported.column_names == ["user", "timestamp", "item", "tags"]
    assert run("append", path, 3, '{"timestamp": 5000, "item": 4, "tags": [1, 2]}') == 0
    assert run("read", path, "[3]", "--last_n", 2, "--fields", '["timestamp", "tags"]') == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["timestamp"] for line in lines] == [997, 5000]
    assert lines[1] == {"user": 3, "timestamp": 5000, "tags": [1, 2]}
    assert run("read", path, 3, "--last_n", 1, "--where", '{"item": [4], "timestamp": [4999, 5000]}') == 0
    assert json.loads(capsys.readouterr().out)["timestamp"] == 5000
    assert run("read", path, "[99]") == 0
    assert capsys.readouterr() == ("", "laser vault read: no such events of user 99\n")
    assert run("check", path) == 0
    assert run("delete-user", path, 3) == 0
    capsys.readouterr()
    assert run("stats", path) == 0
    assert json.loads(capsys.readouterr().out)["users"] == 6
    assert run("compact", path, "--keep_last", 1) == 0
    assert run("bench", path, "--seconds", 0.1, "--fields", "item", "--codes", "true") == 0
    assert "users/s" in capsys.readouterr().out
    (segment,) = path.glob("*.seg")
    segment.write_bytes(segment.read_bytes()[:-9])
    assert run("check", path) == 1
    assert "damaged" in capsys.readouterr().out


def test_mistakes_are_one_sentence(path: Path, schema: Path, events: Path) -> None:
    run("create", path, schema)
    with pytest.raises(ValueError, match="no column 'owner'"):
        run("load", path, f'["{events}"]', "--user", "owner")
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        run("load", path, f'["{schema}"]')
    with pytest.raises(ValueError, match="is not JSON"):
        run("append", path, 3, "{")
    with pytest.raises(ValueError, match="JSON list"):
        run("append", path, 3, "[]")
    with pytest.raises(ValueError, match="has no users"):
        run("bench", path)


def laser(*arguments: object) -> int:
    return program(["vault", *(str(argument) for argument in arguments)])


def test_a_vault_without_a_schema(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = '{"at": "int64", "item": "uint32", "author": "uint16"}'
    assert laser("create", path, fields, "--derived", '{"author": "item"}', "--late", "drop") == 0
    parquet.write_table(pa.table({"u": [7, 7, 8], "t": [1, 2, 3], "item": [5, 6, 5]}), tmp_path / "in.parquet")
    parquet.write_table(pa.table({"item": [5, 6], "by": [50, 60]}), tmp_path / "items.parquet")
    assert laser("load", path, tmp_path / "in.parquet", "--user", "u", "--columns", '{"at": "t"}') == 0
    assert laser("set-derived", path, "author", tmp_path / "items.parquet", "item", "by") == 0
    assert f"3 events of 2 users in {path}" in capsys.readouterr().out
    assert laser("read", path, 7, "--fields", '["author", "at"]') == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        {"user": 7, "author": 50, "at": 1},
        {"user": 7, "author": 60, "at": 2},
    ]


def test_a_mistake_ends_with_one_sentence_and_2(
    path: Path, tmp_path: Path, schema: Path, events: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large = pa.array(range(2**31 - 5, 2**31 + 995))
    parquet.write_table(parquet.read_table(events).set_column(2, "item", [large]), tmp_path / "bad.parquet")
    assert laser("create", path, schema) == 0
    (tmp_path / "empty").mkdir()
    mistakes = {
        "there is a vault": ("create", path, schema),
        "no vault at": ("stats", tmp_path / "none"),
        "row group 0, row 5 has 2147483648 in column 'item', which does not fit int32": (
            "load",
            path,
            tmp_path / "bad.parquet",
        ),
        "cannot be read as Parquet": ("load", path, tmp_path / "none.parquet"),
        "is 'int7'": ("create", tmp_path / "new", '{"at": "int7"}'),
        "holds no .parquet files": ("load", path, tmp_path / "empty"),
        "expected more than 0": ("load", path, events, "--memory", 0),
        "give the name of a file": ("export", path, tmp_path / "no" / "out.parquet"),
    }
    for expected, arguments in mistakes.items():
        capsys.readouterr()
        assert laser(*arguments) == 2, arguments
        said = capsys.readouterr().err
        assert expected in said
        assert len(said.splitlines()) == 1
    manifest = path / "MANIFEST"
    manifest.write_bytes(manifest.read_bytes().replace(b"LASERVAULT 3", b"LASERVAULT 9"))
    assert laser("read", path, "[1]") == 2
    assert "has format version 9" in capsys.readouterr().err


def test_the_program_itself_while_another_writes(path: Path, schema: Path, events: Path) -> None:
    run("create", path, schema)
    command = [sys.executable, "-m", "laser.cli", "vault", "load", str(path), str(events)]
    with SeqVault.open(path, "a"):
        busy = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert busy.returncode == 2
    assert "is open for writing in process" in busy.stderr
    assert len(busy.stderr.splitlines()) == 1
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == f"1000 events of 7 users in {path}"

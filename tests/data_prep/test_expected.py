"""Published sizes, checksums and counts against right and wrong files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import yaml

from data_prep.cli import main
from data_prep.pipeline import prepare
from data_prep.recipe_file import load_recipe

RIGHT = {"rows": 360, "users": 12, "items": 25}


def published(recipe: Path) -> dict:
    """What a publisher would say of the small log."""
    log = (recipe.parent / "log.parquet").read_bytes()
    return {
        "rows": 360,
        "bytes": len(log),
        "md5": hashlib.md5(log).hexdigest(),
        "sha256": hashlib.sha256(log).hexdigest(),
    }


@pytest.fixture
def recipe(write):
    """Writes the small log and a recipe whose only edition says what is given."""

    def write_expected(file: dict | None, **counts: int) -> Path:
        path = write()
        files = {"log.parquet": published(path) | file} if file is not None else {}
        content = yaml.safe_load(path.read_text()) | {"expected": {"first edition": {"files": files, **counts}}}
        path.write_text(yaml.safe_dump(content))
        return path

    return write_expected


def test_right_files_and_counts(recipe, tmp_path, capsys):
    report = prepare(recipe({}, **RIGHT), tmp_path / "out")
    assert report["expected"] == {"edition": "first edition", "differences": []}
    assert json.loads((tmp_path / "out/report.json").read_text())["expected"] == report["expected"]
    assert "counts" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"bytes": 7}, "bytes, expected 7;"),
        ({"md5": "0" * 32}, "expected 00000000000000000000000000000000;"),
        ({"sha256": "f" * 64}, f"expected {'f' * 64};"),
        ({"rows": 7}, "has 360 rows, expected 7;"),
    ],
)
def test_other_files_are_refused_before_any_work(recipe, tmp_path, capsys, wrong, sentence):
    assert main(["run", str(recipe(wrong, **RIGHT)), "--out", str(tmp_path / "out")]) == 2
    found = capsys.readouterr().err
    assert "log.parquet of first edition has" in found
    assert sentence in found
    assert "take `expected` out of the recipe" in found
    assert found.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_missing_file(recipe, tmp_path):
    path = recipe({}, **RIGHT)
    path.write_text(path.read_text().replace("log.parquet:", "other.parquet:"))
    with pytest.raises(ValueError, match=r"other\.parquet of first edition is missing; fetch the files again"):
        prepare(path, tmp_path / "out")


@pytest.mark.parametrize("count", list(RIGHT))
def test_right_files_with_other_counts_fail(recipe, tmp_path, count):
    with pytest.raises(ValueError, match=rf"files are those of first edition, but the counts differ \({count} "):
        prepare(recipe({}, **(RIGHT | {count: 1_000})), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_counts_alone_only_warn(recipe, tmp_path, capsys):
    report = prepare(recipe(None, **(RIGHT | {"users": 13})), tmp_path / "out")
    assert report["expected"] == {"edition": None, "differences": ["users 12, published 13"]}
    assert "counts are not those of first edition (users 12, published 13)" in capsys.readouterr().err
    assert (tmp_path / "out/report.json").exists()


def test_the_fitting_edition_is_found(recipe, tmp_path):
    path = recipe(None, **(RIGHT | {"rows": 90}))
    content = yaml.safe_load(path.read_text())
    content["expected"]["second edition"] = {"files": {}, **RIGHT}
    path.write_text(yaml.safe_dump(content))
    assert prepare(path, tmp_path / "out")["expected"] == {"edition": "second edition", "differences": []}
    content["expected"]["third edition"] = {"files": {"log.parquet": published(path)}, **RIGHT}
    path.write_text(yaml.safe_dump(content))
    assert prepare(path, tmp_path / "out")["expected"]["edition"] == "third edition"


def test_mistakes_in_the_key(recipe):
    path = recipe({"md5": "12"})
    with pytest.raises(ValueError, match="`md5` is '12'; expected 32 hexadecimal digits"):
        load_recipe(path)
    path.write_text(path.read_text().replace("first edition:", "first edition: {files: {a.csv: {}}}\n  b:"))
    with pytest.raises(ValueError, match="says nothing; give `bytes`, `md5`, `sha256` or `rows`"):
        load_recipe(path)

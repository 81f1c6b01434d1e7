"""Small raw files in the published layouts, and a data set prepared from them by the ready recipe."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from data_prep.leakage import check_prepared
from data_prep.pipeline import prepare
from data_prep.recipe_file import load_recipe
from laser.schema import Schema
from laser.seqvault import SeqVault

RECIPES = Path(__file__).parents[3] / "conf/prep"


def csv_text(header: str | None, rows: Iterable[Iterable[Any]]) -> str:
    """Lines of comma-separated values, quoted where needed, below a header."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return ("" if header is None else header + "\n") + out.getvalue()


@dataclass(frozen=True)
class Prepared:
    """A prepared data set in raw ids."""

    folder: Path
    report: dict[str, Any]
    warnings: str

    @property
    def schema(self) -> Schema:
        return Schema.load(self.folder / "schema.json")

    def raw(self, feature: str) -> dict[int, Any]:
        """Raw value of each code; 0 is None."""
        rows = pq.read_table(self.folder / "ids" / f"{feature}.parquet").to_pylist()
        return {0: None} | {row["code"]: row["raw"] for row in rows}

    def samples(self, split: str) -> list[dict[str, Any]]:
        """Samples with raw user and item ids."""
        user, item = self.schema.user.name, self.schema.item.name
        users, items = self.raw(user), self.raw(item)
        rows = pq.read_table(self.folder / "samples" / split).to_pylist()
        return [row | {user: users[row[user]], item: items[row[item]]} for row in rows]

    def items(self) -> dict[Any, dict[str, Any]]:
        """Side info by raw item id, in raw values; lists without their padding."""
        schema = self.schema
        found = {}
        names = [f.name for f in schema.features if f.kind == "item_side"]
        raw = {name: self.raw(name) for name in names}
        for row in pq.read_table(self.folder / "items.parquet").to_pylist()[1:]:
            values = {n: row[n] if isinstance(row[n], list) else [row[n]] for n in names}
            found[row["raw"]] = {n: [raw[n][code] for code in codes if code] for n, codes in values.items()}
        return found

    def history(self, user: Any, before: int | None = None) -> list[dict[str, Any]]:
        """Events of a raw user id, oldest first, in raw values (of bucketed numbers the lower bound)."""
        schema = self.schema
        codes = {raw: code for code, raw in self.raw(schema.user.name).items()}
        with SeqVault.open(self.folder / "vault") as vault:
            events = vault.read([codes[user]], before=before).of(0)
        raw = {n: self.raw(n) for n in events if (self.folder / "ids" / f"{n}.parquet").exists()}
        columns = {n: [raw[n].get(v, v) if n in raw else v for v in values.tolist()] for n, values in events.items()}
        return [dict(zip(columns, row)) for row in zip(*columns.values())]


@pytest.fixture
def ready(tmp_path, capsys) -> Callable[..., Prepared]:
    """Writes files (bytes, text, or an Arrow table) below a raw folder and runs a ready recipe on them.

    Files of a few rows are not the published ones: a recipe that knows these refuses, and is run without its figures.
    """

    def run(name: str, files: dict[str, Any]) -> Prepared:
        raw = tmp_path / "raw"
        for place, content in files.items():
            path = raw / place
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str | bytes):
                path.write_bytes(content.encode() if isinstance(content, str) else content)
            else:
                pq.write_table(content, path)
        recipe = RECIPES / f"{name}.yaml"
        if any(edition.files for edition in load_recipe(recipe).expected.values()):
            with pytest.raises(ValueError, match="take `expected` out of the recipe"):
                prepare(recipe, tmp_path / "refused", raw)
            text = re.sub(r"^expected:.*\n(?: .*\n)*", "", recipe.read_text(), flags=re.MULTILINE)
            recipe = tmp_path / f"{name}.yaml"
            recipe.write_text(text)
        report = prepare(recipe, tmp_path / "out", raw)
        assert check_prepared(tmp_path / "out", report).problems == []
        return Prepared(tmp_path / "out", report, capsys.readouterr().err)

    return run

"""The data set that an addition extends, and whether a recipe can extend it."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import sqlglot
from sqlglot import expressions as sg

from data_prep.expressions import DIALECT
from data_prep.recipe import SPLITS, Recipe
from data_prep.summary import plain
from data_prep.vocabulary import all_features
from laser.schema import Schema
from laser.seqvault import SeqVault

GROWING = frozenset({"schema.json", "items.parquet", "ids", "report.json", "report.html"})
"""Parts that an addition writes anew; all files besides stay."""
USERS_AT_ONCE = 1 << 16
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.EXDEV, errno.ENOSYS)


@dataclass(frozen=True)
class Present:
    """A finished data set."""

    folder: Path
    schema: Schema
    report: dict[str, Any]
    """Content of ``report.json``."""

    @classmethod
    def open(cls, folder: Path) -> Present:
        """Read what a data set says of itself.

        Raises:
            ValueError: when the folder is no prepared data set, or one from before data sets could be extended.
        """
        try:
            report = json.loads((folder / "report.json").read_text())
        except (FileNotFoundError, NotADirectoryError):
            raise ValueError(f"no report.json in --to {folder}; give a folder that `laser-prep run` wrote") from None
        except json.JSONDecodeError as error:
            raise ValueError(f"{folder / 'report.json'} is not JSON ({error}); prepare the data set again") from None
        if "recipe" not in report:
            raise ValueError(
                f"the report of --to {folder} does not hold its recipe, so it comes from an earlier release; "
                "prepare the data set again with `laser-prep run`"
            )
        return cls(folder, Schema.load(folder / "schema.json"), report)

    def addition_of(self, files: dict[str, str]) -> dict[str, Any] | None:
        """What the report says of the addition of log files with these checksums, if there was one."""
        wanted = sorted(files.values())
        return next(
            (done for done in self.report.get("additions", []) if sorted(done["files"].values()) == wanted), None
        )

    @cached_property
    def end(self) -> int:
        """Newest timestamp of any sample or event.

        Raises:
            ValueError: when the history store holds more or fewer events than the report says.
        """
        time = self.schema.timestamp.name
        latest = max(self.report["samples"][split]["last"] for split in SPLITS)
        with SeqVault.open(self.folder / "vault") as vault:
            users = vault.users()
            if (have := int(vault.lengths(users).sum())) != (wanted := self.report["events"]):
                raise ValueError(
                    f"the histories of {self.folder} hold {have} events, its report says {wanted}: some were added or "
                    "lost since; extend the data set that was prepared, or prepare the whole log again"
                )
            for first in range(0, len(users), USERS_AT_ONCE):
                newest = vault.read(users[first : first + USERS_AT_ONCE], last_n=1, fields=[time])[time]
                latest = max(latest, int(newest.max(initial=0)))
        return int(latest)

    def occurring_items(self) -> np.ndarray:
        """By item code, whether an event of the histories has it."""
        item = self.schema.item
        found = np.zeros(item.cardinality or 1, bool)
        with SeqVault.open(self.folder / "vault") as vault:
            users = vault.users()
            step = max(1, USERS_AT_ONCE * len(users) // max(1, self.report["events"]))
            for first in range(0, len(users), step):
                found[vault.read(users[first : first + step], fields=[item.name])[item.name].astype(np.int64)] = True
        return found

    def link_into(self, target: Path) -> None:
        """Give a new folder the files that stay: the same bytes on disk under another name, where that is possible."""
        for root, _, names in os.walk(self.folder):
            place = Path(root).relative_to(self.folder)
            if place.parts[:1] and place.parts[0] in GROWING:
                continue
            (target / place).mkdir(exist_ok=True)
            for name in names:
                if name in GROWING and not place.parts:
                    continue
                if place.parts[:1] == ("vault",) and not name.endswith(".seg"):
                    # A writer changes its log in place, and the old data set must not see that.
                    if name != "LOCK":
                        shutil.copy2(Path(root, name), target / place / name)
                else:
                    _link(Path(root, name), target / place / name)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        shutil.copy2(source, target)


def require_extendable(recipe: Recipe, present: Present) -> None:
    """Refuse a recipe that is not the data set's own, or whose rules need the whole log.

    Raises:
        ValueError: naming the key.
    """
    mine = plain(recipe)
    if found := next(_differences(present.report["recipe"], mine, ""), None):
        key, old, new = found
        raise ValueError(
            f"recipe {recipe.name!r} differs from that of {present.folder}: `{key}` is {new!r}, was {old!r}; "
            "give the recipe that the data set was prepared with, or prepare it again"
        )
    cure = "prepare the whole log again with `laser-prep run`"
    if recipe.split.per_user is not None:
        raise ValueError(f"a data set split `per_user` cannot be extended, as its test samples would move; {cure}")
    whole = {
        "users": recipe.users is not None,
        "negatives": recipe.negatives is not None,
        "deduplicate": recipe.deduplicate is not None and "timestamp" not in recipe.deduplicate.same,
    }
    if rule := next((name for name, needed in whole.items() if needed), None):
        raise ValueError(f"a data set with `{rule}` cannot be extended, as that rule needs the rows of before; {cure}")
    for name, feature in all_features(recipe).items():
        if rule := next((key for key in feature.id_rule if key != "hash"), None):
            raise ValueError(
                f"a data set whose {name!r} has `{rule}` cannot be extended: the whole log decides how values are "
                f"coded; {cure}"
            )
    for key, sql in _expressions(mine, ""):
        if not key.startswith("joins.") and sqlglot.parse_one(sql, dialect=DIALECT).find(sg.Window):
            raise ValueError(f"`{key}` looks at other rows of the log ({sql}), those of before too; {cure}")


def _differences(old: Any, new: Any, where: str) -> Iterator[tuple[str, Any, Any]]:
    """Keys whose values differ; the names of files may, and a key may be new with an empty value."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            if key not in ("files", "max_rejected"):
                yield from _differences(old.get(key), new.get(key), f"{where}.{key}".lstrip("."))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from _differences(one, other, f"{where}[{number}]")
    elif old != new and not (old is None and new in ({}, [])):
        yield where, old, new


def _expressions(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """SQL texts of a recipe by their key."""
    if isinstance(value, list):
        for number, part in enumerate(value):
            yield from _expressions(part, f"{where}[{number}]")
    if not isinstance(value, dict):
        return
    for key, part in value.items():
        place = f"{where}.{key}".lstrip(".")
        if isinstance(part, str) and (key in ("expression", "where") or where.endswith(".values")):
            yield place, part
        else:
            yield from _expressions(part, place)

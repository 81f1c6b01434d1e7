"""Files that seem to be missing: a day or a number that their neighbours leave out."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path

NUMBER = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}|[0-9]+")
SHOWN = 3


def tell_gaps(files: Sequence[Path]) -> None:
    """Say on standard error which files the numbers or dates in the names of the others let expect.

    It may be as it should be, so it is no mistake; where most are lacking, the names do not count.
    """
    if not (missing := missing_between([path.name for path in files])):
        return
    listed = ", ".join(missing[:SHOWN]) + (f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else "")
    told = f"{len(files)} files are named {files[0].name} to {files[-1].name}, but {listed} is not there"
    print(f"laser-prep: {files[0].parent}: {told}; if it should be, fetch it and run again", file=sys.stderr)


def missing_between(names: Sequence[str]) -> list[str]:
    """Names that are lacking in a series of names that differ in one number or date, fewer than half of them."""
    shapes = {NUMBER.sub("#", name) for name in names}
    parts = [NUMBER.findall(name) for name in names]
    if len(names) < 3 or len(shapes) > 1:
        return []
    varying = [place for place, values in enumerate(zip(*parts, strict=True)) if len(set(values)) > 1]
    if len(varying) != 1:
        return []
    texts = [found[varying[0]] for found in parts]
    known = {place for text in texts if (place := _position(text)) is not None}
    if len(known) < len(texts):
        return []
    first, last = min(known), max(known)
    if 2 * (last - first + 1 - len(known)) >= len(known):
        return []
    before, after = _around(names[0], varying[0])
    return [f"{before}{_text(place, texts[0])}{after}" for place in range(first, last + 1) if place not in known]


def _around(name: str, place: int) -> tuple[str, str]:
    found = list(NUMBER.finditer(name))[place]
    return name[: found.start()], name[found.end() :]


def _position(text: str) -> int | None:
    """Days since year 1 of a date, the value of a number; None for what only looks like a date."""
    if len(text) < 8:
        return int(text)
    try:
        return date.fromisoformat(text).toordinal()
    except ValueError:
        return None


def _text(position: int, like: str) -> str:
    if len(like) < 8:
        return str(position).zfill(len(like))
    day = date(1, 1, 1) + timedelta(days=position - 1)
    return day.isoformat() if "-" in like else day.strftime("%Y%m%d")

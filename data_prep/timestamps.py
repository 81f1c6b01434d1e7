"""Times as text or as typed columns -> whole ticks, by arithmetic that every engine does alike.

Engines differ in their formats, in what they do with a text that does not fit, and in their time zones. Here a text is
cut at fixed places, days are counted by the civil calendar, and a zone's changes come from Python's ``zoneinfo``.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

import ibis
import ibis.expr.types as ir
from sqlglot import expressions as sg

from data_prep.expressions import DIALECT, add_columns, sql_of
from data_prep.recipe_sources import Timestamp
from data_prep.row_columns import CELL, UNPARSED

DIGITS = {"s": 0, "ms": 3, "us": 6}
"""Unit -> decimal places of a second."""
WIDTHS = {"Y": 4, "m": 2, "d": 2, "H": 2, "M": 2, "S": 2}
SECONDS, FRACTION, LOCAL = "$seconds", "$fraction", "$local"
FIRST_YEAR, LAST_YEAR = 1970, 2050
"""Span in which a zone's changes are known; before and after it the nearest offset holds."""
MONTH_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def with_ticks(table: ir.Table, timestamp: Timestamp, name: str) -> ir.Table:
    """The table with the whole ticks of ``timestamp`` under ``name``: of a text, of a date or of a time.

    Numbers stay as they are. A text that does not fit its format, or names no day such as 30 February, becomes null and
    is noted as not parsed.
    """
    evaluated = add_columns(table, {name: sql_of(timestamp)})
    value = evaluated[name]
    kind = value.type()
    if timestamp.format is not None and kind.is_string():
        seconds, fraction = _of_text(value, timestamp)
        bad = value.notnull() & seconds.isnull() & evaluated[UNPARSED].isnull()
        reason = ibis.literal(f"the time does not fit the format {timestamp.format}")
        noted = {UNPARSED: bad.ifelse(reason, evaluated[UNPARSED]), CELL: bad.ifelse(value, evaluated[CELL])}
    elif kind.is_date() or kind.is_timestamp():
        seconds, fraction = _of_time(value.cast("timestamp") if kind.is_date() else value, timestamp)
        noted = {}
    else:
        return evaluated
    # A column of its own: written into each branch of the zone's changes, the arithmetic would be done for each.
    split = evaluated.mutate(**noted, **{SECONDS: seconds, FRACTION: fraction})
    local = add_columns(split, {LOCAL: sg.column(SECONDS, quoted=True).sql(DIALECT)})
    zoned = kind.is_timestamp() and kind.timezone is not None
    utc = local[LOCAL] if zoned else local[LOCAL] - _offset(local[LOCAL], timestamp.zone)
    found = utc * 10 ** DIGITS[timestamp.unit] + local[FRACTION]
    return local.mutate(**{name: found.cast("int64")}).drop(SECONDS, FRACTION, LOCAL)


def _of_time(value: ir.Column, timestamp: Timestamp) -> tuple[ir.Column, ir.Column]:
    """Seconds, and ticks beyond them, of a typed column."""
    seconds = value.truncate("s").epoch_seconds().cast("int64")  # engines round otherwise
    if (digits := DIGITS[timestamp.unit]) == 0:
        return seconds, ibis.literal(0, "int64")
    return seconds, (value.strftime("%f").cast("int64") // 10 ** (6 - digits)).cast("int64")


def check_format(timestamp: Timestamp) -> None:
    """Refuse a format or zone that cannot be read.

    Raises:
        ValueError: naming the directive or the zone.
    """
    try:
        ZoneInfo(timestamp.zone)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"`zone` is {timestamp.zone!r}; expected a name such as UTC or Asia/Shanghai") from None
    if timestamp.format is None:
        return
    if timestamp.unit == "step":
        raise ValueError("`format` stands beside the unit `step`; give the unit s, ms or us")
    _places(timestamp.format)


@cache
def _places(form: str) -> tuple[str, dict[str, int]]:
    """Regular expression of a whole text, and where each part begins."""
    pattern, places, at = "^", {}, 0
    pieces = re.findall(r"%.|[^%]", form, re.DOTALL)
    for index, piece in enumerate(pieces):
        if len(piece) == 1:
            pattern += re.escape(piece)
            at += 1
            continue
        letter = piece[1]
        if letter == "f" and index == len(pieces) - 1:
            pattern += "[0-9]+"
        elif letter in WIDTHS:
            pattern += f"[0-9]{{{WIDTHS[letter]}}}"
        else:
            raise ValueError(f"`format` has {piece!r}; known are {', '.join('%' + w for w in WIDTHS)} and, last, %f")
        places[letter] = at
        at += WIDTHS.get(letter, 0)
    if absent := [letter for letter in "Ymd" if letter not in places]:
        raise ValueError(f"`format` {form!r} lacks %{absent[0]}; a time needs year, month and day")
    return pattern + "$", places


def _of_text(text: ir.StringColumn, timestamp: Timestamp) -> tuple[ir.Column, ir.Column]:
    """Seconds, null where there are none, and ticks beyond them."""
    pattern, places = _places(str(timestamp.format))
    fits = text.re_search(pattern).coalesce(False)
    whole = fits.ifelse(text, ibis.null("string"))
    part = {letter: whole.substr(at, WIDTHS[letter]).cast("int64") for letter, at in places.items() if letter != "f"}
    year, month, day = part["Y"], part["m"], part["d"]
    hour, minute, second = (part.get(letter, ibis.literal(0)) for letter in "HMS")
    leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    lengths = ibis.cases(*((month == number, days) for number, days in enumerate(MONTH_DAYS, 1)), else_=0)
    last = lengths + (leap & (month == 2)).ifelse(1, 0)
    valid = (day >= 1) & (day <= last) & (hour < 24) & (minute < 60) & (second < 60)
    seconds = _days(year, month, day) * 86400 + hour * 3600 + minute * 60 + second
    digits = DIGITS[timestamp.unit]
    fraction = ibis.literal(0, "int64")
    if digits and "f" in places:
        fraction = whole.substr(places["f"]).concat("0" * digits).substr(0, digits).cast("int64")
    return valid.ifelse(seconds, ibis.null("int64")).cast("int64"), fraction


def _days(year: ir.Column, month: ir.Column, day: ir.Column) -> ir.Column:
    """Days since 1970-01-01 in the civil calendar: years begin in March, so that the leap day is their last."""
    early = (month <= 2).ifelse(1, 0)
    shifted = year - early
    of_year = (153 * (month - 3 + 12 * early) + 2) // 5 + day - 1
    return shifted * 365 + shifted // 4 - shifted // 100 + shifted // 400 + of_year - 719468


def _offset(naive: ir.Column, zone: str) -> ir.Column:
    """Seconds to subtract from a local time."""
    changes, last = zone_changes(zone)
    if not changes:
        return ibis.literal(last)
    return ibis.cases(*((naive < until, seconds) for until, seconds in changes), else_=last)


@cache
def zone_changes(zone: str) -> tuple[list[tuple[int, int]], int]:
    """Pairs (first local second no longer valid, offset in seconds), rising, and the offset after the last."""
    place = ZoneInfo(zone)

    def offset(at: datetime) -> int:
        found = at.astimezone(place).utcoffset()
        assert found is not None
        return int(found.total_seconds())

    changes = []
    at, end = datetime(FIRST_YEAR, 1, 1, tzinfo=UTC), datetime(LAST_YEAR, 1, 1, tzinfo=UTC)
    while at < end:
        following = at + timedelta(days=1)
        before, after = offset(at), offset(following)
        if before != after:
            low, high = int(at.timestamp()), int(following.timestamp())
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if offset(datetime.fromtimestamp(middle, UTC)) == before else (low, middle)
            changes.append((high + max(before, after), before))
        at = following
    return changes, offset(end)

"""``report.html`` of a prepared data set: one file without references to others."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from data_prep import report_figures as figures
from data_prep.recipe import SPLITS
from data_prep.report_facts import Facts
from data_prep.stray_times import stray_sentence
from laser.schema import Schema

SHOWN_CONTEXTS = 4
LONG_CELL = 60


@dataclass
class Section:
    """A part of the page: text, tables, figures."""

    title: str
    notes: list[str] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)
    figures: list[dict[str, str]] = field(default_factory=list)

    def table(self, head: list[str], rows: list[list[str]]) -> None:
        """Add a table."""
        self.tables.append({"head": head, "rows": rows})

    def figure(self, address: str, text: str) -> None:
        """Add a figure; ``text`` says what it shows, also to those who cannot see it."""
        self.figures.append({"address": address, "text": text})


def write_page(folder: Path, report: dict[str, Any], options: Mapping[str, Any]) -> Path:
    """Write ``report.html`` beside ``report.json``.

    Args:
        folder: a prepared data set.
        report: content of its ``report.json``.
        options: of the engine that reads the samples, such as its limit of memory.
    """
    schema = Schema.load(folder / "schema.json")
    facts = Facts(folder, schema, options)
    sections = [
        _summary(report, schema),
        _clicks(facts, schema),
        _histories(report),
        _coverage(facts, report),
        _drift(facts),
    ]
    sections += [_side_info(report), _rejected(facts, report)]
    sections += [_additions(report["additions"])] if report.get("additions") else []
    sections.append(_disk(report))
    source = importlib.resources.files("data_prep").joinpath("report_template.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(source).render(name=report["name"], note=report.get("note"), sections=sections)
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def page_of(folder: Path) -> Path:
    """Write the page of a data set that was prepared before.

    Raises:
        ValueError: when the folder is no prepared data set.
    """
    try:
        report = json.loads((folder / "report.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"no report.json in {folder}; give a folder that laser-prep wrote") from None
    return write_page(folder, report, {})


def _summary(report: dict[str, Any], schema: Schema) -> Section:
    section = Section("Summary")
    rows, check = report["rows"], report["leakage_check"]
    refused = sum(rows["rejected"].values())
    facts = [
        ("rows read", f"{rows['read']:,}"),
        ("rows rejected", f"{refused:,} ({_percent(refused / max(1, rows['read']))})"),
        *((f"rows taken out by `{rule}`", f"{count:,}") for rule, count in rows.get("removed", {}).items()),
        *([("negatives drawn", f"{rows['drawn']:,}")] if "drawn" in rows else []),
        *([("samples left out by `downsample`", f"{rows['thinned']:,}")] if "thinned" in rows else []),
        ("users", f"{report['users']:,}"),
        ("items (of which in the log)", f"{report['items']:,} ({report['items_in_log']:,})"),
        ("history events", f"{report['events']:,}"),
        ("split", report["split"]["way"].replace("_", " ")),
        ("leakage check", "; ".join(check["problems"]) or f"nothing found in {check['samples_checked']:,} samples"),
    ]
    section.table(["", ""], [list(fact) for fact in facts])
    if found := report.get("stray_times"):
        section.notes.append(stray_sentence(found, schema) + ".")
    calendar = schema.timestamp_unit != "step"

    def when(time: int) -> str:
        moment = figures.moment(time * schema.seconds_per_tick)
        return f"{moment:%Y-%m-%d %H:%M:%S}" if calendar else f"{time:,}"

    head = [
        "split",
        "samples",
        "click rate",
        *(f"{end} ({'UTC' if calendar else 'step'})" for end in ("first", "last")),
    ]
    found = report["samples"]
    section.table(
        head,
        [
            [split, f"{part['samples']:,}", _percent(part["label_share"]), when(part["first"]), when(part["last"])]
            for split, part in found.items()
        ],
    )
    return section


def _clicks(facts: Facts, schema: Schema) -> Section:
    section = Section("Click rate")
    calendar = schema.timestamp_unit != "step"
    rate, volume = figures.over_time(facts.over_time(), schema.seconds_per_tick, calendar)
    section.figure(rate, "Click rate over time by split, where an interval has samples enough to tell.")
    section.figure(volume, "Number of samples over time by split.")
    for feature in facts.short_contexts()[:SHOWN_CONTEXTS]:
        found = facts.by_value(feature)
        section.figure(figures.by_value(feature.name, found), f"Click rate by {feature.name}, all splits.")
        if len(found) <= 12:
            rows = [[value, f"{count:,}", _percent(rate)] for value, count, rate in found]
            section.table([feature.name, "samples", "click rate"], rows)
    return section


def _histories(report: dict[str, Any]) -> Section:
    section = Section("History length")
    found = report["samples"]
    keys = ["mean", "p10", "p50", "p90", "p99", "max"]
    rows = [[split, *(f"{found[split]['history_length'][key]:,.0f}" for key in keys)] for split in SPLITS]
    section.table(["events before a sample", *keys], rows)
    counts = {
        split: found[split]["history_length_powers"] for split in SPLITS if "history_length_powers" in found[split]
    }
    if counts:
        section.figure(figures.history_lengths(counts), "Samples by number of events before them, in powers of two.")
    return section


def _coverage(facts: Facts, report: dict[str, Any]) -> Section:
    section = Section("Ids: coverage and cold start")
    rows = [
        [
            part["split"],
            f"{part['users']:,} ({_percent(part['users'] / max(1, report['users']))})",
            f"{part['items']:,} ({_percent(part['items'] / max(1, report['items']))})",
            _percent(part["new_user"]),
            _percent(part["new_item"]),
        ]
        for part in facts.coverage()
    ]
    head = [
        "split",
        "users (of all)",
        "items (of all)",
        "samples with a user not in train",
        "with an item not in train",
    ]
    section.table(head, rows)
    if ids := report.get("ids"):
        rules = [
            [name, *(f"{found[key]:,}" for key in ("values", "own", "shared", "unknown", "codes_used"))]
            for name, found in ids.items()
        ]
        section.notes.append("Features whose values share codes or have none, in distinct raw values:")
        section.table(["feature", "values", "own code", "shared code", "unknown", "codes in use"], rules)
    return section


def _drift(facts: Facts) -> Section:
    section = Section("Drift between splits")
    drifts = facts.drifts()
    section.notes.append(
        "Total variation distance: the share of a split's samples whose value would have to change for the split to be "
        "distributed as train. Chance: the same distance between two halves of train, which differ by chance alone; a "
        "feature with many values has a high one, and only what exceeds it is drift."
    )
    names = [drift.feature for drift in drifts]
    distances = {split: [drift.distance[split] for drift in drifts] for split in SPLITS if split != "train"}
    rows = [[d.feature, *(_percent(value) for value in d.distance.values()), _percent(d.chance)] for d in drifts]
    section.table(["feature", *distances, "chance"], rows)
    section.figure(figures.drifts(names, distances, [d.chance for d in drifts]), "Distance from train by feature.")
    return section


def _side_info(report: dict[str, Any]) -> Section:
    section = Section("Item side info")
    known = report["side_info_known"]
    if known:
        section.table(
            ["feature", "items with a known value"], [[name, _percent(share)] for name, share in known.items()]
        )
    else:
        section.notes.append("The data set has no item side info.")
    return section


def _rejected(facts: Facts, report: dict[str, Any]) -> Section:
    section = Section("Rejected rows")
    rejected = report["rows"]["rejected"]
    if not rejected:
        section.notes.append("No row was rejected.")
        return section
    total = report["rows"]["read"]
    rows = [[reason, f"{count:,}", _percent(count / total)] for reason, count in rejected.items()]
    section.table(["reason", "rows", "of rows read"], rows)
    for reason in rejected:
        examples = facts.rejected_examples(reason)
        if examples:
            section.notes.append(f"First rows rejected because: {reason}")
            section.table(list(examples[0]), [[_cell(value) for value in row.values()] for row in examples])
    return section


def _additions(additions: list[dict[str, Any]]) -> Section:
    section = Section("Additions")
    rows = [
        [
            ", ".join(addition["files"]),
            f"{addition['rows']['read']:,} ({sum(addition['rows']['rejected'].values()):,})",
            *(f"{addition[key]:,}" for key in ("events", "users", "items")),
            *(f"{addition['samples'][split]:,}" for split in SPLITS),
        ]
        for addition in additions
    ]
    section.table(["files", "rows read (rejected)", "events", "new users", "new items", *SPLITS], rows)
    return section


def _disk(report: dict[str, Any]) -> Section:
    section = Section("Disk use")
    parts = {name: size for name, size in report["disk_bytes"].items() if size}
    per_event = report["disk_bytes"].get("vault", 0) / max(1, report["events"])
    section.notes.append(f"The vault takes {per_event:.2f} bytes per history event.")
    section.figure(figures.disk(parts), "Size of each part of the data set.")
    return section


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f} %"  # noqa: RUF001


def _cell(value: Any) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= LONG_CELL else text[: LONG_CELL - 1] + "…"

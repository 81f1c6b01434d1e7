"""Writes a run's ``report.html``, and the references and intervals into its ``metrics.json``."""

from __future__ import annotations

import importlib.resources
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from laser.report import plots
from laser.report.comparison import Comparison, compare
from laser.report.run_folder import RunFolder, rewrite_json, without_nan

METRICS = {
    "auc": "AUC",
    "gauc": "GAUC",
    "log_loss": "log-loss (nats)",
    "normalized_entropy": "normalised entropy",
    "ece": "ECE",
    "predicted_over_observed": "predicted / observed",
}
DEFINITIONS = (
    "AUC: ties at their average rank. GAUC: mean of per-user AUCs weighted by the user's rows, users of one class left "
    "out. Normalised entropy: log-loss over the entropy of the test split's click rate. ECE: expected calibration "
    "error over 15 equal-width probability bins. Intervals: 95 %, bootstrap over users."
)
FEW_USERS = 30
DISAGREEMENT = 1e-4


@dataclass
class Section:
    """A part of the page: what is missing, then text, tables, figures, and long text behind a fold."""

    title: str
    notes: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)
    figures: list[dict[str, str]] = field(default_factory=list)
    folded: str = ""

    def figure(self, address: str | None, text: str) -> None:
        """Add a figure if there is one; ``text`` says what it shows, also to those who cannot see it."""
        if address is not None:
            self.figures.append({"address": address, "text": text})


def write_report(run: Path) -> Path:
    """Write ``report.html`` of a run, complete in one file, and add references to its ``metrics.json``.

    Reads what the run left in its folder and the prepared data set that its ``config.yaml`` names; a section whose
    file is missing says so. The trivial references are fitted on the same splits. ``metrics.json``, when there, gets
    the keys ``references`` (per reference its metrics and what validation chose), ``intervals`` and
    ``by_history_length``; the same inputs give the same bytes.

    Args:
        run: the folder ``runs/NAME``.

    Returns:
        Path of the page.

    Raises:
        ValueError: when the folder is no run, a file in it is broken, or its predictions do not fit the data set.
    """
    folder = RunFolder(Path(run))
    text, _ = folder.config()
    metrics, predictions, prepared = folder.json("metrics.json"), folder.predictions(), folder.prepared()
    model = ((metrics or {}).get("model") or {}).get("class", "Laser")
    model = "LASER" if model == "Laser" else str(model)
    sections = []
    if predictions is not None and len(predictions["row"]):
        comparison = compare(predictions, prepared)
        found = results(comparison)
        if metrics is not None:
            rewrite_json(folder.path / "metrics.json", metrics | {k: found[k] for k in found if k != "test"})
        sections += [headline(folder, model, comparison, found, metrics), quality(model, comparison, found)]
    else:
        sections.append(
            Section("Test split", missing=[folder.missing.get("predictions/test.parquet", "No predictions.")])
        )
    sections += [learning(folder), gate_section(folder), throughput(folder), data(folder, prepared)]
    missing = [folder.missing["config.yaml"]] if "config.yaml" in folder.missing else []
    sections.append(Section("Configuration", missing=missing, folded=text))
    return _render(folder.path, model, sections)


def results(comparison: Comparison) -> dict[str, Any]:
    """Scores of the model (``test``) and the references, intervals, and scores by history length."""
    references = {name: comparison.score(known.probability_N) for name, known in comparison.references.items()}
    best = comparison.best_reference(references)
    return {
        "test": comparison.score(comparison.predictions["probability"]),
        "references": {n: {**found, "chosen": comparison.references[n].chosen} for n, found in references.items()},
        "intervals": comparison.intervals(best),
        "by_history_length": comparison.by_length(best),
    }


def headline(folder: RunFolder, model: str, comparison: Comparison, found: dict[str, Any], metrics: Any) -> Section:
    """The table of the model and its references."""
    rows = [[model, *(number(found["test"][name]) for name in METRICS)]]
    rows += [
        [comparison.references[name].title, *(number(scored[metric]) for metric in METRICS)]
        for name, scored in found["references"].items()
    ]
    section = Section("Test split", tables=[{"head": ["", *METRICS.values()], "rows": rows}])
    limits, samples = found["intervals"], len(comparison.predictions["row"])
    section.notes.append(f"{samples:,} samples of {limits['users']:,} users. AUC of {model}: {span(limits['auc'])}.")
    if "best_reference" in limits:
        title = comparison.references[limits["best_reference"]].title
        section.notes.append(
            f"AUC of {model} minus that of the best reference ({title}): {span(limits['auc_minus_best_reference'])}."
        )
    if limits["users"] < FEW_USERS:
        section.notes.append(f"With fewer than {FEW_USERS} users these intervals are not reliable.")
    written = ((metrics or {}).get("test") or {}).get("auc")
    if written is not None and abs(written - found["test"]["auc"]) > DISAGREEMENT:
        section.missing.append(
            f"metrics.json says AUC {written:.4f}, the predictions say {found['test']['auc']:.4f}: "
            "the two files are not of the same test; run laser test again."
        )
    if "metrics.json" in folder.missing:
        section.missing.append(folder.missing["metrics.json"])
    if not comparison.references:
        section.missing.append("No references: " + folder.missing.get("prepared", "no prepared data set."))
    section.notes.append(DEFINITIONS)
    section.notes += [f"{known.title}: {known.note}{chosen(known.chosen)}." for known in comparison.references.values()]
    return section


def quality(model: str, comparison: Comparison, found: dict[str, Any]) -> Section:
    """ROC, calibration, and scores by history length."""
    label_N, probability_N = comparison.predictions["label"], comparison.predictions["probability"]
    best = found["intervals"].get("best_reference")
    title = comparison.references[best].title if best else None
    scorings = {model: probability_N} | ({title: comparison.references[best].probability_N} if title else {})
    section = Section("Ranking and calibration")
    section.figure(plots.roc(scorings, label_N), "ROC curve on the test split.")
    text = "Calibration in bins of equally many rows, with 95 % intervals of the observed rate; spread of predictions."
    section.figure(plots.calibration(model, probability_N, label_N), text)
    buckets = found["by_history_length"]
    section.figure(plots.by_length(model, buckets, title), "AUC and GAUC by the number of history events.")
    keys = ["events", "samples", "auc", "gauc"] + (["reference_auc", "reference_gauc"] if title else [])
    names = ["history events", "samples", "AUC", "GAUC"] + ([f"AUC, {title}", f"GAUC, {title}"] if title else [])
    section.tables.append({"head": names, "rows": [[number(bucket[key]) for key in keys] for bucket in buckets]})
    return section


def learning(folder: RunFolder) -> Section:
    """Curves of training and validation."""
    section = Section("Learning curves")
    curves = folder.curves()
    section.figure(plots.learning_curves(curves), "Loss, and AUC and GAUC of the validation split, by optimizer steps.")
    section.missing += [folder.missing["metrics.csv"]] if "metrics.csv" in folder.missing else []
    if curves and not section.figures:
        section.missing.append("metrics.csv holds neither a loss nor an AUC.")
    return section


def gate_section(folder: RunFolder) -> Section:
    """What the silence gates do."""
    section = Section("Silence gates")
    statistics = folder.json("gates.json")
    if statistics is None:
        section.missing.append(folder.missing["gates.json"])
        return section
    width = statistics.get("segment_width")
    section.notes.append(
        f"{statistics.get('events', 0):,} gated events of the test split in segments of {width}. A gate near 0 "
        "silences its event; a segment is silent when every gate in it is below 0.05."
    )
    if not statistics.get("events"):
        return section
    keys = ("mean", "share_below_0.05", "share_above_0.95", "silent_segments")
    rows = [[str(head), *(number(statistics[key][head]) for key in keys)] for head in range(statistics["heads"])]
    section.tables.append(
        {"head": ["head", "mean gate", "share < 0.05", "share > 0.95", "silent segments"], "rows": rows}
    )
    section.figure(
        plots.gates(statistics), "Mean gate by position from the newest event, and histogram of gates, by head."
    )
    return section


def throughput(folder: RunFolder) -> Section:
    """Timings, as the run wrote them."""
    content = folder.json("throughput.json")
    if content is None:
        return Section("Throughput", missing=[folder.missing["throughput.json"]])
    return Section("Throughput", tables=[_facts(content)])


def data(folder: RunFolder, prepared: Path | None) -> Section:
    """Facts of the prepared data set."""
    section = Section("Data")
    if prepared is None:
        section.missing.append(folder.missing.get("prepared", "No prepared data set."))
    elif not (prepared / "report.json").is_file():
        section.missing.append(f"report.json is missing from {prepared}; laser-prep writes it.")
    else:
        section.tables.append(_facts(json.loads((prepared / "report.json").read_text())))
    return section


def _facts(content: dict[str, Any]) -> dict[str, Any]:
    return {"head": ["", ""], "rows": [[key, number(value)] for key, value in flat(content)]}


def flat(content: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Nested data as (dotted key, value) pairs; a list is one value."""
    if not isinstance(content, dict):
        return [(prefix, content)]
    return [pair for key, value in content.items() for pair in flat(value, f"{prefix}.{key}" if prefix else str(key))]


def number(value: Any) -> str:
    """A value as a reader wants it: four decimals, thousands separated, a dash for what is not defined."""
    value = without_nan(value)
    if value is None:
        return "–"  # noqa: RUF001
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ", ".join(number(part) for part in value) if isinstance(value, list | tuple) else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4f}" if abs(value) < 1000 else f"{value:,.1f}"


def span(bounds: list[float]) -> str:
    """An interval in words."""
    return f"between {number(bounds[0])} and {number(bounds[1])} (95 %)"


def chosen(settings: dict[str, float]) -> str:
    """What the validation split chose, in words."""
    return "".join(f"; {name} {value:g} chosen on validation" for name, value in settings.items())


def _render(run: Path, model: str, sections: list[Section]) -> Path:
    source = importlib.resources.files("laser.report").joinpath("template.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    page = environment.from_string(source).render(name=run.resolve().name, model=model, sections=sections)
    temporary = run / "report.html.tmp"
    temporary.write_text(page, encoding="utf-8")
    return temporary.replace(run / "report.html")

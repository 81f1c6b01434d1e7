"""Writes ``study.md``, ``summary.md``, ``study.parquet`` and the plots of a study."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from laser.study import plots
from laser.study.plots import group_name, label_of, scaling_points, sequence_macs
from laser.study.results import Pair, PairResult, Results
from laser.study.statistics import METRICS, PowerLaw, fit_power_law
from laser.study.summary import summary
from laser.study.verdicts import verdicts

Table = list[list[str]]
FORMS = (plots.PUBLISHED, plots.COMPUTED)
METHOD = (
    "Means over seeds with 95 % intervals: after ± over seeds (Student's t), in brackets over users (bootstrap, {r} "
    "draws of users with all their rows, seeds as they are). Differences: the first minus the other, means over "
    "seeds, 95 % interval from drawing users for both and seeds for each; p of the same bootstrap, corrected for the "
    "number of comparisons of a metric on a data set by Holm's method; beside it p of a paired t-test over seeds, as "
    "it is and corrected likewise. The best baseline is the one with the best validation AUC. Trials were chosen by "
    "validation AUC; test figures were read of the chosen trial only. GAUC: mean of per-user AUCs weighted by the "
    "user's rows. ECE: 15 equal bins of probability."
)


def write_study(results: Results) -> Path:
    """Write everything into the study's folder.

    Returns:
        Path of ``study.md``.
    """
    folder = results.plan.store.path / results.plan.study.name
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows(results))), folder / "study.parquet", compression="zstd")
    laws = power_laws(results)
    drawings = {
        "pareto.svg": plots.pareto_plot(results),
        "by_length.svg": plots.length_plot(results),
        "scaling.svg": plots.scaling_plot(results, laws),
    }
    for name, drawing in drawings.items():
        (folder / name).unlink(missing_ok=True)
        if drawing is not None:
            (folder / name).write_bytes(drawing.svg())
    shown = [name for name, drawing in drawings.items() if drawing is not None]
    (folder / "summary.md").write_text("\n".join(summary(results)) + "\n")
    path = folder / "study.md"
    path.write_text("\n".join(page(results, laws, shown)) + "\n")
    return path


def rows(results: Results) -> Iterable[dict[str, Any]]:
    """One row for each run that is reported."""
    study = results.plan.study
    for (model, setting), found in results.pairs.items():
        trial = study.models[model].trials[found.trial]
        for index, seed in enumerate(found.seeds):
            record, facts = found.records[index], found.metrics[index]["model"]
            costs = found.costs or {}
            latency = costs.get("latency_ms", {})
            yield {
                "study": study.name,
                "model": model,
                "label": study.models[model].label or model,
                "setting": setting,
                "value": study.settings[setting].value,
                "data": record["data"],
                "best_auc": study.settings[setting].best.get("auc"),
                "trial": found.trial,
                "trial_label": trial.label,
                "seed": seed,
                "key": record["key"],
                "validation_auc": record["validation"]["auc"],
                **{name: values[index] for name, values in found.test.items()},
                **{f"auc_from_{group}": found.by_length.get(group, [math.nan] * 99)[index] for group in results.groups},
                "table_parameters": facts["table_parameters"],
                "dense_parameters": facts["dense_parameters"],
                "macs": facts.get("macs"),
                "sequence_macs": facts.get("sequence_macs"),
                "paper_sequence_macs": plots.known_fact(found, "paper_sequence_macs"),
                "flops": plots.known_fact(found, "flops"),
                "samples_per_second": costs.get("samples_per_second"),
                "peak_memory_bytes": costs.get("peak_memory_bytes"),
                "latency_ms_1": latency.get("1", {}).get("median"),
                "latency_ms_500": latency.get("500", {}).get("median"),
                "hardware": costs.get("device"),
                "commit": record["versions"]["commit"],
            }


def power_laws(results: Results) -> dict[str, PowerLaw]:
    """Of every model that was run with two or more valued settings."""
    laws = {}
    for model in results.plan.study.models:
        x_P, y_P = scaling_points(results, model)
        if len(set(x_P)) > 1 and min(y_P) > 0:
            laws[model] = fit_power_law(x_P, y_P)
    return laws


def page(results: Results, laws: dict[str, PowerLaw], shown: list[str]) -> list[str]:
    """Lines of ``study.md``."""
    study = results.plan.study
    lines = [f"# {study.title or study.name}", "", *verdicts(results), ""]
    lines += missing(results)
    lines += ["## Test split", ""]
    for panel in results.panels():
        title = plots.panel_title(results, panel)
        lines += [f"### {title}", ""] * bool(title) + [*table(quality(results, panel)), ""]
    if results.comparisons:
        lines += ["## Comparisons", "", *table(comparisons(results)), ""]
    lines += ["## AUC by history length", "", *table(by_length(results)), ""]
    if laws:
        lines += ["## Scaling", "", *scaling(results, laws), ""]
    lines += ["## Costs", "", *table(costs(results)), "", *cost_notes(results), ""]
    lines += [f"![{name}]({name})\n" for name in shown]
    lines += ["## Tuning", "", *table(tuning(results)), ""]
    method = METHOD.format(r=replicates(results))
    return [*lines, "## Method and origin", "", method, "", *origin(results)]


def table(content: Table) -> list[str]:
    """A Markdown table; the first row is its head."""
    head, *body = content
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body)]


def quality(results: Results, panel: dict[Pair, PairResult]) -> Table:
    """Test metrics of one data set, and the best possible ones where they are known."""
    content = [["model", "seeds", "AUC", "GAUC", "log-loss", "ECE", "predicted / observed"]]
    for pair, found in panel.items():
        row = [label_of(results, pair), str(len(found.seeds))]
        row += [with_intervals(found, metric) for metric in ("auc", "gauc", "log_loss")]
        content.append(row + [f"{found.mean(name).value:.4f}" for name in ("ece", "predicted_over_observed")])
    for setting in dict.fromkeys(setting for _, setting in panel):
        if best := results.best_possible(setting):
            reached = [number(best.get(metric), 4) for metric in METRICS]
            content.append([f"best possible{of_setting(results, setting)}", "", *reached, "", ""])
    return content


def of_setting(results: Results, setting: str) -> str:
    """Such as ", 1000 events", or nothing when the study has one setting."""
    settings = results.plan.study.settings
    return f", {settings[setting].label or setting}" if len(settings) > 1 else ""


def with_intervals(found: PairResult, metric: str) -> str:
    """Such as ``0.7880 ± 0.0012 [0.7790, 0.7960]``."""
    mean, (low, high) = found.mean(metric), found.over_users(metric)
    half = "" if math.isnan(mean.high) else f" ± {mean.high - mean.value:.4f}"
    return f"{mean.value:.4f}{half} [{low:.4f}, {high:.4f}]"


def comparisons(results: Results) -> Table:
    """Differences with intervals and what they say."""
    content = [["comparison", "metric", "difference", "p, corrected", "t-test over seeds: p", "p, corrected", ""]]
    for found in results.comparisons:
        names = f"{label_of(results, found.one)} − {label_of(results, found.other)}"  # noqa: RUF001
        d = found.difference
        said = "significant" if found.significant else "not significant"
        row = [names, found.metric.replace("_", "-"), f"{d.value:+.4f} [{d.low:+.4f}, {d.high:+.4f}]"]
        over_seeds = [number(p, 3) for p in (d.p_seeds, found.p_seeds_corrected)]
        content.append([*row, f"{found.p_corrected:.3f}", *over_seeds, said])
    return content


def number(value: float | None, digits: int) -> str:
    """A number, or a dash when there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:,.{digits}f}"  # noqa: RUF001


def millions(value: float | None) -> str:
    """A number in millions."""
    return number(None if value is None else value / plots.MILLION, 2)


def by_length(results: Results) -> Table:
    """Mean AUC of the test rows of each group."""
    content = [["model", *(group_name(group) for group in results.groups)]]
    for pair, found in results.pairs.items():
        means = [found.by_length.get(group, [math.nan]) for group in results.groups]
        content.append([label_of(results, pair), *(number(sum(values) / len(values), 4) for values in means)])
    return content


def scaling(results: Results, laws: dict[str, PowerLaw]) -> list[str]:
    """Power laws in words."""
    lines = ["Fitted is 1 − AUC = scale · value^−exponent over all seeds, by least squares in logarithms.", ""]  # noqa: RUF001
    for model, law in laws.items():
        exponent = law.exponent
        if math.isnan(exponent.low):
            said = "too few points for an interval"
        else:
            grows = "error falls with the value" if exponent.low > 0 else "error rises with the value"
            said = "no dependence established" if exponent.low <= 0 <= exponent.high else grows
        lines.append(
            f"- {results.plan.study.models[model].label or model}: exponent {exponent.value:.4f} "
            f"[{exponent.low:.4f}, {exponent.high:.4f}], R² {law.r_squared:.2f}: {said}."
        )
    return lines


def costs(results: Results) -> Table:
    """Arithmetic, size and measured costs."""
    head = [
        "model",
        *(f"sequence MMACs, {form}" for form in FORMS),
        "all MMACs, as computed",
        "MFLOPs",
        "dense parameters",
    ]
    head += ["table parameters", "training samples/s", "peak MiB", "ms, 1 candidate", "ms, 500 candidates"]
    content = [head]
    for pair, found in results.pairs.items():
        measured, facts = found.costs or {}, found.metrics[0]["model"]
        latency = measured.get("latency_ms", {})
        memory = measured.get("peak_memory_bytes")
        content.append(
            [
                label_of(results, pair),
                *(millions(sequence_macs(found, form)) for form in FORMS),
                millions(facts.get("macs")),
                millions(plots.known_fact(found, "flops")),
                f"{facts['dense_parameters']:,}",
                f"{facts['table_parameters']:,}",
                number(measured.get("samples_per_second"), 0),
                number(None if memory is None else memory / 2**20, 0),
                *(number(latency.get(n, {}).get("median"), 2) for n in ("1", "500")),
            ]
        )
    return content


def cost_notes(results: Results) -> list[str]:
    """Hardware and meaning of the measurements."""
    measured = [found.costs for found in results.pairs.values() if found.costs]
    if not measured:
        return ["Speed, memory and latency were not measured."]
    hardware = sorted({f"{one['device']}, {one['precision']}, torch {one['torch']}" for one in measured})
    mixed = " **Not the same hardware for all: do not compare their times.**" if len(hardware) > 1 else ""
    events = sorted({str(one["request_events"]) for one in measured})
    return [
        f"Measured on: {'; '.join(hardware)}.{mixed} Nothing else of the study ran on the same GPU. Training: 40 steps "
        "after 10, data loading included. Memory: the most that tensors took on a GPU, the process on a CPU. Latency: "
        f"median of 50 requests with a history of {', '.join(events)} events already on the device, the network alone. "
        "MACs count matrix products of one sample with a history of the full length; a MAC is two FLOPs."
    ]


def tuning(results: Results) -> Table:
    """Mean validation AUC of every trial, and GAUC of the same epochs; the chosen one is marked."""
    plan = results.plan
    content = [["model", "trial", "validation AUC", "GAUC", "chosen"]]
    for pair in plan.study.pairs:
        chosen = plan.choice(*pair)
        for index, steps in enumerate(plan.tuning(*pair)):
            trial = plan.study.models[pair[0]].trials[index]
            means = [plan.mean_validation(steps, metric) for metric in ("auc", "gauc")]
            shown = ["not there", ""] if means[0] == -math.inf else [number(mean, 4) for mean in means]
            content.append([label_of(results, pair), trial.label or str(index), *shown, "x" * (index == chosen)])
    return content if len(content) > 1 else [["tuning"], ["none: every model has one trial"]]


def missing(results: Results) -> list[str]:
    """Which runs are not there."""
    plan = results.plan
    left = plan.total - plan.done()
    if left <= 0:
        return []
    return [
        f"**Not complete: {left} of {plan.total} runs are missing or failed.** Figures are of those that are done.",
        "",
    ]


def replicates(results: Results) -> int:
    """Draws of the bootstrap."""
    return next((found.replicates["auc"].shape[1] for found in results.pairs.values()), 0)


def origin(results: Results) -> list[str]:
    """Data, versions, times and commands."""
    records = [record for found in results.pairs.values() for record in found.records]
    if not records:
        return ["No run is finished."]
    versions = sorted({", ".join(f"{k} {v}" for k, v in record["versions"].items()) for record in records})
    dates = sorted(record["finished"] for record in records)
    data = ", ".join(dict.fromkeys(record["data"] for record in records))
    lines = [f"Data set {data}; runs of {dates[0]} to {dates[-1]}; {'; '.join(versions)}.", ""]
    lines += ["The first seed of each model; `laser test` with the same options tests it:", "", "```bash"]
    lines += [" ".join(map(quoted, found.records[0]["command"])) for found in results.pairs.values()]
    return [*lines, "```"]


def quoted(argument: str) -> str:
    """An argument as a shell takes it."""
    return f"'{argument}'" if any(character in argument for character in ' []{}"') else argument

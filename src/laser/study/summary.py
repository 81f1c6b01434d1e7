"""The table of a study that a document takes over as it is: a line for each model, with its difference and cost."""

from __future__ import annotations

import math

from laser.study import plots
from laser.study.results import LONG, Pair, PairResult, Results
from laser.study.statistics import METRICS

HEAD = ("model", "seeds", "test AUC", "GAUC", "log-loss", f"AUC from {LONG} events on")
TAIL = ("million MACs",)


def summary(results: Results) -> list[str]:
    """Lines of Markdown: a table for each data set, and what it was made of."""
    lines: list[str] = []
    for panel in results.panels():
        title = plots.panel_title(results, panel)
        lines += [f"**{title}**", ""] * bool(title)
        lines += table(results, panel)
    return [*lines, *origin(results)]


def table(results: Results, panel: dict[Pair, PairResult]) -> list[str]:
    """One data set: models by falling mean AUC within each setting, and the best possible where it is known."""
    order = list(results.plan.study.settings)
    ranked = sorted(panel, key=lambda pair: (order.index(pair[1]), -panel[pair].mean("auc").value))
    references = {name: pairs for name, pairs in named_references(results, panel).items() if pairs}
    rows: list[list[str]] = []
    for pair in ranked:
        compared = [difference(results, pair, to.get(pair)) for to in references.values()]
        macs = plots.sequence_macs(panel[pair], plots.COMPUTED)
        millions = "–" if macs is None else f"{macs / plots.MILLION:,.2f}"  # noqa: RUF001
        rows.append([plots.name_within(results, pair, panel), *quality(panel[pair]), *compared, millions])
    for setting in dict.fromkeys(setting for _, setting in panel):
        if best := results.best_possible(setting):
            reached = [shown(best.get(metric, math.nan)) for metric in METRICS]
            rows.append(["best possible", "", *reached, *[""] * (2 + len(references))])
    head = [*HEAD, *references, *TAIL]
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)] + [""]


def quality(found: PairResult) -> list[str]:
    """Number of seeds; means, that of AUC with half of its 95 % interval over seeds."""
    auc, *others = (found.mean(metric) for metric in METRICS)
    spread = "" if math.isnan(auc.high) else f" ± {auc.high - auc.value:.4f}"
    long = sum(found.long) / len(found.long)
    return [str(len(found.seeds)), f"{auc.value:.4f}{spread}", *(shown(one.value) for one in others), shown(long)]


def named_references(results: Results, panel: dict[Pair, PairResult]) -> dict[str, dict[Pair, Pair]]:
    """What each pair is compared with, by the name of the column: the first subject, and the first setting."""
    study = results.plan.study
    settings = list(dict.fromkeys(setting for _, setting in panel))
    found: dict[str, dict[Pair, Pair]] = {}
    if study.subjects:
        subject = study.subjects[0]
        name = f"AUC minus that of {study.models[subject].label or subject}"
        found[name] = {pair: (subject, pair[1]) for pair in panel if pair[0] != subject}
    if len(settings) > 1:
        name = f"AUC minus that with {study.settings[settings[0]].label or settings[0]}"
        found[name] = {pair: (pair[0], settings[0]) for pair in panel if pair[1] != settings[0]}
    return found


def difference(results: Results, pair: Pair, reference: Pair | None) -> str:
    """Such as ``-0.0030 [-0.0051, -0.0010] \\*``; empty where nothing was compared."""
    for one in results.comparisons:
        if one.metric == "auc" and {one.one, one.other} == {pair, reference}:
            sign = 1 if one.one == pair else -1
            low, high = sorted((sign * one.difference.low, sign * one.difference.high))
            return f"{sign * one.difference.value:+.4f} [{low:+.4f}, {high:+.4f}]" + " \\*" * one.significant
    return ""


def shown(value: float) -> str:
    """Four digits, or a dash."""
    return "–" if math.isnan(value) else f"{value:.4f}"  # noqa: RUF001


def origin(results: Results) -> list[str]:
    """What the columns are, and versions, dates and machines of the runs."""
    records = [record for found in results.pairs.values() for record in found.records]
    if not records:
        return ["No run is finished."]
    dates = sorted(record["finished"][:10] for record in records)
    versions = sorted({f"torch {record['versions'].get('torch')}" for record in records})
    commits = sorted({str(record["versions"].get("commit"))[:10] for record in records})
    return [
        "± 95 % over seeds; brackets: 95 % over users and seeds, \\* significant at 5 %, corrected for the number of "
        "comparisons. MACs: multiply-accumulates of the sequence part for a sample, as computed. Runs of "
        f"{dates[0]} to {dates[-1]}, {', '.join(versions)}, commit {', '.join(commits)}.",
    ]

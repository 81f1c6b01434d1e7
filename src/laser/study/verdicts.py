"""What a study's figures say, in sentences: what is not significant is said to be not significant."""

from __future__ import annotations

import itertools

from laser.study.plots import label_of
from laser.study.results import Comparison, Pair, Results


def verdicts(results: Results) -> list[str]:
    """Sentences on the subjects' AUC, setting by setting, then on settings."""
    study = results.plan.study
    if not results.pairs:
        return ["No run is finished."]
    lines = []
    areas = [one for one in results.comparisons if one.metric == "auc"]
    for setting, subject in itertools.product(study.settings, study.subjects):
        found = [one for one in areas if one.one == (subject, setting) and one.other[1] == setting]
        if found:
            lines += [f"- {sentence}" for sentence in on_models(results, (subject, setting), found)]
    lines += [f"- {on_pair(results, one)}" for one in areas if one.one[1] != one.other[1]]
    return lines or ["Nothing is compared: the study names no subject and has one setting."]


def on_models(results: Results, pair: Pair, found: list[Comparison]) -> list[str]:
    """A subject against the best baseline, then against all."""
    subject, best = label_of(results, pair), results.best_baseline(pair[1])
    against_best = [on_pair(results, one) for one in found if one.other[0] == best]
    better = [label_of(results, one.other) for one in found if one.significant and one.difference.value > 0]
    worse = [label_of(results, one.other) for one in found if one.significant and one.difference.value < 0]
    open_ = [label_of(results, one.other) for one in found if not one.significant]
    listed = [
        f"significantly above {', '.join(better)}" if better else "",
        f"significantly below {', '.join(worse)}" if worse else "",
        f"not significantly different from {', '.join(open_)}" if open_ else "",
    ]
    sentences = [f"Against the best baseline on validation: {sentence}" for sentence in against_best]
    return [*sentences, f"By test AUC {subject} is {'; '.join(filter(None, listed))}."]


def on_pair(results: Results, one: Comparison) -> str:
    """One comparison of AUCs."""
    d = one.difference
    sign = "above" if d.value > 0 else "below"
    said = "significant" if one.significant else "not significant"
    return (
        f"{label_of(results, one.one)} is {abs(d.value):.4f} {sign} {label_of(results, one.other)} in test AUC "
        f"(95 % interval {d.low:+.4f} to {d.high:+.4f}, p {one.p_corrected:.3f} corrected): {said}."
    )

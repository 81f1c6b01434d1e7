"""What a study's figures say, in sentences: what is not significant is said to be not significant."""

from __future__ import annotations

from laser.study.plots import label_of
from laser.study.results import Comparison, Results


def verdicts(results: Results) -> list[str]:
    """Sentences on the subject's AUC, setting by setting, then on settings."""
    study = results.plan.study
    if not results.pairs:
        return ["No run is finished."]
    lines = []
    for setting in study.settings if study.subject else ():
        found = [
            one
            for one in results.comparisons
            if one.metric == "auc" and one.one == (study.subject, setting) and one.other[1] == setting
        ]
        if found:
            lines += [f"- {sentence}" for sentence in on_models(results, setting, found)]
    first = next(iter(study.settings))
    for one in results.comparisons:
        if one.metric == "auc" and one.other[1] == first and one.one[1] != first:
            lines.append(f"- {on_pair(results, one)}")
    return lines or ["Nothing is compared: the study names no subject and has one setting."]


def on_models(results: Results, setting: str, found: list[Comparison]) -> list[str]:
    """The subject against the best baseline, then against all."""
    subject = label_of(results, (results.plan.study.subject, setting))
    best = results.best_baseline(setting)
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

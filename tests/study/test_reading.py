"""A study that is read back: the tables of the committed one, and conclusions from made-up runs that are known."""

from __future__ import annotations

import io
import math
import re
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from laser.study import figures
from laser.study.conclusions import against, differences_table, quality_table, selection, trials, trials_table
from laser.study.reading import COLUMNS, ModelRuns, PackedRun, read_runs, read_study

RESULTS = Path(__file__).parents[2] / "benchmarks/results"
COMMITTED = RESULTS / "assistments2017_study_2026-11-30"


def model(name: str, auc: dict[int, float], validation: dict[int, float] | None = None, macs: int = 10**6) -> ModelRuns:
    values = {"auc": auc, "gauc": auc, "log_loss": auc, "validation_auc": validation or auc}
    return ModelRuns(name.lower(), "L1", name, 0, values, macs)


def run(name: str, trial: int, seed: int, validation_auc: float, tested: bool = False) -> PackedRun:
    options = {"a.learning_rate": trial + 1, "b.learning_rate": trial + 1, "c": 5}
    return PackedRun(name, "L1", trial, seed, options, validation_auc, tested, {})


@pytest.fixture(scope="module")
def committed() -> list[ModelRuns]:
    return read_study(COMMITTED / "study.parquet")


@pytest.fixture(scope="module")
def packed() -> list[PackedRun]:
    return read_runs(COMMITTED / "runs.tar.xz")


def test_says_what_the_study_s_own_report_says(committed: list[ModelRuns], packed: list[PackedRun]) -> None:
    report = (COMMITTED / "study.md").read_text()
    by_name = {one.name: one for one in against(committed, "LASER")}
    assert f"{by_name['LASER, matched events'].p:.3f}" == "0.001"  # p over seeds, not corrected
    assert f"{by_name['DIN'].p:.3f}" == "0.007"
    assert f" DIN | auc | +0.0025 [+0.0004, +0.0048] | 0.624 | {by_name['DIN'].p:.3f} | " in report
    found = trials(packed, committed)
    for one in found:
        said = f"| {one.label} | {one.name.replace('rate', 'rates')} | {one.validation_auc:.4f} | "
        assert said + ("x |" if one.chosen else " |") in re.sub(r"(0\.\d{4}) \| 0\.\d{4} \| ", r"\1 | ", report)
    assert {one.label: one.tested for one in found if one.chosen} == {one.name: True for one in committed}
    table = {row[0]: row[1:3] for row in quality_table(committed, 5).rows}
    assert table["LASER"] == ("5 of 5", "0.7918 [0.7903, 0.7934]")
    assert table["HSTU"] == ("4 of 5", "0.7879 [0.7875, 0.7882]")
    chosen = {(one.model, one.setting, one.trial) for one in committed}
    assert sum(one.tested and (one.model, one.setting, one.trial) in chosen for one in packed) == 99


def test_the_ablations_are_read_as_well(packed: list[PackedRun]) -> None:
    components = read_study(COMMITTED / "components_study.parquet")
    assert [len(one.seeds) for one in components] == [5] * 6
    chosen = {(one.model, one.setting, one.trial) for one in components}
    assert sum(one.tested and (one.model, one.setting, one.trial) in chosen for one in packed) == 30


@pytest.mark.parametrize(
    ("study", "seeds", "tested"),
    [("segment_size", [5] * 3, 15), ("depth", [5] * 4, 20), ("length", [5] * 13 + [4] * 2, 73)],
)
def test_studies_of_several_settings_are_read_as_well(
    study: str, seeds: list[int], tested: int, packed: list[PackedRun]
) -> None:
    models = read_study(COMMITTED / f"{study}_study.parquet")
    assert [len(one.seeds) for one in models] == seeds
    chosen = {(one.model, one.setting, one.trial) for one in models}
    assert sum(one.tested and (one.model, one.setting, one.trial) in chosen for one in packed) == tested


def test_differences_are_paired_by_seed_and_corrected() -> None:
    base = model("Base", {0: 0.70, 1: 0.80, 2: 0.75})
    near = model("Near", {2: 0.761, 0: 0.712, 1: 0.810})  # another order of seeds
    far = model("Far", {0: 0.5, 1: 0.9})
    lone = model("Lone", {2: 0.8})
    foreign = model("Foreign", {7: 0.8})
    found = {one.name: one for one in against([base, near, far, lone, foreign], "base")}
    assert list(found) == ["Near", "Far", "Lone"]
    assert found["Near"].values == pytest.approx([0.011, 0.012, 0.010])
    assert found["Near"].p == pytest.approx(stats.ttest_1samp([0.011, 0.012, 0.010], 0).pvalue)
    assert found["Near"].p_corrected == pytest.approx(2 * found["Near"].p)  # of two tests; a single seed has none
    assert (found["Near"].said, found["Far"].said) == ("significant", "not significant")
    assert found["Lone"].said == "one seed: no test"
    assert differences_table(list(found.values()), "Base").rows[2][2] == "+0.0500"
    with pytest.raises(ValueError, match="0 models are named 'nobody', expected one of: Base; Near"):
        against([base, near], "nobody")
    with pytest.raises(ValueError, match="no other model has a seed of Base"):
        against([base, foreign], "Base")


def test_selection_compares_validation_with_test_run_by_run() -> None:
    one = model("One", {0: 0.70, 1: 0.72}, {0: 0.69, 1: 0.71})
    two = model("Two", {0: 0.80, 1: 0.78}, {0: 0.60, 1: 0.62})
    found = selection([one, two])
    assert found.runs == 4
    assert found.shifts["One"].value == pytest.approx(0.01)
    assert found.shift.value == pytest.approx((0.01 + 0.01 + 0.20 + 0.16) / 4)
    assert found.within == pytest.approx(0)  # together in the one, opposite in the other
    assert found.best == ("One", "Two")
    assert math.isnan(selection([model("Lone", {0: 0.7})]).within)


def test_trials_compare_common_seeds_alone() -> None:
    runs = [run("one", 0, 0, 0.70, True), run("one", 1, 0, 0.69), run("one", 0, 1, 0.10, True), run("two", 0, 0, 0.9)]
    first, second = trials(runs, [model("One", {0: 0.7})])
    assert (first.name, second.name) == ("learning rate 1", "learning rate 2")
    assert (first.label, first.seeds, first.validation_auc, first.chosen) == ("One", [0], 0.70, True)
    assert trials_table([first, second]).rows[1] == ("One", "learning rate 2", "1", "0.6900", "", "")


def test_figures_name_their_axes(committed: list[ModelRuns], packed: list[PackedRun]) -> None:
    drawn = [
        figures.by_model(committed),
        figures.differences(committed, "LASER", "log_loss"),
        figures.against_arithmetic(committed),
        figures.validation_against_test(committed, selection(committed)),
        figures.learning_curves(committed, packed),
        figures.tuning(trials(packed, committed), committed),
        figures.by_model([model("Lone", {0: 0.7})]),  # no interval
    ]
    for figure in drawn:
        figure.savefig(io.BytesIO(), format="png")
        (axes,) = figure.axes
        assert axes.get_xlabel()
        assert axes.get_ylabel() or len(axes.get_yticklabels())
    assert len(drawn[4].axes[0].lines) == 99  # not those of a trial that was tested before a better one was there
    assert [len(figure.legends) for figure in drawn[2:6]] == [1] * 4, "a legend of 20 entries covers what it names"
    costs = drawn[2].axes[0].get_legend_handles_labels()[1]
    assert "SIM: 0.25" in costs


def test_what_is_missing_or_foreign_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no such file; expected the study\.parquet"):
        read_study(tmp_path / "study.parquet")
    (tmp_path / "text.parquet").write_text("no")
    with pytest.raises(ValueError, match="not Parquet"):
        read_study(tmp_path / "text.parquet")
    pq.write_table(pa.table({"model": ["a"]}), tmp_path / "foreign.parquet")
    with pytest.raises(ValueError, match="has no column 'label'"):
        read_study(tmp_path / "foreign.parquet")
    pq.write_table(pa.table({name: pa.array([], pa.string()) for name in COLUMNS}), tmp_path / "empty.parquet")
    with pytest.raises(ValueError, match="no run of this study was tested yet"):
        read_study(tmp_path / "empty.parquet")
    with pytest.raises(ValueError, match="no such file; expected what laser study --pack wrote"):
        read_runs(tmp_path / "runs.tar.xz")
    with pytest.raises(ValueError, match="no tar file"):
        read_runs(tmp_path / "text.parquet")
    with tarfile.open(tmp_path / "nothing.tar.xz", "w:xz"):
        pass
    for empty in (tmp_path / "nothing.tar.xz", tmp_path):
        with pytest.raises(ValueError, match="holds no finished run"):
            read_runs(empty)
    with pytest.raises(ValueError, match="multiply-accumulates of no model"):
        figures.against_arithmetic([model("One", {0: 0.7}, macs=0)])
    with pytest.raises(ValueError, match="no tested run has a curve"):
        figures.learning_curves([model("One", {0: 0.7})], [run("one", 0, 0, 0.7, True)])

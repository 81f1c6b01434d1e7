"""The data report shows what is in the data set, in one file."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_prep.pipeline import prepare
from data_prep.report_facts import Facts
from data_prep.report_page import page_of
from data_prep.summary import by_powers
from laser.schema import Schema


def page(folder: Path) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", (folder / "report.html").read_text()))


def facts(folder: Path) -> Facts:
    return Facts(folder, Schema.load(folder / "schema.json"), {})


def test_one_file_with_every_part(movielens):
    text = (movielens / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', text)
    for title in ("Click rate", "History length", "cold start", "Drift", "side info", "Rejected rows", "Disk use"):
        assert title in text
    assert text.count("<figure>") == text.count("data:image/svg") >= 4
    assert "100,836" in page(movielens)


def test_written_again_it_is_the_same(small, tmp_path, laser_prep):
    copy = Path(shutil.copytree(small, tmp_path / "copy"))
    before = (copy / "report.html").read_bytes()
    (copy / "report.html").unlink()
    assert laser_prep("report", copy).returncode == 0
    assert (copy / "report.html").read_bytes() == before
    assert not (copy / "spill").exists()


def test_rejected_rows_are_shown_with_examples(write, log, tmp_path):
    user = log["user"].astype(float)
    user[[3, 5]] = np.nan
    prepare(write({"user": user}), tmp_path / "out")
    shown = page(tmp_path / "out")
    assert "user id is missing 2 0.56 %" in shown
    assert "First rows rejected because: user id is missing" in shown


def test_coverage_counts_new_ids(small):
    found = {part["split"]: part for part in facts(small).coverage()}
    train, test = (pq.read_table(small / "samples" / split) for split in ("train", "test"))
    new = ~np.isin(test["item"].to_numpy(), train["item"].to_numpy())
    assert found["test"]["new_item"] == pytest.approx(new.mean())
    assert found["test"]["samples"] == len(test)


def test_drift_is_the_total_variation_distance(write, log, tmp_path):
    """A shop that opens late: two thirds of the test samples are there, none of train's."""
    late = log["time"] > np.quantile(log["time"], 0.9)
    shop = np.where(late, 9, log["shop"])
    prepare(write({"shop": shop}, context={"shop": {"column": "shop"}}), tmp_path / "out")
    drift = next(drift for drift in facts(tmp_path / "out").drifts() if drift.feature == "shop")
    shares = {}
    for split in ("train", "test"):
        codes = pq.read_table(tmp_path / "out/samples" / split)["shop"].to_numpy()
        shares[split] = np.bincount(codes, minlength=8) / len(codes)
    assert drift.distance["test"] == pytest.approx(np.abs(shares["train"] - shares["test"]).sum() / 2)
    assert drift.distance["test"] > 0.6 > 0.1 > drift.chance


def test_click_rate_over_time_adds_up(small):
    for split, points in facts(small).over_time().items():
        rows = pq.read_table(small / "samples" / split)
        assert sum(point[1] for point in points) == len(rows)
        clicks = sum(count * rate for _, count, rate in points)
        assert clicks == pytest.approx(float(np.sum(rows["label"].to_numpy())))


def test_lengths_by_powers():
    assert by_powers(np.array([5, 4, 3, 2, 1])) == [5, 4, 5, 1]


def test_foreign_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no report.json"):
        page_of(tmp_path)

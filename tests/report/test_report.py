"""The page of a small run folder, written with real files around the session's prepared data set."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from laser.data.prepared import PreparedData
from laser.report import write_report
from laser.report.run_folder import RunFolder

GATES = {
    "heads": 2,
    "segment_width": 10,
    "events": 30,
    "share_below_0.05": [0.5, 0.1],
    "share_above_0.95": [0.1, 0.2],
    "mean": [0.2, 0.6],
    "by_recency": {"edges": [0, 10, 20], "mean": [[0.3, 0.5], [None, None], [0.1, 0.7]], "events": [20, 0, 10]},
    "silent_segments": [0.25, 0.0],
    "histogram": {"edges": [i / 20 for i in range(21)], "counts": [[15] + [0] * 18 + [15], [3] + [1] * 18 + [9]]},
}


@pytest.fixture
def run(tmp_path: Path, prepared: Path) -> Path:
    folder = tmp_path / "runs" / "small"
    (folder / "predictions").mkdir(parents=True)
    config = {"data": {"class_path": "x", "init_args": {"path": str(prepared)}}, "note": "<script>"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "metrics.csv").write_text(
        "epoch,step,train/loss,val/auc,val/log_loss\n0,10,0.7,,\n0,20,,0.6,0.68\n1,40,0.6,,\n"
    )
    (folder / "throughput.json").write_text(json.dumps({"samples_per_second": 1234.5, "device": "CPU"}))
    (folder / "gates.json").write_text(json.dumps(GATES))
    (folder / "metrics.json").write_text(
        json.dumps({"test": {"users": 3}, "model": {"class": "Laser"}, "references": {}})
    )
    with PreparedData(prepared) as data:
        test = data.split("test")
    random = np.random.default_rng(0)
    probability = np.where(test.label_N == 1, 0.6, 0.4) + random.uniform(-0.35, 0.35, len(test))
    columns = {
        "row": np.arange(len(test)),
        "user": test.user_N.astype(np.int64),
        "item": test.item_N.astype(np.int64),
        "timestamp": test.timestamp_N,
        "label": test.label_N.astype(np.float32),
        "probability": probability.astype(np.float32),
        "history_length": random.integers(0, 40, len(test)),
    }
    pq.write_table(pa.table(columns), folder / "predictions" / "test.parquet")
    return folder


class Page(HTMLParser):
    """Collects titles, images and addresses, and checks that tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.titles: list[str] = []
        self.images: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list) -> None:
        found = dict(attributes)
        self.addresses += [found[name] for name in ("src", "href") if name in found]
        if tag == "img":
            assert found["alt"]
            self.images.append(found["src"])
        assert tag not in ("script", "link")
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.titles.append(data)


def test_page_is_complete_and_self_contained(run: Path) -> None:
    path = write_report(run)
    assert path == run / "report.html"
    text = path.read_text()
    page = Page(text)
    titles = ["Test split", "Ranking and calibration", "Learning curves", "Silence gates", "Throughput", "Data"]
    assert page.titles == [*titles, "Configuration"]
    assert len(page.images) == 5
    for address in page.images:
        drawing = base64.b64decode(address.removeprefix("data:image/svg+xml;base64,"))
        ElementTree.fromstring(drawing)
    assert all(address.startswith("data:") for address in page.addresses)
    assert "http" not in re.sub(r"base64,[^\"]+", "", text)
    assert "&lt;script&gt;" in text
    assert 'class="missing"' not in text
    for expected in ("1,234.5", "Item prior", "User rate so far", "Item x user", "GAUC", "between"):
        assert expected in text
    assert not list(run.rglob("*.tmp"))


def test_metrics_json_gets_references_and_is_deterministic(run: Path) -> None:
    write_report(run)
    first = (run / "metrics.json").read_bytes()
    page = (run / "report.html").read_bytes()
    write_report(run)
    assert (run / "metrics.json").read_bytes() == first
    assert (run / "report.html").read_bytes() == page
    content = json.loads(first, parse_constant=pytest.fail)
    assert content["test"] == {"users": 3}
    assert set(content["references"]) >= {"item_prior", "user_prior", "item_user_logistic"}
    assert content["references"]["base_rate"]["auc"] == 0.5
    low, high = content["intervals"]["auc"]
    assert 0.5 < low < high < 1
    assert content["intervals"]["best_reference"] in content["references"]
    rows = [bucket["samples"] for bucket in content["by_history_length"]]
    assert sum(rows) == pq.read_metadata(run / "predictions" / "test.parquet").num_rows


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("metrics.csv", "metrics.csv is missing"),
        ("gates.json", "gates.json is missing"),
        ("throughput.json", "throughput.json is missing"),
        ("predictions/test.parquet", "predictions/test.parquet is missing"),
        ("metrics.json", "metrics.json is missing"),
        ("config.yaml", "config.yaml is missing"),
    ],
)
def test_missing_file_is_said_in_its_section(run: Path, name: str, says: str) -> None:
    (run / name).unlink()
    text = write_report(run).read_text()
    Page(text)
    assert says in text
    assert (run / "metrics.json").exists() == (name != "metrics.json")


def test_missing_data_set_leaves_the_model_alone(run: Path) -> None:
    (run / "config.yaml").write_text("data: {path: nowhere/at_all}")
    text = write_report(run).read_text()
    assert "No references: The prepared data set nowhere/at_all is not there any more" in text
    assert json.loads((run / "metrics.json").read_text())["references"] == {}


def test_data_set_is_found_from_the_runs_parents(run: Path, prepared: Path) -> None:
    (run.parents[1] / "prepared").symlink_to(prepared)
    (run / "config.yaml").write_text("data: {path: prepared}")
    assert RunFolder(run).prepared() == run.parents[1] / "prepared"


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_folder_that_is_no_run(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=f"{name} is not a run"):
        write_report(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("metrics.json", "{", "is not JSON"),
        ("gates.json", "[1]", "expected an object"),
        ("config.yaml", "a: [", "is not YAML"),
        ("predictions/test.parquet", "PAR1 cut", "cannot be read as Parquet"),
    ],
)
def test_broken_file_is_one_sentence(run: Path, name: str, content: str, says: str) -> None:
    (run / name).write_text(content)
    with pytest.raises(ValueError, match=says) as caught:
        write_report(run)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def edit(run: Path, **columns: np.ndarray) -> None:
    file = run / "predictions" / "test.parquet"
    table = pq.read_table(file)
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    pq.write_table(table, file)


def test_predictions_of_another_data_set(run: Path) -> None:
    label = pq.read_table(run / "predictions" / "test.parquet")["label"].to_numpy()
    edit(run, label=1 - label)
    with pytest.raises(ValueError, match="not of the test split"):
        write_report(run)


def test_predictions_that_are_not_numbers(run: Path) -> None:
    rows = pq.read_metadata(run / "predictions" / "test.parquet").num_rows
    edit(run, probability=np.full(rows, np.nan, np.float32))
    with pytest.raises(ValueError, match="not numbers"):
        write_report(run)


def test_metrics_of_another_test_are_noticed(run: Path) -> None:
    (run / "metrics.json").write_text(json.dumps({"test": {"auc": 0.123}}))
    assert "not of the same test" in write_report(run).read_text()

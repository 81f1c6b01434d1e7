import gc
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from laser.train.metrics import CTRMetrics
from laser.train.metrics_areas import SortedRuns, monotone, sorted_run

pytestmark = pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
Columns = tuple[np.ndarray, np.ndarray, np.ndarray]
NAMES = ("auc", "gauc", "log_loss", "normalized_entropy", "ece", "predicted_over_observed", "samples", "users")


def rows(n: int, users: int, seed: int = 0, digits: int = 1) -> Columns:
    """Float32 logits with many ties, labels that follow them, users."""
    random = np.random.default_rng(seed)
    logit = np.round(random.normal(-0.5, 1.5, n), digits).astype(np.float32)
    return logit, (random.random(n) < 1 / (1 + np.exp(-logit))).astype(np.float32), random.integers(0, users, n)


def measure(columns: Columns, batch: int = 512, **options: int) -> dict[str, float]:
    metrics = CTRMetrics(**options)
    tensors = [torch.from_numpy(column) for column in columns]
    for start in range(0, len(columns[0]), batch):
        metrics.update(*(tensor[start : start + batch] for tensor in tensors))
    return metrics.compute()


def gauc_by_loop(logit: np.ndarray, label: np.ndarray, user: np.ndarray) -> float:
    found = []
    for one in np.unique(user):
        mine = user == one
        if 0 < label[mine].mean() < 1:
            found.append((mine.sum(), roc_auc_score(label[mine], logit[mine])))
    return sum(n * auc for n, auc in found) / sum(n for n, _ in found)


@pytest.mark.parametrize("block_rows", [2**20, 1000, 97])
@pytest.mark.parametrize("digits", [0, 6])
def test_equal_to_scikit_learn(block_rows: int, digits: int) -> None:
    """In memory and, with small blocks, spilled; with nearly all scores tied, and with few ties."""
    logit, label, user = rows(6000, 700, digits=digits)
    found = measure((logit, label, user), block_rows=block_rows)
    probability = 1 / (1 + np.exp(-logit.astype(np.float64)))
    assert tuple(found) == NAMES
    assert found["auc"] == pytest.approx(roc_auc_score(label, logit), abs=1e-12)
    assert found["gauc"] == pytest.approx(gauc_by_loop(logit, label, user), abs=1e-12)
    assert found["log_loss"] == pytest.approx(log_loss(label, probability), abs=1e-11)
    entropy = log_loss(label, np.full(len(label), label.mean(dtype=np.float64)))
    assert found["normalized_entropy"] == pytest.approx(found["log_loss"] / entropy, abs=1e-11)
    assert found["predicted_over_observed"] == pytest.approx(probability.sum() / label.sum(), abs=1e-11)
    bins = np.minimum((probability * 15).astype(int), 14)
    gaps = [abs(probability[bins == b].sum() - label[bins == b].sum()) for b in range(15)]
    assert found["ece"] == pytest.approx(sum(gaps) / len(label), abs=1e-11)
    assert (found["samples"], found["users"]) == (6000, len(np.unique(user)))


def test_by_hand() -> None:
    logit = np.array([0.2, 0.8, 0.5, 0.5, 0.1, 0.9, -3.0], np.float32)
    label = np.array([0, 1, 0, 1, 0, 1, 0], np.float32)
    user = np.array([1, 1, 2, 2, 2, 3, 4])  # one pair right; a tie and a pair right; two users of one class
    found = measure((logit, label, user))
    assert found["gauc"] == pytest.approx((2 * 1.0 + 3 * 0.75) / 5, abs=1e-12)
    assert found["auc"] == pytest.approx(11.5 / 12, abs=1e-12)
    assert found["users"] == 4


def test_order_blocks_and_batches_do_not_change_a_bit() -> None:
    columns = rows(5000, 300, digits=3)
    expected = measure(columns)
    order = np.random.default_rng(2).permutation(5000)
    shuffled = tuple(column[order] for column in columns)
    assert measure(shuffled, batch=77, block_rows=130) == expected


@pytest.mark.parametrize(("labels", "log"), [([], math.nan), ([1], math.log(2)), ([0, 0, 0], math.log(2))])
def test_undefined_is_nan(labels: list[int], log: float) -> None:
    n = len(labels)
    found = measure((np.zeros(n, np.float32), np.array(labels, np.float32), np.arange(n)))
    assert found["samples"] == found["users"] == n
    assert found["log_loss"] == pytest.approx(log, abs=1e-12, nan_ok=True)
    for name in ("auc", "gauc", "normalized_entropy"):
        assert math.isnan(found[name])


@pytest.mark.parametrize("columns", [rows(0, 5), rows(40, 10)])
def test_empty_batches_are_legal(columns: Columns) -> None:
    metrics = CTRMetrics()
    empty = torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    metrics.update(*empty)
    metrics.update(*(torch.from_numpy(column) for column in columns))
    metrics.update(*empty)
    assert metrics.compute()["samples"] == len(columns[0])


def test_extreme_logits_have_a_finite_loss() -> None:
    found = measure((np.array([1000, -1000, 3e38], np.float32), np.array([0, 0, 1], np.float32), np.arange(3)))
    assert found["log_loss"] == pytest.approx(1000 / 3, rel=1e-12)


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        (0, math.nan, "1 predicted logits are NaN"),
        (0, math.inf, "infinite"),
        (1, 0.5, "not 0 or 1"),
        (2, -1, "user codes"),
    ],
)
def test_bad_values_are_refused(column: int, value: float, says: str) -> None:
    columns = rows(50, 5)
    columns[column][7] = value
    with pytest.raises(ValueError, match=says):
        measure(columns)


def test_scores_order_as_integers() -> None:
    tiny = np.finfo(np.float32).tiny
    values = np.array([-3e38, -1, -tiny, -1e-45, -0.0, 0.0, 1e-45, tiny, 1, 3e38], np.float32)
    found = monotone(values)
    assert (np.diff(found.astype(np.int64)) > 0).tolist() == [True] * 4 + [False] + [True] * 4
    assert found[4] == found[5]


def test_reset_and_reuse() -> None:
    metrics = CTRMetrics(block_rows=64)
    for _ in range(2):
        columns = rows(1000, 30)
        metrics.update(*(torch.from_numpy(column) for column in columns))
        first = metrics.compute()
        assert first == metrics.compute()
        assert first == measure(columns)
        metrics.reset()
    assert metrics.compute()["samples"] == 0


def test_files_come_late_and_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    tensors = [torch.from_numpy(column) for column in rows(1000, 30)]
    metrics = CTRMetrics(block_rows=1000)
    for _ in range(4):
        metrics.update(*tensors)
    metrics.compute()
    assert list(tmp_path.iterdir()) == []
    metrics.update(*tensors)
    assert len(list(tmp_path.iterdir())) == 2
    metrics.reset()
    assert list(tmp_path.iterdir()) == []
    for _ in range(5):
        metrics.update(*tensors)
    assert list(tmp_path.iterdir()) != []
    del metrics
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_ranges_are_bounded() -> None:
    """No range holds more than four blocks of words, however the scores lie; and every word is in one."""
    runs = SortedRuns(block_rows=50, memory_runs=2)
    random = np.random.default_rng(0)
    for size in (50, 50, 1, 0, 50, 37, *[50] * 30):
        score = np.where(random.random(size) < 0.5, random.normal(size=size), 1 + random.integers(0, 99, size) * 1e-6)
        runs.add(sorted_run(random.integers(0, 3, size), score, random.random(size) < 0.5))
    splitters = runs.splitters()
    words = np.concatenate([run.word_R for run in runs.runs()])
    sizes = np.bincount(np.searchsorted(splitters, words, side="right"))
    assert sizes.max() <= 200
    assert len(sizes) > 5


def test_disk_full_is_one_sentence(tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: the write fails in the same place."""
    program = """
import resource, signal, torch
from laser.train.metrics import CTRMetrics
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
metrics = CTRMetrics(block_rows=20_000)
try:
    for _ in range(6):
        metrics.update(torch.randn(20_000), torch.zeros(20_000), torch.arange(20_000))
except ValueError as error:
    print(error)
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert f"no space left in {tmp_path}" in done.stdout, done.stderr
    assert "set TMPDIR" in done.stdout
    assert list(tmp_path.iterdir()) == []


MEMORY = """
import re, torch
from pathlib import Path
from laser.train.metrics import CTRMetrics
def peak():  # kB; ru_maxrss counts the parent's, too
    return int(re.search("VmHWM: *\\t* *([0-9]+) kB", Path("/proc/self/status").read_text())[1])
ROWS, USERS, BATCH = {rows}, {users}, 65536
metrics = CTRMetrics()
before = peak()
generator = torch.Generator().manual_seed(0)
for start in range(0, ROWS, BATCH):
    n = min(BATCH, ROWS - start)
    logit = torch.randn(n, generator=generator)
    label = (torch.rand(n, generator=generator) < torch.sigmoid(logit)).float()
    metrics.update(logit, label, torch.randint(0, USERS, (n,), generator=generator))
found = metrics.compute()
used = (peak() - before) // 1024
print(found["samples"], found["auc"], found["gauc"], used)
"""
BUDGET = 500
"""MiB above what importing takes."""


def memory_of(n: int, users: int, limit: int) -> None:
    program = MEMORY.format(rows=n, users=users)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=limit, check=True)
    samples, auc, gauc, mebibytes = done.stdout.split()
    print(done.stdout)
    assert int(samples) == n
    assert float(auc) == pytest.approx(0.7393, abs=2e-3)  # P(a > b) of this logit-normal, within sampling error
    assert float(gauc) == pytest.approx(0.7393, abs=2e-3)
    assert int(mebibytes) < BUDGET


def test_ten_million_rows_in_bounded_memory() -> None:
    memory_of(10**7, 10**6, 120)


@pytest.mark.soak
def test_hundred_million_rows_in_the_same_memory() -> None:
    memory_of(10**8, 10**7, 1800)

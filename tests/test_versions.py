"""The check of the triple, in fresh processes whose path holds the metadata of other builds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CODE = "import sys; sys.path.insert(0, sys.argv[1]); from laser.versions import check_triple; check_triple()"


def check_with(folder: Path, **found: str) -> tuple[int, str]:
    """Exit code and last line of a process that sees these distributions first."""
    for name, version in found.items():
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n")
    done = subprocess.run([sys.executable, "-c", CODE, str(folder)], capture_output=True, text=True, check=False)
    return done.returncode, (done.stderr.strip().splitlines() or [""])[-1]


@pytest.mark.parametrize(
    ("torch", "pair"), [("2.13.0", "1.8.0"), ("2.13.1+cpu", "1.8.0"), ("2.12.0+cu128", "1.7.0"), ("2.11.0", "1.6.1")]
)
def test_a_matching_triple(tmp_path, torch, pair):
    assert check_with(tmp_path, torch=torch, torchrec=pair, fbgemm_gpu=pair) == (0, "")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            {"torch": "2.13.0", "torchrec": "1.7.0", "fbgemm_gpu": "1.8.0"},
            "torch 2.13.0 needs torchrec 1.8 and fbgemm-gpu 1.8, found torch 2.13.0, torchrec 1.7.0, fbgemm-gpu 1.8.0",
        ),
        (
            {"torch": "2.12.0", "torchrec": "1.7.0", "fbgemm_gpu": "1.6.0"},
            "torch 2.12.0 needs torchrec 1.7 and fbgemm-gpu 1.7",
        ),
        (
            {"torch": "2.9.0+cu126", "torchrec": "1.5.0", "fbgemm_gpu": "1.5.0"},
            "LASER needs torch 2.11 or 2.12 or 2.13, found torch 2.9.0, torchrec 1.5.0",
        ),
    ],
)
def test_a_mismatch_names_what_was_found_and_the_cure(tmp_path, found, words):
    code, line = check_with(tmp_path, **found)
    assert code == 1
    assert line.startswith(f"ImportError: {words}")
    assert line.endswith("run `make env`, or install one triple as the README's section Installation says")


def test_a_missing_package(tmp_path):
    """Without site-packages nothing is installed at all."""
    source = Path(__file__).parents[1] / "src"
    code = f"import sys; sys.path.insert(0, {str(source)!r}); from laser.versions import check_triple; check_triple()"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "found torch missing, torchrec missing, fbgemm-gpu missing" in done.stderr

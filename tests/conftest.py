"""Prepared data sets for all rooms' tests."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

# Without a GPU, Triton kernels run in Triton's interpreter: decided before anything imports Triton, as torchrec does.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


def _synthetic():
    # importlib mode puts tests/ on no path, so the module beside this file is loaded by its place.
    spec = importlib.util.spec_from_file_location("laser_synthetic", Path(__file__).with_name("synthetic.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def make_prepared(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``make_prepared(path=None, *, users=60, items=80, events=30, width=8, seed=0) -> Path``, see synthetic.py."""
    synthetic = _synthetic()

    def make(path: Path | None = None, **options: int) -> Path:
        return synthetic.write_prepared(path or tmp_path_factory.mktemp("data") / "prepared", **options)

    return make


@pytest.fixture(scope="session")
def prepared(make_prepared: Callable[..., Path]) -> Path:
    """The default data set, shared by all tests of a session: do not write into it."""
    return make_prepared()

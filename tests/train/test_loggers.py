"""Training does not depend on Weights & Biases."""

from __future__ import annotations

from pathlib import Path

import pytest

from laser.train import loggers


@pytest.fixture(autouse=True)
def credentials(monkeypatch, tmp_path):
    """A key, and a server where nobody listens."""
    for name, value in {"API_KEY": "a" * 40, "BASE_URL": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(loggers, "INIT_SECONDS", 3.0)
    monkeypatch.chdir(tmp_path)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("mode", [None, "online"])
def test_a_run_goes_on_without_the_network(tmp_path: Path, capfd, mode):
    import wandb

    log = loggers.WandbLog(save_dir=str(tmp_path / "run"), mode=mode)
    log.log_metrics({"loss": 1.0}, step=1)
    log.finalize("success")
    wandb.finish()
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert ("cannot be reached" in capfd.readouterr().err) == (mode == "online")

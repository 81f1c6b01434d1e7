"""A scorer whose histories are a service's: the same answers, and appends through it count at once."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from laser.seqvault import SeqVault
from laser.seqvault.service import RemoteVault
from laser.seqvault.service.authorization import Tokens
from laser.seqvault.service.server import VaultServer
from laser.serve import Request, Scorer

NOW = 1_700_000_000


def test_a_service_is_a_store(trained, prepared: Path, tmp_path: Path):
    vault = shutil.copytree(prepared / "vault", tmp_path / "vault")
    requests = [Request(f"user-{n}", [f"item-{i}" for i in range(1, 9)], {"device": 1}, NOW) for n in range(1, 30)]
    with SeqVault.open(vault, "a") as opened:
        server = VaultServer(opened, "grpc://127.0.0.1:0", Tokens((), (), "write"))
        try:
            with RemoteVault(f"grpc://127.0.0.1:{server.port}", timeout=120.0) as remote:
                scorer = Scorer(trained("laser") / "bundle", remote)
                here = Scorer(scorer.bundle, opened)
                before = scorer.score_many(requests)
                np.testing.assert_array_equal(np.concatenate(before), np.concatenate(here.score_many(requests)))
                events = {"timestamp": [NOW - 2, NOW - 1], "item": ["item-3", "item-4"], "rating": [2, 1]}
                assert scorer.append(["user-5", "visitor"], events) == 2
                after = scorer.score_many([requests[4], Request("visitor", *list(vars(requests[4]).values())[1:])])
        finally:
            server.stop(5.0)
    assert np.abs(after[0] - before[4]).max() > 1e-4
    assert np.abs(after[1] - before[0]).max() > 1e-4  # user-1 has no history, as a visitor had none before

"""``laser doctor``: what is installed, what is wrong with it and how to cure it, and whether each part works here."""

from __future__ import annotations

import logging
import platform
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from laser.versions import installed, triple, triple_problem

PYTHONS = ((3, 11), (3, 12))


@dataclass(frozen=True)
class Finding:
    """One line of the examination.

    Args:
        name: what was examined.
        found: what was found.
        cure: what to do about it; ``None`` when it is well.
    """

    name: str
    found: str
    cure: str | None = None

    def __str__(self) -> str:
        mark = "ok  " if self.cure is None else "BAD "
        return f"{mark} {self.name:<22} {self.found}" + (f"\n       -> {self.cure}" if self.cure else "")


def examine() -> int:
    """Print all findings.

    Returns:
        0 when all is well, 2 otherwise.
    """
    logging.getLogger("torch.fx").setLevel(logging.ERROR)
    findings = [*versions()]
    for finding in findings:
        print(finding)
    if triple_problem() is None:
        for check in (devices, embedding_lookup, *kernels(), history_store):
            findings.append(attempt(check))
            print(findings[-1], flush=True)
    bad = sum(finding.cure is not None for finding in findings)
    print(f"\n{bad} problem{'s' * (bad != 1)} found" if bad else "\nAll is well.")
    return 2 if bad else 0


def attempt(check: Callable[[], Finding]) -> Finding:
    """A check's finding; a check that fails is a finding, too."""
    try:
        return check()
    except Exception as error:
        name = (check.__name__ or "check").replace("_", " ")
        cure = "rebuild the environment with `make env`; if that does not help, report this line"
        return Finding(name, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", cure)


def versions() -> list[Finding]:
    """Python, the matched triple, and Lightning with its metrics."""
    python = platform.python_version()
    known = sys.version_info[:2] in PYTHONS
    cure = None if known else "use Python 3.11 or 3.12: make clean && make PYTHON=python3.11 env"
    found = [Finding("python", python, cure)]
    problem = triple_problem()
    found += [Finding(name, number or "missing", problem) for name, number in triple().items()]
    for name in ("lightning", "torchmetrics", "pyarrow", "numba", "wandb"):
        number = installed(name)
        found.append(Finding(name, number or "missing", None if number else "run `make env`"))
    return found


def devices() -> Finding:
    """Accelerators that torch sees."""
    import torch

    if not torch.cuda.is_available():
        return Finding("devices", f"CPU ({torch.get_num_threads()} threads), no GPU")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Finding("devices", ", ".join(names))


def embedding_lookup() -> Finding:
    """A look-up in a TorchRec table and its gradient, which needs FBGEMM's compiled operators."""
    import torch
    from torchrec.modules.embedding_configs import EmbeddingConfig
    from torchrec.modules.embedding_modules import EmbeddingCollection
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = EmbeddingConfig(name="t", embedding_dim=8, num_embeddings=4, feature_names=["f"])
    table = EmbeddingCollection(tables=[config], device=device)
    ids = KeyedJaggedTensor(["f"], torch.tensor([1, 3, 1], device=device), lengths=torch.tensor([2, 1], device=device))
    rows = table(ids)["f"].values()
    rows.sum().backward()
    assert rows.shape == (3, 8)
    assert torch.ops.fbgemm.asynchronous_complete_cumsum(torch.tensor([2, 1], device=device)).tolist() == [0, 2, 3]
    return Finding("embedding lookup", f"TorchRec and FBGEMM on {device.type}")


def kernels() -> list[Callable[[], Finding]]:
    """One check per family of kernels that ``laser.ops`` has."""
    from laser.ops import kernel_families

    def check(name: str, works: Callable[[], str]) -> Callable[[], Finding]:
        def family() -> Finding:
            return Finding(f"kernels: {name}", works())

        family.__name__ = f"kernels: {name}"
        return family

    return [check(name, works) for name, works in kernel_families().items()]


def history_store() -> Finding:
    """Append to, read from and check a SeqVault in a temporary folder."""
    import numpy as np

    from laser.schema import Feature, Kind, Schema
    from laser.seqvault import SeqVault

    schema = Schema(
        "doctor",
        (
            Feature(name="user", kind=Kind.USER, dtype="uint32"),
            Feature(name="item", kind=Kind.ITEM, dtype="uint32", cardinality=9, table="item", width=8),
            Feature(name="click", kind=Kind.LABEL, dtype="uint8"),
            Feature(name="timestamp", kind=Kind.TIMESTAMP, dtype="int64"),
        ),
    )
    with tempfile.TemporaryDirectory() as folder, SeqVault.create(Path(folder) / "vault", schema) as vault:
        events = {"timestamp": np.array([1, 2, 3]), "item": np.array([4, 5, 6], np.uint32)}
        vault.append(np.array([7, 7, 8], np.uint64), events)
        history = vault.read(np.array([7, 9], np.uint64), before=3)
        assert history["item"].tolist() == [4, 5]
        assert history.lengths.tolist() == [2, 0]
        problems = vault.check()
        assert not problems, problems
    return Finding("history store", "append, read and check")

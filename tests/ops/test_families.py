"""What the doctor asks of the kernels."""

from __future__ import annotations

import pytest

from laser.ops import kernel_families
from laser.ops.segmented_attention import cpu


def test_every_op_works_here() -> None:
    checks = kernel_families()
    assert len(checks) >= 3
    for name, check in checks.items():
        assert "of the specification" in check(), name


def test_a_broken_kernel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    right = cpu.forward
    monkeypatch.setattr(cpu, "forward", lambda *args, **options: tuple(2 * value for value in right(*args, **options)))
    with pytest.raises(AssertionError, match="segmented_attention on cpu differs"):
        kernel_families()["segmented_attention (PyTorch, cpu)"]()

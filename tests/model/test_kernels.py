"""A whole model through the Triton kernels, as on a GPU, against the same model without."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch

from laser.model.laser import Laser

OPTIONS = {
    "width": 32,
    "query_width": 8,
    "newest_events": 20,
    "mixer_tokens": 8,
    "mixer_width": 32,
    "mixer_multiple": 2,
    "event_dropout": 0.3,
    "token_dropout": 0.2,
    "embedding_std": 0.5,
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="here Triton's interpreter serves the CPU")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"match": {"item": "item"}, "match_gate": True, "gate_rank_bias": True},
        {"segment_windows": [10, 20]},
        {"newest_evolved": 12},
    ],
    ids=str,
)
def test_the_model_through_all_kernels(
    make_batch: Any, as_loaded: Any, scatter: Any, schema: Any, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    plain = scatter(Laser(schema, **{**OPTIONS, **options})).train()
    through = copy.deepcopy(plain)
    batch = as_loaded(make_batch(schema, [0, 1, 9, 30, 11], [3, 0, 1, 2, 3, 4, 4, 3]))

    def run(network: Laser) -> dict[str, torch.Tensor]:
        logit_B = network(batch).logit_B
        logit_B.square().sum().backward()
        return {"logit": logit_B.detach()} | {name: p.grad for name, p in network.named_parameters()}

    expected = run(plain)
    used = 0
    for name, module in list(sys.modules.items()):
        if name.startswith("laser.ops.") and hasattr(module, "use_triton"):
            monkeypatch.setattr(module, "use_triton", lambda tensor: True)
            used += 1
    assert used >= 7
    for name, value in run(through).items():
        # By norms: single elements are small differences of large numbers.
        assert (value - expected[name]).norm() <= 1e-4 * expected[name].norm() + 1e-6, name

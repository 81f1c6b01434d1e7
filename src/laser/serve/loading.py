"""A bundle -> an engine that is known to answer as the model did when the bundle was written."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from laser.schema import Kind, names
from laser.seqvault.ragged import Ragged
from laser.serve.bundle import Bundle
from laser.serve.compiled import load_candidates
from laser.serve.embeddings import MappedEmbeddings
from laser.serve.engine import Engine
from laser.serve.network import TRUSTED, build_network
from laser.serve.requests import CodedRequest

TOLERANCE = {"cpu": 1e-4, "cuda": 2e-3}
"""Most difference of a probability that another machine, device or library version may make by rounding."""


def load_engine(
    bundle: Bundle,
    *,
    device: str = "cpu",
    cache_bytes: int = 0,
    trusted: Iterable[str] = TRUSTED,
    compiled: bool = False,
    verify: bool = True,
) -> Engine:
    """Build the model and let it answer the bundle's golden requests.

    Args:
        bundle: opened.
        device: of the dense part; tables stay in the host's memory map.
        cache_bytes: of event rows kept between requests.
        trusted: beginnings of the names of classes that the bundle may name.
        compiled: whether to run the bundle's native code for the device: loading it is trusting it.
        verify: whether to compare the golden answers.

    Raises:
        ValueError: when there is no such device, weights and options do not fit each other, an answer differs, or there
            is no native code that runs here.
    """
    where, place = f"bundle {bundle.path}", _device(device)
    try:
        network: Any = build_network(bundle.facts["network"], bundle.schema, bundle.facts["seed"], trusted)
        network.embeddings = MappedEmbeddings(bundle.schema, bundle.tables())
        network.load_state_dict(bundle.weights(), strict=True)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{where} is refused: {' '.join(str(error).split())}") from None
    network = network.eval().requires_grad_(False).to(place)
    engine = Engine(bundle.schema, bundle.items(), network, place, cache_bytes)
    if compiled:
        engine.compiled = load_candidates(*bundle.compiled(place.type), place.type)
    if verify:
        _verify(bundle, engine)
    return engine


def _device(name: str) -> torch.device:
    kind = name.split(":")[0]
    if kind not in TOLERANCE:
        raise ValueError(f"device is {name!r}; expected {' or '.join(TOLERANCE)}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch finds no GPU here; set it to cpu")
    return torch.device(name)


def golden_case(case: dict[str, Any], engine: Engine) -> tuple[CodedRequest, Ragged]:
    """A golden request and its history as arrays."""
    schema = engine.schema
    context = {name: np.array(codes, dtype=np.int64) for name, codes in case["context"].items()}
    request = CodedRequest(case["key"], case["time"], np.array(case["items"], dtype=np.int64), context)
    dtypes = {feature.name: feature for feature in schema.event}
    events = {
        name: np.array(case["history"][name], dtype=dtypes[name].dtype).reshape(
            -1, *([dtypes[name].length] if dtypes[name].length > 1 else [])
        )
        for name in names(schema.event)
    }
    return request, Ragged(events, np.array([0, len(events[schema.of_kind(Kind.TIMESTAMP)[0].name])]))


def _verify(bundle: Bundle, engine: Engine) -> None:
    """Compare every golden answer."""
    tolerance = TOLERANCE[engine.device.type]
    for number, case in enumerate(bundle.golden()):
        request, events = golden_case(case, engine)
        found, wanted = engine.score([request], events)[0], np.array(case["probability"], np.float32)
        if found.shape != wanted.shape or not np.allclose(found, wanted, rtol=0, atol=tolerance):
            worst = int(np.abs(found - wanted).argmax()) if found.shape == wanted.shape else 0
            raise ValueError(
                f"bundle {bundle.path} is refused: its golden request {number} gives {found[worst]:.6f} here, "
                f"{wanted[worst]:.6f} where it was written (laser-ctr {bundle.facts['versions']['laser-ctr']}); export "
                "it again with this release"
            )

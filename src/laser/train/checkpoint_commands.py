"""The verbs of ``laser checkpoint``: typed functions, which jsonargparse turns into a command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from laser.train.checkpoint import read_facts, read_trainer_state
from laser.train.checkpoint_files import existing
from laser.train.single_file import read_single, write_single
from laser.train.stored_tensors import StoredTensors

SHOWN = ("data_set", "schema", "table_optimizer", "step")


def inspect(path: Path) -> None:
    """Say what a checkpoint belongs to and list its tensors.

    Args:
        path: folder such as runs/demo/checkpoints/best.ckpt.
    """
    path = existing(path)
    facts, state = read_facts(path), read_trainer_state(path)
    stored = StoredTensors(path)
    lines = {name: facts[name] for name in SHOWN if name in facts} | {"epoch": state.get("epoch")}
    lines["versions"] = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    lines["validation"] = ", ".join(f"{name} {value:.6g}" for name, value in state.get("validation", {}).items())
    lines["bytes on disk"] = f"{sum(file.stat().st_size for file in path.iterdir()):,}"
    for name, value in lines.items():
        print(f"{name:16}{value}")
    print(f"\n{'bytes':>16}  {'shards':>6}  {'type':10}{'shape':20}tensor")
    for name in stored.names:
        shape, kind = "x".join(map(str, stored.size(name))) or "scalar", str(stored.dtype(name)).removeprefix("torch.")
        print(f"{stored.nbytes(name):16,}  {stored.pieces(name):6}  {kind:10}{shape:20}{name}")
    for part in sorted({name.partition(".")[0] for name in stored.names}):
        total = sum(stored.nbytes(name) for name in stored.names if name.startswith(f"{part}."))
        print(f"{total:16,}  all of {part}.*")


def diff(first: Path, second: Path, all: bool = False) -> int:
    """Compare the tensors of two checkpoints; exit code 1 when they differ. Holds two tensors at a time.

    Args:
        first: folder of a checkpoint.
        second: folder of another.
        all: also list tensors that are the same.
    """
    a, b = StoredTensors(existing(first)), StoredTensors(existing(second))
    names = sorted({*a.names, *b.names})
    same = 0
    for name in names:
        difference = _difference(a, b, name)
        same += difference is None
        if difference is not None or all:
            print(f"{difference or 'same':32}{name}")
    print(f"{same} of {len(names)} tensors are the same to the last bit")
    return int(same < len(names))


def _difference(a: StoredTensors, b: StoredTensors, name: str) -> str | None:
    """In what a tensor differs; ``None`` when it does not."""
    if name not in a or name not in b:
        return "only in the " + ("first" if name in a else "second")
    if (a.size(name), a.dtype(name)) != (b.size(name), b.dtype(name)):
        of_a, of_b = (f"{tuple(x.size(name))} {str(x.dtype(name)).removeprefix('torch.')}" for x in (a, b))
        return f"{of_a} against {of_b}"
    one, other = a.read(name), b.read(name)
    if torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8)):
        return None
    gap = (one.double() - other.double()).abs()
    return f"max {gap.max():.3g}, mean {gap.mean():.3g}"


def convert(source: Path, target: Path, model_only: bool = False) -> None:
    """Turn a checkpoint into one .safetensors file, or such a file back into a checkpoint.

    Args:
        source: folder of a checkpoint, or a .safetensors file.
        target: .safetensors file, or folder of a checkpoint; replaced.
        model_only: write the weights only; such a file cannot be turned back.
    """
    if target.suffix == ".safetensors":
        write_single(existing(source), target, model_only=model_only)
    elif source.suffix == ".safetensors":
        read_single(source, target)
    else:
        raise ValueError(f"neither {source} nor {target} ends in .safetensors; give one that does")
    print(target)


VERBS: dict[str, Any] = {"inspect": inspect, "diff": diff, "convert": convert}


def main(arguments: list[str] | None = None) -> int:
    """Run ``laser checkpoint``; returns the exit code.

    Raises:
        ValueError: on a user's mistake that the command line itself does not catch.
    """
    from jsonargparse import auto_cli

    try:
        code: Any = auto_cli(VERBS, args=arguments, prog="laser checkpoint", exit_on_error=False)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ValueError(f"{error.strerror or error} ({error.filename or 'writing'})") from None
    return code or 0

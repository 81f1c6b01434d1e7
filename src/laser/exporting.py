"""``laser export``: the checkpoint of a run as a bundle to serve from; where training's and serving's rooms meet."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.cli import LightningArgumentParser
from torch import Tensor

from laser.data.prepared import PreparedData
from laser.schema import Schema
from laser.serve.bundle import FACTS
from laser.serve.rows import Precision
from laser.serve.writing import Trained, write_bundle
from laser.train.checkpoint import read_facts
from laser.train.checkpoint_files import existing, replace_directory
from laser.train.command_line import RecipeCLI, checkpoint_path
from laser.train.stored_tensors import StoredTensors
from laser.train.warm_start import is_table

NETWORK = "model.network."


class ExportCLI(RecipeCLI):
    """Parses recipes, and what of a run becomes a bundle where."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The options of the bundle, beside those of a recipe."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--out", type=str, required=True, help="folder of the bundle; an earlier one is replaced")
        parser.add_argument("--ckpt_path", type=str, default="best", help="best or last of the run, or a folder")
        parser.add_argument(
            "--tables",
            type=Literal["fp32", "fp16", "int8", "int4"],
            default="fp32",
            help="precision of the embedding tables; int8 and int4 are quantised row by row",
        )
        parser.add_argument(
            "--compile",
            type=Literal["cpu", "cuda"] | None,
            default=None,
            help="write native code for this machine's kind of device, too; needs a C++ compiler",
        )


def main(arguments: list[str]) -> int:
    """Write a bundle and print its folder.

    Returns:
        0.

    Raises:
        ValueError: for any mistake of the user, and when the bundle would not answer as the model does.
        argparse.ArgumentError: for options that are unknown or of the wrong type.
    """
    config = ExportCLI.parse("export", arguments)
    run = Path(config.trainer.default_root_dir or "runs/run")
    checkpoint = checkpoint_path(config.ckpt_path, run, "export", False)
    assert checkpoint is not None
    network = {
        key: value for key, value in config.model.network.as_dict().items() if key in ("class_path", "init_args")
    }
    data, seed = config.data, int(config.model.seed)
    where = Path(checkpoint), Path(data.path), network, seed, data.max_history
    export(*where, config.tables, Path(config.out), config.compile)
    return 0


def export(
    checkpoint: Path,
    data_path: Path,
    network: dict[str, Any],
    seed: int,
    max_history: int,
    precision: Precision,
    out: Path,
    compiled: str | None = None,
) -> None:
    """Write a bundle, all of it or nothing.

    Args:
        checkpoint: folder that any number of processes wrote.
        data_path: prepared data set that the model was trained on.
        network: ``class_path`` and ``init_args``.
        seed: of the run.
        max_history: newest events that the model sees.
        precision: of the tables.
        out: folder of the bundle.
        compiled: "cpu" or "cuda" to write native code for it, too.

    Raises:
        ValueError: when checkpoint, data set and options do not fit each other, or ``out`` is something else.
    """
    if out.exists() and not (out / FACTS).exists():
        raise ValueError(f"{out} exists and is no bundle; give --out a new folder, or remove that one")
    checkpoint = existing(checkpoint)
    facts = read_facts(checkpoint)
    _check_data(checkpoint, facts, Schema.load(data_path / "schema.json"))
    stored = StoredTensors(checkpoint)
    weights = {
        n.removeprefix(NETWORK): stored.read(n) for n in stored.names if n.startswith(NETWORK) and not is_table(n)
    }
    places = {name.split(".")[-2]: name for name in stored.names if name.startswith(NETWORK) and is_table(name)}

    def table(name: str) -> Tensor:
        if name not in places:
            raise ValueError(f"checkpoint {checkpoint} has no table {name!r}; it has {', '.join(places)}")
        return stored.read(places[name]).float()

    about = {key: facts.get(key) for key in ("step", "table_optimizer")} | {"versions": facts["versions"]}
    trained = Trained(network, seed, max_history, weights, table, about)
    temporary = out.with_name(f"{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        with PreparedData(data_path) as data:
            bundle = write_bundle(temporary, data, trained, precision, compiled)
        replace_directory(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    size = sum(size for size, _ in bundle.facts["files"].values())
    print(f"{out}: {schema_line(bundle.schema)}, tables in {precision}, {size / 1e6:,.1f} MB; golden requests agree")


def schema_line(schema: Schema) -> str:
    """The data set and its tables in a few words."""
    rows = sum(table.rows for table in schema.tables.values())
    return f"data set {schema.name}, {len(schema.tables)} tables of {rows:,} rows"


def _check_data(checkpoint: Path, facts: dict[str, Any], schema: Schema) -> None:
    if facts["schema"] != schema.fingerprint():
        raise ValueError(
            f"checkpoint {checkpoint} was trained on data set {facts['data_set']!r} with schema {facts['schema']}, but "
            f"data.path has {schema.name!r} with schema {schema.fingerprint()}; give the one that it was trained on"
        )

"""``laser fit | validate | test | predict``: LightningCLI over our module, data module and strategy."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jsonargparse.typing import NonNegativeInt
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from laser.train.callbacks import RunRecord, Throughput
from laser.train.checkpoint import read_facts
from laser.train.checkpoint_files import existing
from laser.train.datamodule import CTRDataModule
from laser.train.dropped_options import dropped_options
from laser.train.ending import ENDED
from laser.train.failures import ProcessLost, leave_lost
from laser.train.module import CTRModule
from laser.train.predictions import PredictionWriter
from laser.train.profiling import StepProfile
from laser.train.progress import SamplesProgressBar
from laser.train.rank_statistics import RankStatistics
from laser.train.strategy import TorchRecStrategy
from laser.train.tracking import Tracking

CHECKPOINTS = "checkpoints"
STRICT = {"exit_on_error": False, "allow_abbrev": False}
"""Options of parsers: errors are ours to report, and an abbreviated option would hide a misspelt one."""


class SaveRecipe(SaveConfigCallback):
    """Writes the complete recipe to ``config.yaml`` in the run's folder when training starts."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file, over that of an earlier run."""
        path = Path(trainer.default_root_dir) / self.config_filename
        if stage == "fit" or not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, path, skip_none=False, overwrite=True, multifile=False)


class LaserCLI(LightningCLI):
    """One run folder, one seed, and the checkpoint of that run unless another is named."""

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        """Build the parsers."""
        super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)
        self._subcommand_parsers["predict"].set_defaults({"return_predictions": False})

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning would open a file in search of options. Ours are folders, and a file is refused later."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The seed is given once; profiling is asked for from outside of the trainer."""
        parser.add_argument(
            "--profile",
            type=NonNegativeInt,
            default=0,
            help="training steps to profile, after the first five; writes profile/ in the run's folder",
        )
        parser.add_argument(
            "--gates",
            action="store_true",
            help="of test and predict: also write predictions/SPLIT_gates.parquet, the gates of every event",
        )
        parser.link_arguments("seed_everything", "model.seed", compute_fn=_seed)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=_seed)

    def before_instantiate_classes(self) -> None:
        """Resolve everything that lies in the run's folder."""
        assert self.subcommand is not None
        config = self.config[self.subcommand]
        if config.gates and self.subcommand not in ("test", "predict"):
            raise ValueError(
                f"--gates is for laser test and laser predict; laser {self.subcommand} writes no predictions"
            )
        run = Path(config.trainer.default_root_dir or "runs/run")
        config.trainer.default_root_dir = str(run)
        warm = config.model.warm_start is not None
        config.ckpt_path = checkpoint_path(config.ckpt_path, run, self.subcommand, warm)
        first_step = read_facts(config.ckpt_path)["step"] if config.ckpt_path else 0
        _make_run_folder(run)
        if self.subcommand == "fit":
            if os.environ.get("LOCAL_RANK", "0") == "0":
                _say_where_it_begins(config.ckpt_path, run, first_step)
                _say_what_is_dropped(config)
        else:
            config.trainer.logger = False  # logs tell of training; an evaluation writes its own files
        _place_in_run(config.trainer, run, first_step)
        callbacks: list[Callback] = [Throughput(), RankStatistics(), PredictionWriter(config.gates), RunRecord()]
        if config.profile and self.subcommand == "fit":
            callbacks.append(StepProfile(config.profile))
        if self.subcommand == "fit":
            callbacks.append(Tracking(config.as_dict()))
        if config.trainer.enable_progress_bar is not False:
            callbacks.append(SamplesProgressBar())
        self.trainer_defaults["callbacks"] = callbacks


class RecipeCLI(LaserCLI):
    """Parses recipes and builds nothing: everything stays options, for verbs that do not train."""

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        """Build the one parser."""
        super(LaserCLI, self).setup_parser(add_subcommands, main_kwargs, subparser_kwargs)

    def _set_seed(self) -> None:
        """Nothing is drawn."""

    def before_instantiate_classes(self) -> None:
        """Nothing is written, so nothing has to be placed in a run's folder."""

    def instantiate_classes(self) -> None:
        """Leave everything as options: neither the data's size nor the trainer matters to this machine."""

    @classmethod
    def parse(cls, verb: str, arguments: list[str]) -> Any:
        """Options of recipes and of this verb.

        Raises:
            ValueError: for any mistake of the user.
            argparse.ArgumentError: for options that are unknown or of the wrong type.
        """
        quieten()
        cli = cls(
            CTRModule,
            CTRDataModule,
            save_config_callback=None,
            trainer_defaults={"strategy": "torchrec"},
            seed_everything_default=0,
            parser_kwargs=STRICT | {"prog": f"laser {verb}"},
            args=arguments,
            run=False,
            auto_configure_optimizers=False,
        )
        return cli.config


def _make_run_folder(run: Path) -> None:
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"trainer.default_root_dir is {run}, which cannot be made a folder ({error.strerror}); give another"
        ) from None
    if not os.access(run, os.W_OK | os.X_OK):
        raise ValueError(f"trainer.default_root_dir is {run}, where nothing may be written; give another folder")


def _say_where_it_begins(checkpoint: str | None, run: Path, first_step: int) -> None:
    if checkpoint is not None:
        print(f"laser fit: going on from {checkpoint}, after step {first_step}")
    elif (run / "config.yaml").exists():
        print(f"laser fit: {run} holds an earlier run; its files are replaced as new ones are written")


def _say_what_is_dropped(config: Any) -> None:
    network = config.model.network
    if dropped := dropped_options([Path(str(path)) for path in config.config or ()], network.as_dict()):
        name = network.class_path.rpartition(".")[2]
        print(f"laser fit: {name} has no {', '.join(dropped)}, which a recipe under the overlay sets: not used")


def _seed(seed: bool | int) -> int:
    """Seed of weights and order; ``True`` asks Lightning for a random one, which it leaves in the environment."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0)) if isinstance(seed, bool) else seed


def checkpoint_path(given: str | None, run: Path, verb: str | None, warm: bool) -> str | None:
    """Where to load from: ``best`` and ``last`` are those of the run; evaluations take the best by default.

    ``auto`` is ``last`` when there is one and a new start otherwise: the same command then starts a run and goes on
    with it, which is what torchrun's restarts and Slurm's requeues need. ``warm_start`` evaluates the weights that
    ``model.warm_start`` names.

    Raises:
        ValueError: when an evaluation has nothing to load.
    """
    if given is None and verb == "fit":
        return None
    if given == "auto":
        if verb != "fit":
            raise ValueError(f"--ckpt_path auto is for laser fit, not laser {verb}; give best or last")
        last = run / CHECKPOINTS / "last.ckpt"
        return str(last) if existing(last).exists() else None
    if given == "warm_start":
        if verb == "fit" or not warm:
            raise ValueError(
                "--ckpt_path warm_start evaluates the weights that model.warm_start names; name them there"
            )
        return None
    name = given or "best"
    path = run / CHECKPOINTS / f"{name}.ckpt" if name in ("best", "last") else Path(name)
    read_facts(path)
    return str(path)


def _place_in_run(trainer: Any, run: Path, first_step: int) -> None:
    """Give loggers and checkpoints that name no folder their place in the run's."""
    loggers = trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]
    if find_spec("wandb") is None and any(_is_wandb(logger) for logger in loggers):
        loggers = trainer.logger = [logger for logger in loggers if not _is_wandb(logger)]
        if getattr(rank_zero_only, "rank", 0) == 0:
            print("laser: the package wandb is not installed; this run is not logged there", file=sys.stderr)
    for logger in loggers:
        arguments = getattr(logger, "init_args", None)
        if arguments is None:
            continue
        if "save_dir" in arguments and arguments.save_dir is None:
            arguments.save_dir = str(run)
        if "first_step" in arguments:
            arguments.first_step = first_step
    callbacks = trainer.callbacks if isinstance(trainer.callbacks, list) else [trainer.callbacks]
    for callback in callbacks:
        arguments = getattr(callback, "init_args", None)
        if arguments is not None and "dirpath" in arguments and arguments.dirpath is None:
            arguments.dirpath = str((run / CHECKPOINTS).absolute())


def _is_wandb(logger: Any) -> bool:
    return getattr(logger, "class_path", "") == "laser.train.loggers.WandbLog"


def run_training(arguments: list[str]) -> None:
    """Parse ``arguments`` and run; ends the process with code 3 when another of the run was lost, which has been said.

    SIGTERM ends it after the batch at hand, with code 143.

    Raises:
        ValueError: for any mistake of the user.
        argparse.ArgumentError: for options that are unknown or of the wrong type.
    """
    quieten()
    try:
        LaserCLI(
            CTRModule,
            CTRDataModule,
            save_config_callback=SaveRecipe,
            save_config_kwargs={"overwrite": True, "save_to_log_dir": False},
            trainer_defaults={
                "strategy": "torchrec",
                "use_distributed_sampler": False,
                "num_sanity_val_steps": 0,
                "enable_model_summary": False,  # it would count this process's shards only
                "default_root_dir": "runs/run",
            },
            seed_everything_default=0,
            parser_kwargs={**STRICT, **dict.fromkeys(LaserCLI.subcommands(), STRICT)},
            args=arguments,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )
    except MisconfigurationException as error:  # Lightning's name for a trainer that cannot be built as asked
        raise ValueError(f"the trainer cannot run as configured: {error}") from error
    except SIGTERMException as error:
        error.code = ENDED  # where Lightning itself found the signal it says 0, as of a run that is complete
        raise
    except ProcessLost:
        leave_lost()


def quieten() -> None:
    """Silence messages of libraries that ask nothing of the user."""
    assert TorchRecStrategy.__module__  # imported for its registration as "torchrec"
    for name in ("torchrec", "torch.fx", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", message="LightningCLI.s args parameter")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")  # said in our words
    # Where Slurm is installed one may also train without it, and conf/launch/slurm.sh gives torchrun to srun.
    warnings.filterwarnings("ignore", message="The .srun. command is available on your system but is not used")
    # CSVLog has dealt with the only file of the folder that Lightning's writer touches.
    warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
    # Our metrics are already exact over all processes.
    warnings.filterwarnings("ignore", message="It is recommended to use .self.log")

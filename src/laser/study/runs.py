"""One run of a study: the command that it is, and the name under which its results are kept."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from laser.study.design import Options, Study

DIGITS = 12
ELSEWHERE = ("data.path", "trainer.logger")
"""Options that say where things are, not what is computed: they do not make another run."""


@dataclass(frozen=True)
class Run:
    """A model with a setting, a trial and a seed.

    Args:
        study: name of the study that asks for it.
        model: name.
        setting: name.
        trial: index among the model's trials.
        seed: of weights and order.
        recipes: ``-c`` of the command, in order.
        options: ``--name value`` of the command.
    """

    study: str
    model: str
    setting: str
    trial: int
    seed: int
    recipes: tuple[str, ...]
    options: Options

    def __str__(self) -> str:
        return f"{self.model} {self.setting}, trial {self.trial}, seed {self.seed}"

    def arguments(self) -> list[str]:
        """Options of ``laser fit`` and ``laser test``, without those that say where results go."""
        recipes = [argument for recipe in self.recipes for argument in ("-c", recipe)]
        options = [f"--{name}={value_text(value)}" for name, value in self.options.items()]
        return [*recipes, *options, f"--seed_everything={self.seed}"]

    def key(self, data: str) -> str:
        """Name of the run's results: it changes with what the recipes say, the options, the seed and the data.

        It does not change with comments in recipes, with the study's or the trial's name, with the options in
        ``ELSEWHERE``, or with the code.

        Args:
            data: fingerprint of the data set.
        """
        options = {name: value for name, value in self.options.items() if name not in ELSEWHERE}
        said = [[_content(recipe) for recipe in self.recipes], options, self.seed, data]
        digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()
        return f"{self.model}.{self.setting}.seed{self.seed}.{digest[:DIGITS]}"


@cache
def _content(recipe: str) -> Any:
    return yaml.safe_load(Path(recipe).read_text())


def value_text(value: Any) -> str:
    """A value as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def make_run(study: Study, model: str, setting: str, trial: int, seed: int) -> Run:
    """The run of a study for these choices; a setting goes over the model, and a trial over both."""
    chosen = study.models[model]
    variants = (chosen, study.settings[setting], chosen.trials[trial])
    recipes = [*study.recipes, *(recipe for variant in variants for recipe in variant.recipes)]
    options = dict(study.options)
    for variant in variants:
        options |= variant.options
    return Run(study.name, model, setting, trial, seed, tuple(recipes), options)


def data_path(run: Run) -> Path:
    """Where the run's prepared data set lies.

    Raises:
        ValueError: when neither recipes nor options say it.
    """
    found = run.options.get("data.path")
    for recipe in reversed(run.recipes):
        if found is None:
            found = ((_content(recipe) or {}).get("data") or {}).get("path")
    if found is None:
        raise ValueError(f"the recipes of {run} name no data set; give data.path in options")
    return Path(found)

"""What a study compares: models, settings, seeds and a tuning budget; read from YAML, checked before anything runs."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
BEST = ("auc", "gauc", "log_loss")
"""Metrics whose best possible value a setting may give."""
Options = dict[str, Any]
"""Options of ``laser fit`` by their dotted names."""


@dataclass(frozen=True)
class Variant:
    """Something that differs from the study's recipe: a model, a setting or a trial.

    Args:
        recipes: overlays, in order.
        options: single options; they go over all recipes.
        label: how reports name it; empty: its name.
        value: number that a setting stands for, such as a length or a depth; scaling laws are fitted over it.
        best: test metrics of the best possible scores, by name, where the law of a setting's data is known.
        trials: trials of this model; the study's when there are none.
    """

    recipes: tuple[str, ...] = ()
    options: Options = field(default_factory=dict)
    label: str = ""
    value: float | None = None
    best: dict[str, float] = field(default_factory=dict)
    trials: tuple[Variant, ...] = ()


@dataclass(frozen=True)
class Study:
    """A comparison.

    Args:
        name: folder of its results, and group of its runs at Weights & Biases.
        recipes: complete recipe and overlays that all runs share.
        models: what is compared, by name.
        options: options that all runs share.
        title: headline of the report.
        subjects: models that are tested against all others, the baselines; and, if several, against the first of them.
        settings: variants that every model is run with, by name.
        seeds: of the runs that are reported.
        tuning_seeds: of the runs that choose among trials.
        tuning_setting: the setting whose best trial is taken for all; empty: every setting is tuned on its own.
        tuning_model: the model whose best trial is taken for all, as for ablations; empty: every model is tuned.
    """

    name: str
    recipes: tuple[str, ...]
    models: dict[str, Variant]
    options: Options = field(default_factory=dict)
    title: str = ""
    subjects: tuple[str, ...] = ()
    settings: dict[str, Variant] = field(default_factory=lambda: {"default": Variant()})
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    tuning_seeds: tuple[int, ...] = (0,)
    tuning_setting: str = ""
    tuning_model: str = ""

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every model with every setting."""
        return [(model, setting) for setting in self.settings for model in self.models]


def read_study(path: Path | str) -> Study:
    """Read ``conf/study/NAME.yaml``.

    Raises:
        ValueError: when the file is missing, is not YAML, or says something that cannot be.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no study at {path}: no such file; conf/study/ has some to start from")
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML ({' '.join(str(error).split())[:200]})") from None
    return _Reader(path).study(content)


@dataclass
class _Reader:
    """Turns YAML into a ``Study``; every mistake names the file and the place in it."""

    path: Path

    def study(self, content: Any) -> Study:
        known = ("name", "title", "subject", "recipes", "options", "models", "settings", "seeds", "tuning")
        self._mapping(content, "the study", known)
        for key in ("recipes", "models"):
            if not content.get(key):
                raise ValueError(f"{self.path} has no {key}; give at least one")
        tuning = self._mapping(content.get("tuning") or {}, "tuning", ("seeds", "trials", "setting", "model"))
        shared = self._trials(tuning.get("trials"), "tuning.trials")
        models = {
            name: self._model(model, name, shared) for name, model in self._named(content["models"], "models").items()
        }
        settings = {
            name: self._setting(setting, f"settings.{name}")
            for name, setting in self._named(content.get("settings") or {"default": {}}, "settings").items()
        }
        study = Study(
            name=self._name(content.get("name") or self.path.stem, "name"),
            recipes=self._recipes(content["recipes"], "recipes"),
            models=models,
            options=self._options(content.get("options"), "options"),
            title=str(content.get("title") or ""),
            subjects=self._subjects(content.get("subject") or []),
            settings=settings,
            seeds=self._seeds(content.get("seeds", (0, 1, 2, 3, 4)), "seeds"),
            tuning_seeds=self._seeds(tuning.get("seeds", (0,)), "tuning.seeds"),
            tuning_setting=str(tuning.get("setting") or ""),
            tuning_model=str(tuning.get("model") or ""),
        )
        self._check(study)
        return study

    def _check(self, study: Study) -> None:
        for subject in study.subjects:
            if subject not in study.models:
                raise self._unknown("subject", subject, study.models)
        if study.tuning_setting and study.tuning_setting not in study.settings:
            raise self._unknown("tuning.setting", study.tuning_setting, study.settings)
        if study.tuning_model and study.tuning_model not in study.models:
            raise self._unknown("tuning.model", study.tuning_model, study.models)
        budgets = {name: len(model.trials) for name, model in study.models.items()}
        if len(set(budgets.values())) > 1:
            listed = ", ".join(f"{name} {number}" for name, number in budgets.items())
            raise ValueError(f"{self.path} does not give every model the same number of trials ({listed}); it must")

    def _unknown(self, key: str, found: str, known: dict[str, Any]) -> ValueError:
        return ValueError(f"{key} of {self.path} is {found!r}; expected one of {', '.join(known)}")

    def _mapping(self, content: Any, where: str, known: tuple[str, ...] | None = None) -> dict[str, Any]:
        if not isinstance(content, dict):
            found = "nothing" if content is None else type(content).__name__
            raise ValueError(f"{where} of {self.path} is {found}, expected keys and values; see conf/study/")
        if known and (wrong := [key for key in content if key not in known]):
            raise ValueError(f"{where} of {self.path} has no key {wrong[0]!r}; expected {', '.join(known)}")
        return content

    def _named(self, content: Any, where: str) -> dict[str, Any]:
        return {self._name(name, where): value or {} for name, value in self._mapping(content, where).items()}

    def _name(self, name: Any, where: str) -> str:
        if not NAME.fullmatch(str(name)):
            raise ValueError(f"{where} of {self.path} has the name {name!r}; use letters, digits, - and _")
        return str(name)

    def _model(self, content: Any, name: str, shared: tuple[Variant, ...]) -> Variant:
        model = self._variant(content, f"models.{name}", ("trials",))
        trials = self._trials(content.get("trials"), f"models.{name}.trials") if "trials" in content else shared
        return replace(model, trials=trials)

    def _setting(self, content: Any, where: str) -> Variant:
        setting = self._variant(content, where, ("best",))
        best = self._mapping(content.get("best") or {}, f"{where}.best", BEST)
        if wrong := [name for name, value in best.items() if not isinstance(value, int | float)]:
            raise ValueError(f"{where}.best.{wrong[0]} of {self.path} is {best[wrong[0]]!r}, expected a number")
        return replace(setting, best=best)

    def _variant(self, content: Any, where: str, more: tuple[str, ...] = ()) -> Variant:
        content = self._mapping(content, where, ("recipes", "options", "label", "value", *more))
        value = content.get("value")
        if value is not None and not isinstance(value, int | float):
            raise ValueError(f"{where}.value of {self.path} is {value!r}, expected a number")
        return Variant(
            self._recipes(content.get("recipes") or [], f"{where}.recipes"),
            self._options(content.get("options"), f"{where}.options"),
            str(content.get("label") or ""),
            value,
        )

    def _trials(self, content: Any, where: str) -> tuple[Variant, ...]:
        if content is None:
            return (Variant(),)
        if not isinstance(content, list) or not content:
            raise ValueError(
                f"{where} of {self.path} must be a list of at least one trial; {{}} is the recipe as it is"
            )
        return tuple(self._variant(trial or {}, f"{where}[{index}]") for index, trial in enumerate(content))

    def _recipes(self, content: Any, where: str) -> tuple[str, ...]:
        names = [content] if isinstance(content, str) else content
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{where} of {self.path} must be a list of recipes, found {content!r}")
        if missing := [name for name in names if not Path(name).is_file()]:
            raise ValueError(f"{where} of {self.path} names {missing[0]}, which is no file seen from {Path.cwd()}")
        return tuple(names)

    def _options(self, content: Any, where: str) -> Options:
        options = dict(self._mapping(content or {}, where))
        if wrong := [name for name in options if not isinstance(name, str)]:
            raise ValueError(f"{where} of {self.path} has the option {wrong[0]!r}, expected a name such as data.path")
        return options

    def _subjects(self, content: Any) -> tuple[str, ...]:
        return tuple(map(str, content)) if isinstance(content, list) else (str(content),)

    def _seeds(self, content: Any, where: str) -> tuple[int, ...]:
        seeds = list(content) if isinstance(content, list | tuple) else []
        if not seeds or len(set(seeds)) < len(seeds) or not all(type(seed) is int and seed >= 0 for seed in seeds):
            raise ValueError(f"{where} of {self.path} is {content!r}, expected a list of different whole numbers")
        return tuple(seeds)

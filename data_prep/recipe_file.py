"""YAML -> ``Recipe``: unknown keys, missing keys and wrong types fail with their place in the file."""

from __future__ import annotations

import difflib
import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from data_prep.recipe import Recipe


def load_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        ValueError: when the file is missing, is not YAML, or has an unknown, missing or mistyped key.
    """
    try:
        data = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"no recipe at {path}; give a YAML file such as conf/prep/movielens_small.yaml") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"recipe {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"recipe {path} is not YAML: {' '.join(str(error).split())}") from None
    return build(Recipe, data, str(path))


def build(kind: Any, data: Any, where: str) -> Any:
    """Turn plain YAML data into ``kind`` (a dataclass or a type hint), naming ``where`` in every complaint."""
    if is_dataclass(kind):
        return _build_dataclass(kind, data, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        rest = [a for a in arguments if a is not type(None)]
        return None if data is None and len(rest) < len(arguments) else build(rest[0], data, where)
    if origin is list:
        values = data if isinstance(data, list) else [data]
        return [build(arguments[0], value, f"{where}[{i}]") for i, value in enumerate(values)]
    if origin is dict:
        if not isinstance(data, dict):
            raise ValueError(f"{where} is {'empty' if data is None else repr(data)}; expected a mapping of names")
        return {str(name): build(arguments[1], value, f"{where}.{name}") for name, value in data.items()}
    if origin is Literal:
        if data not in arguments:
            raise ValueError(f"{where} is {data!r}; expected one of {', '.join(map(str, arguments))}")
        return data
    return _build_scalar(kind, data, where)


def _build_scalar(kind: type, data: Any, where: str) -> Any:
    if kind is str and isinstance(data, (str, int, float)) and not isinstance(data, bool):
        return str(data)
    if kind is float and isinstance(data, (int, float)) and not isinstance(data, bool):
        return float(data)
    if isinstance(data, kind) and (kind is bool or not isinstance(data, bool)):
        return data
    raise ValueError(f"{where} is {'empty' if data is None else repr(data)}; expected a value of type {kind.__name__}")


def _build_dataclass(kind: Any, data: Any, where: str) -> Any:
    hints = typing.get_type_hints(kind)
    if not isinstance(data, dict):
        raise ValueError(f"{where} is {'empty' if data is None else repr(data)}; expected keys of {', '.join(hints)}")
    data = {"on" if key is True else key: value for key, value in data.items()}  # YAML 1.1 reads a bare `on` as true
    for key in data:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys are {', '.join(hints)}"
            raise ValueError(f"{where} has the unknown key {key!r}; {hint}")
    needed = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    if absent := [name for name in needed if name not in data]:
        raise ValueError(f"{where} lacks the key {absent[0]!r}; it needs {', '.join(needed)}")
    values = {
        key: build(hints[key], value, f"{where}: {key}" if kind is Recipe else f"{where}.{key}")
        for key, value in data.items()
    }
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None

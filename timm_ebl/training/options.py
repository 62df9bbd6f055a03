"""Options of a run and their values: texts from the command line, and what YAML makes of a recipe."""

from __future__ import annotations

import ast
import dataclasses
import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .yaml12 import read_yaml

__all__ = ["COMMAND_LINE", "GROUPS", "flag_of", "option", "read_option", "read_pairs", "read_setting", "read_settings"]

GROUPS = ("data", "model", "rule", "optimisation", "run", "logging")
"""What ``--help`` sorts the options into."""

COMMAND_LINE = "command line"
"""Source of a value that has none in a file."""

_FLAGS = {"imports": "--import"}
"""Options that are not called as their settings."""

_SIZES = (1e-30, 1e30)
"""Between these lie the numbers that 32 bits hold with room for their squares and inverses."""

_LONGEST_NAME = 255
"""Bytes of the longest name that file systems store."""

_SWITCHES = {"true", "false", "yes", "no", "on", "off", "none", "null"}
"""Texts that nobody means as texts."""


def option(
    group: str, default: Any, description: str, parse: Any = str, many: bool = False, aside: bool = False
) -> Any:
    """A field of `timm_ebl.training.config.TrainConfig`.

    Args:
        group: Of `GROUPS`.
        default: Its value by default.
        description: What ``--help`` says of it.
        parse: ``int``, ``float``, ``str``, ``bool`` or ``dict``, whose default is empty.
        many: Whether it is a tuple of values.
        aside: Whether it leaves the result of a run as it is.
    """
    metadata = {"group": group, "help": description, "parse": parse, "many": many, "aside": aside}
    return dataclasses.field(
        **({"default_factory": dict} if parse is dict else {"default": default}), metadata=metadata
    )


def flag_of(name: str) -> str:
    """A setting's option of the command line."""
    return _FLAGS.get(name, f"--{name.replace('_', '-')}")


def read_setting(spec: dataclasses.Field, value: Any, source: str) -> Any:
    """The value of an option in its type; the source, `COMMAND_LINE` or a file, is for the message.

    Raises:
        ConfigError: It is of another type.
    """
    if value is None and spec.default in (None, dataclasses.MISSING):
        return None
    name = flag_of(spec.name) if source == COMMAND_LINE else f"{source}: {spec.name}"
    return read_option(name, value, spec.metadata["parse"], spec.metadata["many"])


def read_settings(
    path: str | Path, specs: Mapping[str, dataclasses.Field], aside: Mapping[str, type]
) -> dict[str, Any]:
    """The settings of a YAML file in their types, those ``aside``, given by their types, first.

    Raises:
        ConfigError: The file cannot be read, is no mapping, or has an unknown key or a value of another type.
    """
    try:
        settings = read_yaml(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"The recipe {path} cannot be read: {error}.") from None
    if settings is not None and not isinstance(settings, dict):
        raise ConfigError(f"The recipe {path} is not a list of 'option: value' lines.")
    settings = settings or {}
    found = {key: read_option(f"{path}: {key}", settings.pop(key), aside[key]) for key in aside if key in settings}
    unknown = [key for key in settings if key not in specs]
    if unknown:
        known = ", ".join([*aside, *specs])
        raise ConfigError(f"{path} has an unknown option {unknown[0]!r}: the options are {known}.")
    return found | {key: read_setting(specs[key], value, str(path)) for key, value in settings.items()}


def read_option(name: str, value: Any, kind: type, many: bool = False) -> Any:
    """The value of an option in its type.

    Args:
        name: The option, for the message.
        value: A text, or what a recipe holds; of a tuple of values, a list of them or a single one.
        kind: ``int``, ``float``, ``str``, ``bool``, or ``dict`` for `read_pairs`.
        many: Whether the option is a tuple of values.

    Raises:
        ConfigError: The value is of another type, empty, or a number out of reach.
    """
    if kind is dict:
        return read_pairs(name, value)
    read, words = _READERS[kind]
    values = value if many and isinstance(value, (list, tuple)) else [value]
    if not values:
        raise ConfigError(f"{name} is empty: give at least one value, or leave it out.")
    try:
        found = tuple(read(item) for item in values)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{name} is {words}, not {value!r:.100}.") from None
    return found if many else found[0]


def _whole(value: Any) -> int:
    if isinstance(value, str) or (isinstance(value, float) and value.is_integer()):
        value = int(value)
    if type(value) is not int:
        raise TypeError
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise TypeError
    value = float(value)
    if value and not _SIZES[0] < abs(value) < _SIZES[1]:
        raise ValueError
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    if not value.strip() or any(unicodedata.category(letter) in ("Cc", "Cs") for letter in value):
        raise ValueError
    if max(len(name.encode()) for name in value.split("/")) > _LONGEST_NAME:
        raise ValueError
    return value


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


_READERS: Mapping[type, tuple[Callable[[Any], Any], str]] = {
    int: (_whole, "a whole number"),
    float: (_number, f"a number, 0 or between {_SIZES[0]:g} and {_SIZES[1]:g} in size"),
    str: (
        _text,
        "a text (in quotes where it reads as something else) of one line that is not empty and has no name of over "
        f"{_LONGEST_NAME} bytes",
    ),
    bool: (_switch, "true or false"),
}


def read_pairs(name: str, value: Mapping[str, Any] | Sequence[str]) -> dict[str, Any]:
    """Arguments by name: a mapping, or ``KEY=VALUE`` texts with values as Python writes them, and texts as they are.

    Raises:
        ConfigError: There is no such mapping or pair, a name comes twice, or a value is none that a recipe can hold.
    """
    if isinstance(value, Mapping):
        pairs = list(value.items())
    elif isinstance(value, (list, tuple)) and value and all(isinstance(item, str) and "=" in item for item in value):
        pairs = [(key, _literal(text)) for key, _, text in (item.partition("=") for item in value)]
    else:
        raise ConfigError(f"{name} is KEY=VALUE pairs, not {value!r}.")
    settings = dict(pairs)
    if len(settings) < len(pairs):
        raise ConfigError(f"{name} has a key twice in {' '.join(value)}.")
    for key, argument in settings.items():
        if not isinstance(key, str) or not key.isidentifier():
            raise ConfigError(f"{name} is KEY=VALUE pairs, and {key!r} is no name of an argument.")
        if isinstance(argument, str) and argument.lower() in _SWITCHES:
            raise ConfigError(f"{name}: {key}={argument} is a text: write True, False or None (in a recipe true, ..).")
        if not _is_plain(argument):
            raise ConfigError(
                f"{name}: {key} is a number, a text, True, False, None or a list of them, not {argument!r}."
            )
    return settings


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, (bool, int, str))

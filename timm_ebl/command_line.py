"""Command lines: what goes wrong is said in one line."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any, NoReturn

from .config import COMMAND_LINE, PRESETS, TrainConfig, flag_of, read_recipe, read_setting, resolve
from .errors import ConfigError

__all__ = ["Parser", "parse_config"]


class Parser(argparse.ArgumentParser):
    """A parser that takes no shortened options, shows its description as it is, and ends in one line.

    Args:
        **kwargs: Arguments of `argparse.ArgumentParser`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter} | kwargs)

    def error(self, message: str) -> NoReturn:
        """End the process with status 2; argparse itself would print the usage first.

        Raises:
            SystemExit: Always.
        """
        if message.startswith("unrecognized arguments"):
            message += f"; the options are {', '.join(sorted(filter(None, self._option_string_actions)))}"
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def parse_config(arguments: Sequence[str] | None = None, description: str | None = None) -> TrainConfig:
    """The configuration of a run: the command line, over a recipe (``--config``), over a preset, over the defaults.

    Args:
        arguments: The command line; by default that of the process.
        description: What ``--help`` says first.

    Raises:
        SystemExit: Something is wrong with the command line or the recipe; one sentence says what.
    """
    parser = Parser(description=description)
    parser.add_argument("--config", metavar="FILE", help="YAML recipe; what the command line says comes before it")
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        default=argparse.SUPPRESS,
        help="how states are found; fast: the defaults below; paper: the procedure of the paper's comparative study, "
        "60 free sweeps and 15 of what follows, asynchronous, without over-relaxation (default: fast)",
    )
    specs = dataclasses.fields(TrainConfig)
    for spec in specs:
        parse, many = spec.metadata["parse"], spec.metadata["many"]
        default = "" if spec.default in (None, dataclasses.MISSING) else f" (default: {_shown(spec.default)})"
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": spec.metadata["help"] + default}
        if parse is bool:
            options |= {"action": argparse.BooleanOptionalAction}
        else:
            options |= {"nargs": "+"} if many else {}
            options |= {"metavar": {int: "N", float: "X", dict: "KEY=VALUE"}.get(parse, "NAME")}
        parser.add_argument(flag_of(spec.name), **options)
    given = vars(parser.parse_args(arguments))
    recipe = given.pop("config")
    try:
        chosen = {s.name: read_setting(s, given[s.name], COMMAND_LINE) for s in specs if s.name in given}
        chosen |= {name: given[name] for name in ("preset",) if name in given}
        return resolve({} if recipe is None else read_recipe(recipe), chosen)
    except ConfigError as error:
        parser.error(str(error))


def _shown(default: Any) -> str:
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)

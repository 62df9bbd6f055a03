"""Modules of the user's own, which register models, rules and orders: imported by name, before those are looked up."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from ..errors import ConfigError
from .options import read_option
from .yaml12 import read_yaml

__all__ = ["add_import_option", "import_modules", "import_of"]


def add_import_option(parser: argparse.ArgumentParser) -> None:
    """Offer ``--import``, whose names are for `import_modules`: one at a time, for other words may follow."""
    said = "a module that registers models, on the Python path or in this folder; may be given several times"
    parser.add_argument("--import", action="append", dest="imports", metavar="MODULE", help=said)


def import_modules(names: Sequence[str], source: str = "--import") -> None:
    """Import modules that Python finds on its path, or in the working directory.

    Args:
        names: Their names, as an ``import`` statement has them.
        source: Where the names come from, for the message.

    Raises:
        ConfigError: One is no name of a module, there is none of that name, or it cannot be imported.
    """
    for name in names:
        if name.endswith(".py") or not all(part.isidentifier() for part in name.split(".")):
            raise ConfigError(
                f"{source} takes the name of a Python module, such as my_rules for my_rules.py: not {name!r}."
            )
        here = os.getcwd()
        if here not in sys.path:
            sys.path.append(here)  # last: a file here must not take the name of a library's module
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:  # what a module raises has no common type
            if isinstance(error, ModuleNotFoundError) and (name + ".").startswith(f"{error.name}."):
                raise ConfigError(
                    f"{source} {name}: there is no module {error.name} on the Python path or in {here}."
                ) from None
            reason = textwrap.shorten(f"{type(error).__name__}: {error}", 200)
            raise ConfigError(f"{source} {name}: the module cannot be imported ({reason}).") from error


def import_of(folder: Path, ours: bool = True) -> None:
    """Import what the recipe in a folder names (``imports`` of its ``args.yaml``), if it can be read.

    Args:
        folder: The folder of a run.
        ours: Whether it is one of this machine: one from elsewhere does not decide what is imported here.

    Raises:
        ConfigError: A module cannot be imported, or is not to be.
    """
    recipe = folder / "args.yaml"
    try:
        names = read_option("imports", read_yaml(recipe)["imports"], str, many=True)
    except (OSError, ValueError, TypeError, KeyError):  # of a run without modules, None is no text
        return
    strange = next((name for name in names if not ours and name not in sys.modules), None)
    if strange:
        raise ConfigError(
            f"{recipe} asks for the module {strange}: import it first, if you know what it is (--import {strange})."
        )
    import_modules(names, f"{recipe}: imports")

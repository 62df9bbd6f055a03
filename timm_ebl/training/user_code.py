"""Modules of the user's own, which register models, rules and orders: imported by name, before those are looked up."""

from __future__ import annotations

import importlib
import os
import sys
import textwrap
from collections.abc import Sequence

from ..errors import ConfigError

__all__ = ["import_modules"]


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

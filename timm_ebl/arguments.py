"""What users give: names to choose from, numbers, and command lines, in which what goes wrong is said in one line."""

from __future__ import annotations

import difflib
import numbers
from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Mapping
from enum import Enum
from typing import Any, NoReturn

__all__ = ["Choice", "Parser", "as_plain", "is_count", "is_number", "positive_count", "require_flag"]


class Choice(str, Enum):
    """Names to choose from; an unknown one raises a ValueError that lists them."""

    def __str__(self) -> str:
        return self.value

    @classmethod
    def _missing_(cls, value: object) -> NoReturn:
        raise ValueError(f"Unknown {cls.__name__.lower()} {value!r}: choose one of {', '.join(cls)}.")


def is_number(value: object) -> bool:
    """Whether a value is a real number, NumPy's among them; ``True`` and ``False`` are none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_count(value: object, least: int = 1) -> bool:
    """Whether a value is a whole number of at least so much; ``True``, ``False`` and floats are none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and value >= least


def as_plain(value: Any) -> Any:
    """A number, or those in a tuple or list, as Python's own, which JSON and PyTorch take; anything else as it is."""
    if isinstance(value, (tuple, list)):
        return type(value)(map(as_plain, value))
    if not is_number(value) or isinstance(value, (int, float)):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def require_flag(name: str, value: object, optional: bool = False) -> None:
    """Refuse what is not ``True`` or ``False``, such as the text ``"False"``, which counts as true.

    Args:
        name: What it is a value of.
        value: The value.
        optional: Whether it may be ``None``.

    Raises:
        ValueError: It is none of these.
    """
    if not (isinstance(value, bool) or (optional and value is None)):
        raise ValueError(f"{name} is True{', False or None' if optional else ' or False'}, not {value!r}.")


def positive_count(text: str) -> int:
    """A whole number of at least 1, from the command line.

    Raises:
        ArgumentTypeError: It is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"a whole number of at least 1 is asked for, not {text!r}")
    return int(text)


class Parser(ArgumentParser):
    """A parser that takes no shortened options, shows its description as it is, and ends in one line.

    An unknown option is answered by what is meant: of another script (``elsewhere``), else one of a similar name.

    Args:
        elsewhere: Answers to options of other scripts: an option and its value, or a reason.
        **kwargs: Arguments of `argparse.ArgumentParser`.
    """

    def __init__(self, elsewhere: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        self.elsewhere = elsewhere or {}
        super().__init__(**{"allow_abbrev": False, "formatter_class": RawDescriptionHelpFormatter} | kwargs)

    def error(self, message: str) -> NoReturn:
        """End the process with status 2; argparse itself would print the usage first.

        Raises:
            SystemExit: Always.
        """
        if message.startswith("unrecognized arguments"):
            message = self._answer(message)
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")

    def _answer(self, message: str) -> str:
        """What may be said in place of an unknown option."""
        choices = [action.choices for action in self._actions if isinstance(action.choices, dict)]
        commands = [each for several in choices for each in several.values() if isinstance(each, Parser)]
        known = sorted({name for parser in (self, *commands) for name in parser._option_string_actions})
        unknown = next((word.partition("=")[0] for word in message.split()[2:] if word.startswith("-")), "")
        short = unknown if unknown.startswith("--") else unknown[:2]  # -b64
        meant = self.elsewhere.get(unknown, self.elsewhere.get(short))
        if meant is None:
            meant = next(iter(difflib.get_close_matches(unknown, known, 1, 0.75)), None)
        if meant is None:
            return f"{message}; the options are {', '.join(known)}"
        return f"unknown option {unknown}: " + (f"did you mean {meant}?" if meant.startswith("-") else meant)

"""Values that users give: names to choose from, and numbers."""

from __future__ import annotations

from argparse import ArgumentTypeError
from enum import Enum
from typing import NoReturn

__all__ = ["Choice", "is_count", "is_number", "positive_count", "require_flag"]


class Choice(str, Enum):
    """Names to choose from; an unknown one raises a ValueError that lists them."""

    def __str__(self) -> str:
        return self.value

    @classmethod
    def _missing_(cls, value: object) -> NoReturn:
        raise ValueError(f"Unknown {cls.__name__.lower()} {value!r}: choose one of {', '.join(cls)}.")


def is_number(value: object) -> bool:
    """Whether a value is a real number; ``True`` and ``False`` are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_count(value: object, least: int = 1) -> bool:
    """Whether a value is a whole number of at least so much; ``True``, ``False`` and floats are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


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

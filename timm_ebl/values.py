"""Values that users give: names to choose from, and numbers."""

from __future__ import annotations

from enum import Enum
from typing import NoReturn

__all__ = ["Choice", "is_number"]


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

"""Things that are found by name, the package's own and those that are registered from outside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Generic, TypeVar

__all__ = ["Registry", "Variant"]

T = TypeVar("T")


class Registry(Generic[T]):
    """Entries by name, in the order of their registration.

    Args:
        kind: What an entry is called in messages, such as ``"rule"``.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}
        self._own: frozenset[str] = frozenset()

    def register(self, name: str, entry: T, *, replace: bool = False) -> None:
        """Offer an entry by a name.

        Raises:
            ValueError: The name is no text, or that of one of the package's own (`close`) which is not to be replaced.
        """
        if not isinstance(name, str) or not name:
            raise ValueError(f"A {self.kind} has a name to choose it by, not {name!r}.")
        if name in self._own and not replace:
            raise ValueError(
                f"{name!r} is one of the package's own {self.kind}s: choose another name, or pass replace=True."
            )
        self._entries[name] = entry

    def close(self) -> None:
        """Count the entries so far as the package's own."""
        self._own = frozenset(self._entries)

    def names(self) -> list[str]:
        """The names of all entries."""
        return list(self._entries)

    def __getitem__(self, name: object) -> T:
        """The entry of a name.

        Raises:
            ValueError: No entry has it; the message lists those that there are.
        """
        if not isinstance(name, str) or name not in self._entries:
            raise ValueError(f"Unknown {self.kind} {name!r}: choose one of {', '.join(self._entries)}.")
        return self._entries[name]


@dataclass(frozen=True)
class Variant(Generic[T]):
    """A dataclass under a name of its own.

    Attributes:
        title: What it is called in messages, such as ``"Rule 'c-ep'"``.
        kind: The dataclass.
        fixed: Values of fields that belong to the name and are no options of it.
        defaults: Values of options where the name has others than the class.

    Raises:
        ValueError: A value is no field of the class.
    """

    title: str
    kind: type[T]
    fixed: Mapping[str, object] = field(default_factory=dict)
    defaults: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._require_known("field", self._fields, self.fixed)

    @property
    def _fields(self) -> list[str]:
        return [each.name for each in fields(self.kind) if each.init]

    @property
    def options(self) -> list[str]:
        """Names of the fields that may be given."""
        return [name for name in self._fields if name not in self.fixed]

    def create(self, **given: object) -> T:
        """An object of the class.

        Args:
            **given: Values of some of the options.

        Raises:
            ValueError: An option is unknown.
        """
        self._require_known("option", self.options, given)
        return self.kind(**{**self.fixed, **self.defaults, **given})

    def _require_known(self, noun: str, known: list[str], given: Mapping[str, object]) -> None:
        unknown = next((name for name in given if name not in known), None)
        if unknown is not None:
            raise ValueError(f"{self.title} has no {noun} {unknown!r}: its {noun}s are {', '.join(known)}.")

"""Things that are found by name, the package's own and those that are registered from outside."""

from __future__ import annotations

from typing import Generic, TypeVar

__all__ = ["Registry"]

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
            ValueError: The name is that of one of the package's own (`close`), and is not to be replaced.
        """
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

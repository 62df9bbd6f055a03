"""What the sweeps of a relaxation share."""

from __future__ import annotations

from copy import copy
from typing import TypeVar

__all__ = ["Prepared"]

P = TypeVar("P", bound="Prepared")


class Prepared:
    """What an interaction makes once for the many sweeps of a relaxation.

    Attributes:
        copies: How many times the batch holds every sample.
        of_changes: Whether it is applied to changes of states: a drive is then the change of the drive, without bias.
    """

    copies = 1
    of_changes = False

    def of_copies(self: P, copies: int) -> P:
        """The same for a batch that holds every sample ``copies`` times, block after block."""
        other = copy(self)
        other.copies = copies
        return other

    def for_changes(self: P) -> P:
        """The same for changes of states, one for each sample."""
        other = copy(self)
        other.copies, other.of_changes = 1, True
        return other

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
    """

    copies = 1

    def of_copies(self: P, copies: int) -> P:
        """The same for a batch that holds every sample ``copies`` times, block after block."""
        other = copy(self)
        other.copies = copies
        return other

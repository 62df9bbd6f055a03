"""The entries of a table in lines and columns, as Markdown and the figure show them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .table import Entry, Table

__all__ = ["Sheet", "lay_out"]

_COMMON = "common settings"


@dataclass(frozen=True)
class Sheet:
    """Entries in lines and columns.

    Attributes:
        title: The data set that all of them are of; empty if the columns are data sets.
        lines: Names of the lines.
        columns: Names of the columns.
        entries: The entries, by line and column.
    """

    title: str
    lines: tuple[str, ...]
    columns: tuple[str, ...]
    entries: Mapping[tuple[str, str], Entry]


def lay_out(table: Table) -> list[Sheet]:
    """One sheet of rows and data sets; of several rules under several settings, one of these for each data set."""
    found = table.entries.values()
    if len({entry.algo for entry in found}) == 1 or not any(entry.setting for entry in found):
        return [Sheet("", table.rows, table.datasets, table.entries)]
    sheets = []
    for dataset in table.datasets:
        here = {(entry.setting or _COMMON, entry.algo): entry for entry in found if entry.dataset == dataset}
        lines, columns = (tuple(dict.fromkeys(names)) for names in zip(*here, strict=True))
        sheets.append(Sheet(dataset, lines, columns, here))
    return sheets

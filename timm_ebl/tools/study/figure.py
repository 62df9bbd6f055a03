"""The table of a study at a glance: a panel for each column, its lines one below the other, told apart by shapes."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ...training.files import write_whole
from ..canvas import new_figure
from .sheet import Sheet, lay_out

if TYPE_CHECKING:
    from .table import Table

__all__ = ["plot_table"]

_MARKS = {
    "seed": {"marker": "|", "color": "0.35", "ms": 9},
    "mean": {"marker": "o", "color": "k", "ms": 6},
    "mean of some seeds": {"marker": "o", "color": "k", "ms": 6, "mfc": "w"},
    "paper": {"marker": "D", "color": "k", "ms": 6, "mfc": "none", "clip_on": False},
    "diverged": {"marker": "x", "color": "k", "ms": 7},
    "failed": {"marker": "$?$", "color": "k", "ms": 7},
}
"""How each thing is drawn; the last two, and large errors of the paper in words, beyond the right edge."""


def plot_table(table: Table, path: Path) -> None:
    """Draw the test errors.

    Args:
        table: The table.
        path: The picture to write.
    """
    sheets = lay_out(table)
    columns = max(len(sheet.columns) for sheet in sheets)
    width = max(7.0, 2.2 + 0.06 * max(len(line) for sheet in sheets for line in sheet.lines) + 2.0 * columns)
    heights = [0.8 + 0.3 * len(sheet.lines) for sheet in sheets]
    figure = new_figure(width, 0.8 + sum(heights))
    grid = figure.subplots(len(sheets), columns, sharey="row", squeeze=False, height_ratios=heights)
    for panels, sheet in zip(grid, sheets, strict=True):
        for axes, column in zip(panels, sheet.columns, strict=False):
            _draw(axes, sheet, column)
        for axes in panels[len(sheet.columns) :]:
            axes.remove()
        panels[0].set_yticks(range(len(sheet.lines)), sheet.lines)
        panels[0].set_ylim(len(sheet.lines) - 0.5, -0.5)
    shown = [Line2D([], [], ls="", label=name, **style) for name, style in _MARKS.items()]
    figure.legend(handles=shown, loc="outside lower center", ncols=len(shown), frameon=False)
    write_whole(path, lambda temporary: figure.savefig(temporary, dpi=150, metadata={"Software": None}))


def _draw(axes: Axes, sheet: Sheet, column: str) -> None:
    end = 1.1 * _largest(sheet, sheet.columns if sheet.title else [column])  # one data set in all panels: one scale
    beyond = axes.get_yaxis_transform()
    for y, line in enumerate(sheet.lines):
        entry = sheet.entries.get((line, column))
        if entry is None:
            continue
        if entry.paper is not None and entry.paper > end:
            axes.text(1.06, y, f"\u2192 {entry.paper:g}", transform=beyond, va="center", size="small")
        elif entry.paper is not None:
            axes.plot(entry.paper, y, **_MARKS["paper"])
        if entry.errors:
            axes.plot([*entry.errors.values()], [y] * len(entry.errors), ls="-", lw=0.8, **_MARKS["seed"])
            axes.plot(entry.mean, y, **_MARKS["mean of some seeds" if entry.others else "mean"])
        for status in {status for status, _ in entry.others.values()} & _MARKS.keys():
            axes.plot(1.03, y, transform=beyond, clip_on=False, **_MARKS[status])
    axes.set(title="\n".join(filter(None, [sheet.title, column])), xlabel="test error (%)", xlim=(0, end))
    axes.grid(axis="y", color="0.9")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _largest(sheet: Sheet, columns: Collection[str]) -> float:
    """The largest error of some columns, by which their axis ends; larger ones of the paper stand beside it."""
    entries = [entry for (_, column), entry in sheet.entries.items() if column in columns]
    errors = [error for entry in entries for error in entry.errors.values()]
    return max(errors, default=0) or max((entry.paper for entry in entries if entry.paper is not None), default=100)

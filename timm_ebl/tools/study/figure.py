"""The table of a study at a glance: a panel for each data set, a line for each row, told apart by shapes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ...training.files import write_whole

if TYPE_CHECKING:
    from .table import Table

__all__ = ["plot_table"]

_MARKS = {
    "seed": {"marker": "|", "color": "0.35", "ms": 9},
    "mean": {"marker": "o", "color": "k", "ms": 6},
    "paper": {"marker": "D", "color": "k", "ms": 6, "mfc": "none"},
    "diverged": {"marker": "x", "color": "k", "ms": 7},
    "failed": {"marker": "$?$", "color": "k", "ms": 7},
}
"""How each thing is drawn; the last two at the right edge."""


def plot_table(table: Table, path: Path) -> None:
    """Draw the test errors.

    Args:
        table: The table.
        path: The picture to write.
    """
    width = max(7.0, 2.2 + 0.06 * max(map(len, table.rows)) + 2.6 * len(table.datasets))
    figure = Figure(figsize=(width, 1.6 + 0.3 * len(table.rows)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(table.datasets), sharey=True, squeeze=False)[0]
    for axes, dataset in zip(panels, table.datasets, strict=True):
        _draw(axes, table, dataset)
    panels[0].set_yticks(range(len(table.rows)), table.rows)
    panels[0].set_ylim(len(table.rows) - 0.5, -0.5)
    shown = [Line2D([], [], ls="", label=name, **style) for name, style in _MARKS.items()]
    figure.legend(handles=shown, loc="outside lower center", ncols=len(shown), frameon=False)
    write_whole(path, lambda temporary: figure.savefig(temporary, dpi=150, metadata={"Software": None}))


def _draw(axes: Axes, table: Table, dataset: str) -> None:
    for y, row in enumerate(table.rows):
        entry = table.entries.get((row, dataset))
        if entry is None:
            continue
        if entry.paper is not None:
            axes.plot(entry.paper, y, **_MARKS["paper"])
        if entry.errors:
            axes.plot([*entry.errors.values()], [y] * len(entry.errors), ls="-", lw=0.8, **_MARKS["seed"])
            axes.plot(entry.mean, y, **_MARKS["mean"])
        for status in {status for status, _ in entry.others.values()} & _MARKS.keys():
            axes.plot(1, y, transform=axes.get_yaxis_transform(), clip_on=False, **_MARKS[status])
    axes.set(title=dataset, xlabel="test error (%)", xlim=(0, None))
    axes.grid(axis="y", color="0.9")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)

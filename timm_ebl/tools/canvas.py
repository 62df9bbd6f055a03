"""The canvas of figures: a figure without a window, pictures side by side, a file that is whole."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from ..training.files import write_whole

__all__ = ["draw_grid", "new_figure", "save_figure"]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, without a window."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure to a file, the whole of it or nothing."""
    for axes in figure.axes:
        axes.spines["top"].set_visible(False)
    write_whole(path, lambda temporary: figure.savefig(temporary, dpi=150))


def draw_grid(axes: Axes, pictures: Tensor, **style: Any) -> Any:
    """Draw pictures ``(N, H, W)`` or ``(N, H, W, 3)`` side by side in one image, with white between."""
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    _, height, width, *colours = pictures.shape
    sheet = torch.full((rows * (height + 1) - 1, columns * (width + 1) - 1, *colours), 1.0 if colours else math.nan)
    for index, picture in enumerate(pictures):
        top, left = index // columns * (height + 1), index % columns * (width + 1)
        sheet[top : top + height, left : left + width] = picture
    axes.set_axis_off()
    return axes.imshow(sheet.numpy(), interpolation="nearest", **style)

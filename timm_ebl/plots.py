"""Figures of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .run import write_whole

__all__ = ["plot_curves"]


def plot_curves(path: Path, epochs: Sequence[Mapping[str, float]], summary: Mapping[str, Any]) -> None:
    """Draw the course of a run: errors on the left, energy and residual of the free phase on the right.

    Args:
        path: The picture to write.
        epochs: The run's metrics, one mapping for each epoch.
        summary: The run's summary.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    errors, energy = figure.subplots(1, 2)
    residual = energy.twinx()
    number = [epoch["epoch"] for epoch in epochs]

    errors.plot(number, [epoch["train_error"] for epoch in epochs], "o--", color="0.55", label="training (augmented)")
    errors.plot(number, [epoch["held_out_error"] for epoch in epochs], "s-", color="C0", label="held out")
    errors.plot(
        [summary["best_epoch"]],
        [summary["test_error"]],
        "*",
        color="k",
        ms=13,
        label=f"test {summary['test_error']:.2f} %",
    )
    errors.set(xlabel="epoch", ylabel="error (%)", ylim=(0, None))
    errors.legend(frameon=False)

    (left,) = energy.plot(number, [epoch["energy"] for epoch in epochs], "o-", color="C0", label="energy")
    (right,) = residual.plot(number, [epoch["residual"] for epoch in epochs], "s--", color="0.4", label="residual")
    energy.set(xlabel="epoch", ylabel="energy of the free state (mean)")
    residual.set(ylabel="residual of the last sweep (mean)", yscale="log")
    energy.legend(handles=[left, right], loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, ncols=2)

    for axes in (errors, energy):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines["top"].set_visible(False)
    residual.spines["top"].set_visible(False)
    figure.suptitle(f"{summary['model']} trained by {summary['algo']} on {summary['dataset']}, seed {summary['seed']}")
    write_whole(path, lambda temporary: figure.savefig(temporary, dpi=150))

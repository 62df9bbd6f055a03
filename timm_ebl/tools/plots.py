"""Figures of runs: their course, a relaxation, the first filters, the states of an image, several runs side by side.

    python -m timm_ebl.tools.plots RUN [RUN ...]

For every run it writes curves.png into the run's folder, relaxation.png unless the free phase is a forward pass,
filters.png if its first weights are kernels, and states.png if a layer has maps; for several runs also comparison.png
into the folder that holds them. The images are those of the run's held-out part.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ..arguments import Parser, positive_count
from ..errors import CheckpointError, ConfigError, one_sentence
from ..models.layered import LayeredNetwork
from ..training.build import build_transform
from ..training.config import TrainConfig, read_recipe, resolve
from ..training.console import begin
from ..training.inference import load_model
from ..training.records import read_metrics, read_summary
from ..training.splits import load_splits
from ..training.user_code import add_import_option
from .canvas import draw_grid, new_figure, save_figure

if TYPE_CHECKING:
    from ..energy.graph import Layer
    from ..relaxation.model import EnergyModel

__all__ = [
    "Trace",
    "main",
    "plot_comparison",
    "plot_curves",
    "plot_filters",
    "plot_relaxation",
    "plot_states",
    "trace_relaxation",
]

_STYLES = tuple(zip(("-", "--", ":", "-.") * 5, ("o", "s", "^", "D", "v") * 4, strict=True))


def plot_curves(path: Path, epochs: Sequence[Mapping[str, float]], summary: Mapping[str, Any]) -> None:
    """Draw the course of a run: errors on the left, energy and residual of the free phase on the right.

    Args:
        path: The picture to write.
        epochs: The run's metrics, one mapping for each epoch.
        summary: The run's summary; without a test error if the run has none.
    """
    figure = new_figure(9, 3.6)
    errors, energy = figure.subplots(1, 2)
    residual = energy.twinx()
    number = [epoch["epoch"] for epoch in epochs]

    errors.plot(number, [epoch["train_error"] for epoch in epochs], "o--", color="0.55", label="training")
    if epochs[-1]["held_out_error"] is not None:
        errors.plot(number, [epoch["held_out_error"] for epoch in epochs], "s-", color="C0", label="held out")
    if "test_error" in summary:
        label = f"test {summary['test_error']:.2f} %"
        errors.plot([summary["best_epoch"]], [summary["test_error"]], "*", color="k", ms=13, label=label)
    errors.set(xlabel="epoch", ylabel="error (%)", ylim=(0, None))
    errors.legend(frameon=False)

    (left,) = energy.plot(number, [epoch["energy"] for epoch in epochs], "o-", color="C0", label="energy")
    (right,) = residual.plot(number, [epoch["residual"] for epoch in epochs], "s--", color="0.4", label="residual")
    energy.set(xlabel="epoch", ylabel="energy of the free state (mean)")
    residual.set(ylabel="residual of the last sweep (mean)", yscale="symlog" if not epochs[0]["residual"] else "log")
    energy.legend(handles=[left, right], loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, ncols=2)

    for axes in (errors, energy):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(f"{summary['model']} trained by {summary['algo']} on {summary['dataset']}, seed {summary['seed']}")
    save_figure(figure, path)


class Trace(NamedTuple):
    """A relaxation, sweep by sweep.

    Attributes:
        energy: Energy after each sweep, ``(T, B)``.
        residual: Relative size of each sweep's update, ``(T, B)``.
    """

    energy: Tensor
    residual: Tensor


def trace_relaxation(model: EnergyModel, x: Tensor, sweeps: int) -> Trace:
    """Relax images by the model's minimiser, recording every sweep.

    Args:
        model: The model.
        x: Images ``(B, C, H, W)``.
        sweeps: Number of sweeps ``T``.
    """
    relaxation, records = None, []
    for sweep in range(1, sweeps + 1):
        single = replace(model.minimizer, sweeps=1, tolerance=None, omega=model.minimizer.omega_of(sweep))
        relaxation = model.relax(x, relaxation, minimizer=single)
        records.append((relaxation.energy, relaxation.residual))
    return Trace(*(torch.stack(values) for values in zip(*records, strict=True)))


def plot_relaxation(path: Path, trace: Trace, used: int) -> None:
    """Draw energy and residual along the sweeps of a relaxation, image by image and in the median.

    Args:
        path: The picture to write.
        trace: The relaxation.
        used: Number of sweeps that the run takes.
    """
    figure = new_figure(9, 3.6)
    panels = figure.subplots(1, 2)
    sweeps = range(1, len(trace.energy) + 1)
    above = (trace.energy - trace.energy.amin(0)).clamp(min=1e-7 * float(trace.energy.abs().max()))
    for axes, values in zip(panels, (above, trace.residual), strict=True):
        axes.plot(sweeps, values, color="0.75", lw=0.8)
        axes.plot(sweeps, values.median(1).values, "ko-", ms=3, label="median")
        axes.plot([], [], color="0.75", label=f"each of {values.shape[1]} images")
        axes.axvline(used, color="k", ls=":", label=f"sweeps used: {used}")
        axes.set(xlabel="sweep", yscale="log")
    panels[0].set(ylabel="energy above its lowest value")
    panels[1].set(ylabel="residual (relative change of the state)")
    panels[0].legend(frameon=False)
    figure.suptitle("Free relaxation of held-out images")
    save_figure(figure, path)


def plot_filters(path: Path, weight: Tensor) -> None:
    """Draw the filters of the first interaction.

    Args:
        path: The picture to write.
        weight: Kernels ``(N, C, k, k)``. One channel is drawn in grey and three in colour, with grey for 0; of any
            other number the mean is drawn.
    """
    figure = new_figure(5, 5)
    axes = figure.subplots()
    weight = weight.detach().float().cpu()[:256]
    bound = float(weight.abs().max())
    if weight.shape[1] == 3:
        draw_grid(axes, (weight / (2 * bound) + 0.5).permute(0, 2, 3, 1))
        axes.set_title(f"First filters; red, green, blue from {-bound:.2f} to {bound:.2f}, grey is 0")
    else:
        image = draw_grid(axes, weight.mean(1), cmap="gray", vmin=-bound, vmax=bound)
        figure.colorbar(image, ax=axes, label="weight", shrink=0.8)
        axes.set_title("First filters")
    save_figure(figure, path)


def plot_states(
    path: Path,
    image: Tensor,
    state: Sequence[Tensor],
    layers: Sequence[Layer],
    classes: Sequence[str],
    label: int,
) -> None:
    """Draw an image and its free state: the hidden layers that have maps, and the output.

    Args:
        path: The picture to write.
        image: 8-bit image ``(C, H, W)``.
        state: Its layers, each with a batch of one; one hidden layer at least ``(1, C, H, W)``.
        layers: The same in the network's graph. Black and white are their bounds; where a layer has none, the smallest
            and the largest unit.
        classes: Names of the output units.
        label: The image's class.
    """
    output = state[-1][0].float().cpu()
    maps = {number: units[0].float().cpu() for number, units in enumerate(state[:-1], 1) if units.dim() == 4}
    ends = [_ends(layers[number - 1], units) for number, units in maps.items()]
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)
    figure = new_figure(3 * (len(maps) + 2), 3.4)
    first, *middle, last = figure.subplots(1, len(maps) + 2)
    first.imshow(image.permute(1, 2, 0).expand(-1, -1, 3).numpy())
    first.set_axis_off()
    first.set_title(f"image: {classes[label]}")
    for axes, (number, units) in zip(middle, maps.items(), strict=True):
        drawn = draw_grid(axes, units[:64], cmap="gray", vmin=low, vmax=high)
        axes.set_title(f"layer {number}: {len(units)} channels" + ", 64 shown" * (len(units) > 64))
    scale = f"unit, from {low:.3g} to {high:.3g}"
    figure.colorbar(drawn, ax=middle, label=scale, location="bottom", shrink=0.4, aspect=40)
    top = output.topk(min(10, len(output))).indices.sort().values
    last.barh(range(len(top)), output[top].tolist(), color="0.5", edgecolor="k")
    last.set(yticks=range(len(top)), yticklabels=[classes[index] for index in top], xlabel="output")
    last.invert_yaxis()
    last.set_title("output layer")
    save_figure(figure, path)


def _ends(layer: Layer, units: Tensor) -> tuple[float, float]:
    low, high = layer.bounds or (-math.inf, math.inf)
    return (low if low > -math.inf else float(units.min()), high if high < math.inf else float(units.max()))


def plot_comparison(path: Path, runs: Mapping[str, Sequence[Mapping[str, float]]], tests: Mapping[str, float]) -> None:
    """Draw several runs side by side: held-out error over epochs and over time, where something was held out.

    Args:
        path: The picture to write.
        runs: Metrics of each run by its name, one mapping for each epoch.
        tests: Test error (%) of the runs that have one.
    """
    figure = new_figure(10, 4.2)
    panels = figure.subplots(1, 2, sharey=True)
    for (name, epochs), (index, (line, marker)) in zip(runs.items(), enumerate(_STYLES * len(runs)), strict=False):
        label = f"{name}: test {tests[name]:.2f} %" if name in tests else name
        style = {"ls": line, "marker": marker, "ms": 4, "color": f"C{index}", "label": label}
        errors = [math.nan if epoch["held_out_error"] is None else epoch["held_out_error"] for epoch in epochs]
        seconds = 0.0
        times = [seconds := seconds + epoch["seconds"] for epoch in epochs]
        panels[0].plot([epoch["epoch"] for epoch in epochs], errors, **style)
        panels[1].plot([time / 60 for time in times], errors, **style)
    panels[0].set(xlabel="epoch", ylabel="held-out error (%)", ylim=(0, None))
    panels[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[1].set(xlabel="training time (min)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", frameon=False, ncols=2)
    save_figure(figure, path)


class _Run(NamedTuple):
    path: Path
    config: TrainConfig
    epochs: list[dict[str, float]]
    summary: dict[str, Any]


def _read_run(path: Path) -> _Run:
    if not (path / "metrics.jsonl").is_file():
        raise ConfigError(f"{path} is not the folder of a run with an epoch done: it has no metrics.jsonl.")
    epochs, done = read_metrics(path / "metrics.jsonl"), path / "summary.json"
    summary = read_summary(done) if done.exists() else {}
    config = resolve(read_recipe(path / "args.yaml"))
    plain = {"model": config.model or "DCHN", "algo": config.algo, "dataset": config.dataset, "seed": config.seed}
    return _Run(path, config, epochs, plain | summary)


def _plot_run(run: _Run, images: int, sweeps: int) -> list[Path]:
    """Write the figures of one run."""
    config, model = run.config, load_model(run.path)  # in this order: the configuration imports what the model needs
    data = load_splits(config)
    shown = (part := data.held_out or data.train).subset(range(min(images, len(part))))
    x = build_transform(config, data.train).eval(shown.images)
    try:
        model.answer(x[:1])
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"The images of {shown.name} do not fit {run.path}: {error}") from None
    names = [*shown.classes, *map(str, range(len(shown.classes), model.num_classes))]
    state, label, used = model.relax(x[:1]).state, int(shown.labels[0]), model.minimizer.sweeps
    figures: dict[str, Callable[[Path], None]] = {"curves.png": lambda path: plot_curves(path, run.epochs, run.summary)}
    if not model.rests:
        figures["relaxation.png"] = lambda path: plot_relaxation(path, trace_relaxation(model, x, sweeps), used)
    if isinstance(model, LayeredNetwork):
        weight = getattr(model.interactions[0], "weight", None)
        if isinstance(weight, Tensor) and weight.dim() == 4:
            figures["filters.png"] = lambda path: plot_filters(path, weight)
        if any(units.dim() == 4 for units in state[:-1]):
            figures["states.png"] = lambda path: plot_states(
                path, shown.images[0], state, model.graph.layers, names, label
            )
    for name, draw in figures.items():
        draw(run.path / name)
    return [run.path / name for name in figures]


@one_sentence()
def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the figures of runs from the command line."""
    parser = Parser(prog="python -m timm_ebl.tools.plots", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--images", type=positive_count, default=32, help="images to relax (default: 32)")
    parser.add_argument("--sweeps", type=positive_count, default=60, help="sweeps to draw (default: 60)")
    add_import_option(parser)
    options = begin(parser, arguments)
    runs = list(map(_read_run, options.runs))
    written = [path for run in runs for path in _plot_run(run, options.images, options.sweeps)]
    if len(runs) > 1:
        parent = Path(os.path.commonpath([run.path.resolve().parent for run in runs]))
        written.append(parent / "comparison.png")
        tests = {str(run.path): run.summary["test_error"] for run in runs if "test_error" in run.summary}
        plot_comparison(written[-1], {str(run.path): run.epochs for run in runs}, tests)
    print("\n".join(map(str, written)))


if __name__ == "__main__":
    main()

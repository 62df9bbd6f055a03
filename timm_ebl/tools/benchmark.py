"""Time and gradient of a training step: the published procedure of a network's family and ours, side by side.

    python -m timm_ebl.tools.benchmark --models dchn_tiny_cifar10 hopfield_resnet13_tiny_cifar10 pcn_vgg5_tiny_cifar10

All procedures run in one process, on the same weights and the same batch, by turns. The published ones, and that of
Laborieux et al. (2021) on a DCHN, are simulated plainly (`timm_ebl.rules.reference`, `timm_ebl.tools.simulation`). With
--study it compares settings of our own procedure instead, with --equilibrium the times in which free phases come
equally near their equilibrium:

    python -m timm_ebl.tools.benchmark --equilibrium 256 --dataset cifar10 --models dchn_small_cifar10.c_ep
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..arguments import Parser, positive_count
from ..errors import ConfigError, one_sentence
from ..kernels.recording import without_recordings
from ..rules.rule import create_rule, require_strength
from ..training.console import begin
from ..training.memory import keep_freed_memory, peak_memory
from .distance import print_distances
from .gradients import (
    PRECISIONS,
    add_network_options,
    gradients,
    layer_cosines,
    load_images,
    load_network,
    require_sweeps,
    true_gradient,
)
from .procedures import Procedure, in_precision, procedures, study, variants
from .simulation import family, simulation
from .throughput import median_seconds, peaks, products, sweep, sweep_flops

if TYPE_CHECKING:
    from ..models.layered import LayeredNetwork
    from ..relaxation.minimizer import Minimizer

__all__ = ["main", "measure"]


def measure(
    model: LayeredNetwork,
    batches: Sequence[tuple[Tensor, Tensor]],
    rows: Sequence[Procedure],
    repeats: int,
    precisions: Sequence[str] = (),
) -> None:
    """Print the table of one model: times of the first batch, ratios to the first row, cosines over all batches.

    Beside the mean cosine stands its standard error over the batches. The last lines are what a sweep reaches of its
    products' speed, in 32 bits and in other precisions.
    """
    x, y = batches[0]
    for row in rows:
        row.step(x, y)
    calls = [call for row in rows for call in (partial(row.predict, x), partial(row.step, x, y))]
    times = iter([seconds / len(x) * 1e3 for seconds in median_seconds(calls, repeats)])
    medians = list(zip(times, times, strict=True))
    true: dict[Minimizer, list[list[Tensor]]] = {}
    columns = f"{'procedure':<34} {'sweeps':>16} {'predict':>8} {'ratio':>6} {'step':>8} {'ratio':>6} {'MB':>7}"
    print(f"{columns}  cosine with the true gradient at its own equilibrium, by interaction")
    for (predict, step), row in zip(medians, rows, strict=True):
        with without_recordings():  # whose memory the allocator does not count
            memory = peak_memory(partial(row.step, x, y), x.device)
        equilibrium = replace(row.free, sweeps=1, compiled=False)
        if equilibrium not in true:
            true[equilibrium] = [true_gradient(model, *batch, equilibrium) for batch in batches]
        found = [gradients(model, partial(row.step, *batch)) for batch in batches]
        each = [layer_cosines(*pair) for pair in zip(found, true[equilibrium], strict=True)]
        cosines = [statistics.mean(layer) for layer in zip(*each, strict=True)]
        means = [statistics.mean(batch) for batch in each]
        error = f" +- {statistics.stdev(means) / len(means) ** 0.5:.3f}" if len(means) > 1 else ""
        print(
            f"{row.name:<34} {row.sweeps:>16} {predict:8.2f} {medians[0][0] / predict:6.1f} {step:8.2f} "
            f"{medians[0][1] / step:6.1f} {memory:7.0f}  "
            + " ".join(f"{cosine:.3f}" for cosine in cosines)
            + f"  mean {statistics.mean(cosines):.3f}{error}"
        )
    flops = sweep_flops(model, x) * len(x) / 1e9
    for precision in (None, *precisions):
        with torch.no_grad(), in_precision(precision, x):
            engine, alone = median_seconds((sweep(model, x), products(model, x)), repeats)
        print(
            f"one sweep{f', {precision}' if precision else ''}: {engine / len(x) * 1e3:.3f} ms per image, "
            f"{flops / engine:.0f} GFLOP/s; its products alone: {alone / len(x) * 1e3:.3f} ms, "
            f"{flops / alone:.0f} GFLOP/s ({100 * alone / engine:.0f} % reached)"
        )


@torch.no_grad()
def print_errors(model: LayeredNetwork, x: Tensor, y: Tensor, batch_size: int) -> None:
    """Print the error of a trained model's prediction by the published free phase and by ours."""
    kind = family(model)
    phases = [(f"the paper's {kind.free.sweeps} sweeps", kind.free), (f"our {kind.ours.sweeps} sweeps", kind.ours)]
    errors = []
    for name, free in [("the forward pass", kind.free)] if model.rests else phases:
        output = torch.cat([model.answer(images, free) for images in x.split(batch_size)])
        errors.append(f"{float((output.argmax(1) != y).double().mean()) * 100:.2f} % after {name}")
    print(f"error in {len(y)} test images: {', '.join(errors)}")


def table(model: LayeredNetwork, options: argparse.Namespace) -> list[Procedure]:
    """The rows that the options ask for; none where they ask for distances to the equilibrium.

    Raises:
        ConfigError: An option does not apply to the network.
    """
    if options.equilibrium:
        require_sweeps(model, "--equilibrium")
        simulation(model)
        return []
    if options.study:
        return study(model, options.beta)
    rows = procedures(model, options.beta, options.laborieux)
    return rows + variants(model, options.beta, options.precisions, options.compiled)


@one_sentence()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    parser = Parser(prog="python -m timm_ebl.tools.benchmark", description=__doc__)
    default = ["dchn_tiny_cifar10", "dchn_small_cifar10", "dchn_cifar10"]
    add_network_options(parser, default, 32)
    parser.add_argument("--repeats", type=positive_count, default=3, help="turns of all procedures (default: 3)")
    parser.add_argument("--batches", type=positive_count, default=4, help="batches for the cosines (default: 4)")
    parser.add_argument(
        "--beta", type=float, help="strength of the nudge (default: the published one, and in ours the network's own)"
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--laborieux", action="store_true", help="time the synchronous procedure of a DCHN as well")
    on_gpu = torch.cuda.is_available()
    parser.add_argument(
        "--precisions",
        nargs="*",
        choices=PRECISIONS,
        default=list(PRECISIONS) if on_gpu else [],
        help="time our c-ep in these as well (default: all on a GPU, none elsewhere)",
    )
    parser.add_argument(
        "--compiled",
        action=argparse.BooleanOptionalAction,
        default=on_gpu,
        help="time our c-ep compiled as well (default: on a GPU)",
    )
    parser.add_argument(
        "--test-images", type=positive_count, help="print the error in so many images of the test split as well"
    )
    kind.add_argument("--study", action="store_true", help="compare settings of our own procedure")
    kind.add_argument(
        "--equilibrium",
        type=positive_count,
        help="print how far from equilibrium free phases of so many images, test images given a --dataset, end instead",
    )
    options = begin(parser, arguments)
    if options.test_images and not options.dataset:
        parser.error("--test-images asks for a --dataset.")
    try:
        create_rule("c-ep", beta=options.beta)
        if options.beta is not None:
            require_strength(options.beta, torch.float32, below_1=True)
    except ValueError as error:
        parser.error(str(error))
    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    networks = [load_network(name, options, device, options.batches) for name in options.models]
    tables = []
    for name, (model, _, _) in zip(options.models, networks, strict=True):
        try:
            tables.append(table(model, options))
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error
    print(f"{device.type}, {torch.get_num_threads()} threads; {peaks(device, options.precisions)}")
    for name, (model, x, y), rows in zip(options.models, networks, tables, strict=True):
        if options.equilibrium:
            images = torch.randn(options.equilibrium, *x.shape[1:])
            if options.dataset:
                images, _ = load_images(model, options, "test", options.equilibrium)
            print(f"\n{name}, {options.batch_size} images at a time")
            print_distances(model, images.to(device), options.batch_size, options.repeats)
            continue
        tests = load_images(model, options, "test", options.test_images) if options.test_images else None
        betas = options.beta or family(model).beta, options.beta or model.beta
        nudge = "" if betas[0] == betas[1] else ", nudge of {:g}, of {:g} in ours".format(*betas)
        print(f"\n{name}, {options.batch_size} images, milliseconds per image{nudge}")
        batches = list(zip(x.split(options.batch_size), y.split(options.batch_size), strict=True))
        measure(model, batches, rows, options.repeats, options.precisions)
        if tests:
            images, labels = tests
            print_errors(model, images.to(device), labels.to(device), options.batch_size)


if __name__ == "__main__":
    main()

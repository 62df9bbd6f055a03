"""Time and gradient of a training step: the paper's procedure, that of Laborieux et al. (2021) and ours, side by side.

    python -m timm_ebl.tools.benchmark --models dchn_tiny_cifar10 dchn_small_cifar10 dchn_cifar10

All procedures run in one process, on the same weights and the same batch, by turns. The two yardsticks are simulated
plainly (`timm_ebl.rules.reference`). With --study it compares settings of our own procedure instead, with
--equilibrium the times in which free phases come equally near their equilibrium:

    python -m timm_ebl.tools.benchmark --equilibrium 256 --dataset cifar10 --models dchn_small_cifar10.c_ep
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arguments import Parser, positive_count
from ..errors import one_sentence
from ..relaxation.minimizer import PAPER, Minimizer
from ..relaxation.model import SETTLING_SWEEPS, EnergyModel
from ..rules import reference
from ..rules.contrastive import ContrastiveRule
from ..rules.rule import Rule, create_rule
from ..training.console import begin
from ..training.memory import keep_freed_memory, peak_memory
from .distance import plain_layers, plain_relax, print_distances
from .gradients import (
    PRECISIONS,
    add_network_options,
    gradients,
    layer_cosines,
    load_images,
    load_network,
    true_gradient,
)
from .throughput import median_seconds, products, sweep, sweep_flops

if TYPE_CHECKING:
    from ..energy.functional import State
    from ..models.network import HopfieldNetwork

__all__ = ["Procedure", "main", "measure", "procedures", "study"]


class Procedure(NamedTuple):
    """One row of the table.

    Attributes:
        name: What it is.
        sweeps: Sweeps of the free phase and of what follows it.
        free: The free phase.
        predict: Relaxes a batch ``x`` freely.
        step: Takes the gradient of a batch ``(x, y)``.
    """

    name: str
    sweeps: str
    free: Minimizer
    predict: Callable[[Tensor], object]
    step: Callable[[Tensor, Tensor], None]


def procedures(model: HopfieldNetwork, beta: float, laborieux: bool) -> list[Procedure]:
    """The rows of the table.

    Raises:
        ConfigError: The paper's procedure is none for the network (`plain_layers`).
    """
    rows = [plain_procedure(model, "paper", PAPER, 20, beta)]
    if laborieux:
        rows.append(plain_procedure(model, "Laborieux 2021", replace(PAPER, order="synchronous", sweeps=250), 30, beta))
    rules = [("c-ep", {"beta": beta}), ("c-ep", {"beta": beta, "linear_response": False}), ("tbp", {}), ("rbp", {})]
    return rows + [
        rule_procedure(model, name, create_rule(name, free=Minimizer(), **options)) for name, options in rules
    ]


def plain_procedure(model: HopfieldNetwork, name: str, free: Minimizer, nudged_sweeps: int, beta: float) -> Procedure:
    """Centred equilibrium propagation as the paper simulates it (`timm_ebl.rules.reference`).

    Args:
        model: The network.
        name: What it is called.
        free: The free phase, asynchronous or synchronous, from zero and without over-relaxation.
        nudged_sweeps: Sweeps of each of the two nudged phases.
        beta: Strength of the nudge.
    """
    order = {"asynchronous": reference.asynchronous, "synchronous": reference.synchronous}[free.order]

    def predict(x: Tensor) -> State:
        return plain_relax(plain_layers(model), x, free.sweeps, order)

    def step(x: Tensor, y: Tensor) -> None:
        layers, target = plain_layers(model), F.one_hot(y, model.num_classes).to(x.dtype)
        found = reference.gradients("c-ep", layers, x, target, predict(x), beta, nudged_sweeps, order)
        for parameter, gradient in zip((p for layer in layers for p in layer[:2]), found, strict=True):
            parameter.grad = gradient

    plain_layers(model)
    return Procedure(f"c-ep, {name}", f"{free.sweeps} + 2 x {nudged_sweeps}", free, predict, step)


def study(model: HopfieldNetwork, beta: float) -> list[Procedure]:
    """Settings of our own procedure, from the paper's to fewer and fewer sweeps."""
    second = EnergyModel.perturbed
    settings = [(PAPER, Minimizer(sweeps=20, omega=1.0)), (Minimizer(sweeps=20), replace(second, sweeps=8))]
    settings += [(Minimizer(sweeps=10), replace(second, sweeps=4))]
    settings += [(Minimizer(sweeps=n), second) for n in (12, 10, 8, 7, 6, 4)]
    settings += [(Minimizer(), replace(second, sweeps=2, omega=omega)) for omega in (1.0, 1.2, 1.4)]
    settings += [(Minimizer(), replace(second, omega=omega)) for omega in (1.2, 1.4, (1.6, 1.4, 1.0))]
    settings += [(Minimizer(omega=1.7), second)]
    return [
        rule_procedure(model, "c-ep", create_rule("c-ep", free=free, perturbed=second, beta=beta, linear_response=held))
        for free, second in settings
        for held in (True, False)
    ]


def rule_procedure(model: HopfieldNetwork, name: str, rule: Rule, precision: str | None = None) -> Procedure:
    """A rule with a free phase of its own as a row of the table, under autocast given a precision of `PRECISIONS`."""
    rule = rule.fitted(model)
    free, second = rule.free, rule.second_phase
    contrastive = isinstance(rule, ContrastiveRule)
    settles = contrastive and rule.settles
    notes = [
        *(["unheld"] if contrastive and not rule.linear_response else []),
        *(["compiled"] if free.compiled else []),
        *([precision] if precision else []),
    ]

    def autocast(x: Tensor) -> AbstractContextManager:
        return torch.autocast(x.device.type, PRECISIONS[precision]) if precision else nullcontext()

    def predict(x: Tensor) -> None:
        with autocast(x):
            model.answer(x, free)

    def step(x: Tensor, y: Tensor) -> None:
        with autocast(x):
            loss = rule(model, x, y).loss
        loss.backward()

    return Procedure(
        ", ".join([f"{name}, ours, {free.omegas}/{second.omegas}", *notes]),
        f"{free.sweeps} + {f'{SETTLING_SWEEPS} + ' if settles else ''}{'2 x ' if contrastive else ''}{second.sweeps}",
        free,
        predict,
        step,
    )


def variants(model: HopfieldNetwork, beta: float, precisions: Sequence[str], compiled: bool) -> list[Procedure]:
    """The default setting of c-ep in other precisions, and compiled."""
    plain = create_rule("c-ep", free=Minimizer(), beta=beta).fitted(model)
    rows = [rule_procedure(model, "c-ep", plain, precision) for precision in precisions]
    if compiled:
        free, perturbed = (replace(phase, compiled=True) for phase in (plain.free, plain.perturbed))
        rule = replace(plain, free=free, perturbed=perturbed)
        rows += [rule_procedure(model, "c-ep", rule, precision) for precision in (None, *precisions)]
    return rows


def measure(
    model: HopfieldNetwork, batches: Sequence[tuple[Tensor, Tensor]], rows: Sequence[Procedure], repeats: int
) -> None:
    """Print the table of one model: times of the first batch, ratios to the first row, cosines over all batches.

    Beside the mean cosine stands its standard error over the batches.
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
    with torch.no_grad():
        engine, alone = median_seconds((sweep(model, x), products(model, x)), repeats)
    flops = sweep_flops(model, x) * len(x) / 1e9
    print(
        f"one sweep: {engine / len(x) * 1e3:.3f} ms per image, {flops / engine:.0f} GFLOP/s; its products alone: "
        f"{alone / len(x) * 1e3:.3f} ms, {flops / alone:.0f} GFLOP/s ({100 * alone / engine:.0f} % reached)"
    )


@torch.no_grad()
def print_errors(model: HopfieldNetwork, x: Tensor, y: Tensor, batch_size: int) -> None:
    """Print the error of a trained model's prediction by the paper's free phase and by ours."""
    errors = []
    for name, free in (("the paper's", PAPER), ("our", Minimizer())):
        output = torch.cat([model.answer(images, free) for images in x.split(batch_size)])
        errors.append(f"{float((output.argmax(1) != y).double().mean()) * 100:.2f} % after {name} {free.sweeps} sweeps")
    print(f"error in {len(y)} test images: {', '.join(errors)}")


@one_sentence()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    parser = Parser(prog="python -m timm_ebl.tools.benchmark", description=__doc__)
    default = ["dchn_tiny_cifar10", "dchn_small_cifar10", "dchn_cifar10"]
    add_network_options(parser, default, 32)
    parser.add_argument("--repeats", type=positive_count, default=3, help="turns of all procedures (default: 3)")
    parser.add_argument("--batches", type=positive_count, default=4, help="batches for the cosines (default: 4)")
    parser.add_argument("--beta", type=float, default=0.25, help="strength of the nudge (default: 0.25)")
    parser.add_argument("--laborieux", action="store_true", help="time the synchronous procedure as well")
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
    parser.add_argument("--study", action="store_true", help="compare settings of our own procedure")
    parser.add_argument(
        "--equilibrium",
        type=positive_count,
        help="print how far from equilibrium free phases of so many images, test images given a --dataset, end instead",
    )
    options = begin(parser, arguments)
    if options.test_images and not options.dataset:
        parser.error("--test-images asks for a --dataset.")
    try:
        create_rule("c-ep", beta=options.beta)
    except ValueError as error:
        parser.error(str(error))
    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    networks = [load_network(name, options, device, options.batches) for name in options.models]
    matrix = torch.randn(2048, 2048, device=device)
    peak = 2 * 2048**3 / median_seconds([lambda: matrix @ matrix], 1)[0] / 1e9
    print(f"{device.type}, {torch.get_num_threads()} threads, a 2048^3 matrix product runs at {peak:.0f} GFLOP/s")
    for name, (model, x, y) in zip(options.models, networks, strict=True):
        if options.equilibrium:
            images = torch.randn(options.equilibrium, *x.shape[1:])
            if options.dataset:
                images, _ = load_images(model, options, "test", options.equilibrium)
            print(f"\n{name}, {options.batch_size} images at a time")
            print_distances(model, images.to(device), options.batch_size, options.repeats)
            continue
        tests = load_images(model, options, "test", options.test_images) if options.test_images else None
        print(f"\n{name}, {options.batch_size} images, milliseconds per image")
        if options.study:
            rows = study(model, options.beta)
        else:
            rows = procedures(model, options.beta, options.laborieux)
            rows += variants(model, options.beta, options.precisions, options.compiled)
        batches = list(zip(x.split(options.batch_size), y.split(options.batch_size), strict=True))
        measure(model, batches, rows, options.repeats)
        if tests:
            images, labels = tests
            print_errors(model, images.to(device), labels.to(device), options.batch_size)


if __name__ == "__main__":
    main()

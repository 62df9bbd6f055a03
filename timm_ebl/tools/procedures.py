"""The rows of the benchmark: published procedures, and ours in several settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError
from ..kernels.recording import RECORDERS, without_recordings
from ..relaxation.minimizer import PAPER, Minimizer
from ..relaxation.model import SETTLING_SWEEPS
from ..rules.contrastive import ContrastiveRule
from ..rules.rule import Rule, create_rule
from .gradients import PRECISIONS, require_sweeps
from .simulation import family, simulation

if TYPE_CHECKING:
    from ..energy.functional import State
    from ..models.layered import LayeredNetwork

__all__ = ["Procedure", "in_precision", "plain_procedure", "procedures", "rule_procedure", "study", "variants"]


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


def procedures(model: LayeredNetwork, beta: float | None, laborieux: bool) -> list[Procedure]:
    """The rows of the table.

    Args:
        model: The network.
        beta: Strength of the nudge; by default the published one, and in our procedure the network's own.
        laborieux: Whether the procedure of Laborieux et al. (2021) is one of them.

    Raises:
        ConfigError: A procedure is none for the network.
    """
    published = family(model)
    strength = beta or published.beta
    rows = [plain_procedure(model, published.name, published.free, published.nudged_sweeps, strength)]
    if laborieux:
        rows.append(_laborieux(model, strength))
    rules = [("c-ep", {"beta": beta}), ("c-ep", {"beta": beta, "linear_response": False}), ("tbp", {}), ("rbp", {})]
    return rows + [
        rule_procedure(model, name, create_rule(name, free=published.ours, **options)) for name, options in rules
    ]


def _laborieux(model: LayeredNetwork, beta: float) -> Procedure:
    if family(model).free != PAPER:
        raise ConfigError(
            "--laborieux is the procedure of Laborieux et al. (2021), which is for chains of pooled convolutions: "
            "leave it or this network out."
        )
    return plain_procedure(model, "Laborieux 2021", replace(PAPER, order="synchronous", sweeps=250), 30, beta)


def in_precision(precision: str | None, x: Tensor) -> AbstractContextManager:
    """Autocast in a precision of `PRECISIONS` on the device of a tensor; without one, nothing."""
    return torch.autocast(x.device.type, PRECISIONS[precision]) if precision else nullcontext()


def plain_procedure(
    model: LayeredNetwork, name: str, free: Minimizer, nudged_sweeps: int, beta: float, precision: str | None = None
) -> Procedure:
    """Centred equilibrium propagation as it was published, simulated plainly (`timm_ebl.tools.simulation`).

    Args:
        model: The network.
        name: What it is called.
        free: The free phase, asynchronous or synchronous, from zero and without over-relaxation.
        nudged_sweeps: Sweeps of each of the two nudged phases.
        beta: Strength of the nudge.
        precision: That of the products, under autocast; by default the network's own.

    Raises:
        ConfigError: It is none for the network (`simulation`).
    """

    def predict(x: Tensor) -> State:
        with in_precision(precision, x):
            return simulation(model, free.order).free(x, free.sweeps)

    def step(x: Tensor, y: Tensor) -> None:
        target = F.one_hot(y, model.num_classes).to(x.dtype)
        with in_precision(precision, x):
            found = simulation(model, free.order).gradients(x, target, predict(x), beta, nudged_sweeps)
        parameters = (parameter for part in model.interactions for parameter in part.parameters())
        for parameter, gradient in zip(parameters, found, strict=True):
            parameter.grad = gradient

    simulation(model, free.order)
    name = ", ".join(filter(None, ("c-ep", name, precision)))
    return Procedure(name, f"{free.sweeps} + 2 x {nudged_sweeps}", free, predict, step)


def study(model: LayeredNetwork, beta: float | None) -> list[Procedure]:
    """Settings of our own procedure, from the published ones to fewer and fewer sweeps.

    Raises:
        ConfigError: There are no sweeps in its free phase.
    """
    require_sweeps(model, "--study")
    published, second = family(model), model.perturbed
    ours = published.ours
    settings = [(published.free, Minimizer(sweeps=published.nudged_sweeps, omega=1.0))]
    settings += [(replace(ours, sweeps=n), replace(second, sweeps=m)) for n, m in ((20, 8), (10, 4))]
    settings += [(replace(ours, sweeps=n), second) for n in (12, 10, 8, 7, 6, 4)]
    settings += [(ours, replace(second, sweeps=2, omega=omega)) for omega in (1.0, 1.2, 1.4)]
    settings += [(ours, replace(second, omega=omega)) for omega in (1.2, 1.4, (1.6, 1.4, 1.0))]
    settings += [(replace(ours, omega=1.7), second)]
    return [
        rule_procedure(model, "c-ep", create_rule("c-ep", free=free, perturbed=second, beta=beta, linear_response=held))
        for free, second in settings
        for held in (True, False)
    ]


def rule_procedure(model: LayeredNetwork, name: str, rule: Rule, precision: str | None = None) -> Procedure:
    """A rule with a free phase of its own as a row of the table, under autocast given a precision of `PRECISIONS`."""
    rule = rule.fitted(model)
    free, second = rule.free, rule.second_phase
    contrastive = isinstance(rule, ContrastiveRule)
    settles = contrastive and rule.settles and not model.rests
    notes = [
        *(["unheld"] if contrastive and not rule.linear_response else []),
        *(["compiled"] if free.compiled else []),
        *([precision] if precision else []),
    ]

    def predict(x: Tensor) -> None:
        with in_precision(precision, x):
            model.answer(x, free)

    def step(x: Tensor, y: Tensor) -> None:
        with in_precision(precision, x):
            loss = rule(model, x, y).loss
        loss.backward()

    return Procedure(
        ", ".join([f"{name}, ours, {free.omegas}/{second.omegas}", *notes]),
        f"{free.sweeps} + {f'{SETTLING_SWEEPS} + ' if settles else ''}{'2 x ' if contrastive else ''}{second.sweeps}",
        free,
        predict,
        step,
    )


def variants(model: LayeredNetwork, beta: float | None, precisions: Sequence[str], compiled: bool) -> list[Procedure]:
    """The published procedure and our default c-ep in other precisions, and ours compiled.

    On a GPU, compiled ones are there with CUDA graphs and without.
    """
    published = family(model)
    settings = published.name, published.free, published.nudged_sweeps, beta or published.beta
    simulated = [plain_procedure(model, *settings, precision) for precision in precisions]
    plain = create_rule("c-ep", free=published.ours, beta=beta).fitted(model)
    rows = simulated + [rule_procedure(model, "c-ep", plain, precision) for precision in precisions]
    if compiled:
        free, perturbed = (replace(phase, compiled=True) for phase in (plain.free, plain.perturbed))
        rule = replace(plain, free=free, perturbed=perturbed)
        compiled_rows = [rule_procedure(model, "c-ep", rule, precision) for precision in (None, *precisions)]
        rows += compiled_rows
        if next(model.parameters()).device.type in RECORDERS:
            rows += [_without_graphs(row) for row in compiled_rows]
    return rows


def _without_graphs(row: Procedure) -> Procedure:
    """A compiled row whose sweeps are launched one by one."""
    launched = without_recordings()
    return row._replace(name=f"{row.name}, no graph", predict=launched(row.predict), step=launched(row.step))

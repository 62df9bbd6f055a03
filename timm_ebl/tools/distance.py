"""How near its own equilibrium a free phase comes, and in what time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..relaxation.descent import relative_change
from ..relaxation.minimizer import EQUILIBRIUM, MOST_SWEEPS, Minimizer
from ..training.equilibrium import limit
from .simulation import family, simulation
from .throughput import median_seconds

if TYPE_CHECKING:
    from ..energy.functional import State
    from ..models.network import HopfieldNetwork
    from ..relaxation.model import EnergyModel
    from ..relaxation.record import Relaxation

__all__ = ["Approach", "approach", "print_distances"]

NEAR = 0.01
"""A state is near its limit within this distance."""

SHARE = 0.95
"""The part of the samples that is to be near."""


class Approach(NamedTuple):
    """The way of a procedure to its own limit: where it ends when it goes on until its residual is at rounding.

    Attributes:
        limit: That state ``s_inf``.
        sweeps: The first sweep after which `SHARE` of the samples are within `NEAR` of it, or the most.
        unsettled: Samples whose residual is not at rounding there.
    """

    limit: State
    sweeps: int
    unsettled: int


def approach(model: EnergyModel, x: Tensor, minimizer: Minimizer, most: int = MOST_SWEEPS) -> Approach:
    """Follow a free relaxation to its limit, and once more until it is near.

    Args:
        model: The network.
        x: Input ``(B, ..)``.
        minimizer: Order, start and over-relaxation of the procedure, which goes on with its last one.
        most: The sweeps after which the limit is taken in any case.
    """
    end = limit(model, x, minimizer, most)
    away = (relative_change(passed.state, end.state) for passed in _sweeps(model, x, minimizer, most))
    sweeps = next((sweep for sweep, far in enumerate(away, 1) if float((far <= NEAR).double().mean()) >= SHARE), most)
    return Approach(end.state, sweeps, int((~end.converged).sum()))


def _sweeps(model: EnergyModel, x: Tensor, minimizer: Minimizer, most: int) -> Iterator[Relaxation]:
    """The relaxation after each of so many sweeps of a minimiser."""
    relaxation = None
    for sweep in range(1, most + 1):
        one = replace(minimizer, sweeps=1, tolerance=None, omega=minimizer.omega_of(sweep))
        relaxation = model.relax(x, relaxation, minimizer=one)
        yield relaxation


@torch.no_grad()
def print_distances(model: HopfieldNetwork, x: Tensor, batch_size: int, repeats: int) -> None:
    """Print how far from their equilibrium free phases end, and the times in which they come equally near.

    Args:
        model: The network.
        x: The images that are followed to their equilibrium.
        batch_size: How many of them are relaxed for the times.
        repeats: Turns of the times.

    Raises:
        ConfigError: No published procedure is for the network (`simulation`).
    """
    kind, plain = family(model), simulation(model)
    published, ours = kind.free, kind.ours
    schedules = {"the paper's": published, "our default's": ours, "EQUILIBRIUM's": EQUILIBRIUM}
    ways = {name: approach(model, x, free) for name, free in schedules.items()}
    print(f"|s - s_inf| / |s_inf| of {len(x)} images, s_inf where the same sweeps go on until rounding: median, 95 %")
    answers = [("the paper's", published), *(("our default's", replace(ours, sweeps=sweeps)) for sweeps in (7, 14, 20))]
    for name, free in (*answers, ("EQUILIBRIUM's", EQUILIBRIUM)):
        away = relative_change(model.relax(x, minimizer=free).state, ways[name].limit)
        end = f"{free.sweeps} sweeps" if free.tolerance is None else f"residual of {free.tolerance:g}"
        print(f"  after {name} {end}: {away.median():.1e}, {away.quantile(0.95):.1e}")
    enough = {name: replace(free, sweeps=ways[name].sweeps, tolerance=None) for name, free in schedules.items()}
    batch, calls = x[:batch_size], {name: partial(model.relax, minimizer=free) for name, free in enough.items()}
    papers = enough["the paper's"].sweeps
    calls["the paper's"] = partial(plain.free, sweeps=papers)
    seconds = median_seconds([partial(call, batch) for call in calls.values()], repeats)
    times = [time / len(batch) * 1e3 for time in seconds]
    print(f"{SHARE:.0%} of these images are within {NEAR:.0%} of it")
    for (name, way), time in zip(ways.items(), times, strict=True):
        unsettled = f"; {way.unsettled} images are not at rest" if way.unsettled else ""
        print(f"  after {name} {way.sweeps} sweeps: {time:.2f} ms an image ({times[0] / time:.1f} x){unsettled}")

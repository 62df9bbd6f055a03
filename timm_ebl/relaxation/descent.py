"""The one loop that moves a state: sweeps, until the minimiser says stop."""

from __future__ import annotations

import warnings
from functools import cache
from itertools import repeat
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..energy.functional import norm
from ..kernels.compiled import compiled
from ..kernels.native import is_exporting
from .minimizer import check_tolerance
from .order import leading_to

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from .minimizer import Minimizer
    from .phase import Phase

__all__ = ["descend", "relative_change"]

SWEEPS_BETWEEN_LOOKS = 4
"""With a tolerance, how often the residual is computed: the processor then waits for the device."""


@torch.no_grad()
def descend(
    phase: Phase, minimizer: Minimizer, *, measured: bool = True, wanted: Iterable[int] | None = None
) -> tuple[Tensor | None, int]:
    """Make sweeps of a phase until the minimiser says stop.

    Args:
        phase: The phase, which is moved.
        minimizer: Order, over-relaxation and end.
        measured: Whether the residual is wanted.
        wanted: The layers whose last state is wanted, without a tolerance; updates that do not reach them are left out.

    Returns:
        The residual of the last sweep, ``(B,)``, if it was measured, and the number of sweeps.

    Raises:
        ValueError: The tolerance is below what the type of the state can tell apart.
        RuntimeError: There is a tolerance, and the phase is only recorded (a trace, an export, a meta device).
    """
    neighbours = phase.graph.neighbours
    groups, step = minimizer.groups(neighbours), _step(phase, minimizer)
    updates = repeat(groups, minimizer.sweeps)
    if wanted is not None:
        updates = leading_to(wanted, groups, minimizer.sweeps, neighbours)
    end = _AllSweeps(minimizer) if minimizer.tolerance is None else _Tolerance(minimizer, phase)
    for sweep, groups in enumerate(updates, 1):
        looks = wanted is None and end.looks(sweep)
        before = tuple(phase.state) if looks and measured else ()
        phase.begin(sweep, looks)
        step(groups, end.omega(sweep), end.frozen)
        if before and end.reached(relative_change(before, phase.state)):
            break
    else:
        end.missed()
    return end.residual, sweep


def relative_change(before: Sequence[Tensor], after: Sequence[Tensor]) -> Tensor:
    """``|after - before| / |after|`` over all layers, ``(B,)``; 0 where nothing changed."""
    change = norm([a - b for b, a in zip(before, after, strict=True)])
    return torch.where(change > 0, change / norm(after), change)


class _AllSweeps:
    """The end of all sweeps of a minimiser."""

    residual: Tensor | None = None
    frozen: Tensor | None = None

    def __init__(self, minimizer: Minimizer) -> None:
        self.omega, self.sweeps = minimizer.omega_of, minimizer.sweeps

    def looks(self, sweep: int) -> bool:
        return sweep == self.sweeps

    def reached(self, residual: Tensor) -> bool:
        self.residual = residual
        return True

    def missed(self) -> None:
        pass


class _Tolerance:
    """The end of every sample, with its copy if it has one, at the tolerance; from then on it is frozen as it is."""

    def __init__(self, minimizer: Minimizer, phase: Phase) -> None:
        if torch.jit.is_tracing() or is_exporting() or phase.x.is_meta:
            raise RuntimeError(
                f"With a tolerance ({minimizer.tolerance:g}), the values decide how many sweeps are made, which no "
                "recording can: relax for a fixed number of sweeps."
            )
        self.minimizer, self.phase = minimizer, phase
        self.residual = self.first = self.frozen = None
        self.done = self.slow = torch.zeros(len(phase.x), dtype=torch.bool, device=phase.x.device)

    def looks(self, sweep: int) -> bool:
        return sweep == self.minimizer.sweeps or sweep % SWEEPS_BETWEEN_LOOKS == 0

    def omega(self, sweep: int) -> Tensor:
        return self.phase.x.new_full(self.slow.shape, self.minimizer.omega_of(sweep)).masked_fill_(self.slow, 1)

    def reached(self, residual: Tensor) -> bool:
        if self.first is None:
            check_tolerance(self.minimizer.tolerance, self.phase.state[0].dtype)
            self.first = self.residual = residual
        self.residual = torch.where(self.done, self.residual, residual)
        self.slow = self.slow | (self.residual > self.first)
        near = (self.residual <= self.minimizer.tolerance).view(self.phase.copies, len(residual) // self.phase.copies)
        self.done = self.done | near.all(0).repeat(self.phase.copies)
        count = int(self.done.sum())
        self.frozen = self.done if count else None
        return count == len(self.done)

    def missed(self) -> None:
        warnings.warn(
            f"Some samples have not come to the tolerance of {self.minimizer.tolerance:g} in {self.minimizer.sweeps} "
            "sweeps (`Relaxation.converged` tells which): allow more sweeps or a larger tolerance.",
            RuntimeWarning,
            stacklevel=4,
        )


def _step(phase: Phase, minimizer: Minimizer) -> Callable[..., None]:
    """The sweep of a phase, compiled where asked; it is compiled anew for every other number."""
    if not minimizer.compiled or is_exporting() or torch.jit.is_tracing():
        return phase.sweep
    form = phase.copies, phase.x.device, *((layer.shape, layer.dtype) for layer in phase.state)
    sweep = compiled(type(phase).sweep, form)

    def step(groups, omega, frozen) -> None:
        known = isinstance(omega, Tensor) or omega == 1
        sweep(phase, groups, omega if known else _as_tensor(omega, phase.x.device), frozen)

    return step


@cache
def _as_tensor(omega: float, device: torch.device) -> Tensor:
    return torch.tensor(omega, device=device)

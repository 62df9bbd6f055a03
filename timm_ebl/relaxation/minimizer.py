"""How an energy is minimised over the state, and until when (paper, Section 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ..arguments import Choice, as_plain, is_count, is_number, require_flag
from .order import groups_of

if TYPE_CHECKING:
    from .order import Groups, Neighbours

__all__ = ["EQUILIBRIUM", "PAPER", "Minimizer", "Start", "check_tolerance", "require_minimizer"]

SWEEPS, MOST_SWEEPS = 7, 1000
"""Sweeps of a relaxation by default: without a tolerance, and at most with one."""

LEAST_TOLERANCE = 8
"""The least tolerance, in units of the state's rounding: at an equilibrium, it alone leaves a residual of 1 to 7."""

_LEAST_OMEGA = torch.finfo(torch.float32).tiny  # a smaller one is 0 in 32 bits: no layer would change


class Start(Choice):
    """Where a relaxation starts when no state is given."""

    ZERO = "zero"
    """Every layer at zero, as the paper's released code evaluates."""
    FEEDFORWARD = "feedforward"
    """One bottom-up pass without feedback; its drives are used by the first sweep, so that it adds almost no time."""


@dataclass(frozen=True)
class Minimizer:
    """How to minimise the energy: which update, in what order, from where and until when.

    The defaults are ours and meant to be fast; the paper's procedure is `PAPER`.

    Attributes:
        order: Name of a registered order of update (`timm_ebl.list_orders`).
        sweeps: Number of sweeps, by default 7; with a tolerance the most of them, by default 1000.
        tolerance: Stop a sample once its residual is at most this; ``None`` makes all sweeps, as the paper does. The
            residual is computed every fourth sweep, and a sample that is done stays as it is: where it ends does not
            depend on the others. A warning tells of samples that do not get there (`Relaxation.converged`).
        omega: Over-relaxation ``s <- clip(s + omega (h - s))`` of the hidden layers in the field ``h``,
            ``0 < omega < 2``, or one for each sweep, the last one for all that follow; those beyond `sweeps` are used
            when a relaxation is continued (`further`). The paper has 1. With a tolerance, a sample goes on with 1 once
            its residual is above the first that was computed.
        start: Where to start if no state is given.
        compiled: Whether sweeps run as `torch.compile` makes them: the first few wait for the compiler, and every other
            batch size waits anew. It is meant for a fixed number of sweeps, whose shapes are always the same: on a CUDA
            device, answers and the steps of contrastive rules are then CUDA graphs (`timm_ebl.kernels.recording`).

    Raises:
        ValueError: A field is out of range, or a name is unknown.
    """

    order: str = "asynchronous"
    sweeps: int | None = None
    tolerance: float | None = None
    omega: float | tuple[float, ...] = (1.9, 1.9, 1.9, 1.8, 1.8, 1.8, 1.7, 1.7, 1.6, 1.5)
    start: Start = Start.FEEDFORWARD
    compiled: bool = False

    def __post_init__(self) -> None:
        groups_of(self.order)
        if self.sweeps is None:
            object.__setattr__(self, "sweeps", SWEEPS if self.tolerance is None else MOST_SWEEPS)
        if not is_count(self.sweeps):
            raise ValueError(f"The number of sweeps is a whole number of at least 1, not {self.sweeps!r}.")
        if self.tolerance is not None:
            if not (is_number(self.tolerance) and 0 < self.tolerance < math.inf):
                raise ValueError(f"The tolerance is a positive number or None, not {self.tolerance!r}.")
            object.__setattr__(self, "tolerance", float(self.tolerance))
        omegas = self._omegas
        if not omegas or not all(is_number(omega) and _LEAST_OMEGA < omega < 2 for omega in omegas):
            raise ValueError(f"The over-relaxation omega lies between 0 and 2 (exclusive), not at {self.omega!r}.")
        require_flag("compiled", self.compiled)
        object.__setattr__(self, "omega", as_plain(omegas[0] if len(set(omegas)) == 1 else omegas))
        object.__setattr__(self, "sweeps", as_plain(self.sweeps))
        object.__setattr__(self, "start", Start(self.start))

    @property
    def _omegas(self) -> tuple[float, ...]:
        several = isinstance(self.omega, Sequence) and not isinstance(self.omega, str)
        return tuple(self.omega) if several else (self.omega,)

    def omega_of(self, sweep: int) -> float:
        """Over-relaxation of a sweep, counted from 1."""
        return self._omegas[min(sweep, len(self._omegas)) - 1]

    @property
    def is_recordable(self) -> bool:
        """Whether a device may record its sweeps: they are compiled, and no values decide how many there are."""
        return self.compiled and self.tolerance is None

    @property
    def omegas(self) -> str:
        """The over-relaxation of the first and of the last sweep, to be read."""
        return "-".join(dict.fromkeys(str(self.omega_of(sweep)) for sweep in (1, self.sweeps)))

    def further(self, sweeps: int) -> Minimizer:
        """The minimiser that goes on for so many sweeps, whatever the tolerance, where this one has ended."""
        omega = tuple(self.omega_of(self.sweeps + sweep) for sweep in range(1, sweeps + 1))
        return replace(self, sweeps=sweeps, tolerance=None, omega=omega)

    def groups(self, neighbours: Neighbours) -> Groups:
        """The groups of one sweep over layers with these neighbours (`groups_of`)."""
        return groups_of(self.order, neighbours)


PAPER = Minimizer(sweeps=60, omega=1.0, start=Start.ZERO)
"""The paper's minimiser: 60 asynchronous sweeps without over-relaxation (Section 4.2), from zero as released."""

EQUILIBRIUM = Minimizer(order="backward", omega=(1.9, 1.9, 1.9, 1.8, 1.8, 1.8, 1.7), tolerance=1e-3)
"""For the equilibrium itself, where the default's seven sweeps are for an answer.

One layer after the other and with over-relaxation to the end, slow samples need fewer sweeps than by default.
"""


def check_tolerance(tolerance: float, dtype: torch.dtype) -> None:
    """Refuse, by a ValueError, a tolerance that rounding never lets a state of that type reach."""
    least = LEAST_TOLERANCE * torch.finfo(dtype).eps
    if tolerance < least:
        raise ValueError(
            f"A tolerance of {tolerance:g} is below the rounding of {str(dtype).removeprefix('torch.')}: give at least "
            f"{least:.1e}, or compute in a wider type."
        )


def require_minimizer(name: str, value: object, optional: bool = False) -> None:
    """Refuse, by a TypeError, what is no `Minimizer`; ``None`` may be allowed."""
    if not (isinstance(value, Minimizer) or (optional and value is None)):
        raise TypeError(f"{name} is a timm_ebl.Minimizer, not {value!r}.")

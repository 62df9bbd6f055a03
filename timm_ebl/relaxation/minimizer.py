"""Minimising the energy over the state: how, and until when (paper, Section 3)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from ..arguments import Choice, is_number, require_flag
from ..energy.functional import State, norm
from .order import Groups, checked, get_order, leading_to
from .record import Relaxation
from .walk import Walk

__all__ = [
    "EQUILIBRIUM",
    "PAPER",
    "Minimizer",
    "Start",
    "answer",
    "minimize",
    "relative_change",
    "require_minimizer",
    "settle",
]

SWEEPS = 7
"""Sweeps of a relaxation without a tolerance, by default."""

MOST_SWEEPS = 1000
"""The most sweeps of a relaxation with a tolerance, by default."""

SWEEPS_BETWEEN_LOOKS = 4
"""With a tolerance, how often the residual is looked at: a look makes the processor wait for the device."""

_LEAST_OMEGA = torch.finfo(torch.float32).tiny
"""What is below it is 0 in 32 bits: nothing would move."""

LEAST_TOLERANCE = 8
"""The least tolerance, in units of the state's rounding: at rest it leaves a residual of one to seven by itself."""


class Start(Choice):
    """Where a relaxation starts when no state is given."""

    ZERO = "zero"
    """Every layer at zero, as the paper evaluates."""
    FEEDFORWARD = "feedforward"
    """One bottom-up pass without feedback; its drives are used by the first sweep, so that it costs next to nothing."""


@dataclass(frozen=True)
class Minimizer:
    """How to minimise the energy: which update, in what order, from where and until when.

    The defaults are ours and meant to be fast; the paper's procedure is `PAPER`.

    Attributes:
        order: Name of a registered order of update (`timm_ebl.relaxation.order.list_orders`).
        sweeps: Number of sweeps, by default 7; with a tolerance the most of them, by default 1000.
        tolerance: Stop a sample once its residual is at most this; ``None`` makes all sweeps, as the paper does. The
            residual is looked at every fourth sweep, and a sample that is done leaves the batch and stays as it is:
            where it ends does not depend on the others. A warning tells of samples that do not get there
            (`Relaxation.converged`).
        omega: Over-relaxation ``s <- clip(s + omega (h - s), 0, 1)`` of the hidden layers with drive and feedback
            ``h``, ``0 < omega < 2``, or one for each sweep, the last one for all that follow; those beyond `sweeps` are
            for whoever goes on (`further`). The paper has 1; the energy never rises for any of them under the
            asynchronous order. With a tolerance, a sample goes on with 1 once its residual is above that of its first
            look.
        start: Where to start if no state is given.
        compiled: Whether sweeps run as `torch.compile` makes them: the first few wait for the compiler, and every other
            batch size waits anew. It is meant for a fixed number of sweeps, whose shapes are always the same.

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
        get_order(self.order)
        if self.sweeps is None:
            object.__setattr__(self, "sweeps", SWEEPS if self.tolerance is None else MOST_SWEEPS)
        if type(self.sweeps) is not int or self.sweeps < 1:
            raise ValueError(f"The number of sweeps is a whole number of at least 1, not {self.sweeps!r}.")
        if self.tolerance is not None and not (is_number(self.tolerance) and 0 < self.tolerance < math.inf):
            raise ValueError(f"The tolerance is a positive number or None, not {self.tolerance!r}.")
        if self.tolerance is not None:
            object.__setattr__(self, "tolerance", float(self.tolerance))
        omegas = self._omegas
        if not omegas or not all(is_number(omega) and _LEAST_OMEGA < omega < 2 for omega in omegas):
            raise ValueError(f"The over-relaxation omega lies between 0 and 2 (exclusive), not at {self.omega!r}.")
        require_flag("compiled", self.compiled)
        object.__setattr__(self, "omega", omegas[0] if len(set(omegas)) == 1 else omegas)
        object.__setattr__(self, "start", Start(self.start))

    @property
    def _omegas(self) -> tuple[float, ...]:
        return (
            tuple(self.omega) if isinstance(self.omega, Sequence) and not isinstance(self.omega, str) else (self.omega,)
        )

    def omega_of(self, sweep: int) -> float:
        """Over-relaxation of a sweep, counted from 1."""
        return self._omegas[min(sweep, len(self._omegas)) - 1]

    @property
    def omegas(self) -> str:
        """The over-relaxation of the first and of the last sweep, to be read."""
        return "-".join(dict.fromkeys(str(self.omega_of(sweep)) for sweep in (1, self.sweeps)))

    def further(self, sweeps: int) -> Minimizer:
        """The minimiser that goes on for so many sweeps, whatever the tolerance, where this one has ended."""
        omega = tuple(self.omega_of(self.sweeps + sweep) for sweep in range(1, sweeps + 1))
        return replace(self, sweeps=sweeps, tolerance=None, omega=omega)

    def groups(self, layers: int) -> Groups:
        """The groups of one sweep over ``layers`` free layers.

        Raises:
            ValueError: The order leaves out a layer, or names one that there is not.
        """
        return checked(self.order, get_order(self.order)(layers), layers)


def require_minimizer(name: str, value: object, optional: bool = False) -> None:
    """Refuse what is no `Minimizer`.

    Raises:
        TypeError: It is none; ``None`` may be allowed.
    """
    if not (isinstance(value, Minimizer) or (optional and value is None)):
        raise TypeError(f"{name} is a timm_ebl.Minimizer, not {value!r}.")


PAPER = Minimizer(sweeps=60, omega=1.0, start=Start.ZERO)
"""The paper's minimiser: 60 asynchronous sweeps from zero, without over-relaxation (Section 4.2)."""

EQUILIBRIUM = Minimizer(order="backward", omega=(1.9, 1.9, 1.9, 1.8, 1.8, 1.8, 1.7), tolerance=1e-3)
"""For the equilibrium itself, where the default's seven sweeps are for an answer.

One layer after the other and with over-relaxation to the end, slow samples need fewer sweeps than by default.
"""


@torch.no_grad()
def minimize(walk: Walk, minimizer: Minimizer) -> Relaxation:
    """Walk downhill until the minimiser says stop.

    Args:
        walk: Where to start.
        minimizer: Order, over-relaxation and end of the walk.

    Raises:
        ValueError: The tolerance is below what the type of the state can tell apart.
        RuntimeError: There is a tolerance, and the walk is only recorded (a trace, an export, a meta device).
    """
    if minimizer.tolerance is not None:
        return _minimize_to(minimizer.tolerance, walk, minimizer)
    before = _make_sweeps(walk, minimizer)
    return walk.record(relative_change(before, walk.state), minimizer.sweeps, None)


def _make_sweeps(walk: Walk, minimizer: Minimizer) -> State:
    """All sweeps of a minimiser; returns the state before the last of them."""
    step, groups, last = _step(walk, minimizer), minimizer.groups(len(walk.state)), minimizer.sweeps
    for sweep in range(1, last + 1):
        before = tuple(walk.state) if sweep == last else ()
        walk.begin(sweep, sweep == last)
        step(walk, groups, minimizer.omega_of(sweep))
    return before


def _minimize_to(tolerance: float, walk: Walk, minimizer: Minimizer) -> Relaxation:
    """Sweeps until every sample has this residual, or the minimiser has no more of them."""
    if torch.jit.is_tracing() or torch.compiler.is_exporting() or walk.x.is_meta:
        raise RuntimeError(
            f"With a tolerance ({tolerance:g}), the values decide how many sweeps are made, which no recording can: "
            "relax for a fixed number of sweeps."
        )
    whole, step, groups = walk, _step(walk, minimizer), minimizer.groups(len(walk.state))
    parts: list[tuple[Tensor, Tensor, Walk]] = []
    places, first = torch.arange(len(walk.x), device=walk.x.device), None
    slow = torch.zeros_like(places, dtype=torch.bool)
    for sweep in range(1, minimizer.sweeps + 1):
        last = sweep == minimizer.sweeps
        looks = last or sweep % SWEEPS_BETWEEN_LOOKS == 0
        before = tuple(walk.state) if looks else ()
        walk.begin(sweep, looks)
        step(walk, groups, walk.x.new_full(places.shape, minimizer.omega_of(sweep)).masked_fill_(slow, 1))
        if sweep == 1:
            check_tolerance(tolerance, walk.state[0].dtype)
        if not looks:
            continue
        residual = relative_change(before, walk.state)
        first = residual if first is None else first
        slow |= residual > first
        done = (residual <= tolerance).view(walk.copies, len(residual) // walk.copies).all(0)
        count = int(done.sum())
        if last or count == len(done):
            break
        if count:
            rows = done.repeat(walk.copies)
            parts.append((places[rows], residual[rows], walk.select(done)))
            walk, places, first, slow = walk.select(~done), places[~rows], first[~rows], slow[~rows]
    if count < len(done):
        warnings.warn(
            f"Some samples have not come to the tolerance of {tolerance:g} in {sweep} sweeps (`Relaxation.converged` "
            "tells which): allow more sweeps or a larger tolerance.",
            RuntimeWarning,
            stacklevel=2,
        )
    if parts:
        parts.append((places, residual, walk))
        whole.join([(places, part) for places, _, part in parts])
        residual = torch.cat([part[1] for part in parts])[torch.cat([part[0] for part in parts]).argsort()]
    return whole.record(residual, sweep, tolerance)


def check_tolerance(tolerance: float, dtype: torch.dtype) -> None:
    """Refuse a tolerance that rounding never lets a state of that type reach.

    Raises:
        ValueError: It is below `LEAST_TOLERANCE` roundings.
    """
    least = LEAST_TOLERANCE * torch.finfo(dtype).eps
    if tolerance < least:
        raise ValueError(
            f"A tolerance of {tolerance:g} is below the rounding of {str(dtype).removeprefix('torch.')}: give at least "
            f"{least:.1e}, or compute in a wider type."
        )


@torch.no_grad()
def answer(walk: Walk, minimizer: Minimizer) -> Tensor:
    """The drive into the output layer, ``(B, M)``, where a walk ends, without a record of it.

    Where no tolerance asks for the whole state, updates that no longer reach the output are left out.

    Args:
        walk: Where to start.
        minimizer: Order, over-relaxation and end of the walk.
    """
    last = len(walk.state) - 1
    if minimizer.tolerance is not None:
        return minimize(walk, minimizer).drives[last].value
    step = _step(walk, minimizer)
    for sweep, groups in enumerate(leading_to({last - 1}, minimizer.groups(last + 1), minimizer.sweeps), 1):
        step(walk, groups, minimizer.omega_of(sweep))
    return walk.drive(last).value


@torch.no_grad()
def settle(walk: Walk, minimizer: Minimizer) -> Relaxation:
    """All sweeps of a minimiser, whatever its tolerance, and what a perturbed phase starts from.

    There is neither energy nor residual, and the routes are those of the last updates, as the potentials are.

    Args:
        walk: Where to start.
        minimizer: Order and over-relaxation of the walk.
    """
    _make_sweeps(walk, minimizer)
    return walk.record(None, minimizer.sweeps, None)


@cache
def compiled_sweep(walk: type[Walk]) -> Callable[[Walk, Groups, float | Tensor], None]:
    """The sweep of a kind of walk, compiled."""
    return torch.compile(walk.sweep, dynamic=False)


def _step(walk: Walk, minimizer: Minimizer) -> Callable[[Walk, Groups, float | Tensor], None]:
    """The sweep of a walk, compiled where asked; compiled code takes every other number for another programme."""
    if not minimizer.compiled:
        return type(walk).sweep
    sweep, device = compiled_sweep(type(walk)), walk.x.device

    def step(walk: Walk, groups: Groups, omega: float | Tensor) -> None:
        known = isinstance(omega, Tensor) or omega == 1
        sweep(walk, groups, omega if known else _as_tensor(omega, device))

    return step


@cache
def _as_tensor(omega: float, device: torch.device) -> Tensor:
    return torch.tensor(omega, device=device)


def relative_change(before: Sequence[Tensor], after: Sequence[Tensor]) -> Tensor:
    """``|after - before| / |after|`` over all layers, ``(B,)``; 0 where nothing changed."""
    change = norm([a - b for b, a in zip(before, after, strict=True)])
    return torch.where(change > 0, change / norm(after), change)

"""Minimising the energy over the state: the minimiser, the record of a relaxation (paper, Section 3).

One sweep updates every layer once, group by group. The layers of a group are updated together, each to the exact
minimum of the energy given the others (`timm_ebl.energy`), so a sweep costs one forward and one transposed
convolution for each interaction whatever the order is: a drive is kept until the layer below it changes, and its
pooling route serves the feedback as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import Tensor

from .energy import Drive, Interaction, State, energy_from_drives
from .order import Groups, get_order
from .perturbation import FREE, Perturbation

__all__ = ["PAPER", "Minimizer", "Relaxation", "Start", "Walk", "minimize", "relative_change", "stamp"]

Stamp = tuple[tuple[Tensor, int], ...]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class Start(str, Enum):
    """Where a relaxation starts when no state is given."""

    ZERO = "zero"
    """Every layer at zero, as the paper evaluates."""
    FEEDFORWARD = "feedforward"
    """One bottom-up pass without feedback; its drives are used by the first sweep, so that it costs next to nothing."""

    @classmethod
    def _missing_(cls, value: object) -> Start:
        raise ValueError(f"Unknown start {value!r}: choose one of {', '.join(cls)}.")


@dataclass(frozen=True)
class Minimizer:
    """How to minimise the energy: which update, in what order, from where and until when.

    The defaults are ours and meant to be fast; the paper's procedure is `PAPER`.

    Attributes:
        order: Name of a registered order of update (`timm_ebl.order.list_orders`).
        sweeps: Number of sweeps; the most of them, if a tolerance is given.
        tolerance: Stop once the residual of every sample is at most this. ``None`` runs all sweeps, as the paper does.
        omega: Over-relaxation ``s <- clip(s + omega (s_new - s), 0, 1)`` of the hidden layers, ``0 < omega < 2``. The
            paper has 1; the energy never rises for any of them under the asynchronous order.
        start: Where to start if no state is given.

    Raises:
        ValueError: A field is out of range, or a name is unknown.
    """

    order: str = "asynchronous"
    sweeps: int = 8
    tolerance: float | None = None
    omega: float = 1.5
    start: Start = Start.FEEDFORWARD

    def __post_init__(self) -> None:
        get_order(self.order)
        if type(self.sweeps) is not int or self.sweeps < 1:
            raise ValueError(f"The number of sweeps is a whole number of at least 1, not {self.sweeps!r}.")
        if self.tolerance is not None and not (_is_number(self.tolerance) and 0 < self.tolerance < math.inf):
            raise ValueError(f"The tolerance is a positive number or None, not {self.tolerance!r}.")
        if not (_is_number(self.omega) and 0 < self.omega < 2):
            raise ValueError(f"The over-relaxation omega lies between 0 and 2 (exclusive), not at {self.omega!r}.")
        object.__setattr__(self, "start", Start(self.start))

    def groups(self, layers: int) -> Groups:
        """The groups of one sweep over ``layers`` free layers."""
        return get_order(self.order)(layers)


PAPER = Minimizer(sweeps=60, omega=1.0, start=Start.ZERO)
"""The paper's minimiser: 60 asynchronous sweeps from zero, without over-relaxation (Section 4.2)."""


@dataclass(frozen=True)
class Relaxation:
    """Where a relaxation ended, and how.

    Attributes:
        input: The input ``x`` that was relaxed, ``(B, ..)``.
        state: The layers ``(s_1, .., o)``.
        energy: ``E(theta, x, state)``, ``(B,)``, without the cost of a perturbation; with the held routes, if any.
        residual: Relative size of the last sweep's update, ``|s - s_previous| / |s|`` over all layers, ``(B,)``.
        sweeps: Sweeps used.
        tolerance: The residual asked for; ``None`` if the number of sweeps was fixed.
        drives: The drive into each layer at `state`, for whoever goes on from here; empty if they are not known.
        stamp: What the drives were computed from: input and parameters, each with its version (`stamp`).
    """

    input: Tensor
    state: State
    energy: Tensor
    residual: Tensor
    sweeps: int
    tolerance: float | None = None
    drives: tuple[Drive, ...] = field(default=(), repr=False)
    stamp: Stamp = field(default=(), repr=False)

    @property
    def output(self) -> Tensor:
        """The output layer ``(B, M)``."""
        return self.state[-1]

    @property
    def converged(self) -> Tensor:
        """Whether each sample's residual is within the tolerance, ``(B,)``; 1e-3 if none was asked for."""
        return self.residual <= (1e-3 if self.tolerance is None else self.tolerance)

    def repeat(self, times: int) -> Relaxation:
        """The same relaxation of a batch that holds every sample ``times`` times, block after block."""
        return self if times == 1 else Relaxation.cat([self] * times)

    @classmethod
    def cat(cls, relaxations: Sequence[Relaxation]) -> Relaxation:
        """Several relaxations as one of all their samples, in order; the sweeps are the most of any."""
        first, inputs = relaxations[0], torch.cat([r.input for r in relaxations])
        return cls(
            input=inputs,
            state=tuple(torch.cat(layers) for layers in zip(*(r.state for r in relaxations), strict=True)),
            energy=torch.cat([r.energy for r in relaxations]),
            residual=torch.cat([r.residual for r in relaxations]),
            sweeps=max(r.sweeps for r in relaxations),
            tolerance=first.tolerance,
            drives=tuple(Drive.cat(drives) for drives in zip(*(r.drives for r in relaxations), strict=True)),
            stamp=stamp([inputs]) + first.stamp[1:],
        )


class Walk:
    """A relaxation under way: the present state, and every drive that is still that of the state.

    Args:
        interactions: The interactions, from the input upwards.
        x: Input ``(B, C, H, W)``.
        state: The layers ``(s_1, .., o)``.
        perturbation: What is done to the output layer.
        drives: The drives of `state`, where known.
        routes: Pooling routes to hold throughout, one for each layer; by default they follow the state.
    """

    def __init__(
        self,
        interactions: Sequence[Interaction],
        x: Tensor,
        state: State,
        perturbation: Perturbation = FREE,
        drives: Sequence[Drive] = (),
        routes: Sequence[Tensor | None] = (),
    ) -> None:
        self.interactions = interactions
        self.prepared = [interaction.prepare() for interaction in interactions]
        self.x = x
        self.state = list(state)
        self.perturbation = perturbation
        self.routes = tuple(routes) or (None,) * len(self.state)
        self._drives: list[Drive | None] = list(drives) or [None] * len(self.state)

    def drive(self, layer: int) -> Drive:
        """The drive into a layer from the present state of the one below."""
        drive = self._drives[layer]
        if drive is None:
            below = self.state[layer - 1] if layer else self.x
            drive = self._drives[layer] = self.interactions[layer].drive(
                below, self.routes[layer], self.prepared[layer]
            )
        return drive

    def minimum(self, layer: int) -> Tensor:
        """The exact minimum of the energy over one layer, the others fixed."""
        drive = self.drive(layer).value
        if layer == len(self.state) - 1:
            return self.perturbation.output(drive)
        above, route = self.state[layer + 1], self.drive(layer + 1).route
        feedback = self.interactions[layer + 1].feedback(
            above, route, self.state[layer].shape, self.prepared[layer + 1]
        )
        return self.perturbation.hidden(layer, drive + feedback).clamp_(0, 1)

    def sweep(self, groups: Groups, omega: float = 1.0) -> None:
        """Update every layer once; the output layer is never over-relaxed."""
        for group in groups:
            updates = [(layer, self.minimum(layer)) for layer in group]
            for layer, minimum in updates:
                if omega != 1 and layer < len(self.state) - 1:
                    minimum.lerp_(self.state[layer].to(minimum.dtype), 1 - omega).clamp_(0, 1)
                self.set(layer, minimum)

    def set(self, layer: int, value: Tensor) -> None:
        """Replace one layer of the state."""
        self.state[layer] = value
        if layer + 1 < len(self.state):
            self._drives[layer + 1] = None

    def stamp(self) -> Stamp:
        """What the drives are computed from."""
        return stamp([self.x, *(p for interaction in self.interactions for p in interaction.parameters())])

    def drives(self) -> tuple[Drive, ...]:
        """The drives of the present state."""
        return tuple(self.drive(layer) for layer in range(len(self.state)))


@torch.no_grad()
def minimize(walk: Walk, minimizer: Minimizer) -> Relaxation:
    """Walk downhill until the minimiser says stop.

    Args:
        walk: Where to start; it is left at the end of the relaxation.
        minimizer: Order, over-relaxation and end of the walk.
    """
    groups = minimizer.groups(len(walk.state))
    for sweep in range(1, minimizer.sweeps + 1):
        last = sweep == minimizer.sweeps
        measured = last or minimizer.tolerance is not None
        before = tuple(walk.state) if measured else ()
        walk.sweep(groups, minimizer.omega)
        if measured:
            residual = relative_change(before, walk.state)
            if last or bool((residual <= minimizer.tolerance).all()):
                break
    drives = walk.drives()
    state = tuple(walk.state)
    energy = energy_from_drives(state, [drive.value for drive in drives])
    return Relaxation(walk.x, state, energy, residual, sweep, minimizer.tolerance, drives, walk.stamp())


def stamp(tensors: Iterable[Tensor]) -> Stamp:
    """The tensors, each with a number that grows whenever it is written to in place (but not through ``.data``)."""
    return tuple((tensor, 0 if tensor.is_inference() else tensor._version) for tensor in tensors)


def relative_change(before: Sequence[Tensor], after: Sequence[Tensor]) -> Tensor:
    """``|after - before| / |after|`` over all layers, ``(B,)``; 0 where nothing changed."""
    change = sum(_squared_norm(a - b) for b, a in zip(before, after, strict=True))
    size = sum(_squared_norm(a) for a in after)
    return torch.where(change > 0, change / size, change).sqrt()


def _squared_norm(layer: Tensor) -> Tensor:
    wide = torch.promote_types(layer.dtype, torch.float32)
    return torch.linalg.vector_norm(layer.flatten(1), dim=1, dtype=wide) ** 2

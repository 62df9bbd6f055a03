"""The response of a free state to a perturbation, its pooling routes held. Ours, not the paper's.

With the routes held, drives and feedbacks are linear. With ``u`` the potential that the last free update gave to each
layer, ``s = clip(u)``, a perturbed state relaxes to

    s' = clip(u + W (s' - s) + W^T (s' - s)),

``W`` and ``W^T`` standing for the drive from the layer below and the feedback from the one above. The free state is at
rest: what its own relaxation left undone is no effect of the perturbation. At an equilibrium, ``u`` is the field, and
``s'`` minimises the perturbed energy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..energy.interaction import Drive, Interaction, of_samples
from ..energy.perturbation import Perturbation
from ..kernels.products import apart, copies_of
from .order import Groups
from .record import Relaxation
from .walk import Walk

__all__ = ["Response"]

SWEEPS_BETWEEN_MEANS = 4
"""How often the products of the mean of two opposite responses are computed anew."""


class Response(Walk):
    """A perturbed state, or two under opposite perturbations, on their way from a free state.

    Two responses are relaxed by their difference: the products of their mean's change, which is of second order in the
    strength of the perturbations, are taken in every fourth sweep alone, for the first time in the fourth. The first of
    several sweeps leaves out the first layer, the dearest and the furthest from the output, unless a force acts on it.

    Args:
        interactions: The interactions, from the input upwards.
        free: The free state, or two copies of it (`Relaxation.repeat`).
        perturbation: What is done, to each copy.

    Raises:
        ValueError: The free state has no potentials, or is there more than twice.
    """

    def __init__(self, interactions: Sequence[Interaction], free: Relaxation, perturbation: Perturbation) -> None:
        if not free.potentials or free.copies > 2:
            raise ValueError("A response starts from a free state or from two copies of one: pass that as start.")
        changes = [part and part.for_changes() for part in free.prepared]
        super().__init__(interactions, free.input, free.state, perturbation, prepared=changes)
        self.free = free
        self.samples = len(free.input) // free.copies
        self.state[-1] = perturbation.start(free.state[-1])
        self._moved = [False] * (len(self.state) - 1) + [self.state[-1] is not free.state[-1]]
        self._mean_changes: list[Tensor | None] = [None] * len(self.state)
        self._moves_mean = self._spares_first = False

    @property
    def copies(self) -> int:
        return self.free.copies

    def begin(self, sweep: int, measured: bool) -> None:
        self._moves_mean = self.copies == 2 and sweep % SWEEPS_BETWEEN_MEANS == 0
        self._spares_first = sweep == 1 and not measured and not self.perturbation.reaches(0)

    def sweep(self, groups: Groups, omega: float | Tensor = 1.0) -> None:
        if self._spares_first:
            groups = tuple(tuple(layer for layer in group if layer > 0) for group in groups)
        super().sweep(groups, omega)

    def field(self, layer: int) -> Tensor:
        centre = self.free.potentials[layer]
        if self._moves_mean:
            self._mean_changes[layer] = self._field_change(layer, self._mean_change)
        if self._mean_changes[layer] is not None:
            centre = centre + self._mean_changes[layer]
        change = self._field_change(layer, self._change)
        if self.copies == 2:
            field = torch.cat([centre, centre]) if change is None else apart(centre, change)
        else:
            field = centre.clone() if change is None else change.add_(centre)
        last = layer == len(self.state) - 1
        return self.perturbation.output(field, self.state[layer]) if last else self.perturbation.hidden(layer, field)

    def set(self, layer: int, value: Tensor) -> None:
        self.state[layer], self._moved[layer] = value, True

    def select(self, samples: Tensor) -> Response:
        walk = super().select(samples)
        walk.free, walk.samples = self.free.select(samples), len(walk.x) // self.copies
        walk._mean_changes = [of_samples(change, samples) for change in self._mean_changes]
        return walk

    def record(self, residual: Tensor, sweeps: int, tolerance: float | None) -> Relaxation:
        return Relaxation(
            input=self.x,
            state=tuple(self.state),
            energy=None,
            residual=residual,
            sweeps=sweeps,
            tolerance=tolerance,
            drives=tuple(Drive(None, drive.route) for drive in self.free.drives),
            copies=self.copies,
            stamp=self.free.stamp,
            prepared=self.free.prepared,
        )

    def _field_change(self, layer: int, of: Callable[[int], Tensor]) -> Tensor | None:
        """What a change of the neighbours makes of the field on a layer; ``None`` if neither has moved."""
        below, above, change = layer - 1, layer + 1, None
        if above < len(self.state) and self._moved[above]:
            lower = torch.Size((self.samples, *self.state[layer].shape[1:]))
            route, prepared = self.free.drives[above].route, self.prepared[above]
            change = self.interactions[above].feedback(of(above), route, lower, prepared)
        if layer and self._moved[below]:
            drive = self.interactions[layer].change(of(below), self.free.drives[layer].route, self.prepared[layer])
            change = drive if change is None else change.add_(drive)
        return change

    def _change(self, layer: int) -> Tensor:
        """The difference of both responses, or the change that one is."""
        if self.copies == 2:
            first, second = copies_of(self.state[layer])
            return second - first
        return self.state[layer] - self.free.state[layer]

    def _mean_change(self, layer: int) -> Tensor:
        """The mean change of both responses."""
        return torch.lerp(*copies_of(self.state[layer]), 0.5) - self.free.state[layer][: self.samples]

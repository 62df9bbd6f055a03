"""A relaxation under way.

One sweep updates every layer once, group by group. The layers of a group are updated together, each to the exact
minimum of the energy given the others (`timm_ebl.energy.interaction`), so a sweep costs one forward and one transposed
convolution for each interaction whatever the order is: a drive is kept until the layer below it changes, and its
pooling route serves the feedback as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor

from ..energy.functional import State, energy_from_drives
from ..energy.interaction import Drive, Interaction, cat_known, of_samples
from ..energy.perturbation import FREE, Perturbation
from ..kernels.prepared import Prepared
from .order import Groups
from .record import Relaxation, Stamp, stamp

__all__ = ["Walk", "stamp_of"]


class Walk:
    """A relaxation under way: the present state, and every drive that is still that of the state.

    Args:
        interactions: The interactions, from the input upwards.
        x: Input ``(B, C, H, W)``.
        state: The layers ``(s_1, .., o)``.
        perturbation: What is done to the output layer.
        drives: The drives of `state`; those without a value are not known.
        prepared: What the interactions prepared for an earlier walk with the same parameters.
    """

    def __init__(
        self,
        interactions: Sequence[Interaction],
        x: Tensor,
        state: State,
        perturbation: Perturbation = FREE,
        drives: Sequence[Drive] = (),
        prepared: Sequence[Prepared | None] = (),
    ) -> None:
        self.interactions = tuple(interactions)
        self.x = x
        self.state = list(state)
        below = (x, *self.state[:-1])
        self.prepared = tuple(prepared) or tuple(
            interaction.prepare(lower.shape) for interaction, lower in zip(interactions, below, strict=True)
        )
        self.perturbation = perturbation
        self._drives: list[Drive | None] = [*drives] or [None] * len(self.state)
        self._keeps_potentials = False
        self._potentials: list[Tensor | None] = [None] * len(self.state)

    @property
    def copies(self) -> int:
        """How many times the batch holds every sample, block after block."""
        return max((part.copies for part in self.prepared if part is not None), default=1)

    def drive(self, layer: int) -> Drive:
        """The drive into a layer from the present state of the one below."""
        drive = self._drives[layer]
        if drive is None or drive.value is None:
            below = self.state[layer - 1] if layer else self.x
            drive = self._drives[layer] = self.interactions[layer].drive(below, None, self.prepared[layer])
        return drive

    def field(self, layer: int) -> Tensor:
        """The field on a layer: the minimum of the energy over it, the others fixed, were it not for its bounds."""
        drive, above = self.drive(layer).value, layer + 1
        if above == len(self.state):
            return self.perturbation.output(drive, self.state[layer])
        feedback = self.interactions[above].feedback(
            self.state[above], self.drive(above).route, self.state[layer].shape, self.prepared[above]
        )
        return self.perturbation.hidden(layer, feedback.add_(drive))

    def begin(self, sweep: int, measured: bool) -> None:
        """Get ready for a sweep.

        Args:
            sweep: Its number, from 1.
            measured: Whether the walk may end with it.
        """
        self._keeps_potentials = measured and self.perturbation is FREE

    def sweep(self, groups: Groups, omega: float | Tensor = 1.0) -> None:
        """Update every layer once; the output layer has no bounds and is never over-relaxed.

        Args:
            groups: The layers, in the order of their update.
            omega: The over-relaxation, one for all or ``(B,)``.
        """
        for group in groups:
            fields = [(layer, self.field(layer)) for layer in group]
            for layer, field in fields:
                if layer < len(self.state) - 1:
                    _towards(field, self.state[layer], 1 - omega)
                    field = self._bounded(layer, field, omega)
                self.set(layer, field)

    def _bounded(self, layer: int, value: Tensor, omega: float | Tensor) -> Tensor:
        if not self._keeps_potentials:
            return value.clamp_(0, 1)
        bounded = value.clamp(0, 1)
        # Over-relaxation takes a unit omega times as far beyond its bound as the field does.
        self._potentials[layer] = _towards(value, bounded, 1 - 1 / omega)
        return bounded

    def set(self, layer: int, value: Tensor) -> None:
        """Replace one layer of the state."""
        self.state[layer] = value
        outdated = self._drives[layer + 1] if layer + 1 < len(self.state) else None
        if outdated is not None:
            self._drives[layer + 1] = Drive(None, outdated.route)

    def select(self, samples: Tensor) -> Walk:
        """The walk of some samples of the batch, between two sweeps.

        Args:
            samples: A mask with an entry for each sample, whose copies stay together.
        """
        walk, rows = copy(self), samples.repeat(self.copies)
        walk.x, walk.perturbation = self.x[rows], self.perturbation.select(rows)
        walk.state = [layer[rows] for layer in self.state]
        walk._drives = [drive and drive.select(samples) for drive in self._drives]
        walk._potentials = [of_samples(layer, samples) for layer in self._potentials]
        return walk

    def join(self, parts: Sequence[tuple[Tensor, Walk]]) -> None:
        """End where the walks of its samples have ended.

        Args:
            parts: These walks, each with the places of its entries in this one's batch.
        """
        order, walks = torch.cat([places for places, _ in parts]).argsort(), [walk for _, walk in parts]
        for layer in range(len(self.state)):
            self.set(layer, torch.cat([walk.state[layer] for walk in walks])[order])
            potentials = cat_known([walk._potentials[layer] for walk in walks])
            self._potentials[layer] = None if potentials is None else potentials[order]

    def record(self, residual: Tensor | None, sweeps: int, tolerance: float | None) -> Relaxation:
        """The walk so far as a relaxation.

        Given no residual, nothing is computed for it: it has neither energy nor answer, and the routes are those of the
        last updates.
        """
        layers, energy, output = range(len(self.state)), None, None
        if residual is not None:
            drives = [self.drive(layer).value for layer in layers]
            energy = energy_from_drives(self.state, drives)
            output = self.perturbation.output(drives[-1], self.state[-1]).clone()
        return Relaxation(
            input=self.x,
            state=tuple(self.state),
            energy=energy,
            residual=residual,
            sweeps=sweeps,
            tolerance=tolerance,
            output=output,
            drives=tuple(self._drives[layer] or self.drive(layer) for layer in layers),
            potentials=(*self._potentials[:-1], self.state[-1]) if self._keeps_potentials else (),
            copies=self.copies,
            stamp=stamp_of(self.interactions, self.x),
            prepared=self.prepared,
        )


def _towards(value: Tensor, other: Tensor, weight: float | Tensor) -> Tensor:
    """Move a tensor in place by a part of its way to another one, negative for away from it."""
    if isinstance(weight, Tensor):
        weight = weight.to(value.dtype).view(-1, *[1] * (value.ndim - 1))
    elif weight == 0:
        return value
    return value.lerp_(other.to(value.dtype), weight)


def stamp_of(interactions: Sequence[Interaction], x: Tensor) -> Stamp:
    """What the drives of a walk are computed from: the input and the parameters, each with its version."""
    return stamp([x, *(p for interaction in interactions for p in interaction.parameters())])

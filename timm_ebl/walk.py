"""A relaxation under way.

One sweep updates every layer once, group by group. The layers of a group are updated together, each to the exact
minimum of the energy given the others (`timm_ebl.interaction`), so a sweep costs one forward and one transposed
convolution for each interaction whatever the order is: a drive is kept until the layer below it changes, and its
pooling route serves the feedback as well. While routes are held, feedback is kept as well, until its layer changes: it
tells the energy where the drive is not known.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .energy import State, inner, layer_energy
from .interaction import Drive, Interaction
from .order import Groups
from .perturbation import FREE, Perturbation
from .prepared import Prepared
from .relaxation import Relaxation, Stamp, stamp

__all__ = ["Walk", "stamp_of"]


class Walk:
    """A relaxation under way: the present state, and every drive that is still that of the state.

    Args:
        interactions: The interactions, from the input upwards.
        x: Input ``(B, C, H, W)``.
        state: The layers ``(s_1, .., o)``.
        perturbation: What is done to the output layer.
        drives: The drives of `state`; those without a value are not known.
        routes: Pooling routes to hold throughout, one for each layer; by default they follow the state.
        prepared: What the interactions prepared for an earlier walk with the same parameters.
    """

    def __init__(
        self,
        interactions: Sequence[Interaction],
        x: Tensor,
        state: State,
        perturbation: Perturbation = FREE,
        drives: Sequence[Drive] = (),
        routes: Sequence[Tensor | None] = (),
        prepared: Sequence[Prepared | None] = (),
    ) -> None:
        self.interactions = interactions
        self.x = x
        self.state = list(state)
        below = (x, *self.state[:-1])
        self.prepared = tuple(prepared) or tuple(
            interaction.prepare(lower.shape) for interaction, lower in zip(interactions, below, strict=True)
        )
        self.perturbation = perturbation
        self.holds_routes = bool(routes)
        self.routes = tuple(routes) or (None,) * len(self.state)
        known = [None if drive is None or drive.value is None else drive for drive in drives]
        self._drives: list[Drive | None] = known or [None] * len(self.state)
        self._feedbacks: list[Tensor | None] = [None] * len(self.state)

    @property
    def holds_copies(self) -> bool:
        """Whether the batch holds several copies of every sample, which stay together."""
        return any(part is not None and part.copies > 1 for part in self.prepared)

    def drive(self, layer: int) -> Drive:
        """The drive into a layer from the present state of the one below."""
        drive = self._drives[layer]
        if drive is None:
            below = self.state[layer - 1] if layer else self.x
            drive = self._drives[layer] = self.interactions[layer].drive(
                below, self.routes[layer], self.prepared[layer]
            )
        return drive

    def field(self, layer: int) -> Tensor:
        """The field on a layer: the minimum of the energy over it, the others fixed, were it not for its bounds."""
        drive = self.drive(layer).value
        if layer == len(self.state) - 1:
            return self.perturbation.output(drive)
        feedback = self._feedback(layer + 1)
        return self.perturbation.hidden(layer, feedback + drive if self.holds_routes else feedback.add_(drive))

    def _feedback(self, layer: int) -> Tensor:
        """The feedback from a layer to the one below; with held routes it depends on that layer alone, and is kept."""
        route = self.routes[layer] if self.holds_routes else self.drive(layer).route
        lower = self.state[layer - 1].shape
        feedback = self.interactions[layer].feedback(self.state[layer], route, lower, self.prepared[layer])
        if self.holds_routes:
            self._feedbacks[layer] = feedback
        return feedback

    def sweep(self, groups: Groups, omega: float | Tensor = 1.0) -> None:
        """Update every layer once; the output layer has no bounds and is never over-relaxed."""
        for group in groups:
            fields = [(layer, self.field(layer)) for layer in group]
            for layer, field in fields:
                if layer < len(self.state) - 1:
                    if isinstance(omega, Tensor):
                        field.lerp_(self.state[layer].to(field.dtype), (1 - omega).to(field.dtype))
                    elif omega != 1:
                        field.lerp_(self.state[layer].to(field.dtype), 1 - omega)
                    field.clamp_(0, 1)
                self.set(layer, field)

    def set(self, layer: int, value: Tensor) -> None:
        """Replace one layer of the state."""
        self.state[layer] = value
        self._feedbacks[layer] = None
        if layer + 1 < len(self.state):
            self._drives[layer + 1] = None

    def energy(self) -> Tensor:
        """``E(theta, x, s)`` of the present state, ``(B,)``, without the cost of the perturbation.

        ``<s_k, drive_k(s_{k-1})> = <feedback_k(s_k), s_{k-1}> + <s_k, drive_k(0)>`` saves the drives that only the
        energy would need.
        """
        parts = []
        for layer, s in enumerate(self.state):
            feedback = self._feedbacks[layer]
            if feedback is None or self._drives[layer] is not None:
                parts.append(layer_energy(s, self.drive(layer).value))
            else:
                parts += [inner(s, s) / 2, -inner(feedback, self.state[layer - 1]), -self.interactions[layer].offset(s)]
        return torch.stack(parts).sum(0)

    def select(self, samples: Tensor) -> Walk:
        """The walk of some samples of the batch, given by a mask."""
        return Walk(
            self.interactions,
            self.x[samples],
            tuple(layer[samples] for layer in self.state),
            self.perturbation.select(samples),
            [None if drive is None else drive.select(samples) for drive in self._drives],
            [None if route is None else route[samples] for route in self.routes] if self.holds_routes else (),
            self.prepared,
        )

    def record(self, residual: Tensor, sweeps: int, omega: float, tolerance: float | None) -> Relaxation:
        """The walk so far as a relaxation."""
        energy = self.energy()
        drives = tuple(drive or Drive(None, route) for drive, route in zip(self._drives, self.routes, strict=True))
        return Relaxation(
            self.x,
            tuple(self.state),
            energy,
            residual,
            sweeps,
            tolerance,
            drives,
            stamp_of(self.interactions, self.x),
            omega,
            self.prepared,
        )


def stamp_of(interactions: Sequence[Interaction], x: Tensor) -> Stamp:
    """What the drives of a walk are computed from: the input and the parameters, each with its version."""
    return stamp([x, *(p for interaction in interactions for p in interaction.parameters())])

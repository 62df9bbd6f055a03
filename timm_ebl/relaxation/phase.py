"""A phase: a state on its way to the minimum of an energy, free or perturbed.

One sweep updates every layer once, group by group. The layers of a group are updated together, each to the minimum of
the energy given the others (`timm_ebl.energy.graph`), or beyond it by over-relaxation. A sweep costs one drive and one
feedback for each interaction, whatever the order is: a drive is kept until the layer below it changes, and its pooling
route serves the feedback as well.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..energy.functional import State, energy_from_drives
from ..energy.perturbation import FREE, Free, Perturbation
from ..kernels.operator import Drive
from .minimizer import Start
from .record import Cache, Relaxation, parameters_of, stamp, versions_of

if TYPE_CHECKING:
    from ..energy.graph import Graph
    from .order import Groups

__all__ = ["DrivenPhase", "EnergyPhase", "Phase"]


class Phase(ABC):
    """A state on its way.

    Attributes:
        graph: The layers and their interactions.
        x: Input ``(B, C, H, W)``.
        state: The present layers ``[s_1, .., o]``; a new tensor replaces a layer, none is written to.
        perturbation: What is done to the layers, most often to the output layer alone.
        copies: How many times the batch holds every sample, block after block: once or twice.
        left_out: The layers that the present sweep leaves as they are.
    """

    left_out: frozenset[int] = frozenset()

    def __init__(self, graph: Graph, x: Tensor, state: State, perturbation: Perturbation, copies: int) -> None:
        self.graph, self.x, self.state, self.perturbation, self.copies = graph, x, [*state], perturbation, copies
        self.last = len(self.state) - 1
        self._potentials: list[Tensor | None] = [None] * len(self.state)
        self._keeps_potentials = False

    @abstractmethod
    def begin(self, sweep: int, ends: bool) -> None:
        """Prepare a sweep, given its number, from 1, and whether the phase may end with it."""

    @abstractmethod
    def field(self, layer: int) -> Tensor:
        """The field on a layer, perturbed, in a new tensor; for the output layer the state of least energy."""

    @abstractmethod
    def replace(self, layer: int, value: Tensor) -> None:
        """Replace a layer of the state."""

    @abstractmethod
    def record(self, residual: Tensor | None, sweeps: int, tolerance: float | None) -> Relaxation:
        """The phase so far as a relaxation; nothing more is computed if no residual is given."""

    def sweep(self, groups: Groups, omega: float | Tensor = 1.0, frozen: Tensor | None = None) -> None:
        """Update every layer once; the output layer is never over-relaxed.

        Args:
            groups: The layers, in the order of their update.
            omega: The over-relaxation, ``s <- clip(s + omega (h - s))`` in the field ``h``; one for all, or ``(B,)``.
            frozen: The samples that stay as they are, a mask ``(B,)``.
        """
        for group in groups:
            left_out = self.left_out
            fields = [(layer, self.field(layer)) for layer in group if layer not in left_out]
            for layer, value in fields:
                if layer != self.last:
                    _towards(value, self.state[layer], 1 - omega)
                    value = self._clipped(layer, value, omega, frozen)
                if frozen is not None:
                    value = torch.where(_each(frozen, value), self.state[layer], value)
                self.replace(layer, value)

    def _clipped(self, layer: int, value: Tensor, omega: float | Tensor, frozen: Tensor | None) -> Tensor:
        if not self._keeps_potentials:
            return self.graph.layers[layer].clip_(value)
        clipped = self.graph.layers[layer].clip(value)
        # Over-relaxation takes a unit omega times as far beyond its bound as the field does.
        potential, earlier = _towards(value, clipped, 1 - 1 / omega), self._potentials[layer]
        if frozen is not None and earlier is not None:
            potential = torch.where(_each(frozen, potential), earlier, potential)
        self._potentials[layer] = potential
        return clipped


class DrivenPhase(Phase):
    """A phase with every drive that is still that of the present state; its leaves know their energy and their field.

    Args:
        graph: The layers and their interactions.
        x: Input ``(B, C, H, W)``.
        state: Where to start.
        perturbation: What is done to the layers.
        cache: What is known of `state`.
    """

    def __init__(
        self, graph: Graph, x: Tensor, state: State, perturbation: Perturbation = FREE, cache: Cache | None = None
    ) -> None:
        super().__init__(graph, x, state, perturbation, cache.copies if cache else 1)
        self._singles = cache.operators if cache else graph.operators(x.shape)
        self._operators = self._singles if self.copies == 1 else tuple(part.pair() for part in self._singles)
        self._drives: list[Drive | None] = [*cache.drives] if cache else [None] * len(graph.edges)

    @classmethod
    def begun(cls, graph: Graph, x: Tensor, start: Start, perturbation: Perturbation = FREE) -> DrivenPhase:
        """A phase from a named start."""
        zero = [x.new_zeros(shape) for shape in graph.shapes(x.shape)]
        zero[-1] = perturbation.start(zero[-1])
        phase = cls(graph, x, tuple(zero), perturbation)
        if start is Start.FEEDFORWARD:
            for layer in range(phase.last):
                phase.replace(layer, graph.layers[layer].clip(phase.drive_into(layer)))
            phase.replace(phase.last, phase.field(phase.last))
        return phase

    def begin(self, sweep: int, ends: bool) -> None:
        self._keeps_potentials = ends and isinstance(self.perturbation, Free)

    def hold(self, routes: Sequence[Tensor | None]) -> None:
        """Take the drives of the start along these routes, in place of those that pooling would choose."""
        for edge, route in enumerate(routes):
            below = self._below(edge)
            if route is not None and route.shape[0] < below.shape[0]:
                route = torch.cat([route, route])
            self._drives[edge] = self._operators[edge].drive(below, route)

    def drive(self, edge: int) -> Drive:
        """The drive of an edge, given the present state of the layer below."""
        drive = self._drives[edge]
        if drive is None or drive.value is None:
            drive = self._drives[edge] = self._operators[edge].drive(self._below(edge))
        elif drive.value.shape[0] != self.x.shape[0]:  # known once for both copies
            drive = self._drives[edge] = Drive(torch.cat([drive.value] * self.copies), drive.route)
        return drive

    def drive_into(self, layer: int) -> Tensor:
        """The sum of the drives into a layer."""
        first, *others = self.graph.incoming[layer]
        total = self.drive(first).value
        for edge in others:
            total = total + self.drive(edge).value
        return total

    @abstractmethod
    def energy(self) -> Tensor:
        """The energy of the present state, ``(B,)``, without the cost of a perturbation."""

    def replace(self, layer: int, value: Tensor) -> None:
        self.state[layer] = value
        for edge in self.graph.outgoing[layer]:
            outdated = self._drives[edge]
            if outdated is not None:
                self._drives[edge] = Drive(None, outdated.route)

    def record(self, residual: Tensor | None, sweeps: int, tolerance: float | None) -> Relaxation:
        state, energy, output = tuple(self.state), None, None
        if residual is not None:
            energy = self.energy()
            output = self.perturbation.output(self.drive_into(self.last), state[-1]).clone()
        drives = tuple(self._drives[edge] or self.drive(edge) for edge in range(len(self.graph.edges)))
        potentials = (*self._potentials[:-1], state[-1]) if self._keeps_potentials else ()
        made_of = stamp([self.x, *parameters_of(self.graph)])
        cache = Cache(self._singles, drives, potentials, self.copies, made_of, versions_of(state))
        return Relaxation(self.x, state, energy, residual, sweeps, tolerance, output, cache)

    def _below(self, edge: int) -> Tensor:
        lower = self.graph.edges[edge].lower
        return self.x if lower is None else self.state[lower]


class EnergyPhase(DrivenPhase):
    """A phase of a Hopfield network, which follows the energy itself."""

    def energy(self) -> Tensor:
        return energy_from_drives(tuple(self.state), [self.drive_into(layer) for layer in range(len(self.state))])

    def field(self, layer: int) -> Tensor:
        drive = self.drive_into(layer)
        if layer == self.last:
            return self.perturbation.output(drive, self.state[layer])
        field = None
        for edge in self.graph.outgoing[layer]:
            upper = self.state[self.graph.edges[edge].upper]
            feedback = self._operators[edge].feedback(upper, self.drive(edge).route)
            field = feedback if field is None else field.add_(feedback)
        return self.perturbation.hidden(layer, drive.clone() if field is None else field.add_(drive))


def _each(samples: Tensor, layer: Tensor) -> Tensor:
    """A number for each sample, ``(B,)``, as one for each unit of a layer."""
    return samples.view(-1, *[1] * (layer.ndim - 1))


def _towards(value: Tensor, other: Tensor, weight: float | Tensor) -> Tensor:
    """Move a tensor in place by a part of its way to another one, negative for away from it."""
    if isinstance(weight, Tensor):
        weight = _each(weight.to(value.dtype), value)
    elif weight == 0:
        return value
    return value.lerp_(other.to(value.dtype), weight)

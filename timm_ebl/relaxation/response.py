"""The linear response of a free state to a perturbation, its pooling routes held. Ours, not the paper's.

With the routes held, drives and feedbacks are linear. With ``u`` the potential that the last free update gave to each
layer, ``s = clip(u)``, a perturbed state relaxes to

    s' = clip(u + W (s' - s) + W^T (s' - s)),

``W`` and ``W^T`` standing for the drives from the layers below and the feedbacks from those above. The free state is
treated as an equilibrium: its distance from one does not change the response. At an equilibrium, ``u`` is the field,
and ``s'`` minimises the perturbed energy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..kernels.operator import Drive
from ..kernels.pair import apart, copies_of, wide
from .phase import Phase
from .record import Cache, Relaxation, versions_of

if TYPE_CHECKING:
    from ..energy.graph import Graph
    from ..energy.perturbation import Perturbation

__all__ = ["ResponsePhase"]

SWEEPS_BETWEEN_MEANS = 4
"""How often the field of the mean of two opposite responses is computed anew."""


class ResponsePhase(Phase):
    """A perturbed state, or two under opposite perturbations, on their way from a free state.

    Two responses are relaxed by their difference: the change of their mean is of second order in the strength of the
    perturbations, and the field that it makes is computed in every fourth sweep alone, for the first time in the
    fourth. The first of several sweeps leaves out the layers that the input alone drives, unless a force acts on them:
    they are the widest, and the furthest from the output.

    Args:
        graph: The layers and their interactions.
        free: The free relaxation, or two copies of it (`Relaxation.twice`).
        perturbation: The perturbation of each copy.
        cache: What that relaxation has computed.

    Raises:
        ValueError: The free state has no potentials.
    """

    def __init__(self, graph: Graph, free: Relaxation, perturbation: Perturbation, cache: Cache) -> None:
        if not cache.potentials:
            raise ValueError("A response starts from a free relaxation or from two copies of one: pass that.")
        super().__init__(graph, free.input, free.state, perturbation, cache.copies)
        self.free, self.cache = free, cache
        self.samples = free.input.shape[0] // self.copies
        self._operators = tuple(operator.changes() for operator in cache.operators)
        self.state[-1] = perturbation.start(free.state[-1])
        self._moved = [False] * self.last + [self.state[-1] is not free.state[-1]]
        self._mean_changes: list[Tensor | None] = [None] * len(self.state)
        self._moves_mean = False
        self._unforced = frozenset(layer for layer in graph.lowest if not perturbation.reaches(layer))

    def begin(self, sweep: int, ends: bool) -> None:
        self._moves_mean = self.copies == 2 and sweep % SWEEPS_BETWEEN_MEANS == 0
        self.left_out = self._unforced if sweep == 1 and not ends else frozenset()

    def field(self, layer: int) -> Tensor:
        centre = wide(self.cache.potentials[layer])
        if self._moves_mean:
            self._mean_changes[layer] = self._field_change(layer, self._mean_change)
        if self._mean_changes[layer] is not None:
            centre = centre + self._mean_changes[layer]
        change = self._field_change(layer, self._change)
        if self.copies == 2:
            field = torch.cat([centre, centre]) if change is None else apart(centre, change)
        else:
            field = centre.clone() if change is None else wide(change).add_(centre)
        if layer == self.last:
            return self.perturbation.output(field, self.state[layer])
        return self.perturbation.hidden(layer, field)

    def replace(self, layer: int, value: Tensor) -> None:
        self.state[layer], self._moved[layer] = value, True

    def record(self, residual: Tensor | None, sweeps: int, tolerance: float | None) -> Relaxation:
        state = tuple(self.state)
        cache = dataclasses.replace(self.cache, drives=self._drives(), potentials=(), versions=versions_of(state))
        return Relaxation(self.x, state, None, residual, sweeps, tolerance, None, cache)

    def _drives(self) -> tuple[Drive, ...]:
        """What is known of the drives of the present state: the routes that are held."""
        return tuple(Drive(None, drive.route) for drive in self.cache.drives)

    def _field_change(self, layer: int, of: Callable[[int], Tensor]) -> Tensor | None:
        """What a change of the neighbours makes of the field on a layer; ``None`` if none of them has moved."""
        change = None
        for edge in self.graph.outgoing[layer]:
            upper = self.graph.edges[edge].upper
            if self._moved[upper]:
                part = self._operators[edge].feedback(of(upper), self.cache.drives[edge].route)
                change = part if change is None else change.add_(part)
        for edge in self.graph.incoming[layer]:
            lower = self.graph.edges[edge].lower
            if lower is not None and self._moved[lower]:
                part = self._operators[edge].drive(of(lower), self.cache.drives[edge].route).value
                change = part if change is None else change.add_(part)
        return change

    def _change(self, layer: int) -> Tensor:
        """The difference of the two responses, or the change of a single one."""
        if self.copies == 2:
            first, second = copies_of(self.state[layer])
            return second - first
        return self.state[layer] - self.free.state[layer]

    def _mean_change(self, layer: int) -> Tensor:
        """The mean change of both responses."""
        return torch.lerp(*copies_of(self.state[layer]), 0.5) - self.free.state[layer][: self.samples]

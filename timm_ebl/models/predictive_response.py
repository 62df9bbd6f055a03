"""The linear response of a predictive coding network's free state to a perturbation. Ours, not the published procedure.

The pooling routes and the derivatives of ``clip`` are those of the free state, ``h_k = clip(a_k)``. A round has two
passes. Errors go down, each layer's made by those above it:

    p_k = sum_m J_km^T e_m,    e_k = clip(a_k + p_k) - clip(a_k)

Then states go up, with the drives ``a_k`` that the new states below them make: ``h_k = clip(a_k + p_k)``. One round
carries a perturbation down to the lowest layer, and its effect up to the output again; asynchronous sweeps of a chain
need as many as it has layers for that. The error of one round is of second order in the strength of the perturbation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ..kernels.operator import Drive
from ..kernels.pair import apart, wide
from ..relaxation.response import ResponsePhase

if TYPE_CHECKING:
    from ..energy.graph import Graph, Layer
    from ..energy.perturbation import Perturbation
    from ..relaxation.order import Groups
    from ..relaxation.record import Cache, Relaxation

__all__ = ["PredictiveResponse", "without_flat"]


def without_flat(error: Tensor, drive: Tensor, layer: Layer) -> Tensor:
    """An error, set to 0 in its own tensor where ``clip`` is flat in the drive: its derivative times the error."""
    if layer.bounds is None:
        return error
    low, high = layer.bounds
    return error.masked_fill_(drive <= low if high == math.inf else (drive <= low) | (drive >= high), 0)


class PredictiveResponse(ResponsePhase):
    """One or two perturbed states on their way from a free state, two of them by their difference; a sweep is a round.

    Its arguments are those of `ResponsePhase`.
    """

    def __init__(self, graph: Graph, free: Relaxation, perturbation: Perturbation, cache: Cache) -> None:
        super().__init__(graph, free, perturbation, cache)
        self._pulls: list[Tensor | None] = [None] * len(self.state)
        self._driven: list[Tensor | None] = [None] * len(graph.edges)

    def begin(self, sweep: int, ends: bool) -> None:
        pass

    def sweep(self, groups: Groups, omega: float | Tensor = 1.0, frozen: Tensor | None = None) -> None:
        """One round, whatever the groups.

        Args:
            groups: Without effect: a round has an order of its own.
            omega: The over-relaxation of the states on their way up.
            frozen: The samples that stay as they are, a mask ``(B,)``.
        """
        errors: list[Tensor] = []  # the output layer's first
        for layer in reversed(range(self.last + 1)):
            edges = self.graph.outgoing[layer]
            pulls = [self._pulled(edge, errors[self.last - self.graph.edges[edge].upper]) for edge in edges]
            self._pulls[layer] = self._sum(pulls)
            errors.append(self._error(layer))
        super().sweep(tuple((layer,) for layer in range(self.last + 1)), omega, frozen)

    def field(self, layer: int) -> Tensor:
        pulled = self._both(self.cache.potentials[layer], self._sum([*self._into(layer), self._pulls[layer]]))
        if layer == self.last:
            return self.perturbation.output(pulled, self.state[layer])
        return self.perturbation.hidden(layer, pulled)

    def replace(self, layer: int, value: Tensor) -> None:
        super().replace(layer, value)
        for edge in self.graph.outgoing[layer]:
            route = self.cache.drives[edge].route
            self._driven[edge] = self._operators[edge].drive(self._change(layer), route).value

    def _drives(self) -> tuple[Drive, ...]:
        return tuple(
            drive if change is None else Drive(self._both(drive.value, change), drive.route)
            for drive, change in zip(self.cache.drives, self._driven, strict=True)
        )

    def _into(self, layer: int) -> list[Tensor | None]:
        """The changes of the drives into a layer."""
        return [self._driven[edge] for edge in self.graph.incoming[layer]]

    def _pulled(self, edge: int, error: Tensor) -> Tensor:
        return self._operators[edge].feedback(error, self.cache.drives[edge].route)

    def _error(self, layer: int) -> Tensor:
        """``e_k`` of one state, or the difference of those of two, where ``f_k`` is not flat."""
        unit, centre = self.graph.layers[layer], self.cache.potentials[layer]
        drive = self._both(centre, self._sum(self._into(layer)))
        error = unit.clip(self.field(layer)) - unit.clip(drive)
        change = error if self.copies == 1 else error[self.samples :] - error[: self.samples]
        return without_flat(change, centre, unit)

    def _both(self, centre: Tensor, change: Tensor | None) -> Tensor:
        """The values of each copy, which differ by a change, or whose one value is changed by it."""
        centre = wide(centre)
        if change is None:
            return centre.repeat(self.copies, *[1] * (centre.ndim - 1))
        return apart(centre, change) if self.copies == 2 else centre + change

    @staticmethod
    def _sum(changes: Sequence[Tensor | None]) -> Tensor | None:
        known = [change for change in changes if change is not None]
        return sum(known[1:], known[0]) if known else None

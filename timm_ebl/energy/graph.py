"""A network as a graph: layers of units, joined by interactions (paper, Section 3, where the graph is a chain).

With ``s_0 = x`` the input, ``s_1 .. s_L`` the layers and ``(j, k)`` an interaction from layer ``j`` up to layer ``k``:

    E(theta, x, s) = sum_k 1/2 |s_k|^2 - sum_(j,k) <s_k, drive_jk(s_j)>

A drive is linear up to pooling and holds the bias. All other layers fixed and pooling linearised at its present
maxima, the energy is least at ``s_k = clip(h_k)``, to the bounds of the layer, with the field

    h_k = sum_(j,k) drive_jk(s_j) + sum_(k,m) feedback_km(s_m),    feedback_km(s_m) = d <s_m, drive_km(s_k)> / d s_k.

Layers that no interaction joins are independent given the others. If the units that a pooled drive meets are at least
0, ``-<s_k, drive_jk(s_j)>`` is concave in ``s_j``, its linearisation an upper bound, and the energy never rises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..arguments import is_number

if TYPE_CHECKING:
    from ..kernels.operator import Operator
    from .interaction import Interaction

__all__ = ["Edge", "Graph", "Layer"]


@dataclass(frozen=True)
class Layer:
    """A layer of units ``s`` with the self-energy ``1/2 |s|^2``.

    Attributes:
        bounds: Between which values a unit lies; ``None`` for any real number, as the output layer has it.

    Raises:
        ValueError: The bounds are no two numbers, the lower one first.
    """

    bounds: tuple[float, float] | None = (0.0, 1.0)

    def __post_init__(self) -> None:
        pair = self.bounds is None or (len(self.bounds) == 2 and all(map(is_number, self.bounds)))
        if not pair or (self.bounds is not None and not self.bounds[0] < self.bounds[1]):
            raise ValueError(f"The bounds of a layer are two numbers, the lower one first, or None: not {self.bounds}.")

    def clip(self, field: Tensor) -> Tensor:
        """The state of least energy in a field: the field within the bounds."""
        return field if self.bounds is None else field.clamp(*self.bounds)

    def clip_(self, field: Tensor) -> Tensor:
        """The same, written to the field's own tensor."""
        return field if self.bounds is None else field.clamp_(*self.bounds)


class Edge(NamedTuple):
    """An interaction and the layers that it joins.

    Attributes:
        interaction: What joins them.
        lower: Index of the layer that it is driven by, from 0 for ``s_1``; ``None`` for the input.
        upper: Index of the layer that it drives.
    """

    interaction: Interaction
    lower: int | None
    upper: int


@dataclass(frozen=True)
class Graph:
    """Layers and the interactions between them.

    Attributes:
        layers: The free layers, from the input upwards, the output layer last.
        edges: The interactions; each leads to a layer of a higher index, and one at least to every layer.

    Raises:
        ValueError: An interaction leads down or nowhere, a layer has none that drives it, or the output has bounds.
    """

    layers: tuple[Layer, ...]
    edges: tuple[Edge, ...]

    def __post_init__(self) -> None:
        for _, lower, upper in self.edges:
            if not (lower is None or lower >= 0) or not (-1 if lower is None else lower) < upper < len(self.layers):
                raise ValueError(
                    f"An interaction leads up, to one of the layers 0 to {len(self.layers) - 1}; this one leads from "
                    f"{'the input' if lower is None else lower} to {upper}."
                )
        undriven = set(range(len(self.layers))) - {edge.upper for edge in self.edges}
        if undriven or not self.layers:
            raise ValueError(f"Every layer is driven by an interaction; layer {min(undriven, default=0)} is not.")
        if self.layers[-1].bounds is not None:
            raise ValueError(f"The output layer has no bounds; these are {self.layers[-1].bounds}.")

    @classmethod
    def chain(cls, interactions: Sequence[Interaction], bounds: tuple[float, float] = (0.0, 1.0)) -> Graph:
        """Layers one above the other, as in the paper, each interaction from the one below."""
        hidden = [Layer(bounds)] * (len(interactions) - 1)
        edges = (Edge(part, k - 1 if k else None, k) for k, part in enumerate(interactions))
        return cls((*hidden, Layer(None)), tuple(edges))

    @cached_property
    def interactions(self) -> tuple[Interaction, ...]:
        """The interactions, in the order of the edges."""
        return tuple(edge.interaction for edge in self.edges)

    def tensors(self) -> list[Tensor]:
        """What the interactions are computed from (`Interaction.tensors`), in the order of the edges."""
        return [tensor for interaction in self.interactions for tensor in interaction.tensors()]

    @cached_property
    def incoming(self) -> tuple[tuple[int, ...], ...]:
        """For each layer the indices of the edges that lead to it."""
        return tuple(tuple(i for i, e in enumerate(self.edges) if e.upper == k) for k in range(len(self.layers)))

    @cached_property
    def outgoing(self) -> tuple[tuple[int, ...], ...]:
        """For each layer the indices of the edges that lead away from it."""
        return tuple(tuple(i for i, e in enumerate(self.edges) if e.lower == k) for k in range(len(self.layers)))

    @cached_property
    def neighbours(self) -> tuple[frozenset[int], ...]:
        """For each layer those that share an interaction with it."""
        near: list[set[int]] = [set() for _ in self.layers]
        for _, lower, upper in self.edges:
            if lower is not None:
                near[lower].add(upper)
                near[upper].add(lower)
        return tuple(map(frozenset, near))

    @cached_property
    def lowest(self) -> frozenset[int]:
        """The layers that the input alone drives."""
        return frozenset(k for k, edges in enumerate(self.incoming) if all(self.edges[i].lower is None for i in edges))

    def operators(self, x: torch.Size) -> tuple[Operator, ...]:
        """The operator of each edge (`Interaction.operator`) for an input of a shape, the batch first."""
        shapes = self.shapes(x)
        return tuple(part.operator(x if lower is None else shapes[lower]) for part, lower, _ in self.edges)

    def shapes(self, x: torch.Size) -> list[torch.Size]:
        """Shape of every layer for an input of a shape, the batch first in both.

        Raises:
            ValueError: The interactions that lead to a layer make it of different shapes.
        """
        found: list[torch.Size] = []
        for k, edges in enumerate(self.incoming):
            lowers = [self.edges[i].lower for i in edges]
            below = [x if lower is None else found[lower] for lower in lowers]
            shapes = [self.edges[i].interaction.shape(shape[1:]) for i, shape in zip(edges, below, strict=True)]
            if any(shape != shapes[0] for shape in shapes):  # no set: a trace's equal sizes hash apart
                raise ValueError(f"The interactions that lead to layer {k} make it of shapes {sorted(shapes)}.")
            found.append(torch.Size([x[0], *shapes[0]]))
        return found

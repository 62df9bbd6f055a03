"""The record of a relaxation: where it ended, and how."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..kernels.native import place_of, version_of
from ..kernels.operator import Drive, Operator

if TYPE_CHECKING:
    from ..energy.functional import State
    from ..energy.graph import Graph

__all__ = ["Cache", "Relaxation", "as_layers", "parameters_of", "stamp", "versions_of"]

Stamp = tuple[tuple[Tensor, tuple[int, torch.dtype]], ...]


@dataclass(frozen=True)
class Cache:
    """What a relaxation has computed, for one that continues from where it ended.

    Attributes:
        operators: The operator of each edge, for single states.
        drives: The drive of each edge, without a value where nothing needed it. Those of two copies of one state are
            there once; so may be their routes. After settling, the routes are those of the last updates.
        potentials: The last free update of each layer without its bounds, ``state = clip(potentials)``, once for all
            copies; beyond the bounds they are the field's, whatever the over-relaxation. Empty if they are not known.
        copies: How many times the batch holds every sample, block after block: once or twice.
        made_of: The input and the parameters that it was computed from, each with its version.
        versions: How often each layer was written to in place when the relaxation ended.
    """

    operators: tuple[Operator, ...]
    drives: tuple[Drive, ...]
    potentials: tuple[Tensor, ...]
    copies: int
    made_of: Stamp
    versions: tuple[int, ...]


@dataclass(frozen=True)
class Relaxation:
    """Where a relaxation ended, and how.

    Attributes:
        input: The input ``x`` that was relaxed, ``(B, ..)``.
        state: The layers ``(s_1, .., o)``.
        energy: ``E(theta, x, state)``, ``(B,)``, without the cost of a perturbation; ``None`` where
            nothing needs it, after `HopfieldNetwork.settle` and a linear response (`EnergyModel.energy` tells).
        residual: Each sample's last ``|s - s_previous| / |s|``, all layers, ``(B,)``; ``None`` after the same `settle`.
        sweeps: Sweeps made; where a tolerance let some samples end earlier, those of the last one.
        tolerance: The residual asked for; ``None`` if the number of sweeps was fixed.
        output: The answer, ``(B, M)``: the output layer at its minimum given the layers below as they ended, whose last
            updates the output layer of `state` may not have seen. That layer itself where the energy is ``None``.

    A copy or a pickle has these alone.
    """

    input: Tensor
    state: State
    energy: Tensor | None
    residual: Tensor | None
    sweeps: int
    tolerance: float | None = None
    output: Tensor | None = None
    _cache: Cache | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.output is None:
            object.__setattr__(self, "output", self.state[-1])

    def __reduce__(self) -> tuple[object, ...]:
        found = (self.input, self.state, self.energy, self.residual, self.sweeps, self.tolerance, self.output)
        return Relaxation, found

    @property
    def converged(self) -> Tensor:
        """Whether each sample's residual is within the tolerance, ``(B,)``; 1e-3 if none was asked for.

        Raises:
            ValueError: The residual was not measured.
        """
        if self.residual is None:
            raise ValueError(
                "Settling measures no residual, so it is not known whether this state has converged: relax one sweep "
                "from it to know, model.relax(x, start, minimizer=Minimizer(sweeps=1))."
            )
        return self.residual <= (1e-3 if self.tolerance is None else self.tolerance)

    def known(self, graph: Graph, x: Tensor) -> Cache | None:
        """What it has computed, if that still holds for this input under the present parameters of a graph."""
        cache, present = self._cache, (x, *parameters_of(graph))
        if cache is None or cache.versions != versions_of(self.state):
            return None
        if any(tensor.is_inference() for tensor in (*present, *self.state)):
            return None  # nobody knows whether they were written to
        return cache if _same(cache.made_of, stamp(present)) else None

    def twice(self) -> Relaxation:
        """The same relaxation of a batch that holds every sample twice, block after block."""
        return self._beside(self, self._cache)

    @classmethod
    def pair(cls, first: Relaxation, second: Relaxation) -> Relaxation:
        """Two relaxations of one batch as one, block after block: 16 bits keep the digits of their difference.

        Those of different inputs, networks or parameters are joined as well, but nothing that they computed is kept.
        """
        cache = first._cache
        if cache is None or second._cache is None or not _same(cache.made_of, second._cache.made_of):
            cache = None
        else:
            routes = [(a.route, b.route) for a, b in zip(cache.drives, second._cache.drives, strict=True)]
            drives = tuple(Drive(None, a if a is b else torch.cat([a, b])) for a, b in routes)
            cache = replace(cache, drives=drives, potentials=())
        return first._beside(second, cache)

    def _beside(self, other: Relaxation, cache: Cache | None) -> Relaxation:
        fits = cache is not None and stamp([self.input])[0][1] == cache.made_of[0][1]  # not changed in place
        x = torch.cat([self.input, other.input])
        state = tuple(torch.cat(layers) for layers in zip(self.state, other.state, strict=True))
        fits = fits and not any(layer.is_inference() for layer in (*self.state, *other.state))
        if fits := fits and all(r._cache.versions == versions_of(r.state) for r in (self, other)):
            made_of = (*stamp([x]), *cache.made_of[1:])
            cache = replace(cache, copies=2, made_of=made_of, versions=versions_of(state))
        own, others = ((r.energy, r.residual, r.output) for r in (self, other))
        pairs = zip(own, others, strict=True)
        energy, residual, output = (None if a is None or b is None else torch.cat([a, b]) for a, b in pairs)
        cache, sweeps = cache if fits else None, max(self.sweeps, other.sweeps)
        return Relaxation(x, state, energy, residual, sweeps, self.tolerance, output, cache)


def as_layers(state: State | Relaxation) -> State:
    """The layers of a state that may be given as a relaxation."""
    return state.state if isinstance(state, Relaxation) else state


def parameters_of(graph: Graph) -> Iterator[Tensor]:
    """The parameters of a graph's interactions, edge by edge, and the masks of pruned ones."""
    for interaction in graph.interactions:
        yield from interaction.parameters()
        yield from (mask for name, mask in interaction.named_buffers() if name.endswith("_mask"))


def stamp(tensors: Iterable[Tensor]) -> Stamp:
    """Tensors, each with its version, its place and its type, which `nn.Module.double` and the like change."""
    return tuple((tensor, (version_of(tensor), place_of(tensor), tensor.dtype)) for tensor in tensors)


def _same(first: Stamp, second: Stamp) -> bool:
    return len(first) == len(second) and all(a is b and m == n for (a, m), (b, n) in zip(first, second, strict=True))


def versions_of(tensors: Iterable[Tensor]) -> tuple[int, ...]:
    """The version of each tensor."""
    return tuple(map(version_of, tensors))

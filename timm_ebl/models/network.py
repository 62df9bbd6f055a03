"""A Hopfield network as a module: energy, relaxation and a differentiable sweep."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..energy.functional import State, weigh
from ..kernels.recording import replayed
from ..relaxation.descent import descend
from ..relaxation.model import SETTLING_SWEEPS
from ..relaxation.phase import EnergyPhase
from ..relaxation.record import Cache, Relaxation, as_layers
from ..relaxation.response import ResponsePhase
from .layered import LayeredNetwork, descended, known

if TYPE_CHECKING:
    from ..energy.perturbation import Perturbation
    from ..relaxation.minimizer import Minimizer

__all__ = ["HopfieldNetwork"]


class HopfieldNetwork(LayeredNetwork):
    """A Hopfield network made of layers and interactions (`timm_ebl.energy.graph`).

        E(theta, x, s) = 1/2 sum_k |s_k|^2 - sum_(j,k) <s_k, drive_jk(s_j)>        (paper, Section 3, as released)

    A subclass implements `graph`.
    """

    phase = EnergyPhase

    def sources(self, relaxation: Relaxation, cache: Cache, weights: Tensor) -> tuple[Tensor, State]:
        weighted = tuple(weigh(s, weights) for s in relaxation.state)
        return sum((s * w).sum() for s, w in zip(relaxation.state, weighted, strict=True)) / 2, weighted

    def _response(self, free: Relaxation, perturbation: Perturbation, minimizer: Minimizer, cache: Cache) -> Relaxation:
        """By changes from the free state (`timm_ebl.relaxation.response`): smooth in the strength of a perturbation."""
        return descended(ResponsePhase(self.graph, free, perturbation, cache), minimizer)

    @torch.compiler.disable
    @torch.no_grad()
    def settle(self, free: Relaxation, minimizer: Minimizer | None = None) -> Relaxation:
        further, cache = self._minimizer(minimizer).further(SETTLING_SWEEPS), known(self.graph, free.input, free)
        phase = EnergyPhase(self.graph, free.input, free.state, cache=cache)
        descend(phase, further, measured=False)
        return phase.record(None, further.sweeps, None)

    @torch.compiler.disable
    @torch.no_grad()
    def answer(self, x: Tensor, minimizer: Minimizer | None = None) -> Tensor:
        """The output layer that minimises the energy given the others where the free relaxation ends, ``(B, M)``.

        It is that of `relax`, without what the last sweeps do that no longer reaches the output, and without autograd.

        Args:
            x: Input ``(B, C, H, W)``.
            minimizer: How to minimise; by default as the model was built.

        Raises:
            ValueError: The input does not fit the network, or is not finite.
        """
        self.check_input(x)
        minimizer = self._minimizer(minimizer)
        graph, answer = self.recordable(minimizer), partial(self._answer, minimizer)
        found = None if graph is None else replayed(self, (minimizer, graph), answer, (x,))
        return answer(x) if found is None else found

    def _answer(self, minimizer: Minimizer, x: Tensor) -> Tensor:
        phase = EnergyPhase.begun(self.graph, x, minimizer.start)
        into_output = [self.graph.edges[edge].lower for edge in self.graph.incoming[-1]]
        wanted = [layer for layer in into_output if layer is not None] if minimizer.tolerance is None else None
        descend(phase, minimizer, measured=wanted is None, wanted=wanted)
        return phase.drive_into(phase.last)

    def sweep(self, x: Tensor, state: State | Relaxation, minimizer: Minimizer | None = None) -> State:
        """One free sweep of a minimiser, differentiable in parameters, input and state; pooling routes are followed.

        Args:
            x: Input ``(B, C, H, W)``.
            state: The layers ``(s_1, .., o)``.
            minimizer: Order of update and over-relaxation, that of its last sweep; by default as the model was built.
        """
        minimizer, phase = self._minimizer(minimizer), EnergyPhase(self.graph, x, as_layers(state))
        phase.sweep(minimizer.groups(self.graph.neighbours), minimizer.omega_of(minimizer.sweeps))
        return tuple(phase.state)

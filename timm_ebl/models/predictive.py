"""A predictive coding network as a module: energy, relaxation and gradient (arXiv 2606.03584).

With ``a_k`` the sum of the drives into layer ``k`` (`timm_ebl.energy.graph`), ``f_k = clip(a_k)`` to the bounds of the
layer (ReLU for ``[0, inf)``) and ``e_k = h_k - f_k`` its error:

    E(theta, x, h) = 1/2 sum_k |e_k|^2

The free state is the forward pass ``h_k = f_k``: ``E = 0`` and ``dE/dtheta = 0``. Under a perturbation, a layer goes to

    h_k <- clip(a_k + sum_m J_km^T e_m),    J_km = d f_m / d h_k,

("modified projected gradient": ``a_k`` inside, not ``f_k``), the output layer to its minimum. The feedback of an edge
is ``J_km^T e_m`` once ``e_m`` is masked by the derivative of ``clip``. The states sought are stationary; the energy may
rise on the way.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..energy.functional import State, inner, weigh
from ..energy.perturbation import FREE, Clamped, Free, Perturbation
from ..kernels.autocast import without_autocast
from ..relaxation.minimizer import Minimizer, Start
from ..relaxation.phase import DrivenPhase
from ..relaxation.record import Cache, Relaxation, as_layers
from .layered import LayeredNetwork, descended, known
from .predictive_response import PredictiveResponse, without_flat

if TYPE_CHECKING:
    from ..energy.graph import Graph

__all__ = ["PredictiveCodingNetwork", "PredictivePhase"]


class PredictivePhase(DrivenPhase):
    """A phase of a predictive coding network; without a perturbation there are no errors, and no feedback.

    From the free state on, a layer stays as it is until a perturbation reaches it or a layer that it is joined to has
    moved.
    """

    def __init__(
        self, graph: Graph, x: Tensor, state: State, perturbation: Perturbation = FREE, cache: Cache | None = None
    ) -> None:
        super().__init__(graph, x, state, perturbation, cache)
        is_free = cache is not None and cache.potentials
        self._moved = {self.last} if is_free else set(range(len(state)))

    @classmethod
    def forward_pass(cls, graph: Graph, x: Tensor) -> PredictivePhase:
        """The free state."""
        phase = cls.begun(graph, x, Start.FEEDFORWARD)
        phase.begin(1, True)
        phase._potentials = [phase.drive_into(layer) for layer in range(phase.last + 1)]
        return phase

    @property
    def left_out(self) -> frozenset[int]:
        near = self.graph.neighbours
        return frozenset(
            layer
            for layer in range(self.last)
            if not (self._moved & {layer, *near[layer]} or self.perturbation.reaches(layer))
        )

    def replace(self, layer: int, value: Tensor) -> None:
        super().replace(layer, value)
        self._moved.add(layer)

    def energy(self) -> Tensor:
        errors = [self.error(layer) for layer in range(len(self.state))]
        return torch.stack([inner(error, error) for error in errors]).sum(0) / 2

    def error(self, layer: int) -> Tensor:
        """``e_k``."""
        return self.state[layer] - self.graph.layers[layer].clip(self.drive_into(layer))

    def source(self, layer: int) -> Tensor:
        """``e_k`` masked by the derivative of ``f_k`` in ``a_k``."""
        drive = self.drive_into(layer)
        # clip(a) = a where it is not flat
        return without_flat(self.state[layer] - drive, drive, self.graph.layers[layer])

    def field(self, layer: int) -> Tensor:
        drive = self.drive_into(layer)
        if layer == self.last:
            return self.perturbation.output(drive, self.state[layer])
        if isinstance(self.perturbation, Free):
            return drive.clone()
        field = drive
        for edge in self.graph.outgoing[layer]:
            source = self.source(self.graph.edges[edge].upper)
            field = self._operators[edge].feedback(source, self.drive(edge).route).add_(field)
        return self.perturbation.hidden(layer, field)


class PredictiveCodingNetwork(LayeredNetwork):
    """A predictive coding network made of layers and interactions (`timm_ebl.models.predictive`).

    Contrastive learning (``cl``) on it is classical predictive coding: the output is held at the target, and the
    weights follow the errors of the layers. States and energies are computed in no less than 32 bits, under autocast
    too: an error is a small difference of large numbers.

    A subclass implements `graph`.
    """

    phase = PredictivePhase
    rests = True
    unrolled = Minimizer(order="forward", sweeps=1, omega=1.0)  # a forward pass
    beta = force = 0.02

    @property
    def perturbed(self) -> Minimizer:
        """As many asynchronous sweeps as there are layers: a perturbation reaches two layers in each."""
        return Minimizer(sweeps=len(self.graph.layers), omega=1.0)

    @property
    def adjoint(self) -> Minimizer:
        """As many steps as there are layers, which make recurrent backpropagation exact."""
        return Minimizer(order="synchronous", sweeps=len(self.graph.layers), omega=1.0)

    def energy(self, x: Tensor, state: State | Relaxation) -> Tensor:
        with without_autocast(x.device.type):
            return super().energy(x, state)

    def contrast(self, relaxation: Relaxation, weights: Tensor) -> Tensor:
        with without_autocast(relaxation.input.device.type):
            return super().contrast(relaxation, weights)

    @torch.no_grad()
    def sources(self, relaxation: Relaxation, cache: Cache, weights: Tensor) -> tuple[Tensor, State]:
        phase = PredictivePhase(self.graph, relaxation.input, relaxation.state, cache=cache)
        layers = range(len(relaxation.state))
        with without_autocast(relaxation.input.device.type):
            uppers = tuple(weigh(phase.source(k), weights) for k in layers)
            rest = (weights * phase.energy()).sum() + sum((uppers[k] * phase.drive_into(k)).sum() for k in layers)
        return rest, uppers

    @torch.compiler.disable
    @torch.no_grad()
    def relax(
        self,
        x: Tensor,
        start: State | Relaxation | Start | None = None,
        perturbation: Perturbation = FREE,
        minimizer: Minimizer | None = None,
    ) -> Relaxation:
        """The forward pass, or, under a perturbation, the sweeps of a minimiser from a state, by default from there.

        Args:
            x: Input ``(B, C, H, W)``.
            start: A state or an earlier relaxation. The forward pass does not depend on it.
            perturbation: What is done to the layers; free by default.
            minimizer: How to relax under a perturbation; by default as `perturbed` says.

        Raises:
            ValueError: The input or the start does not fit the network, or the input is not finite.
        """
        with without_autocast(x.device.type) if isinstance(x, Tensor) else torch.no_grad():
            if isinstance(perturbation, Free):
                self._minimizer(minimizer)
                self.check_input(x)
                return PredictivePhase.forward_pass(self.graph, x).record(x.new_zeros(len(x)), 1, None)
            begin = start if isinstance(start, (Relaxation, tuple, list)) else self.relax(x)
            cache = known(self.graph, x, begin)
            if cache is not None and not cache.potentials:  # the drives of a response are those along its routes
                begin = begin.state
            return super().relax(x, begin, perturbation, minimizer or self.perturbed)

    def _response(self, free: Relaxation, perturbation: Perturbation, minimizer: Minimizer, cache: Cache) -> Relaxation:
        """By rounds of errors down and states up (`timm_ebl.models.predictive_response`). Not in the publication.

        The routes and derivatives of the free state are held. One round takes the place of as many sweeps of the
        minimiser as there are layers; the number of rounds is rounded up. The minimiser's order has no effect. Under a
        clamp, which moves the output far, the network relaxes.
        """
        if isinstance(perturbation, Clamped):
            return self.relax(free.input, free, perturbation, minimizer)
        rounds = replace(minimizer, sweeps=math.ceil(minimizer.sweeps / len(self.graph.layers)))
        with without_autocast(free.input.device.type):
            return descended(PredictiveResponse(self.graph, free, perturbation, cache), rounds)

    def settle(self, free: Relaxation, minimizer: Minimizer | None = None) -> Relaxation:
        """The free state as it is: nothing is left to settle."""
        return free

    def sweep(self, x: Tensor, state: State | Relaxation, minimizer: Minimizer | None = None) -> State:
        """One free sweep, differentiable: each layer at ``f_k``, in the order of a minimiser.

        The forward pass is its fixed point, reached bottom-up, so that ``tbp`` and ``rbp`` are backpropagation as soon
        as their sweeps reach from the input to the output.
        """
        minimizer, phase = self._minimizer(minimizer), PredictivePhase(self.graph, x, as_layers(state))
        phase.sweep(minimizer.groups(self.graph.neighbours))
        return tuple(phase.state)

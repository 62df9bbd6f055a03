"""A Hopfield network as a module: energy, relaxation and a differentiable sweep."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..energy.functional import State, energy_from_drives
from ..energy.gradient import WeightedEnergy
from ..energy.perturbation import FREE, Perturbation
from ..kernels.native import is_func_transform_active
from ..relaxation.checks import require_finite, require_input, require_state
from ..relaxation.descent import descend
from ..relaxation.minimizer import Minimizer, Start, require_minimizer
from ..relaxation.model import SETTLING_SWEEPS, EnergyModel
from ..relaxation.phase import EnergyPhase, Phase
from ..relaxation.record import Cache, Relaxation, as_layers
from ..relaxation.response import ResponsePhase

if TYPE_CHECKING:
    from ..energy.graph import Graph
    from ..energy.interaction import Interaction

__all__ = ["HopfieldNetwork"]


class HopfieldNetwork(nn.Module, EnergyModel):
    """A Hopfield network made of layers and interactions (`timm_ebl.energy.graph`).

    A subclass implements `graph`.
    """

    @property
    @abstractmethod
    def graph(self) -> Graph:
        """The layers and the interactions between them."""

    @property
    def interactions(self) -> Sequence[Interaction]:
        """The interactions, in the order of the graph's edges."""
        return self.graph.interactions

    def extra_repr(self) -> str:
        """The minimiser, as the arguments that make it."""
        settings = {field.name: getattr(self.minimizer, field.name) for field in fields(Minimizer)}
        settings["start"] = str(self.minimizer.start)
        return ", ".join(f"{name}={value!r}" for name, value in settings.items() if value not in (None, False))

    def check_input(self, x: Tensor, start: State | None = None) -> None:
        """Refuse an input that the network cannot take, or a state that it cannot start from.

        Args:
            x: The input.
            start: The layers of the state, if one is given.

        Raises:
            TypeError: They are no tensors of real numbers.
            ValueError: They hold NaN or infinite values, are on another device, or the state is not one of this input.
        """
        require_input(x)
        device = next((parameter.device for parameter in self.parameters()), x.device)
        if x.device != device:
            raise ValueError(f"The input is on {x.device} and the network on {device}: move one of them.")
        if start is not None:
            require_state(start, self.state_shapes(x), x.device)
        if not (torch.compiler.is_compiling() or x.is_meta):
            require_finite(x, start or ())

    @torch.compiler.disable
    def energy(self, x: Tensor, state: State | Relaxation) -> Tensor:
        """``E(theta, x, s) = 1/2 sum_k |s_k|^2 - sum_(j,k) <s_k, drive_jk(s_j)>`` (paper, Section 3).

        Args:
            x: Input ``(B, C, H, W)``.
            state: The layers ``(s_1, .., o)``, or a relaxation: of one of this very input under the present parameters,
                the pooling routes are those that it ended with.

        Returns:
            The energy of each sample, ``(B,)``, differentiable in parameters, input and state.
        """
        cache = _known(self.graph, x, state)
        phase = EnergyPhase(self.graph, x, as_layers(state))
        if cache is not None:
            phase.hold([drive.route for drive in cache.drives])
        return energy_from_drives(tuple(phase.state), [phase.drive_into(k) for k in range(len(phase.state))])

    @torch.compiler.disable
    def contrast(self, relaxation: Relaxation, weights: Tensor) -> Tensor:
        """``sum_b w_b E(theta, x_b, s_b)`` over the samples of a relaxation under the present parameters, a scalar.

        The gradient comes with the value, from the states and the pooling routes alone: nothing is computed forward
        again. Two copies of a sample are taken by mean and difference, so that 16 bits keep the difference.

        Args:
            relaxation: Where the states ended, which count as constants.
            weights: ``w``, ``(B,)``.

        Returns:
            The sum, differentiable in the parameters and in the relaxation's input.

        Raises:
            ValueError: The parameters have changed since the relaxation.
            RuntimeError: A transform of `torch.func` is under way.
        """
        if is_func_transform_active():
            raise RuntimeError(
                "torch.func cannot differentiate a rule: give the loss of torch.func.functional_call a backward pass."
            )
        graph, x = self.graph, relaxation.input
        cache = relaxation.known(graph, x)
        if cache is None:
            raise ValueError(
                "The relaxation is not one of this network with its present parameters, or its layers were changed in "
                "place: relax anew."
            )
        tensors = [tensor for interaction in graph.interactions for tensor in interaction.tensors()]
        return WeightedEnergy.apply(
            weights, graph, cache.operators, cache.drives, relaxation.state, cache.copies, x, *tensors
        )

    @torch.compiler.disable
    @torch.no_grad()
    def relax(
        self,
        x: Tensor,
        start: State | Relaxation | Start | None = None,
        perturbation: Perturbation = FREE,
        minimizer: Minimizer | None = None,
    ) -> Relaxation:
        """Minimise ``E(theta, x, s) + c(s)`` over the state (Equations 1, 2, 4 and 7).

        Args:
            x: Input ``(B, C, H, W)``.
            start: A state, an earlier relaxation (what it has computed is used again, if it is of this very input and
                the parameters are the same), or a named start; by default the minimiser's.
            perturbation: What is done to the output layer; free by default.
            minimizer: How to minimise; by default as the model was built.

        Returns:
            The record of the relaxation.

        Raises:
            ValueError: The input or the start does not fit the network, or the input is not finite.
        """
        minimizer = self._minimizer(minimizer)
        graph, cache = self.graph, _known(self.graph, x, start)
        layers = None if start is None or isinstance(start, str) else as_layers(start)
        if cache is None:
            self.check_input(x, layers)
        if layers is None:
            phase = EnergyPhase.begun(graph, x, Start(minimizer.start if start is None else start), perturbation)
        else:
            state = (*layers[:-1], perturbation.start(layers[-1]))
            phase = EnergyPhase(graph, x, state, perturbation, cache)
        return _descended(phase, minimizer)

    @torch.compiler.disable
    @torch.no_grad()
    def respond(self, free: Relaxation, perturbation: Perturbation, minimizer: Minimizer) -> Relaxation:
        """The linear response of a free state to a perturbation (`timm_ebl.relaxation.response`). Not in the paper.

        The pooling routes are held, which keeps the energy smooth in the strength of the perturbation, and the free
        state is treated as an equilibrium. Where a drive is not linear (`Interaction.is_linear`), the network relaxes.

        Args:
            free: A free relaxation, or two copies of it (`Relaxation.twice`), as it ended.
            perturbation: The perturbation of each copy.
            minimizer: How to minimise.

        Raises:
            ValueError: It is none, or the parameters or the state have changed since.
        """
        require_minimizer("minimizer", minimizer)
        cache = _known(self.graph, getattr(free, "input", None), free)
        if cache is None:
            raise ValueError(
                "A response starts from a free relaxation of this network, as it ended and under the same parameters: "
                "relax anew, and pass that."
            )
        if not all(interaction.is_linear for interaction in self.graph.interactions):
            return self.relax(free.input, free, perturbation, minimizer)
        return _descended(ResponsePhase(self.graph, free, perturbation, cache), minimizer)

    @torch.compiler.disable
    @torch.no_grad()
    def settle(self, free: Relaxation, minimizer: Minimizer | None = None) -> Relaxation:
        further, cache = self._minimizer(minimizer).further(SETTLING_SWEEPS), _known(self.graph, free.input, free)
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

    def state_shapes(self, x: Tensor) -> list[torch.Size]:
        """Shape of every layer of the state for an input ``x``, the batch first."""
        return self.graph.shapes(x.shape)

    def _minimizer(self, minimizer: Minimizer | None) -> Minimizer:
        minimizer = minimizer or self.minimizer
        require_minimizer("minimizer", minimizer)
        return minimizer


def _known(graph: Graph, x: Tensor, state: object) -> Cache | None:
    return state.known(graph, x) if isinstance(state, Relaxation) else None


def _descended(phase: Phase, minimizer: Minimizer) -> Relaxation:
    residual, sweeps = descend(phase, minimizer)
    return phase.record(residual, sweeps, minimizer.tolerance)

"""A network of layers and interactions as a module: its energy, its relaxation and their gradients."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from ..energy.gradient import KnownGradient, weighted_energy
from ..energy.interaction import Interaction
from ..energy.perturbation import FREE, Perturbation
from ..kernels.native import is_func_transform_active
from ..relaxation.checks import require_input
from ..relaxation.descent import descend
from ..relaxation.minimizer import Minimizer, Start, require_minimizer
from ..relaxation.model import EnergyModel
from ..relaxation.record import Cache, Relaxation, as_layers
from .checks import require_finite, require_state, require_versions

if TYPE_CHECKING:
    from ..energy.functional import State
    from ..energy.graph import Graph
    from ..relaxation.phase import DrivenPhase, Phase

__all__ = ["LayeredNetwork", "descended", "known"]


class LayeredNetwork(nn.Module, EnergyModel):
    """A network made of layers and interactions (`timm_ebl.energy.graph`).

    A kind of network names its `phase`, which knows its energy and the update of a layer, and implements `sources`;
    a network of that kind implements `graph`.
    """

    phase: ClassVar[type[DrivenPhase]]

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
            ValueError: They hold NaN or infinite values (on CUDA nobody looks), are on another device, or the state is
                not one of this input.
        """
        require_input(x)
        device = next((parameter.device for parameter in self.parameters()), x.device)
        if x.device != device:
            raise ValueError(f"The input is on {x.device} and the network on {device}: move one of them.")
        if start is not None:
            require_state(start, self.state_shapes(x), x.device)
        if not (torch.compiler.is_compiling() or x.is_meta or x.is_cuda):  # to look at values is to wait for the device
            require_finite(x, start or ())

    @property
    def responds(self) -> bool:
        """Whether every drive is linear (`Interaction.is_linear`)."""
        return all(interaction.is_linear for interaction in self.graph.interactions)

    def recordable(self, *phases: Minimizer) -> Graph | None:
        if not all(phase.is_recordable for phase in phases):
            return None
        graph, parameters = self.graph, {*map(id, self.parameters())}
        alone = {*map(id, graph.tensors())} <= parameters
        by_autograd = any(type(part).operator is Interaction.operator for part in graph.interactions)
        return graph if alone and not by_autograd else None

    @torch.compiler.disable
    def energy(self, x: Tensor, state: State | Relaxation) -> Tensor:
        """``E(theta, x, s)``, as the kind of network defines it.

        Args:
            x: Input ``(B, C, H, W)``.
            state: The layers ``(s_1, .., o)``, or a relaxation: of one of this very input under the present parameters,
                the pooling routes are those that it ended with.

        Returns:
            The energy of each sample, ``(B,)``, differentiable in parameters, input and state.
        """
        cache = known(self.graph, x, state)
        phase = self.phase(self.graph, x, as_layers(state))
        if cache is not None:
            phase.hold([drive.route for drive in cache.drives])
        return phase.energy()

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
            require_versions((x, *relaxation.state, *self.parameters()))
            raise ValueError(
                "The relaxation is not one of this network with its present parameters, or its layers were changed in "
                "place: relax anew."
            )
        rest, uppers = self.sources(relaxation, cache, weights)
        with torch.no_grad():
            value, opposite = weighted_energy(
                rest, graph, cache.operators, cache.drives, relaxation.state, uppers, cache.copies, x
            )
        return KnownGradient.apply(value, opposite, x, *graph.tensors())

    @abstractmethod
    def sources(self, relaxation: Relaxation, cache: Cache, weights: Tensor) -> tuple[Tensor, State]:
        """``rest`` and ``uppers`` of `timm_ebl.energy.gradient.weighted_energy` at the states of a relaxation."""

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
            perturbation: What is done to the layers, most often to the output layer; free by default.
            minimizer: How to minimise; by default as the model was built.

        Returns:
            The record of the relaxation.

        Raises:
            ValueError: The input, the start or the perturbation does not fit the network, or the input is not finite.
        """
        minimizer = self._minimizer(minimizer)
        _require_a_force_for_each(self.graph, perturbation)
        graph, cache = self.graph, known(self.graph, x, start)
        layers = None if start is None or isinstance(start, str) else as_layers(start)
        if cache is None:
            self.check_input(x, layers)
        if layers is None:
            phase = self.phase.begun(graph, x, Start(minimizer.start if start is None else start), perturbation)
        else:
            state = (*layers[:-1], perturbation.start(layers[-1]))
            phase = self.phase(graph, x, state, perturbation, cache)
        return descended(phase, minimizer)

    @torch.compiler.disable
    @torch.no_grad()
    def respond(self, free: Relaxation, perturbation: Perturbation, minimizer: Minimizer) -> Relaxation:
        """The linear response of a free state, as the kind of network defines it (`_response`). Not in the paper.

        The free state is treated as an equilibrium, and its pooling routes are held.

        Args:
            free: A free relaxation, or two copies of it (`Relaxation.twice`), as it ended.
            perturbation: The perturbation of each copy.
            minimizer: How to minimise.

        Raises:
            NotImplementedError: A drive is not linear.
            ValueError: It is none, the parameters or the state have changed since, or the perturbation does not fit.
        """
        if not self.responds:
            return super().respond(free, perturbation, minimizer)
        require_minimizer("minimizer", minimizer)
        _require_a_force_for_each(self.graph, perturbation)
        cache = known(self.graph, getattr(free, "input", None), free)
        if cache is None:
            if isinstance(free, Relaxation):
                require_versions((free.input, *free.state, *self.parameters()))
            raise ValueError(
                "A response starts from a free relaxation of this network, as it ended and under the same parameters: "
                "relax anew, and pass that."
            )
        return self._response(free, perturbation, minimizer, cache)

    @abstractmethod
    def _response(self, free: Relaxation, perturbation: Perturbation, minimizer: Minimizer, cache: Cache) -> Relaxation:
        """`respond`, given what the free relaxation has computed."""

    def state_shapes(self, x: Tensor) -> list[torch.Size]:
        """Shape of every layer of the state for an input ``x``, the batch first."""
        return self.graph.shapes(x.shape)

    def _minimizer(self, minimizer: Minimizer | None) -> Minimizer:
        minimizer = minimizer or self.minimizer
        require_minimizer("minimizer", minimizer)
        return minimizer


def _require_a_force_for_each(graph: Graph, perturbation: Perturbation) -> None:
    given, layers = getattr(perturbation, "forces", graph.layers), len(graph.layers)
    if len(given) != layers:
        raise ValueError(f"There is a force for each of {layers} layers, or None for it; got {len(given)}.")


def known(graph: Graph, x: Tensor, state: object) -> Cache | None:
    """What a relaxation has computed that still holds for an input; of any other state nothing."""
    return state.known(graph, x) if isinstance(state, Relaxation) else None


def descended(phase: Phase, minimizer: Minimizer) -> Relaxation:
    """The record of a phase after the sweeps of a minimiser."""
    residual, sweeps = descend(phase, minimizer)
    return phase.record(residual, sweeps, minimizer.tolerance)
